"""Positions of probes: one position of an array, or a pair of positions such as `subject_box+object_box`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.store import ActivationStore

PairForm = Literal["concatenation", "difference", "bilinear"]
"""concatenation: the vectors [a, b]; difference: a - b; bilinear: [a, b] and products of their principal components
(`BilinearFeatures`)."""
Position = str | tuple[str, str] | None
"""One position, a pair (as text, its names joined by +), or None for an array without positions."""
PAIR_FORMS: tuple[PairForm, ...] = ("concatenation", "difference", "bilinear")
_JOINED = "+"


def position_text(position: Position) -> str | None:
    """The position as text: a pair's names joined by `+`.

    Raises
    ------
    InvalidInputError
        A pair does not consist of two different positions.

    Examples
    --------
    >>> position_text(("subject_box", "object_box"))
    'subject_box+object_box'
    """
    text = position if position is None or isinstance(position, str) else _JOINED.join(map(str, position))
    position_names(text)
    return text


def position_names(position: str | None) -> tuple[str, ...]:
    """Names of the positions of a text: one, or the two of a pair; none for None. InvalidInputError for any other text."""
    if position is None:
        return ()
    names = tuple(name.strip() for name in position.split(_JOINED))
    if len(names) > 2 or not all(names) or len(set(names)) < len(names):
        raise InvalidInputError(
            f"expected a position or a pair of two positions such as subject_box+object_box, found {position!r}; give another (`positions`)"
        )
    return names


def is_pair(position: str | None) -> bool:
    """Whether the position is a pair."""
    return len(position_names(position)) == 2


def available_at(store: ActivationStore, array: str, position: str | None) -> NDArray[np.bool_]:
    """(example,) whether the array holds the example at the position, or at both positions of a pair."""
    if is_pair(position):
        return store.available(array, positions=position_names(position))
    return store.available(array, position)


def read_at(
    store: ActivationStore, array: str, position: str | None, *, layer: int | None, examples: Sequence[int] | NDArray[Any], pair: PairForm
) -> NDArray[Any]:
    """Activations of one layer at a position.

    Parameters
    ----------
    store, array
        Where they are.
    position
        One position, or a pair.
    layer
        The layer; None for an array without layers.
    examples
        Numbers of the examples.
    pair
        Form of a pair.

    Returns
    -------
    numpy.ndarray
        (example, ...) of one position; (example, column) of the difference; (example, 2 x column) of both vectors, the first position's
        columns first, for the other forms: `BilinearFeatures` makes the products from these.
    """
    if not is_pair(position):
        return store.read(array, layer=layer, position=position, examples=examples)
    first, second = (
        store.read(array, layer=layer, position=name, examples=examples).reshape(len(examples), -1) for name in position_names(position)
    )
    return first - second if pair == "difference" else np.concatenate([first, second], axis=1)


def columns_at(columns: int, position: str | None, *, pair: PairForm, rank: int) -> int:
    """Columns of a probe's input at a position whose vectors have `columns` each."""
    if not is_pair(position) or pair == "difference":
        return columns
    return 2 * columns + (min(rank, columns) ** 2 if pair == "bilinear" else 0)
