"""Filter examples by COLUMN=VALUE."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.store.io.reader import ActivationStore


_TRUTHS = {"true", "false"}
_FRACTION = re.compile(r"-?[0-9]+\.[0-9]+")
"""A number with a decimal point, such as 1.0."""

NO_VALUE = "no value"
"""Group name of examples without a value in the grouping column."""
CATEGORY = "category"
"""Name of the derived column with the relation's meta category."""

CATEGORIES = {
    "Adjacency": (
        "adjacent to, alongside, at the side of, at the right side of, at the left side of, attached to, at the back of, ahead of, "
        "against, at the edge of"
    ),
    "Directional": (
        "off, past, toward, down, deep down, up, away from, along, around, from, into, to, across, across from, through, down from"
    ),
    "Orientation": "facing, facing away from, parallel to, perpendicular to",
    "Projective": "on top of, beneath, beside, behind, left of, right of, under, in front of, below, above, over, in the middle of",
    "Proximity": "by, close to, near, far from, far away from",
    "Topological": (
        "connected to, detached from, has as a part, part of, contains, within, at, on, in, with, surrounding, among, consists of, "
        "out of, between, inside, outside, touching"
    ),
    "Unallocated": "beyond, next to, opposite to, after, enclosed by",
}
"""Meta categories of spatial relations (VSR, Liu et al. 2023, table 1): category -> relations.

The published list has `among` in two categories; here it is topological.
"""

_BY_RELATION = {relation: category for category, relations in CATEGORIES.items() for relation in relations.split(", ")}


def category_of(relation: str) -> str:
    """Meta category of a relation; Unallocated if the list lacks it.

    >>> category_of("left of"), category_of("to the left of"), category_of("juggling")
    ('Projective', 'Projective', 'Unallocated')
    """
    words = relation.removeprefix("to the ").removeprefix("on the ") if relation not in _BY_RELATION else relation
    return _BY_RELATION.get(words, "Unallocated")


def checked_choice(only: Sequence[str]) -> tuple[str, ...]:
    """Validate a filter, `only`: a sequence of COLUMN=VALUE; InvalidInputError for anything else."""
    if isinstance(only, str):
        raise InvalidInputError(f"expected a list of what is chosen, found the text {only!r}; give for example only=({only!r},)")
    if without := [text for text in only if not all(text.partition("="))]:
        raise InvalidInputError(f"expected what is chosen as COLUMN=VALUE, found {without[0]!r}; give for example label=1")
    return tuple(only)


def chosen_examples(store: ActivationStore, only: Sequence[str]) -> NDArray[np.bool_]:
    """Select the examples that match a filter in every column.

    Parameters
    ----------
    only
        COLUMN=VALUE; several values of one column: any of them. Empty for all examples.

    Returns
    -------
    numpy.ndarray
        (example,) bool.

    Raises
    ------
    InvalidInputError
        If there is no such column, no example has a value, or none has one of every column.
    """
    values: dict[str, list[str]] = {}
    for text in checked_choice(only):
        column, _, value = text.partition("=")
        values.setdefault(column, []).append(value)
    chosen = np.ones(store.layout.examples, dtype=bool)
    for column, asked in values.items():
        there = column_texts(store, column)
        known = set(there.dropna())
        kind = _kind_of(store, column, known)
        wanted = [_as_spelled(value, kind, known) for value in asked]
        for value, spelled in zip(asked, wanted, strict=True):
            if spelled not in known:
                missing = int(there.isna().sum())
                has = ", ".join(sorted(known, key=_by_size)[:8]) or "no value"
                raise InvalidInputError(
                    f"expected to choose by a value of {column}, found {value!r}; it has {has}"
                    + (f", and none in {missing:,} of {len(there):,} examples" if missing else "")
                )
        chosen &= there.isin(wanted).to_numpy()
    if not chosen.any():
        raise InvalidInputError(f"expected examples of {choice_text(only)}, found none that has all of these; choose fewer")
    return chosen


def column_texts(store: ActivationStore, column: str) -> pd.Series[str]:
    """A column of the examples as text, for filters and groups; missing values stay missing.

    Whole numbers are written without a decimal point, also in a column with missing values. `category` is the meta category of each
    example's relation, unless the examples have a column of that name.

    Raises
    ------
    InvalidInputError
        If there is no such `column`.
    """
    if column in store.examples.columns:
        import pandas as pd

        values = store.examples[column]
        texts = [None if gone else value_text(value) for value, gone in zip(values, values.isna(), strict=True)]
        return pd.Series(texts, index=values.index, dtype=object)
    if column == CATEGORY:
        return store.examples["relation"].map(category_of)
    raise InvalidInputError(
        f"expected a column of the examples, found {column!r}; columns are {', '.join(map(str, store.examples))}, and {CATEGORY} (of the "
        "relation)"
    )


def value_text(value: Any) -> str:
    """A value of a column as text: 2.0 as 2, truth values as True and False."""
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _kind_of(store: ActivationStore, column: str, known: Collection[str]) -> str:
    """Kind of a column's values: numbers, truths (stored as text if some are missing) or texts."""
    import pandas as pd

    kind = store.examples[column].dtype if column in store.examples.columns else None
    if kind is not None and pd.api.types.is_bool_dtype(kind):
        return "truths"
    if kind is not None and pd.api.types.is_numeric_dtype(kind):
        return "numbers"
    return "truths" if known and {text.lower() for text in known} <= _TRUTHS else "texts"


def _as_spelled(value: str, kind: str, known: Collection[str]) -> str:
    """Spelling of a value in a column; `value` itself if the column lacks it."""
    if value in known:
        return value
    if kind == "numbers" and _FRACTION.fullmatch(value):
        exact = Decimal(value)  # a float would not tell whole numbers beyond 2^53 apart
        return str(int(exact)) if exact == exact.to_integral_value() else str(float(value))
    if kind == "truths":
        alike = [text for text in known if text.lower() == value.lower()]
        return alike[0] if len(alike) == 1 else value
    return value


def _by_size(text: str) -> tuple[float, str]:
    """Sort key for messages; numbers by size."""
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def choice_of(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """The filter of a result, from its attributes; () for all examples. A curve keeps it in its settings."""
    settings = attributes.get("settings")
    own = attributes.get("only", settings.get("only", ()) if isinstance(settings, Mapping) else ())
    return tuple(map(str, own or ()))


def choice_options(only: Sequence[str]) -> str:
    """A filter as options of a shell command, each with a leading space.

    >>> choice_options(("relation=left of", "label=1"))
    " --only 'relation=left of' --only label=1"
    """
    return "".join(f" --only {shlex.quote(text)}" for text in only)


def choice_text(only: Sequence[str]) -> str:
    """The filter `only` in one line; "" for all examples.

    >>> choice_text(("relation=above", "label=1"))
    'relation=above, label=1'
    """
    return ", ".join(only)
