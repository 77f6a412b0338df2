"""Files of a store that is being written: a folder on this machine, or objects in a bucket."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from zarr.abc.store import Store
from zarr.storage import LocalStore

from stratascope.addresses import is_address
from stratascope.errors import StoreError
from stratascope.store.io.bucket import Bucket, Parts
from stratascope.store.io.bucket_claims import bucket_claim
from stratascope.store.io.durable import flush_folder, sweep, write_file
from stratascope.store.io.links import own_path
from stratascope.store.io.remote import open_remote
from stratascope.store.io.remote_errors import UnreachableError
from stratascope.store.io.writer_locks import CLAIMS, WriterPresence, block_claim

ROOT = "zarr.json"
MARKERS = "written/c"
"""Folder of the markers."""
BEGUN = f"{CLAIMS}/begun"
"""Object that says what an unfinished creation or copy in a bucket is."""
FILES_AT_ONCE = 4
"""Files of a block, and of a store that is created, that are sent to a bucket at once."""


class StoreFiles(Protocol):
    """Files of a store, written whole."""

    name: str
    """The store for messages."""

    def zarr(self) -> Store:
        """The store for reading with Zarr."""

    def marked(self, block: int) -> bool:
        """Whether a block has a marker."""

    def markers(self) -> frozenset[str]:
        """Names of all markers."""

    def files_in(self, folder: str) -> dict[str, bytes]:
        """Name -> content of the files directly in a folder."""

    def put_all(self, files: Mapping[str, Parts]) -> None:
        """Write files, each whole, in any order."""

    def mark(self, block: int, data: bytes) -> None:
        """Write the marker of a block, durably, after all that was put."""

    def unmark(self, block: int, keys: list[str]) -> None:
        """Remove the marker of a block, then the files `keys`."""

    def claim(self, block: int) -> AbstractContextManager[Callable[[], None]]:
        """Hold a block; yields what raises StoreError where the claim was lost. StoreError where another process holds it."""

    def close(self) -> None:
        """Release what the writer holds as a whole."""


class FolderFiles(StoreFiles):
    """Files of a store in a folder.

    Parameters
    ----------
    path
        The folder.
    presence
        Whether to hold the writers' lock and remove what killed writers left.

    Raises
    ------
    StoreError
        The folder cannot be written.
    """

    def __init__(self, path: Path, *, presence: bool) -> None:
        self.path, self.name = path, str(path)
        self._presence: WriterPresence | None = None
        if not presence:
            return
        try:
            self._presence = WriterPresence(path)
            if self._presence.alone:
                sweep(path)
            self._presence.share()
        except OSError as error:
            raise StoreError(f"{path}: expected a folder that can be written, found: {error}; change its permissions or copy it") from error

    def zarr(self) -> Store:
        return LocalStore(self.path, read_only=True)

    def marked(self, block: int) -> bool:
        return os.path.lexists(self._marker(block))

    def markers(self) -> frozenset[str]:
        folder = own_path(self.path, MARKERS)
        return frozenset(os.listdir(folder)) if folder.is_dir() else frozenset()

    def files_in(self, folder: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(own_path(self.path, folder).glob("*")) if path.is_file()}

    def put_all(self, files: Mapping[str, Parts]) -> None:
        for key, parts in files.items():
            write_file(own_path(self.path, key), parts())

    def mark(self, block: int, data: bytes) -> None:
        write_file(self._marker(block), [data])

    def unmark(self, block: int, keys: list[str]) -> None:
        marker = own_path(self.path, f"{MARKERS}/{block}")
        marker.unlink(missing_ok=True)  # first: no reader may trust the block while its files go
        flush_folder(marker.parent)
        for key in keys:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                own_path(self.path, key).unlink()

    @contextmanager
    def claim(self, block: int) -> Iterator[Callable[[], None]]:
        with block_claim(self.path, block):
            yield lambda: None

    def close(self) -> None:
        if self._presence is not None:
            self._presence.close()

    def _marker(self, block: int) -> Path:
        return own_path(self.path, MARKERS) / str(block)


class BucketFiles(StoreFiles):
    """Files of a store in a bucket.

    Parameters
    ----------
    url
        Address of the store.
    """

    def __init__(self, url: str) -> None:
        self.url, self.bucket = url, Bucket(url)
        self.name = self.bucket.name

    def zarr(self) -> Store:
        return open_remote(self.url)

    def marked(self, block: int) -> bool:
        return self.bucket.exists(f"{MARKERS}/{block}")

    def markers(self) -> frozenset[str]:
        return frozenset(key.rpartition("/")[2] for key in self.bucket.keys(MARKERS))

    def files_in(self, folder: str) -> dict[str, bytes]:
        names = {key: key.removeprefix(f"{folder}/") for key in sorted(self.bucket.keys(folder))}
        found = {name: self.bucket.get(key) for key, name in names.items() if "/" not in name}
        return {name: data for name, data in found.items() if data is not None}

    def put_all(self, files: Mapping[str, Parts]) -> None:
        with ThreadPoolExecutor(min(FILES_AT_ONCE, max(len(files), 1))) as pool:
            for _ in pool.map(self.bucket.put, files, files.values()):
                pass

    def mark(self, block: int, data: bytes) -> None:
        """As of `StoreFiles`; StoreError where another process marked the block."""
        if self.bucket.create(f"{MARKERS}/{block}", data) is None:
            raise StoreError(
                f"{self.name}: expected block {block} to be unmarked, found that another process marked it; check it with "
                "`stratascope verify`"
            )

    def unmark(self, block: int, keys: list[str]) -> None:
        self.bucket.remove([f"{MARKERS}/{block}", *keys])

    @contextmanager
    def claim(self, block: int) -> Iterator[Callable[[], None]]:
        with bucket_claim(self.bucket, f"{CLAIMS}/{block}", f"block {block}") as check:
            yield check

    def close(self) -> None:
        pass


def place_of(target: str | Path) -> str | Path:
    """An address as it is, anything else as a path."""
    return target if isinstance(target, str) and is_address(target) else Path(target)


def inside(place: str | Path, name: str) -> str | Path:
    """A name in a folder or under an address."""
    return f"{place.rstrip('/')}/{name}" if isinstance(place, str) and is_address(place) else Path(place) / name


def store_exists(place: str | Path) -> bool:
    """Whether there is something at a path, or a store at an address.

    Raises
    ------
    StoreError
        For an address that cannot be written, and a server that refuses or does not answer.
    """
    if isinstance(place, str) and is_address(place):
        return Bucket(place).exists(ROOT)
    return Path(place).exists()


def store_files(target: str | Path, *, presence: bool = False) -> StoreFiles:
    """Files of an existing store that is to be written.

    Parameters
    ----------
    target
        Folder, or an address in a bucket.
    presence
        As of `FolderFiles`.

    Raises
    ------
    StoreError
        There is no folder, the address cannot be written, or holds no store.
    """
    place = place_of(target)
    if isinstance(place, str):
        files = BucketFiles(place)
        if not files.bucket.exists(ROOT):
            raise StoreError(f"{files.name}: expected a store to write into, found no {ROOT} there; check the address")
        return files
    if not place.is_dir():
        found = "a file" if place.exists() else "nothing"
        raise StoreError(
            f"{target}: expected the folder of a store to write into, found {found}; choose another folder; zips are read-only",
            in_python="make one with create_store",
        )
    return FolderFiles(place, presence=presence)


def check_writable(place: str | Path) -> None:
    """Refuse a place for a new store that cannot be written, before anything runs.

    Raises
    ------
    StoreError
        Naming the folder; for an address, also where there is no such bucket or other objects lie there.
    UnreachableError
        The credentials do not suffice, or the server does not answer.
    """
    if isinstance(place, str):
        bucket = Bucket(place)
        bucket.conditional(CLAIMS)
        _leftovers(bucket)
        return
    folder = next(parent for parent in place.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        found = "one without permission to write" if folder.is_dir() else "a file"
        raise StoreError(f"{place}: expected to create the store in the folder {folder}, found {found}; choose another path")


def _leftovers(bucket: Bucket) -> dict[str, int]:
    """Objects of an unfinished creation or copy; StoreError where other objects lie there."""
    found = {key: size for key, size in bucket.keys().items() if not key.startswith(f"{CLAIMS}/") or key == BEGUN}
    if found and BEGUN not in found:
        raise StoreError(
            f"{bucket.name}: expected a new address, found {len(found):,} other objects there, such as {min(found)}; choose another, or "
            "remove them"
        )
    return found


def begin(bucket: Bucket, what: str) -> dict[str, int]:
    """Begin a creation or a copy in a bucket, under its claim; key -> bytes of what an interrupted one of the same left.

    What an interrupted one of something else left is removed.

    Raises
    ------
    StoreError
        Where there is a store, or other objects.
    """
    if bucket.exists(ROOT):
        raise StoreError(
            f"{bucket.name}: expected a new address, found an existing store; choose another, resume extraction into it, or remove it"
        )
    left = _leftovers(bucket)
    if left and bucket.get(BEGUN) != what.encode():
        bucket.remove(key for key in left if key != BEGUN)
        left = {}
    bucket.put(BEGUN, lambda: [what.encode()])
    return {key: size for key, size in left.items() if key != BEGUN}


def create_in_bucket(url: str, files: Mapping[str, bytes]) -> None:
    """Create a store from all its files; it exists once its root metadata, which come last, are there.

    Raises
    ------
    StoreError
        There is a store, or something else, or another process creates one.
    UnreachableError
        The server refuses or does not answer.
    """
    bucket = Bucket(url)
    with bucket_claim(bucket, f"{CLAIMS}/creation", "the address") as check:
        begin(bucket, "creation")
        try:
            BucketFiles(url).put_all({key: _whole(data) for key, data in files.items() if key != ROOT})
            finish(bucket, files[ROOT], check)
        except UnreachableError:
            raise
        except BaseException:
            with contextlib.suppress(StoreError):
                bucket.remove([*files, BEGUN])
            raise


def finish(bucket: Bucket, root: bytes, check: Callable[[], Any]) -> None:
    """Write the root metadata, which make a store of what was put.

    Raises
    ------
    StoreError
        Where another process created a store there.
    """
    check()
    if bucket.create(ROOT, root) is None:
        raise StoreError(f"{bucket.name}: expected a new address, found that another process created a store there meanwhile")
    bucket.remove([BEGUN])


def _whole(data: bytes) -> Parts:
    return lambda: [data]
