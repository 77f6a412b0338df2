"""Final norm and rows of the unembedding: the group `lens` of a store, from which its residual streams are decoded offline."""

from __future__ import annotations

import errno
import hashlib
import shutil
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from stratascope.errors import InvalidInputError, NotRecordedError, StoreError, UnreadError
from stratascope.store.format.limits import check_chunk, parse_json
from stratascope.store.format.provenance import digest
from stratascope.store.format.tables import as_numpy, get_table, put_array, put_table
from stratascope.store.io.bucket import Bucket
from stratascope.store.io.create import known_digest
from stratascope.store.io.durable import PARTIAL, move_folder, write_file
from stratascope.store.io.links import own_path
from stratascope.store.io.overview import LENS
from stratascope.store.io.recorded_examples import ReadableStore
from stratascope.store.io.shard_reader import ByteSource, byte_source
from stratascope.store.io.store_files import place_of

NORMS = ("rms", "layer")
KINDS = ("choice", "form", "relation")
_ARRAYS: dict[str, tuple[str, ...]] = {"gain": ("hidden",), "shift": ("hidden",), "rows": ("word", "hidden"), "bias": ("word",)}
_MOST_FILES = 64
_HEAD = f"{LENS}/zarr.json"


@dataclass(frozen=True, eq=False)
class Readout:
    """Final norm and rows of the unembedding, which map a residual stream to logits of some tokens.

    Raises
    ------
    InvalidInputError
        For another norm, or arrays that do not fit each other.
    """

    norm: str
    """`rms` (root-mean-square norm) or `layer` (layer norm, which subtracts the mean)."""
    epsilon: float
    """What the norm adds to the mean square or the variance."""
    gain: NDArray[np.float32]
    """(hidden,) what the norm multiplies by."""
    shift: NDArray[np.float32]
    """(hidden,) what the norm adds; zeros for `rms`."""
    rows: NDArray[np.float32]
    """(word, hidden) rows of the unembedding."""
    bias: NDArray[np.float32]
    """(word,) bias of the unembedding; zeros without one."""
    words: pd.DataFrame
    """One row per word: kind (`choice`, `form` or `relation`), name (of the choice, form or relation), token (id), text (of the token)."""
    cap: float | None = None
    """Soft cap of the logits; None for none."""

    def __post_init__(self) -> None:
        sizes = {"word": len(self.words), "hidden": len(self.gain)}
        for name, dims in _ARRAYS.items():
            expected, values = tuple(sizes[dim] for dim in dims), getattr(self, name)
            if values.shape != expected or not np.isfinite(values).all():
                raise InvalidInputError(f"{name}: expected finite numbers of shape {expected}, found shape {values.shape} or others")
        if self.norm not in NORMS or not 0 <= self.epsilon < np.inf or not (self.cap is None or 0 < self.cap < np.inf):
            raise InvalidInputError(
                f"expected a norm of {', '.join(NORMS)}, an epsilon of at least 0 and a positive cap, found {self.norm!r}, "
                f"{self.epsilon!r} and {self.cap!r}"
            )
        if list(self.words.columns) != ["kind", "name", "token", "text"] or not set(self.words["kind"]) <= set(KINDS):
            raise InvalidInputError(f"words: expected columns kind, name, token, text and kinds of {', '.join(KINDS)}, found others")

    def logits(self, residual: NDArray[Any], rows: Sequence[int] | NDArray[np.integer] | None = None) -> NDArray[np.float32]:
        """Logits of the words from a residual stream (logit lens; nostalgebraist 2020).

        Parameters
        ----------
        residual
            (..., hidden) at any layer and position.
        rows
            Numbers of the words; all by default.

        Returns
        -------
        numpy.ndarray
            (..., word) float32, computed in float64.

        Examples
        --------
        >>> words = pd.DataFrame({"kind": ["choice"], "name": ["yes"], "token": [7], "text": [" yes"]})
        >>> ones, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
        >>> readout = Readout("rms", 0.0, ones, zero, np.array([[1, 0]], np.float32), zero[:1], words)
        >>> readout.logits(np.array([3.0, 3.0]))
        array([1.], dtype=float32)
        """
        chosen = slice(None) if rows is None else np.asarray(rows)
        x = np.asarray(residual, np.float64)
        if self.norm == "layer":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.epsilon)
        logits = (x * self.gain.astype(np.float64) + self.shift) @ self.rows[chosen].astype(np.float64).T + self.bias[chosen]
        if self.cap is not None:
            logits = np.tanh(logits / self.cap) * self.cap
        return np.asarray(logits, np.float32)

    def numbers(self, kind: str, names: Sequence[str] | None = None) -> NDArray[np.int64]:
        """(word,) numbers of the words of a kind, in the order of `names` where given.

        Raises
        ------
        InvalidInputError
            If a name is absent.
        """
        of = self.words[self.words["kind"] == kind]
        if names is None:
            return of.index.to_numpy(np.int64)
        place = dict(zip(of["name"], of.index, strict=True))
        if absent := [name for name in names if name not in place]:
            raise InvalidInputError(f"expected unembedding rows of each {kind}, found none of {', '.join(absent)}")
        return np.array([place[name] for name in names], np.int64)


