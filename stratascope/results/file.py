"""Results of any kind in one file: a zip that holds a Zarr v3 group of tables, arrays and attributes."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from stratascope.errors import InvalidInputError, StoreError, out_of_memory
from stratascope.results.lazy_arrays import Arrays, OnFile, extent_of, known_means, read_members, unread
from stratascope.results.schema import ResultSchema
from stratascope.store.format.limits import check_depth, check_member, too_deep
from stratascope.store.format.provenance import condition_of, plain_json
from stratascope.store.format.tables import as_numpy, get_table, put_array, put_table
from stratascope.store.io.access import RESULT_FORMAT
from stratascope.store.io.durable import write_output, zip_entry
from stratascope.store.io.recorded_examples import written_examples

if TYPE_CHECKING:
    from stratascope.store.io.reader import ActivationStore

RESULT_VERSION = 1
PIECE_BYTES = 1 << 20
"""Uncompressed bytes of a chunk of an array by examples."""


@dataclass(frozen=True, repr=False)
class ResultFile:
    """Contents of a results file of any kind."""

    kind: str
    """Kind of the result, such as "layer_curve"."""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    arrays: Mapping[str, tuple[tuple[str, ...], NDArray[Any]]] = field(default_factory=dict)
    """Name -> (names of the dimensions, values). Large arrays of a file are read on each access."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON, such as settings and the provenance of the store."""

    def __repr__(self) -> str:
        tables = [f"  {name:<20} table of {len(frame)} rows: {', '.join(map(str, frame))}" for name, frame in self.tables.items()]
        arrays = [
            f"  {name:<20} ({', '.join(dims)}) {' x '.join(map(str, values.shape))} {values.dtype}"
            for name, (dims, values) in unread(self.arrays).items()
        ]
        return "\n".join([f"ResultFile of kind {self.kind}", *tables, *arrays, f"  attributes: {', '.join(self.attributes)}"])

    def known_means(self, name: str, dim: str = "example") -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Means of an array along a dimension over known values (not NaN), and their number; reads a large array in pieces.

        Parameters
        ----------
        name
            Of the array.
        dim
            Name of the dimension.
        """
        dims, values = unread(self.arrays)[name]
        return known_means(values, dims.index(dim))


def made_from(store: ActivationStore) -> dict[str, Any]:
    """Attributes on the store of a result: `store` (its fingerprint), `condition`, and the number of its examples."""
    return {"store": store.fingerprint(), "condition": condition_of(store.provenance), **written_counts(store)}


def written_counts(store: ActivationStore) -> dict[str, int]:
    """`store_examples`, and `written_examples`, which are fewer for an unfinished extraction."""
    return {"store_examples": store.layout.examples, "written_examples": int(written_examples(store).sum())}


def write_file(path: str | Path, result: ResultFile) -> None:
    """Write a results file atomically; equal results give equal bytes.

    Raises
    ------
    InvalidInputError
        An array lacks a name for a dimension, or a value fits neither a table nor JSON.
    StoreError
        The file cannot be written.
    """
    files: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(files))
    for name, frame in result.tables.items():
        put_table(_subgroup(group, "tables"), name, frame, "row")
    for name, (dims, values) in result.arrays.items():
        array = np.asarray(values)
        if len(dims) != array.ndim:
            raise InvalidInputError(f"array {name!r}: expected {array.ndim} dimension names, found {dims}")
        plain_text = array.dtype.kind == "O" and all(isinstance(v, str) for v in array.flat)
        if array.dtype.kind not in "biufU" and not plain_text:
            raise InvalidInputError(f"array {name!r}: expected numbers, truth values or text, found {array.dtype}")
        put_array(_subgroup(group, "arrays"), name, array, tuple(dims), chunk=_pieces(array, dims))
    said = plain_json(dict(result.attributes), "attributes")
    head: dict[str, Any] = {"format": RESULT_FORMAT, "format_version": RESULT_VERSION, "kind": result.kind}
    digest = _digest({name: hashlib.sha256(_bytes(value)).digest() for name, value in files.items()}, result.kind, said)
    group.attrs.update({**head, "attributes": said, "digest": digest})
    try:
        write_output(Path(path), lambda file: _zip(files, file))
    except OSError as error:
        raise StoreError(f"{path}: expected to write the result, found: {error}") from error


def _pieces(array: NDArray[Any], dims: Sequence[str]) -> tuple[int, ...] | None:
    """Chunk shape of an array; a large array is cut along its examples, for readers of single examples."""
    if "example" not in dims or array.nbytes <= PIECE_BYTES:
        return None
    axis = list(dims).index("example")
    rows = max(1, PIECE_BYTES * array.shape[axis] // array.nbytes)
    return (*array.shape[:axis], rows, *array.shape[axis + 1 :])


def read_file(path: str | Path, schema: ResultSchema | None = None, kind: str | None = None) -> ResultFile:
    """Read a results file.

    Parameters
    ----------
    path
        Of the file.
    schema
        What the file must hold; unchecked by default.
    kind
        The kind that the file must be of; any by default.

    Raises
    ------
    StoreError
        The file is missing or damaged, is no results file, is of another kind or a newer version, or does not match the schema.
    """
    members = read_members(path)
    try:
        with members.opened() as group:
            attributes: Any = dict(group.attrs)
    except StoreError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise MemoryError(str(path)) from error
        if isinstance(error, RecursionError):
            raise too_deep(f"{path}: zarr.json") from error
        raise StoreError(f"{path}: expected a result of Stratascope, found a zip of another kind: {error}") from error
    check_depth(attributes, f"{path}: zarr.json")
    if attributes.get("format") != RESULT_FORMAT:
        found = attributes.get("format")
        raise StoreError(f"{path}: expected a result of Stratascope (format {RESULT_FORMAT!r}), found format {found!r}")
    if attributes.get("format_version") != RESULT_VERSION:
        raise StoreError(
            f"{path}: expected result version {RESULT_VERSION}, found {attributes.get('format_version')!r}; "
            "upgrade with `pip install -U stratascope`, or make the result again"
        )
    inner = attributes.get("attributes")
    if not isinstance(inner, dict) or not isinstance(attributes.get("kind"), str):
        raise StoreError(
            f"{path}: expected a kind and attributes, found {attributes.get('kind')!r} and {type(inner).__name__}; make it again"
        )
    if attributes.get("digest") != _digest(members.digests, attributes["kind"], inner):
        raise StoreError(f"{path}: expected what was written, found that it was changed since; make the result again")
    if kind is not None and attributes["kind"] != kind:
        raise StoreError(f"{path}: expected a result of kind {kind!r}, found {attributes['kind']!r}; load it with the class of that kind")
    tables: dict[str, pd.DataFrame] = {}
    arrays: dict[str, tuple[tuple[str, ...], NDArray[Any] | OnFile]] = {}
    try:
        with members.opened() as group:
            for name in members.named("tables"):
                tables[name] = get_table(group[f"tables/{name}"])  # type: ignore[arg-type]
            for name in members.named("arrays"):
                array: Any = group[f"arrays/{name}"]
                arrays[name] = (tuple(array.metadata.dimension_names or ()), members.large(name, array) or as_numpy(array))
        for _, values in arrays.values():
            if isinstance(values, OnFile):
                extent_of(values)  # reads every value once, so that a damaged chunk fails here
    except StoreError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise MemoryError(str(path)) from error
        raise StoreError(f"{path}: expected whole tables and arrays, found: {error}; make the result again") from error
    file = ResultFile(attributes["kind"], tables, Arrays(arrays), inner)
    if schema is not None:
        check_schema(file, schema, path)
    return file


def check_schema(file: ResultFile, schema: ResultSchema, path: str | Path) -> None:
    """Raise StoreError, naming the file, where a results file does not match its schema."""
    if mismatch := schema.mismatch(file.attributes, file.tables, Arrays(unread(file.arrays))):
        raise StoreError(f"{path}: {mismatch}, in a result of kind {file.kind!r}; make the result again")


def result_head(path: str | Path) -> dict[str, Any] | None:
    """Root attributes of a results file, without reading the rest; None for a file that is no result.

    Parameters
    ----------
    path
        Of the file.

    Raises
    ------
    StoreError
        The metadata are too large or nested too deeply.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise StoreError(f"{path}: expected a result file, found a folder, a named pipe or a device; remove it")
    try:
        with zipfile.ZipFile(path) as archive:
            check_member(archive.getinfo("zarr.json"), str(path))
            data = archive.read("zarr.json")
    except (OSError, KeyError, ValueError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        if isinstance(error, StoreError):
            raise
        return None
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise too_deep(f"{path}: zarr.json") from error
    except ValueError:
        return None
    check_depth(value, f"{path}: zarr.json")
    head = value.get("attributes") if isinstance(value, dict) else None
    return head if isinstance(head, dict) and head.get("format") == RESULT_FORMAT else None


def _zip(files: Mapping[str, Any], out: BinaryIO) -> None:
    """Write a stored (uncompressed) zip whose bytes depend on names and contents alone."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zip_entry(name), _bytes(files[name]))


def _bytes(value: Any) -> Any:
    """Bytes of a file in zarr's memory store, without a copy."""
    return memoryview(value.as_numpy_array()).cast("B") if hasattr(value, "as_numpy_array") else value


def _digest(files: Mapping[str, bytes], kind: str, attributes: Any) -> str:
    """SHA-256 over kind, attributes and the digests of all files except the root metadata."""
    total = hashlib.sha256(json.dumps([kind, attributes], sort_keys=True).encode())
    for name in sorted(name for name in files if name != "zarr.json"):
        total.update(name.encode() + b"\0" + files[name])
    return total.hexdigest()


def _subgroup(group: zarr.Group, name: str) -> zarr.Group:
    return group.require_group(name)
