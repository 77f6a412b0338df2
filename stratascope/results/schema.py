"""Schema of a kind of result, and the check of a file against it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from stratascope.results.lazy_arrays import Arrays, OnFile, extent_of
from stratascope.store.format.json_schema import is_utf8, record_mismatches, shown, size_mismatch

ROUNDING = 1e-3
"""Tolerance of a share below 0 and above 1."""
_KINDS = {"text": "OTU", "int": "iu", "float": "fiu", "share": "f", "bool": "b"}


@dataclass(frozen=True)
class TableSchema:
    """Columns that a table must have; it may have others."""

    kinds: Mapping[str, str]
    """Name -> text, int, float, share (0 to 1, NaN where unknown) or bool."""
    dim: str = ""
    """Dimension of arrays that the rows share; none by default."""
    keys: tuple[str, ...] = ()
    """Space-separated columns whose values together identify a row."""
    grid: str = ""
    """Space-separated columns; the table has every combination of their values exactly once."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Column -> its space-separated values; a key column has all of them."""
    empty: bool = False
    """Whether the table may have no rows."""


@dataclass(frozen=True)
class ArraySchema:
    """Type and dimensions of an array."""

    kind: str
    """text, int, float, share or bool."""
    dims: tuple[str, ...]
    """Names; `*` is a wildcard."""


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
) -> TableSchema:
    """Schema of a table from space-separated column names by type; `keys` and `said` as of `TableSchema`."""
    named = {"text": text, "int": ints, "float": floats, "share": shares, "bool": flags}
    return TableSchema({name: kind for kind, names in named.items() for name in names.split()}, dim, tuple(keys), **said)


def floats(dims: str) -> ArraySchema:
    """Array of numbers with space-separated dimensions."""
    return ArraySchema("float", tuple(dims.split()))


def shares(dims: str) -> ArraySchema:
    """Array of shares (0 to 1) with space-separated dimensions."""
    return ArraySchema("share", tuple(dims.split()))


def ints(dims: str) -> ArraySchema:
    """Array of integers with space-separated dimensions."""
    return ArraySchema("int", tuple(dims.split()))


@dataclass(frozen=True)
class ResultSchema:
    """Attributes, tables and arrays of a kind of result. A file may hold others, for instance of a later version."""

    attributes: Mapping[str, Any]
    """Name -> type; a name that ends in `?` is optional. A dict is a nested record, `Along` a list along a dimension."""
    tables: Mapping[str, TableSchema] = field(default_factory=dict)
    arrays: Mapping[str, ArraySchema] = field(default_factory=dict)
    """Name -> schema; `*` in a name is a wildcard for at least one array, and a name that ends in `?` is optional. A dimension has one size
    in all arrays, tables and attributes."""
    rules: tuple[Callable[[Mapping[str, Any], Mapping[str, pd.DataFrame], Arrays], str | None], ...] = ()
    """Further checks of attributes, tables and arrays; each returns a message or None."""

    def mismatch(self, attributes: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], arrays: Arrays) -> str | None:
        """The first mismatch as "expected ..., found ..."; None for a valid file."""
        sizes: dict[str, tuple[int, str]] = {}
        found = [
            *record_mismatches(attributes, self.attributes, "attribute", sizes),
            *self._table_mismatches(tables, sizes),
            *self._array_mismatches(arrays, sizes),
        ]
        if found:
            return found[0]
        return next((said for rule in self.rules if (said := rule(attributes, tables, arrays))), None)

    def _table_mismatches(self, tables: Mapping[str, pd.DataFrame], sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
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
                yield from size_mismatch(wanted.dim, len(table), f"table {name!r}", sizes)
            if not len(table) and not wanted.empty:
                yield f"expected rows in table {name!r}, found none"
        # values of rows are checked only where all columns exist
        yield from (said for name, wanted in self.tables.items() for said in _row_mismatches(name, tables, wanted))

    def _array_mismatches(self, arrays: Arrays, sizes: dict[str, tuple[int, str]]) -> Iterator[str]:
        for pattern, wanted in self.arrays.items():
            names = [name for name in arrays if fnmatchcase(name, pattern.removesuffix("?"))]
            if not names and not pattern.endswith("?"):
                yield f"expected an array {pattern!r}, found {', '.join(map(repr, arrays)) or 'none'}"
            for name in names:
                dims, values = arrays.held[name]
                if len(dims) != len(wanted.dims) or not all(map(fnmatchcase, map(str, dims), wanted.dims)):
                    yield f"expected array {name!r} by {', '.join(wanted.dims)}, found {', '.join(map(str, dims)) or 'no dimensions'}"
                elif not _is(wanted.kind, values):
                    yield f"expected {wanted.kind} in array {name!r}, found {_range(values)}"
                elif wanted.kind == "float" and any(map(math.isinf, extent_of(values))):
                    yield f"expected finite numbers (NaN where unknown) in array {name!r}, found {_range(values)}"
                else:
                    for dim, size in zip(dims, values.shape, strict=True):
                        yield from size_mismatch(dim, size, f"array {name!r}", sizes)


def _row_mismatches(name: str, tables: Mapping[str, pd.DataFrame], wanted: TableSchema) -> Iterator[str]:
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
            said = ", ".join(sorted(map(shown, found)))
            yield f"expected {', '.join(values.split())} in column {column!r} of table {name!r}, found {said}"


def _is(kind: str, values: NDArray[Any] | OnFile) -> bool:
    if values.dtype.kind not in _KINDS[kind]:
        return False
    if kind == "share":
        least, most = extent_of(values)
        return not (least < -ROUNDING or most > 1 + ROUNDING)  # NaN (unknown) passes
    return kind != "text" or isinstance(values, OnFile) or all(value is None or is_utf8(value) for value in values.flat)


def _range(values: NDArray[Any] | OnFile) -> str:
    least, most = extent_of(values) if values.dtype.kind == "f" else (math.nan, math.nan)
    return str(values.dtype) if math.isnan(least) else f"{least:.3g} to {most:.3g}"
