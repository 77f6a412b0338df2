"""Parse the examples that a command's user selects; by default the first ones."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stratascope.errors import InvalidInputError, NotRecordedError

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

MOST_SHOWN = 8
"""Number of examples by default, and most examples in one figure."""

_NUMBER = re.compile("0|[1-9][0-9]{0,17}")
_RANGE = re.compile(f"({_NUMBER.pattern})-({_NUMBER.pattern})")


def first_examples(store: ActivationStore, array: str, examples: str | Sequence[int | str] | None) -> list[int] | None:
    """Selected examples, as numbers, ids or a text for `asked_examples`; by default the first that `array` has.

    At most `MOST_SHOWN` by default; None where `array` is not recorded, so that the analysis says what is missing.

    Raises
    ------
    NotRecordedError
        If none is written yet, or no example has an id.
    InvalidInputError
        If a number is outside the store, or a range could mean ids.
    """
    if isinstance(examples, str):
        return asked_examples(store, examples)
    if examples is None:
        if array not in store.layout.record:
            return None
        examples = np.flatnonzero(store.available(array))[:MOST_SHOWN].tolist()
        if not examples:
            raise NotRecordedError(f"expected examples with {array}, found none written yet; finish the extraction")
    return [example_number(store, asked) for asked in examples]


def recorded_among(store: ActivationStore, array: str, numbers: list[int] | None) -> tuple[list[int] | None, list[str]]:
    """Selected examples that `array` has, and a line that lists the others, if any.

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


def asked_examples(store: ActivationStore, text: str) -> list[int]:
    """Parse comma-separated ids, numbers and ranges, such as `0,3-5,scenes-000007`, to example numbers.

    What is an id is that example, whatever else it looks like; so `4-6` is one example where one has that id. An id with a comma stands
    alone, or in double quotes.

    Raises
    ------
    InvalidInputError
        If a number is outside the store, a range could mean ids, or no example is named.
    NotRecordedError
        If no example has an id.
    """
    if text in store.ids:
        return [store.index_of(text)]
    parts = [part.strip() for row in csv.reader([text], skipinitialspace=True) for part in row]
    found = [number for part in parts if part for number in _of_part(store, part)]
    if not found:
        raise InvalidInputError(f"expected ids or numbers of examples such as 0,3-5, found {text!r}")
    return found


def _of_part(store: ActivationStore, part: str) -> Sequence[int]:
    ends = None if part in store.ids else _RANGE.fullmatch(part)
    if ends is None:
        return [example_number(store, part)]
    first, last = example_number(store, int(ends[1])), example_number(store, int(ends[2]))
    if last < first:
        raise InvalidInputError(f"expected a range from a number to a larger one, found {part}")
    ids = store.examples["id"]
    for end, number in ((ends[1], first), (ends[2], last)):
        if end in store.ids and store.index_of(end) != number:
            raise InvalidInputError(
                f"expected examples by number or by id, found {part}, which may be both: {end} is the id of example number "
                f"{store.index_of(end)}, and example number {end} has the id {ids[number]}; name the ids one by one, comma-separated"
            )
    return range(first, last + 1)


def example_number(store: ActivationStore, example: int | str) -> int:
    """Number of an example given by id or number; an id takes precedence over a number as text.

    Raises
    ------
    InvalidInputError
        If the number is outside the store.
    NotRecordedError
        If no example has the id.
    """
    text = str(example)
    if isinstance(example, str) and (text in store.ids or not re.fullmatch("0|[1-9][0-9]*", text)):
        return store.index_of(text)
    if not _NUMBER.fullmatch(text) or int(text) >= store.layout.examples:
        raise InvalidInputError(f"expected an example's id, or a number from 0 to {store.layout.examples - 1}, found {text[:80]}")
    return int(text)


def ids_line(store: ActivationStore, numbers: Sequence[int]) -> str:
    """A line that lists examples by number and id."""
    ids = store.examples["id"]
    shown = ", ".join(f"#{number} {ids[number]}" for number in numbers[:MOST_SHOWN])
    return f"examples (#number id): {shown}" + (", ..." if len(numbers) > MOST_SHOWN else "")