def readout_files(readout: Readout) -> dict[str, bytes]:
    """Files of the group `lens`, as key in the store -> bytes; equal readouts give equal bytes."""
    files: dict[str, Any] = {}
    store = MemoryStore(files)
    group = zarr.create_group(store)
    for name, dims in _ARRAYS.items():
        put_array(group, name, np.asarray(getattr(readout, name), np.float32), dims)
    put_table(group, "words", readout.words.reset_index(drop=True), "word")
    made = {key: value.to_bytes() for key, value in files.items()}
    attributes: dict[str, Any] = {"norm": readout.norm, "epsilon": readout.epsilon, "cap": readout.cap, "known": known_digest(made)}
    group.attrs.update({**attributes, "digest": digest(attributes)})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata is an extension of the format
        zarr.consolidate_metadata(store)
    return {f"{LENS}/{key}": value.to_bytes() for key, value in sorted(files.items())}


def stored_files(source: ByteSource, name: str) -> dict[str, bytes]:
    """Files of the group `lens` of a store `name`, by key; empty where it has none.

    Raises
    ------
    StoreError
        If metadata are damaged, or files are missing.
    """
    head = source.get(f"{LENS}/zarr.json")
    if head is None:
        return {}
    metadata = _nodes(head, name)
    keys = [f"{LENS}/{path}/zarr.json" for path in metadata]
    keys += [f"{LENS}/{path}/c/{'/'.join('0' * len(node['shape']))}" for path, node in metadata.items() if node["node_type"] == "array"]
    files = {f"{LENS}/zarr.json": head}
    for key in keys:
        data = source.get(key)
        if not data:
            raise _damaged(name, f"no file {key}" if data is None else f"an empty file {key}")
        check_chunk(data[:18], len(data), key)
        files[key] = data
    return dict(sorted(files.items()))


def read_readout(source: ByteSource, name: str) -> Readout | None:
    """The readout of a store `name`; None where it has none.

    Raises
    ------
    StoreError
        If it is damaged.
    """
    files = stored_files(source, name)
    if not files:
        return None
    try:
        plain = {key.removeprefix(f"{LENS}/"): data for key, data in files.items()}
        buffers = {key: default_buffer_prototype().buffer.from_bytes(data) for key, data in plain.items()}
        group = zarr.open_group(MemoryStore(buffers), mode="r", zarr_format=3, use_consolidated=True)
        attributes: dict[str, Any] = dict(group.attrs)
        held = {key: value for key, value in attributes.items() if key != "digest"}
        if digest(held) != attributes.get("digest") or known_digest(plain) != held.get("known"):
            raise ValueError("values that do not fit their digest")
        arrays = {key: as_numpy(group[key]).astype(np.float32) for key in _ARRAYS}
        words = get_table(group["words"])  # type: ignore[arg-type]
        return Readout(norm=held["norm"], epsilon=held["epsilon"], cap=held["cap"], words=words, **arrays)
    except (UnreadError, MemoryError):
        raise
    except Exception as error:  # checksums, codecs and metadata fail in many ways
        raise _damaged(name, error) from error


