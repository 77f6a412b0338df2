"""Read shard files: fetch only the chunks of a selection, verify checksums, decode into place.

The Zarr library reads the same files to the same numbers, but fills what is missing in silence, keeps no index of a file between
two reads, fetches adjacent chunks one by one, and costs several times the processor time.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import ZipStore

from stratascope.errors import StoreError, UnreadError
from stratascope.store.format.arrays import ArraySpec
from stratascope.store.format.shards import ABSENT, chunk_counts, decode_chunk, decode_index, index_size
from stratascope.store.io.access import GuardedStore
from stratascope.store.io.links import StoreFolder
from stratascope.store.io.remote import PatientStore
from stratascope.store.io.selection import Selection, listing


class ByteSource(Protocol):
    """Source of the bytes of a store's files."""

    at_once: int
    """Most concurrent requests."""

    def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """A whole file, bytes [start, stop), or the last -start bytes where `start` is negative; None where there is no file."""

    def names(self, folder: str) -> frozenset[str] | None:
        """Names of the files in a folder; None where they cannot be listed."""

    def forget(self, key: str | None = None) -> None:
        """Fetch a damaged file again when it is read next, or all files."""
        return


class FolderSource(ByteSource):
    """Files of a local folder."""

    at_once = 1  # the codecs hold the interpreter: threads only cost

    def __init__(self, files: StoreFolder) -> None:
        self._files = files

    def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        """Bytes of a file, None if there is none; UnreadError if it cannot be read."""
        try:
            with open(self._files.path(key), "rb", buffering=0) as file:
                if start is None:
                    return file.read()
                size = os.fstat(file.fileno()).st_size
                first = max(0, size + start) if start < 0 else start
                file.seek(first)
                return _exactly(file, max(0, (size if stop is None else min(stop, size)) - first))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # no permission, a disk that does not answer: the bytes themselves may be good
            raise UnreadError(f"expected to read {key}, found: {error}; nothing shows that it is damaged: read it again later") from error

    def names(self, folder: str) -> frozenset[str] | None:
        try:
            return frozenset(os.listdir(self._files.path(folder)))
        except OSError:
            return None


class ZarrSource(ByteSource):
    """Files of any Zarr store: a zip, an address, memory."""

    at_once = 8

    def __init__(self, store: GuardedStore) -> None:
        self.store = store

    def get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes | None:
        part = None
        if start is not None:
            part = SuffixByteRequest(-start) if start < 0 else RangeByteRequest(start, stop if stop is not None else 2**63 - 1)
        value = sync(self.store.raw(key, default_buffer_prototype(), part))
        return None if value is None else bytes(value.to_bytes())

    def names(self, folder: str) -> frozenset[str] | None:
        if isinstance(self.store.wrapped, PatientStore):
            return self.store.wrapped.names(folder)
        if not isinstance(self.store.wrapped, ZipStore):
            return None
        start = f"{self.store.folder}{folder}/"
        return frozenset(name.removeprefix(start) for name in self.store.wrapped._zf.namelist() if name.startswith(start))

    def forget(self, key: str | None = None) -> None:
        self.store.forget(key)


def byte_source(store: GuardedStore) -> ByteSource:
    """Return the fastest source for a store."""
    return FolderSource(store.files) if store.files is not None else ZarrSource(store)


@dataclass(frozen=True)
class _Part:
    """Contribution of one chunk to an axis of the result."""

    chunk: int
    source: slice | NDArray[np.int64]
    target: slice | NDArray[np.int64]
    whole: bool
    """Whether the whole chunk goes, in order, to consecutive indices."""


