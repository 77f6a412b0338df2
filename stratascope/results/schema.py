"""What a kind of result declares that it holds, and whether a file holds it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import pandas as pd
from numpy.typing import NDArray

from stratascope.results.lazy_arrays import Arrays, OnFile, extent_of

MOST = 1 << 53
"""Whole numbers beyond it are none that this package writes, nor ones that every reader of JSON keeps."""
ROUNDING = 1e-3
"""By so much a share may lie beside 0 and 1."""
_KINDS = {"text": "OTU", "int": "iu", "float": "fiu", "share": "f", "bool": "b"}


@dataclass(frozen=True)
class Along:
    """An attribute that is a list with one value for each place along a dimension."""

    dim: str
    of: Any
    """Type of a value."""


@dataclass(frozen=True)
class Columns:
    """The columns that a table must have; it may have others."""

    kinds: Mapping[str, str]
    """Name -> text, int, float, share (0 to 1, NaN where it is not known) or bool."""
    dim: str = ""
    """The dimension of arrays that its rows are; none by default."""
    keys: tuple[str, ...] = ()
    """Names of columns, parted by spaces, by which no two rows are alike."""
    grid: str = ""
    """Names of columns whose values are all met together, once each; the last may be a dimension of arrays."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Column -> its values, parted by spaces; of a key all are there."""
    empty: bool = False
    """Whether it may be without rows."""


@dataclass(frozen=True)
class Axes:
    """What an array is made of."""

    kind: str
    """text, int, float, share or bool."""
    dims: tuple[str, ...]
    """Names; `*` in one stands for anything."""


def each(kind: Any, names: str) -> dict[str, Any]:
    """Attributes, names parted by spaces, that are of one type."""
    return dict.fromkeys(names.split(), kind)


def columns(
    dim: str = "",
    *,
    text: str = "",
    ints: str = "",
    floats: str = "",
    shares: str = "",
    flags: str = "",
    keys: Sequence[str] = (),
    **said: Any,
) -> Columns:
    """The columns of a table, names parted by spaces, by what they hold; `keys` and what else is `said` as of `Columns`."""
    named = {"text": text, "int": ints, "float": floats, "share": shares, "bool": flags}
    return Columns({name: kind for kind, names in named.items() for name in names.split()}, dim, tuple(keys), **said)


def floats(dims: str) -> Axes:
    """An array of numbers; names of its dimensions parted by spaces."""
    return Axes("float", tuple(dims.split()))


def shares(dims: str) -> Axes:
    """An array of shares, 0 to 1; names of its dimensions parted by spaces."""
    return Axes("share", tuple(dims.split()))


def ints(dims: str) -> Axes:
    """An array of whole numbers; names of its dimensions parted by spaces."""
    return Axes("int", tuple(dims.split()))


