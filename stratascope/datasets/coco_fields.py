"""Fields of COCO's instances format: ids, numbers and flags as other programs write them, and ids that occur twice."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from stratascope.datasets.image_names import path_parts
from stratascope.errors import InvalidInputError

_FLAGS = {"0": False, "1": True, "false": False, "true": True}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

T = TypeVar("T")


def read_id(value: Any) -> str:
    """An id as text: 7 and "7" are the same id, "07" is another; ValueError for what is no id."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(f"an id is a whole number or a text, not {str(value)[:80]!r}")
    return str(value)


def read_number(value: Any) -> float:
    """A finite number, also where it is written as text; ValueError for anything else."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain and not (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        raise ValueError(f"expected a number, found {str(value)[:80]!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, found {str(value)[:80]!r}")
    return number


def read_numbers(value: Any) -> tuple[float, ...]:
    """The finite numbers of a list; ValueError for anything else."""
    if not isinstance(value, list):
        raise ValueError(f"expected a list of numbers, found {str(value)[:80]!r}")
    return tuple(map(read_number, value))


def read_flag(value: Any) -> bool:
    """A flag, which some programs write as text; absent means false. ValueError for anything else."""
    if value is None:
        return False
    text = str(value).strip().lower()
    if text not in _FLAGS:
        raise ValueError(f"expected 0 or 1, found {str(value)[:80]!r}")
    return _FLAGS[text]


def add_once(found: dict[str, T], what: str, row: Mapping[str, Any], value: T) -> None:
    """Keep what a row says by its id; ValueError where another row of that id says something else."""
    number = read_id(row["id"])
    if found.setdefault(number, value) != value:
        raise ValueError(f"{what} id {number} twice, for {found[number]} and {value}; give each {what} an id of its own")


def check_file_names(file_of: Mapping[str, str], path: Path | str) -> None:
    """InvalidInputError where two image ids have one file name, because their boxes would be those of one photo."""
    owner: dict[tuple[str, ...], str] = {}
    for number, name in file_of.items():
        if (other := owner.setdefault(path_parts(name), number)) != number:
            raise InvalidInputError(
                f"{path}: expected a file name for each image, found {name} for the images {other} and {number}; write file_name with its "
                "folder, or give the photo one id"
            )


def without_repeats(annotations: Iterable[Any], path: Path | str) -> list[Any]:
    """The annotations, one that is repeated word for word once.

    Raises
    ------
    InvalidInputError
        If two different ones have the same id.
    """
    first: dict[Any, Any] = {}
    kept = []
    for row in annotations:
        number = row.get("id") if isinstance(row, dict) else None
        known = number is not None and not isinstance(number, list | dict)
        if known and (other := first.setdefault(number, row)) is not row:
            if other != row:
                raise InvalidInputError(
                    f"{path}: expected an id of its own for each annotation, found id {number} for {str(other)[:100]} and {str(row)[:100]}"
                )
            continue
        kept.append(row)
    return kept
