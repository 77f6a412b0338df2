"""Columns of numbers: which of them are quantities, which name classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError

MOST_CLASSES = 10
"""A column with more different whole numbers is a quantity."""
TARGET = "value"
"""Name of the one target of a numeric column."""
_LEAST, _MOST = 1e-30, 1e30
"""Sizes whose squares float64 and whose predictions float32 represent."""
_FINEST = 1e-5
"""Smallest standard deviation relative to the largest value: predictions are kept in float32."""


@dataclass(frozen=True)
class ColumnTypes:
    """Columns of numbers whose kind is given, instead of following from their values.

    Others are quantities, predicted by ridge regression, if they hold fractions or more than ten different whole numbers; else classes.
    """

    numeric: tuple[str, ...] = ()
    """Columns of whole numbers that are quantities."""
    categorical: tuple[str, ...] = ()
    """Columns of whole numbers that name classes."""

    def __post_init__(self) -> None:
        if both := sorted({*self.numeric} & {*self.categorical}):
            raise InvalidInputError(f"expected each column in one of `numeric` and `categorical`, found {both[0]} in both; remove one")

    def is_quantity(self, name: str, values: pd.Series) -> bool:
        """Whether a column is a quantity.

        Parameters
        ----------
        name
            Of the column.
        values
            All of its values, so that a selection of examples does not change its kind.

        Raises
        ------
        InvalidInputError
            `numeric` names a column that does not hold numbers.

        Examples
        --------
        >>> ColumnTypes().is_quantity("metres", pd.Series([0.5, 2.0, 1.25]))
        True
        >>> ColumnTypes().is_quantity("level", pd.Series([1, 2, 3])), ColumnTypes(("level",)).is_quantity("level", pd.Series([1, 2]))
        (False, True)
        """
        there = values.dropna()
        numbers: list[Any] = [v for v in there if isinstance(v, int | float | np.number) and not isinstance(v, bool | np.bool_)]
        plain = bool(numbers) and len(numbers) == len(there)
        if name in self.numeric and not plain:
            odd = next((value for value in there if isinstance(value, str | bool | np.bool_)), None)
            raise InvalidInputError(f"task {name!r}: expected numbers in a column of `numeric`, found {odd!r}; leave it out of `numeric`")
        if not plain or name in self.categorical:
            return False
        fractions = any(value % 1 != 0 for value in numbers)
        return name in self.numeric or fractions or len(set(numbers)) > MOST_CLASSES


def quantity(name: str, values: pd.Series, wanted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(example, 1) regression targets; 0 where an example is not wanted.

    Raises
    ------
    InvalidInputError
        A value is infinite, or too large, too small or too finely spaced for the precision of the predictions.
    """
    found = np.zeros((len(values), 1))
    found[wanted, 0] = [float(value) for value in values[wanted]]
    used = found[wanted, 0]
    odd = np.flatnonzero(~np.isfinite(used))
    if len(odd):
        place = int(np.flatnonzero(wanted)[odd[0]])
        raise InvalidInputError(
            f"task {name!r}: expected finite numbers, found an infinite value ({used[odd[0]]:g}) at example {place}; give it another, or "
            "leave it out"
        )
    largest, deviation = float(np.abs(used).max(initial=0)), float(used.std()) if len(used) else 0.0
    if largest and (not _LEAST < largest < _MOST or 0 < deviation < _FINEST * largest):
        raise InvalidInputError(
            f"task {name!r}: expected numbers of a size between {_LEAST:g} and {_MOST:g}, with a standard deviation above {_FINEST:g} of "
            f"the largest, found up to {largest:g} with a standard deviation of {deviation:g}; choose another unit, or subtract their mean"
        )
    return found