def stored_readout(store: ReadableStore) -> Readout:
    """Final norm and unembedding rows of a store.

    Parameters
    ----------
    store
        An open store.

    Raises
    ------
    NotRecordedError
        If the store lacks them; names the command that adds them.
    StoreError
        If they are damaged.
    """
    found = read_readout(byte_source(store.files_of), store.name)
    if found is None:
        raise NotRecordedError(
            f"{store.name}: expected the final norm and the unembedding rows of answers and relations, found none; "
            f"`stratascope extract --add {LENS} --out STORE` adds them from the model, without running the examples"
        )
    return found


def add_readout(target: str | Path, readout: Readout) -> bool:
    """Write the group `lens` into a store, whole or not at all; False where another process wrote it first.

    Parameters
    ----------
    target
        Folder of the store, or its address in a bucket.
    readout
        What to write.

    Raises
    ------
    StoreError
        If the store cannot be written.
    UnreachableError
        If a server refuses or does not answer.
    """
    place = place_of(target)
    if isinstance(place, str):
        bucket, made = Bucket(place), readout_files(readout)
        for key, data in made.items():
            if key != _HEAD:
                bucket.put(key, lambda data=data: [data])  # type: ignore[misc]
        return bucket.create(_HEAD, made[_HEAD]) is not None
    path = place.absolute()
    goal = own_path(path, LENS)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    files = {key.removeprefix(f"{LENS}/"): data for key, data in readout_files(readout).items()}
    try:
        for key, data in files.items():
            write_file(partial / key, [data])
        move_folder(partial, goal, {key: hashlib.sha256(data).digest() for key, data in files.items()})
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise StoreError(f"{path}: expected to write the group {LENS}, found: {error}; free space or copy the store") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def has_readout(target: str | Path) -> bool:
    """Whether a store holds the group `lens`."""
    place = place_of(target)
    return Bucket(place).exists(_HEAD) if isinstance(place, str) else (place / LENS).exists()


def remove_readout(target: str | Path) -> None:
    """Remove the group `lens` from a store, if it is there."""
    place = place_of(target)
    if isinstance(place, str):
        bucket = Bucket(place)
        bucket.remove([_HEAD, *bucket.keys(LENS)])  # its metadata first: without them there is no group
        return
    shutil.rmtree(own_path(place, LENS), ignore_errors=True)


def _nodes(head: bytes, name: str) -> Mapping[str, Any]:
    """Path -> metadata of each array and table of the group."""
    root = parse_json(head, f"{name}: {LENS}/zarr.json")
    held = root.get("consolidated_metadata") if isinstance(root, dict) else None
    nodes = held.get("metadata") if isinstance(held, dict) else None
    if not isinstance(nodes, dict) or not 0 < len(nodes) <= _MOST_FILES:
        raise _damaged(name, "no consolidated metadata")
    for path, node in nodes.items():
        plain = isinstance(node, dict) and all(part.replace(".", "").isalnum() for part in path.split("/"))
        if not plain or (node.get("node_type") == "array" and not isinstance(node.get("shape"), list)):
            raise _damaged(name, f"damaged metadata of {path!r}")
    return nodes


def _damaged(name: str, found: object) -> StoreError:
    return StoreError(
        f"{name}: expected the final norm and the unembedding rows in the group {LENS}, found: {found}; replace them with "
        f"`stratascope extract --add {LENS} --out STORE`, or fetch the store again"
    )
