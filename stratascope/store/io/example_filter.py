"""Which examples have the values that were chosen: COLUMN=VALUE, with the same meaning for every analysis."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.store.format.categories import category_of

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.store.io.reader import ActivationStore


CATEGORY = "category"
"""What examples can be chosen by though it is no column of theirs: the meta category of the relation."""


def checked_choice(only: Sequence[str]) -> tuple[str, ...]:
    """`only` as it was given, COLUMN=VALUE each; InvalidInputError for anything else."""
    if isinstance(only, str):
        raise InvalidInputError(f"expected a list of what is chosen, found the text {only!r}; give for example only=({only!r},)")
    if without := [text for text in only if not all(text.partition("="))]:
        raise InvalidInputError(f"expected what is chosen as COLUMN=VALUE, found {without[0]!r}; give for example label=1")
    return tuple(only)


def chosen_examples(store: ActivationStore, only: Sequence[str]) -> NDArray[np.bool_]:
    """Examples that have, in each column named, one of the values given for it.

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
    for column, wanted in values.items():
        there = column_texts(store, column)
        for value in wanted:
            if not (there == value).any():
                raise InvalidInputError(
                    f"expected to choose by a value of {column}, found {value!r}; it has {', '.join(sorted(set(there))[:8])}"
                )
        chosen &= there.isin(wanted).to_numpy()
    if not chosen.any():
        raise InvalidInputError(f"expected examples of {choice_text(only)}, found none that has all of these; choose fewer")
    return chosen


def column_texts(store: ActivationStore, column: str) -> pd.Series[str]:
    """A column of a store's examples as text, by which they are chosen and told apart.

    `category` is the meta category of each example's relation, unless the examples have a column of that name.

    Raises
    ------
    InvalidInputError
        If there is no such `column`.
    """
    if column in store.examples.columns:
        return store.examples[column].astype(str)
    if column == CATEGORY:
        return store.examples["relation"].map(category_of)
    raise InvalidInputError(
        f"expected a column of the examples, found {column!r}; columns are {', '.join(map(str, store.examples))}, and {CATEGORY} (of the "
        "relation)"
    )


def choice_of(attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """The choice that a result was made of, from its attributes; () for all examples. A curve says it among its settings."""
    settings = attributes.get("settings")
    own = attributes.get("only", settings.get("only", ()) if isinstance(settings, Mapping) else ())
    return tuple(map(str, own or ()))


def choice_options(only: Sequence[str]) -> str:
    """`only` as options of a shell command, with a space before each."""
    return "".join(f" --only {shlex.quote(text)}" for text in only)


def choice_text(only: Sequence[str]) -> str:
    """`only` in a line: `relation=above, label=1`; "" where all examples take part."""
    return ", ".join(only)
