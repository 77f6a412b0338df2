"""Lazy large arrays of a results file: checked once, read from the file on access."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore

from stratascope.errors import StoreError
from stratascope.store.format.limits import check_member
from stratascope.store.format.tables import AT_ONCE, as_numpy, checked_size
from stratascope.store.io.access import GuardedStore

MOST_INFLATED, MOST_RATIO = 1 << 28, 4
"""Limits of the uncompressed bytes of a results zip, absolute and relative to its size: its members are stored, not deflated."""
HELD_BYTES = 1 << 22
"""Bytes below which an array is held in memory."""
_DAMAGED = (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)
"""Errors of reading a zip that changed or is damaged."""


@dataclass(frozen=True, eq=False)
class Members:
    """Members of a zip with the digests of their first reading."""

    path: Path
    digests: Mapping[str, bytes]
    """Name -> SHA-256."""

    @contextmanager
    def opened(self) -> Iterator[zarr.Group]:
        """The group in the file; every reading is checked against the digests.

        Raises
        ------
        StoreError
            The file is missing.
        """
        try:
            archive = zipfile.ZipFile(self.path)
        except (OSError, zipfile.BadZipFile) as error:
            raise self.changed(str(error)) from error
        with archive:
            yield zarr.open_group(GuardedStore(MemoryStore(_Read(self, archive), read_only=True)), mode="r", zarr_format=3)

    def named(self, group: str) -> list[str]:
        """Names of the tables or arrays with metadata."""
        parts = [name.split("/") for name in self.digests]
        return sorted(found[1] for found in parts if len(found) == 3 and found[0] == group and found[2] == "zarr.json")

    def large(self, name: str, array: Any) -> OnFile | None:
        """Lazy array for a large Zarr array of numbers; None for an array to hold in memory.

        Raises
        ------
        StoreError
            The shape is none that this package writes.
        """
        dtype = np.dtype(array.dtype)
        checked_size(array)
        return OnFile(self, name, tuple(array.shape), dtype) if dtype.kind in "biuf" and array.nbytes > HELD_BYTES else None

    def changed(self, found: str) -> StoreError:
        """The error for a file that changed since it was opened."""
        return StoreError(f"{self.path}: expected the file as it was when it was opened, found: {found}; open it again")


def read_members(path: str | Path) -> Members:
    """Digests of the members of a zip; reads every byte once and holds none.

    Raises
    ------
    StoreError
        For a file that is missing, damaged, no zip, or one that unpacks to far more than its own size.
    """
    digests: dict[str, bytes] = {}
    if os.path.exists(path) and not os.path.isfile(path):
        raise StoreError(f"{path}: expected a result file, found a folder, a named pipe or a device; check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("zarr.json"):
                    check_member(entry, str(path))
            packed, whole = (sum(getattr(entry, size) for entry in archive.infolist()) for size in ("compress_size", "file_size"))
            if whole > max(MOST_INFLATED, MOST_RATIO * packed):
                raise StoreError(f"{path}: expected a result of Stratascope, found a zip of {packed:,} bytes that unpacks to {whole:,}")
            for entry in archive.infolist():
                check_member(entry, str(path))
                try:
                    digests[entry.filename] = _sha256(archive, entry)
                except (zipfile.BadZipFile, zlib.error) as error:
                    raise StoreError(f"{path}: expected a whole file, found damage in {entry.filename}; make the result again") from error
    except FileNotFoundError as error:
        raise StoreError(f"{path}: expected a result file, found nothing; check the path") from error
    except (OSError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise StoreError(f"{path}: expected a result of Stratascope, found another or a damaged file: {error}") from error
    return Members(Path(path), digests)


def _sha256(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    total = hashlib.sha256()
    with archive.open(entry) as member:
        while piece := member.read(1 << 20):
            total.update(piece)
    return total.digest()


class _Read(MutableMapping[str, Any]):
    """Members of an open zip by name, each checked as it is read: what a Zarr store in memory is made of."""

    def __init__(self, members: Members, archive: zipfile.ZipFile) -> None:
        self._members, self._archive = members, archive

    def __getitem__(self, name: str) -> Any:
        wanted = self._members.digests[name]
        try:
            data = self._archive.read(name)
        except (KeyError, *_DAMAGED) as error:
            raise self._members.changed(str(error)) from error
        if hashlib.sha256(data).digest() != wanted:
            raise self._members.changed(f"other bytes in {name}")
        return Buffer.from_bytes(data)

    def __contains__(self, name: object) -> bool:
        return name in self._members.digests

    def __iter__(self) -> Iterator[str]:
        return iter(self._members.digests)

    def __len__(self) -> int:
        return len(self._members.digests)

    def __setitem__(self, name: str, value: Any) -> None:
        raise TypeError("a results file is not changed where it lies")

    def __delitem__(self, name: str) -> None:
        raise TypeError("a results file is not changed where it lies")


@dataclass(frozen=True, eq=False)
class OnFile:
    """A large array of numbers in a results file."""

    members: Members
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return int(np.prod(self.shape))

    def read(self) -> NDArray[Any]:
        """All values; StoreError where the file changed since it was opened, or has vanished."""
        with self._array() as array:
            return as_numpy(array)

    def pieces(self, axis: int) -> Iterator[NDArray[Any]]:
        """All values, some places along an axis at a time; StoreError as of `read`."""
        with self._array() as array:
            length, chunk = self.shape[axis], array.chunks[axis]
            step = max(1, length * AT_ONCE // (array.nbytes * chunk)) * chunk
            for start in range(0, length, step):
                yield np.asarray(array[(*[slice(None)] * axis, slice(start, start + step))])

    @cached_property
    def extent(self) -> tuple[float, float]:
        """The least and the largest value, NaN where none is known; every value is unpacked once for it."""
        with self._array() as array:
            most_cut = max(range(array.ndim), key=lambda axis: array.cdata_shape[axis])
        found = [extent_of(piece) for piece in self.pieces(most_cut)]
        return float(np.fmin.reduce([least for least, _ in found])), float(np.fmax.reduce([most for _, most in found]))

    @contextmanager
    def _array(self) -> Iterator[Any]:
        with self.members.opened() as group:
            yield group[f"arrays/{self.name}"]


class Arrays(Mapping[str, tuple[tuple[str, ...], NDArray[Any]]]):
    """Arrays of a result by name, with the names of their dimensions; the large ones are read each time they are asked for."""

    def __init__(self, held: Mapping[str, tuple[tuple[str, ...], NDArray[Any] | OnFile]]) -> None:
        self.held = held
        """Without reading anything."""

    def __getitem__(self, name: str) -> tuple[tuple[str, ...], NDArray[Any]]:
        dims, values = self.held[name]
        return dims, values.read() if isinstance(values, OnFile) else values

    def __contains__(self, name: object) -> bool:
        return name in self.held

    def __iter__(self) -> Iterator[str]:
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


def unread(arrays: Mapping[str, tuple[tuple[str, ...], Any]]) -> Mapping[str, tuple[tuple[str, ...], NDArray[Any] | OnFile]]:
    """Arrays of a result as they are held: large ones on their file."""
    return arrays.held if isinstance(arrays, Arrays) else arrays


def extent_of(values: NDArray[Any] | OnFile) -> tuple[float, float]:
    """The least and the largest of numbers, NaN where none is known; nothing as large as the values is made beside them."""
    if isinstance(values, OnFile):
        return values.extent
    if not values.size:
        return np.nan, np.nan
    return float(np.fmin.reduce(values, axis=None)), float(np.fmax.reduce(values, axis=None))


def known_means(values: NDArray[Any] | OnFile, axis: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Means along an axis over what is known (not NaN), and over how many; NaN where nothing is. A large array is read piece by piece."""
    shape = (*values.shape[:axis], *values.shape[axis + 1 :])
    total, count = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    for piece in values.pieces(axis) if isinstance(values, OnFile) else [values]:
        known = np.isfinite(piece)
        total += np.where(known, piece, 0).sum(axis, dtype=np.float64)
        count += known.sum(axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan), count
