"""Tables as Zarr groups with one array per column."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from stratascope.errors import InvalidInputError, StoreError, UnreadError, out_of_memory
from stratascope.store.format.limits import MOST_ARRAY
from stratascope.store.format.shards import ZSTD_LEVEL

AT_ONCE = 1 << 24
"""Bytes of an array that are decompressed at once."""
MOST_VALUES, MOST_TEXTS, MOST_CHUNKS = 1 << 29, 1 << 25, 1 << 20
"""Most numbers, texts and files of an array that is read at once."""
CODECS = frozenset({"bytes", "vlen-utf8", "zstd", "crc32c"})
"""Codecs of arrays that are read at once; others could decompress a small file to any size."""
TEXT_CHUNKS = 8
"""Chunks of text that are decompressed at once."""

EXACT_AS_FLOAT = 1 << 53
"""float64 represents every integer up to this one."""

_SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def put_array(
    group: zarr.Group,
    name: str,
    values: NDArray[Any],
    dims: tuple[str, ...],
    *,
    chunk: tuple[int, ...] | None = None,
    fill: Any = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Write a whole array with zstd and a CRC-32C on every chunk; chunks of fill values are written, too."""
    text = values.dtype.kind in "OTU"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # text of any length is not yet in the Zarr specification proper; its extension is
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=str if text else values.dtype,
            chunks=chunk or tuple(max(n, 1) for n in values.shape),
            fill_value=fill if fill is not None else "" if text else values.dtype.type(0),
            compressors=[ZstdCodec(level=ZSTD_LEVEL, checksum=False), Crc32cCodec()],
            dimension_names=dims,
            attributes=dict(attributes or {}),
            config={"write_empty_chunks": True},
        )
        if values.size:
            array[...] = values.astype(object) if text else values


def put_table(
    parent: zarr.Group,
    name: str,
    frame: pd.DataFrame,
    dim: str,
    *,
    rows: int | None = None,
    numbers: int | None = None,
    pages: Mapping[str, int] | None = None,
) -> None:
    """Write a table as a group with one array per column; a mask marks missing text.

    `rows` of a column are compressed together, all by default; of a column of numbers `numbers`, by default as many; of columns
    that `pages` names as many as it says.

    Raises
    ------
    InvalidInputError
        For an index of its own, a name that occurs twice, a column of another kind than numbers, truth values or text, or whole numbers
        that the column would change.
    """
    if not isinstance(frame.index, pd.RangeIndex) or frame.index.start != 0 or frame.index.step != 1:
        raise InvalidInputError(f"table {name!r}: expected the plain index 0..n-1, found another; call reset_index first")
    names = [str(c) for c in frame.columns]
    if len(set(names)) != len(names):
        raise InvalidInputError(f"table {name!r}: expected distinct column names, found {', '.join(names)}")
    columns, arrays = [], []
    for i, column in enumerate(names):
        values, absent = _column(frame.iloc[:, i], f"table {name!r}, column {column!r}")
        key = column if _SAFE_NAME.fullmatch(column) and not column.endswith(".missing") else f"column.{i}"
        columns.append({"name": column, "array": key, "missing": absent is not None})
        arrays.append((key, values))
        if absent is not None:
            arrays.append((f"{key}.missing", absent))
    group = parent.create_group(name, attributes={"columns": columns, "rows": len(frame)})
    for key, values in arrays:
        piece = (pages or {}).get(key, rows if values.dtype.kind == "O" else numbers or rows)
        put_array(group, key, values, (dim,), chunk=None if piece is None else (max(1, min(piece, len(values))),))


def get_table(group: zarr.Group, length: int | None = None) -> pd.DataFrame:
    """The table that `put_table` wrote; StoreError for another group, another number of rows than `length`, or one that is not sent."""
    try:
        columns: Any = group.attrs["columns"]
        rows: Any = group.attrs["rows"]
        if isinstance(rows, bool) or not isinstance(rows, int) or not 0 <= rows <= MOST_TEXTS:
            raise StoreError(f"expected a number of rows within 0..{MOST_TEXTS}, found {rows!r}")
        if length is not None and rows != length:
            raise StoreError(f"expected {length} rows, found {rows}")
        data = {}
        for column in columns:
            values = as_numpy(group[column["array"]])
            if values.dtype.kind in "OTU":
                values = values.astype(object)
                if column["missing"]:
                    values[as_numpy(group[f"{column['array']}.missing"])] = None
                data[column["name"]] = pd.Series(values, dtype="str")
            else:
                data[column["name"]] = pd.Series(values)
        return pd.DataFrame(data, index=pd.RangeIndex(rows), columns=[c["name"] for c in columns])
    except UnreadError:
        raise
    except Exception as error:  # checksums, codecs and files fail in many ways
        if out_of_memory(error):
            raise MemoryError(f"{group.store}: table {group.path}") from error
        found = f"no {error}" if isinstance(error, KeyError) else error
        raise StoreError(f"{group.store}: expected a whole table in group {group.path}, found: {found}; fetch the store again") from error