@dataclass(frozen=True)
class Kind:
    """What a kind of result holds. Whatever else is in a file is left alone: a later version may have put it there."""

    attributes: Mapping[str, Any]
    """Name -> type; of a name that ends in `?` there may be none. A dict is a record of such names, `Along` a list along a dimension."""
    tables: Mapping[str, Columns] = field(default_factory=dict)
    arrays: Mapping[str, Axes] = field(default_factory=dict)
    """Name -> its dimensions; `*` in a name stands for anything, and at least one array is there. A dimension has one size in all of
    the arrays, tables and attributes that have it."""
    rules: tuple[Callable[[Mapping[str, Any], Mapping[str, pd.DataFrame], Arrays], str | None], ...] = ()
    """What else must hold: what is wrong with attributes, tables and arrays that are as declared, in words, or None."""

    def unlike(self, attributes: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], arrays: Arrays) -> str | None:
        """The first thing that is not as declared, as "expected ..., found ..."; None where all is."""
        sizes: dict[str, tuple[int, str]] = {}
        found = [
            *_unlike_record(attributes, self.attributes, "attribute", sizes),
            *self._unlike_tables(tables, sizes),
            *self._unlike_arrays(arrays, sizes),
        ]
        if found:
            return found[0]
        return next((said for rule in self.rules if (said := rule(attributes, tables, arrays))), None)

    def _unlike_tables(self, tables: Mapping[str, pd.DataFrame], sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
        for name, wanted in self.tables.items():
            if name not in tables:
                yield f"expected a table {name!r}, found {', '.join(map(repr, tables)) or 'none'}"
                continue
            table = tables[name]
            for column, kind in wanted.kinds.items():
                if column not in table:
                    yield f"expected a column {column!r} in table {name!r}, found {', '.join(map(str, table.columns)) or 'none'}"
                elif len(table) and not _is(kind, table[column].to_numpy()):
                    yield f"expected {kind} in column {column!r} of table {name!r}, found {_range(table[column].to_numpy())}"
            if wanted.dim:
                yield from _sized(wanted.dim, len(table), f"table {name!r}", sizes)
            if not len(table) and not wanted.empty:
                yield f"expected rows in table {name!r}, found none"
        # what rows say is asked where all columns are there
        yield from (said for name, wanted in self.tables.items() for said in _unlike_rows(name, tables, wanted))

    def _unlike_arrays(self, arrays: Arrays, sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
        for pattern, wanted in self.arrays.items():
            names = [name for name in arrays if fnmatchcase(name, pattern)]
            if not names:
                yield f"expected an array {pattern!r}, found {', '.join(map(repr, arrays)) or 'none'}"
            for name in names:
                dims, values = arrays.held[name]
                if len(dims) != len(wanted.dims) or not all(map(fnmatchcase, map(str, dims), wanted.dims)):
                    yield f"expected array {name!r} by {', '.join(wanted.dims)}, found {', '.join(map(str, dims)) or 'no dimensions'}"
                elif not _is(wanted.kind, values):
                    yield f"expected {wanted.kind} in array {name!r}, found {_range(values)}"
                else:
                    for dim, size in zip(dims, values.shape, strict=True):
                        yield from _sized(dim, size, f"array {name!r}", sizes)


def _unlike_rows(name: str, tables: Mapping[str, pd.DataFrame], wanted: Columns) -> Iterator[str]:
    table = tables.get(name)
    if table is None or not set(wanted.kinds) <= set(table.columns):
        return
    for key in (*wanted.keys, wanted.grid) if wanted.grid else wanted.keys:
        names = key.split()
        if twice := int(table.duplicated(names).sum()):
            yield f"expected one row of table {name!r} for each {', '.join(names)}, found {twice} more"
    names = wanted.grid.split()
    cells = math.prod(table[column].nunique(dropna=False) for column in names)
    if names and cells != len(table):
        yield f"expected table {name!r} to have every {' with every '.join(names)}, {cells} rows, found {len(table)}"
    for column, values in wanted.values.items():
        found, known = set(table[column]), set(values.split())
        if not found <= known or (column in wanted.keys and found != known):
            said = ", ".join(sorted(map(_told, found)))
            yield f"expected {', '.join(values.split())} in column {column!r} of table {name!r}, found {said}"


def _is(kind: str, values: NDArray[Any] | OnFile) -> bool:
    if values.dtype.kind not in _KINDS[kind]:
        return False
    if kind == "share":
        least, most = extent_of(values)
        return not (least < -ROUNDING or most > 1 + ROUNDING)  # NaN, where nothing is known, is neither
    return kind != "text" or isinstance(values, OnFile) or all(value is None or _is_text(value) for value in values.flat)


def _range(values: NDArray[Any] | OnFile) -> str:
    least, most = extent_of(values) if values.dtype.kind == "f" else (math.nan, math.nan)
    return str(values.dtype) if math.isnan(least) else f"{least:.3g} to {most:.3g}"


def _is_text(value: Any) -> bool:
    """Whether it is text that can be written in UTF-8: JSON can name halves of characters, too."""
    return isinstance(value, str) and (value.isascii() or value == value.encode("utf-8", "replace").decode())


def _sized(dim: str, size: int, where: str, sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
    known, first = sizes.setdefault(dim, (size, where))
    if known != size:
        yield f"expected as many {dim}s in {where} as in {first} ({known}), found {size}"


def unlike_record(value: Any, wanted: Mapping[str, Any], where: str) -> str | None:
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
    return next(_unlike_record(value, wanted, where, {}), None)


def _unlike_record(value: Any, wanted: Mapping[str, Any], where: str, sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"expected {where} to be a record, found {_told(value)}"
        return
    for key, kind in wanted.items():
        name = key.removesuffix("?")
        if name in value:
            yield from _unlike_value(value[name], kind, f"{where} {name!r}" if where == "attribute" else f"{where}, {name!r}", sizes)
        elif name == key:
            yield f"expected {where} {name!r}, found {', '.join(map(str, value)) or 'none'}"


def _unlike_value(value: Any, kind: Any, where: str, sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
    if isinstance(kind, Mapping):
        yield from _unlike_record(value, kind, where, sizes)
    elif isinstance(kind, Along):
        yield from _unlike_value(value, list[kind.of], where, sizes)
        if isinstance(value, list):
            yield from _sized(kind.dim, len(value), where, sizes)
    elif isinstance(kind, tuple):  # one of several, records among them
        found = [list(_unlike_value(value, one, where, {})) for one in kind]
        if all(found):
            yield max(found, key=lambda said: "to be" not in said[0])[0]
    elif not fits(value, kind):
        yield f"expected {where} to be {_said(kind)}, found {_told(value)}"


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
        return isinstance(value, dict) and all(_is_text(key) and fits(one, inner[1]) for key, one in value.items())
    if kind in (None, NoneType):
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    if kind is str:
        return _is_text(value)
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    return math.isfinite(value) and (not isinstance(value, int) or abs(value) <= MOST)


def _said(kind: Any) -> str:
    """A type in words, in the singular."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return " or ".join(_said(one) for one in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is list:
        return f"a list, each {_said(inner[0])}"
    if origin is tuple:
        return f"{len(inner)} values, each {_said(inner[0])}"
    if origin is dict:
        return f"a record, each {_said(inner[1])}"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "null")


def _told(value: Any) -> str:
    """A value as far as a line can hold it."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
