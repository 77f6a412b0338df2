"""Schemas of JSON records, such as a store's provenance and a result's attributes, and what does not match them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

LARGEST_INT = 1 << 53
"""Whole numbers beyond it are none that this package writes, nor ones that every reader of JSON keeps."""


@dataclass(frozen=True)
class Along:
    """An attribute that is a list with one value for each place along a dimension."""

    dim: str
    of: Any
    """Type of a value."""


def each(kind: Any, names: str) -> dict[str, Any]:
    """Attributes of one type, from space-separated names."""
    return dict.fromkeys(names.split(), kind)


def is_utf8(value: Any) -> bool:
    """Whether it is text that can be written in UTF-8: JSON can name halves of characters, too."""
    return isinstance(value, str) and (value.isascii() or value == value.encode("utf-8", "replace").decode())


def size_mismatch(dim: str, size: int, where: str, sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
    """Where a dimension has another size than in `sizes`, which keeps the first size of each dimension and its place."""
    known, first = sizes.setdefault(dim, (size, where))
    if known != size:
        yield f"expected as many {dim}s in {where} as in {first} ({known}), found {size}"


def record_mismatch(value: Any, wanted: Mapping[str, Any], where: str) -> str | None:
    """The first thing of a record that is not as declared, as "expected ..., found ..."; None where all is.

    Parameters
    ----------
    value
        Of JSON.
    wanted
        Name -> type, as of `Kind.attributes`.
    where
        What the record is called.
    """
    return next(record_mismatches(value, wanted, where, {}), None)


def record_mismatches(value: Any, wanted: Mapping[str, Any], where: str, sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
    """All mismatches of a record, as of `record_mismatch`."""
    if not isinstance(value, Mapping):
        yield f"expected {where} to be a record, found {shown(value)}"
        return
    for key, kind in wanted.items():
        name = key.removesuffix("?")
        if name in value:
            yield from value_mismatches(value[name], kind, f"{where} {name!r}" if where == "attribute" else f"{where}, {name!r}", sizes)
        elif name == key:
            yield f"expected {where} {name!r}, found {', '.join(map(str, value)) or 'none'}"


def value_mismatches(value: Any, kind: Any, where: str, sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
    """All mismatches of a value with its type."""
    if isinstance(kind, Mapping):
        yield from record_mismatches(value, kind, where, sizes)
    elif isinstance(kind, Along):
        yield from value_mismatches(value, list[kind.of], where, sizes)
        if isinstance(value, list):
            yield from size_mismatch(kind.dim, len(value), where, sizes)
    elif isinstance(kind, tuple):  # one of several, records among them
        found = [list(value_mismatches(value, one, where, {})) for one in kind]
        if all(found):
            yield max(found, key=lambda said: "to be" not in said[0])[0]
    elif not fits(value, kind):
        yield f"expected {where} to be {type_text(kind)}, found {shown(value)}"


def fits(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a type: str, int, float (whole numbers are), bool, None, Literal, list[...], dict[str, ...], a union.

    Numbers are finite, and text can be written in UTF-8.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is UnionType:
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is list:
        return isinstance(value, list) and all(fits(one, inner[0]) for one in value)
    if origin is tuple:
        return isinstance(value, list) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin is dict:
        return isinstance(value, dict) and all(is_utf8(key) and fits(one, inner[1]) for key, one in value.items())
    if kind in (None, NoneType):
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:
        return is_utf8(value)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    return math.isfinite(value) and (not isinstance(value, int) or abs(value) <= LARGEST_INT)


def type_text(kind: Any) -> str:
    """A type in words, in the singular."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(type_text(one) for one in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is list:
        return f"a list, each {type_text(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} values, each {type_text(inner[0])}"
    if origin is dict:
        return f"a record, each {type_text(inner[1])}"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "null")


def shown(value: Any) -> str:
    """A value, shortened to one line."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