def as_numpy(array: Any) -> NDArray[Any]:
    """Read all values of a Zarr array, text as Python strings.

    Raises
    ------
    StoreError
        Before anything is allocated, for a shape that nothing written by this package has.
    """
    text = checked_size(array)
    if 0 in array.shape:
        values = np.zeros(array.shape, dtype=array.dtype)
    else:
        values = _text_by_pieces(array) if text else _by_pieces(array) if array.nbytes > AT_ONCE else np.asarray(array[...])
    return values.astype(object) if values.dtype.kind in "TU" else values


def checked_size(array: Any) -> bool:
    """Whether a Zarr array holds text; StoreError for a shape or codec that this package never writes."""
    text = str(array.dtype)[:1] not in "biuf"
    codecs = {codec["name"] for codec in array.metadata.to_dict()["codecs"]}
    if not codecs <= CODECS:
        raise StoreError(
            f"expected an array packed by zstd, found codec {', '.join(sorted(codecs - CODECS))} in {array.path}; fetch the file again"
        )
    if array.size > (MOST_TEXTS if text else MOST_VALUES) or math.prod(array.cdata_shape) > MOST_CHUNKS:
        raise StoreError(
            f"expected an array of a size that is read whole, found shape {array.shape} in {array.path}: its metadata are damaged"
        )
    return text


def _by_pieces(array: Any) -> NDArray[Any]:
    """Read a large array in pieces, because Zarr keeps every chunk of one read in memory."""
    cut = max(range(array.ndim), key=lambda axis: array.cdata_shape[axis])
    step = max(1, array.chunks[cut] * (array.cdata_shape[cut] * AT_ONCE // array.nbytes))
    values: NDArray[Any] | None = None
    for start in range(0, array.shape[cut], step):
        piece = (*[slice(None)] * cut, slice(start, start + step))
        found = array[piece]
        if values is None:  # only when there is something to hold: the shape alone is what a stranger claims
            values = np.zeros(array.shape, dtype=array.dtype)
        values[piece] = found
    return cast("NDArray[Any]", values)


def _text_by_pieces(array: Any) -> NDArray[Any]:
    """Read a text array in pieces; StoreError beyond `MOST_ARRAY` characters."""
    if not array.ndim:
        return np.asarray(array[...])
    values: NDArray[Any] | None = None
    step, characters = array.chunks[0] * TEXT_CHUNKS, 0
    for start in range(0, array.shape[0], step):
        piece = np.asarray(array[start : start + step]).astype(object)
        characters += sum(map(len, piece.flat))
        if characters > MOST_ARRAY:
            raise StoreError(f"expected at most {MOST_ARRAY:,} characters in {array.path}, found more; fetch the file again")
        if values is None:
            values = np.empty(array.shape, dtype=object)
        values[start : start + step] = piece
    return cast("NDArray[Any]", values)


def whole_values(array: Any, name: str) -> NDArray[Any]:
    """Read all values of an array of store `name`; StoreError if files are missing or damaged."""
    try:
        return as_numpy(array)
    except UnreadError:
        raise
    except Exception as error:  # checksums, codecs and files fail in many ways
        if out_of_memory(error):
            raise MemoryError(f"{name}: {array.path}") from error
        raise StoreError(f"{name}: expected to read {array.path}, found: {error}; fetch the store again") from error


def _column(series: pd.Series[Any], where: str) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    if pd.api.types.is_bool_dtype(series.dtype) and not series.isna().any():
        return series.to_numpy(dtype=bool), None
    if pd.api.types.is_integer_dtype(series.dtype):
        there = series.dropna()
        if len(there) == len(series) and (not len(series) or int(series.max()) < 1 << 63):
            return series.to_numpy(dtype=np.int64), None
        if len(there) and max(abs(int(there.max())), abs(int(there.min()))) > EXACT_AS_FLOAT:
            raise InvalidInputError(
                f"{where}: expected whole numbers up to 2^63 - 1, or 2^53 beside missing values, found {there.max()}; give them as text"
            )
    if pd.api.types.is_float_dtype(series.dtype) or pd.api.types.is_integer_dtype(series.dtype):
        narrow = str(series.dtype) == "float32"
        return series.to_numpy(dtype=np.float32 if narrow else np.float64, na_value=np.nan), None
    values = np.array(series.astype(object).to_list(), dtype=object).reshape(len(series))
    absent = np.array([v is None or v is pd.NA or (isinstance(v, float) and np.isnan(v)) for v in values], dtype=bool).reshape(len(series))
    odd = [v for v, gone in zip(values, absent, strict=True) if not gone and not isinstance(v, str)]
    if odd:
        raise InvalidInputError(f"{where}: expected numbers, truth values or text, found {type(odd[0]).__name__} {odd[0]!r}")
    values[absent] = ""
    return values, absent if absent.any() else None
