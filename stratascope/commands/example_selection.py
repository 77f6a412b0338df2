"""Examples that a command works on: those its user names, or the first ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stratascope.errors import InvalidInputError, NotRecordedError

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

MOST_SHOWN = 8
"""Examples drawn side by side, and worked on where none are named."""


def first_examples(store: ActivationStore, array: str, examples: Sequence[int | str] | None) -> list[int] | None:
    """The examples asked for by number or id, or the first `MOST_SHOWN` that `array` holds; None where it is not recorded, so that
    the analysis says what is missing.

    Raises
    ------
    NotRecordedError
        If none is written yet, or no example has an id.
    InvalidInputError
        If a number is outside the store.
    """
    if examples is None:
        if array not in store.layout.record:
            return None
        examples = np.flatnonzero(store.available(array))[:MOST_SHOWN].tolist()
        if not examples:
            raise NotRecordedError(f"expected examples with {array}, found none written yet; finish the extraction")
    return [example_number(store, asked) for asked in examples]


def recorded_among(store: ActivationStore, array: str, numbers: list[int] | None) -> tuple[list[int] | None, list[str]]:
    """Of examples asked for, those that `array` holds, and a line on the others, which failed or were not chosen for it; none if none did.

    Unwritten ones are kept, as are all where none is held, so that the analysis says what is missing.
    """
    if numbers is None or array not in store.layout.record:
        return numbers, []
    lacking = np.repeat(store.written, store.layout.block)[: store.layout.examples] & ~store.available(array)
    out = [k for k in dict.fromkeys(numbers) if lacking[k]]
    kept = [k for k in numbers if not lacking[k]]
    if not out or not kept:
        return numbers, []
    ids, more = ", ".join(store.examples["id"].iloc[out[:MOST_SHOWN]]), ", ..." if len(out) > MOST_SHOWN else ""
    return kept, [f"left out, being without {array.replace('_', ' ')} (not chosen for them, or the image could not be read): {ids}{more}"]


def example_number(store: ActivationStore, example: int | str) -> int:
    """A number, or the number of an id.

    Raises
    ------
    InvalidInputError
        If the number is outside the store.
    NotRecordedError
        If no example has the id.
    """
    text = str(example)
    if not text.isdecimal():
        return store.index_of(text)
    if int(text) >= store.layout.examples:
        raise InvalidInputError(f"expected an example's id, or a number from 0 to {store.layout.examples - 1}, found {text}")
    return int(text)