class BlockFiles:
    """The shard files of a store."""

    def __init__(self, source: ByteSource, name: str, block: int) -> None:
        self._source, self._name, self._block = source, name, block
        self._indices: dict[str, NDArray[np.uint64]] = {}

    def markers(self, keys: Iterable[str], spec: ArraySpec) -> NDArray[np.bool_]:
        """(block,) whether each marker file exists and is 1; StoreError for values other than 0 and 1."""

        def marked(key: str) -> bool:
            data = self._source.get(key)
            if data is None:
                return False
            try:
                value = int(decode_chunk(spec, data, "the marker")[0])
                if value not in (0, 1):
                    raise StoreError(f"expected 0 or 1 in the marker, found {value}")
            except UnreadError:
                raise
            except StoreError as error:
                self._source.forget(key)
                raise StoreError(f"{self._name}: {key}: {error}; run `stratascope verify --repair`") from error
            return value == 1

        wanted = list(keys)
        there = self._source.names(wanted[0].rpartition("/")[0]) if wanted else None
        found = np.zeros(len(wanted), dtype=bool)
        asked = [i for i, key in enumerate(wanted) if there is None or key.rpartition("/")[2] in there]
        found[asked] = self._map(marked, [wanted[i] for i in asked])
        return found

    def read(self, selection: Selection) -> NDArray[Any]:
        """Values of a selection with every axis kept, floats as float32.

        Raises
        ------
        StoreError
            Naming the array and all the blocks among those asked for whose files are missing or damaged.
        """
        spec = selection.spec
        kind = np.dtype(spec.dtype)
        out = np.empty(selection.shape, dtype=np.float32 if kind.kind == "f" else kind)
        if not out.size:
            return out
        axes = [_parts(indices, chunk) for indices, chunk in zip(selection.indices, spec.chunk, strict=True)]
        blocks: dict[int, list[_Part]] = {}
        for part in axes[spec.example_axis]:
            blocks.setdefault(part.chunk * spec.chunk[spec.example_axis] // self._block, []).append(part)

        def fill(block: int) -> StoreError | None:
            try:
                self._fill(spec, block, [p if i != spec.example_axis else blocks[block] for i, p in enumerate(axes)], out)
            except StoreError as error:
                self._indices.pop(spec.key(block), None)
                if not isinstance(error, UnreadError):
                    self._source.forget(spec.key(block))
                return error
            return None

        errors = dict(zip(blocks, self._map(fill, list(blocks)), strict=True))
        bad = {block: error for block, error in errors.items() if error is not None}
        if bad:
            first = next(iter(bad.values()))
            unread = next((error for error in bad.values() if isinstance(error, UnreadError)), None)
            if unread is not None:  # nobody knows yet whether those blocks are damaged
                raise type(unread)(f"{self._name}: {unread.message}") from unread
            where = f"block{'s' if len(bad) > 1 else ''} {listing(sorted(bad))}"
            raise StoreError(
                f"{self._name}: expected whole files of {spec.name}, found damage in {where}: {first}; "
                "run `stratascope verify --repair` and extract again, or fetch the store again"
            ) from first
        return out

    def _map(self, function: Any, items: Sequence[Any]) -> list[Any]:
        if len(items) < 2 or self._source.at_once < 2:
            return [function(i) for i in items]
        with ThreadPoolExecutor(self._source.at_once) as pool:
            return list(pool.map(function, items))

    def _fill(self, spec: ArraySpec, block: int, axes: list[list[_Part]], out: NDArray[Any]) -> None:
        """Decode the chunks of one file that the parts need."""
        key = spec.key(block)
        counts = chunk_counts(spec)
        wanted = {}
        for parts in itertools.product(*axes):
            at = tuple(p.chunk % n for p, n in zip(parts, counts, strict=True))
            wanted[at] = parts
        for at, data in self._chunks(spec, key, sorted(wanted)):
            parts = wanted[at]
            if all(p.whole for p in parts):
                view = out[tuple(p.target for p in parts)]
                if view.flags.c_contiguous and view.dtype == spec.dtype:
                    decode_chunk(spec, data, f"chunk {at}", into=view)
                    continue
            chunk = decode_chunk(spec, data, f"chunk {at}")
            if all(isinstance(p.target, slice) and isinstance(p.source, slice) for p in parts):
                out[tuple(p.target for p in parts)] = chunk[tuple(p.source for p in parts)]
            else:
                out[_grid([p.target for p in parts], out.shape)] = chunk[_grid([p.source for p in parts], chunk.shape)]

    def _chunks(self, spec: ArraySpec, key: str, wanted: list[tuple[int, ...]]) -> Iterable[tuple[tuple[int, ...], memoryview]]:
        """Bytes of chunks; adjacent chunks are fetched together."""
        if spec.shard is None:
            yield wanted[0], memoryview(self._get(key))
            return
        index = self._index(spec, key)
        run: list[tuple[tuple[int, ...], int, int]] = []
        for at in [*wanted, None]:
            start = stop = -1
            if at is not None:
                if index[at][0] == ABSENT:
                    raise StoreError(f"expected chunk {at} in {key}, found none in the index")
                start, stop = int(index[at][0]), int(index[at][0] + index[at][1])
            if run and (at is None or start != run[-1][2]):
                first = run[0][1]
                data = memoryview(self._get(key, first, run[-1][2]))
                for chunk, a, b in run:
                    yield chunk, data[a - first : b - first]
                run = []
            if at is not None:
                run.append((at, start, stop))

    def _index(self, spec: ArraySpec, key: str) -> NDArray[np.uint64]:
        if key not in self._indices:
            self._indices[key] = decode_index(spec, self._get(key, -index_size(spec)))
        return self._indices[key]

    def _get(self, key: str, start: int | None = None, stop: int | None = None) -> bytes:
        try:
            data = self._source.get(key, start, stop)
        except OSError as error:
            raise StoreError(f"expected to read {key}, found: {error}") from error
        if not data:
            raise StoreError(f"expected the file {key}, found {'none' if data is None else 'an empty one'}")
        return data


def _parts(indices: NDArray[np.int64], chunk: int) -> list[_Part]:
    """Chunks along an axis with their source and target indices."""
    parts = []
    order = np.argsort(indices // chunk, kind="stable")
    bounds = np.flatnonzero(np.diff(indices[order] // chunk)) + 1
    for target in np.split(order, bounds):
        source = indices[target] % chunk
        steps = len(target)
        if (np.diff(target) == 1).all() and (np.diff(source) == 1).all():
            cut = slice(int(source[0]), int(source[0]) + steps)
            parts.append(_Part(int(indices[target[0]]) // chunk, cut, slice(int(target[0]), int(target[0]) + steps), steps == chunk))
        else:
            parts.append(_Part(int(indices[target[0]]) // chunk, source, target, False))
    return parts


def _grid(picks: list[slice | NDArray[np.int64]], shape: tuple[int, ...]) -> tuple[NDArray[np.intp], ...]:
    return np.ix_(*[np.arange(n)[p] for p, n in zip(picks, shape, strict=True)])


def _exactly(file: Any, size: int) -> bytes:
    """Read exactly `size` bytes, in as many calls as needed."""
    data = file.read(size)
    while len(data) < size:
        more = file.read(size - len(data))
        if not more:
            break
        data += more
    return bytes(data)
