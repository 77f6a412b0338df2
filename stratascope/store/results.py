"""Results of any kind in one file: a zip that holds a Zarr v3 group of tables, arrays and attributes."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from zarr.storage import MemoryStore

from stratascope.errors import InvalidInputError, StoreError
from stratascope.store.access import GuardedStore
from stratascope.store.durable import write_with
from stratascope.store.kinds import KINDS
from stratascope.store.provenance import condition_of, plain_json
from stratascope.store.tables import as_numpy, get_table, put_array, put_table

if TYPE_CHECKING:
    from stratascope.store.reader import ActivationStore

RESULT_FORMAT = "stratascope-result"
RESULT_VERSION = 1
PIECE_BYTES = 1 << 20
"""Of an array by examples that are compressed together, before compression."""

MOST_INFLATED, MOST_RATIO = 1 << 28, 4
"""A zip of results may unpack to so many bytes, or to so many times its own: they are packed within, and stored as they are."""


@dataclass(frozen=True, repr=False)
class ResultFile:
    """What a result consists of, whatever its kind."""

    kind: str
    """Which result it is, such as "layer_curve"."""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    arrays: Mapping[str, tuple[tuple[str, ...], NDArray[Any]]] = field(default_factory=dict)
    """Name -> (names of the dimensions, values)."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON: settings, provenance of the store, ..."""

    def __repr__(self) -> str:
        tables = [f"  {name:<20} table of {len(frame)} rows: {', '.join(map(str, frame))}" for name, frame in self.tables.items()]
        arrays = [
            f"  {name:<20} ({', '.join(dims)}) {' x '.join(map(str, np.shape(values)))} {np.asarray(values).dtype}"
            for name, (dims, values) in self.arrays.items()
        ]
        return "\n".join([f"ResultFile of kind {self.kind}", *tables, *arrays, f"  attributes: {', '.join(self.attributes)}"])


def made_from(store: ActivationStore) -> dict[str, str]:
    """What a result says of the store that it was made from: `store`, its fingerprint, and `condition`."""
    return {"store": store.fingerprint(), "condition": condition_of(store.provenance)}


def save_result(path: str | Path, result: ResultFile) -> None:
    """Write a result, whole or not at all; the same result always gives the same bytes.

    Raises
    ------
    InvalidInputError
        For an array without a name for each dimension, or what a table or JSON cannot hold.
    StoreError
        Where the file cannot be written.
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
    digest = _digest({name: _bytes(value) for name, value in files.items()}, result.kind, said)
    group.attrs.update({**head, "attributes": said, "digest": digest})
    try:
        write_with(Path(path), lambda file: _zip(files, file))
    except OSError as error:
        raise StoreError(f"{path}: expected to write the result, found: {error}") from error


def _pieces(array: NDArray[Any], dims: Sequence[str]) -> tuple[int, ...] | None:
    """Shape of an array's chunks: a long one is cut along its examples, so that a reader of one example need not fetch all."""
    if "example" not in dims or array.nbytes <= PIECE_BYTES:
        return None
    axis = list(dims).index("example")
    rows = max(1, PIECE_BYTES * array.shape[axis] // array.nbytes)
    return (*array.shape[:axis], rows, *array.shape[axis + 1 :])


def load_result(path: str | Path, kind: str | None = None) -> ResultFile:
    """The result that `save_result` wrote.

    Parameters
    ----------
    path
        Of the file.
    kind
        Which result it must be, such as `layer_curve`; any by default.

    Raises
    ------
    StoreError
        For a file that is missing, damaged, no result, of another kind or of a newer version, or that does not hold what its kind
        declares (`store.kinds`).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            packed, whole = (sum(getattr(entry, size) for entry in archive.infolist()) for size in ("compress_size", "file_size"))
            if whole > max(MOST_INFLATED, MOST_RATIO * packed):
                raise StoreError(f"{path}: expected a result of Stratascope, found a zip of {packed:,} bytes that unpacks to {whole:,}")
            damaged = archive.testzip()
            if damaged:
                raise StoreError(f"{path}: expected a whole file, found damage in {damaged}; make the result again")
            files = {name: archive.read(name) for name in archive.namelist()}
    except FileNotFoundError as error:
        raise StoreError(f"{path}: expected a result file, found nothing; check the path") from error
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError) as error:
        raise StoreError(f"{path}: expected a result of Stratascope, found another or a damaged file: {error}") from error
    store: dict[str, Any] = {k: zarr.core.buffer.cpu.Buffer.from_bytes(v) for k, v in files.items()}
    try:
        group = zarr.open_group(GuardedStore(MemoryStore(store, read_only=True)), mode="r", zarr_format=3)
        attributes: Any = dict(group.attrs)
    except Exception as error:
        raise StoreError(f"{path}: expected a result of Stratascope, found a zip of another kind: {error}") from error
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
    if attributes.get("digest") != _digest(files, attributes["kind"], inner):  # without one nobody could tell a changed number
        raise StoreError(f"{path}: expected what was written, found that it was changed since; make the result again")
    if kind is not None and attributes["kind"] != kind:
        raise StoreError(f"{path}: expected a result of kind {kind!r}, found {attributes['kind']!r}; load it with what made it")
    members = {group: _members(files, group) for group in ("tables", "arrays")}
    del files
    tables: dict[str, pd.DataFrame] = {}
    arrays: dict[str, tuple[tuple[str, ...], NDArray[Any]]] = {}
    try:
        for name in members["tables"]:
            tables[name] = get_table(group[f"tables/{name}"])  # type: ignore[arg-type]
        for name in members["arrays"]:
            array: Any = group[f"arrays/{name}"]
            arrays[name] = (tuple(array.metadata.dimension_names or ()), as_numpy(array))
            for packed in [key for key in store if key.startswith(f"arrays/{name}/c")]:
                del store[packed]  # a result of every example is large: it is not held packed and unpacked at once
    except StoreError:
        raise
    except Exception as error:
        raise StoreError(f"{path}: expected whole tables and arrays, found: {error}; make the result again") from error
    declared = KINDS.get(attributes["kind"])
    if declared is not None and (unlike := declared.unlike(inner, tables, arrays)):
        raise StoreError(f"{path}: {unlike}, in a result of kind {attributes['kind']!r}; make the result again")
    return ResultFile(attributes["kind"], tables, arrays, inner)


def _members(files: Mapping[str, Any], group: str) -> list[str]:
    """Names of the tables or arrays that there are metadata of."""
    parts = [name.split("/") for name in files]
    return sorted(found[1] for found in parts if len(found) == 3 and found[0] == group and found[2] == "zarr.json")


def _zip(files: Mapping[str, Any], out: BinaryIO) -> None:
    """Write a stored (uncompressed) zip whose bytes depend on names and contents alone."""
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zip_entry(name), _bytes(files[name]))


def _bytes(value: Any) -> Any:
    """What zarr's store in memory holds of a file, without a copy."""
    return memoryview(value.as_numpy_array()).cast("B") if hasattr(value, "as_numpy_array") else value


def zip_entry(name: str) -> zipfile.ZipInfo:
    """The header of a file in a zip, without date or owner."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    entry.create_system = 3
    return entry


def _digest(files: Mapping[str, Any], kind: str, attributes: Any) -> str:
    """SHA-256 of all that a result holds: its files but the root's metadata, its kind and its attributes."""
    total = hashlib.sha256(json.dumps([kind, attributes], sort_keys=True).encode())
    for name in sorted(name for name in files if name != "zarr.json"):
        total.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return total.hexdigest()


def _subgroup(group: zarr.Group, name: str) -> zarr.Group:
    return group.require_group(name)
