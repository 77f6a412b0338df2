"""Open a folder, zip, URL or Zarr store so that missing chunks raise instead of reading as fill values."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore, ZipStore

from stratascope.addresses import is_address, without_secrets
from stratascope.errors import StoreError, out_of_memory
from stratascope.store.format.arrays import ArraySpec
from stratascope.store.format.limits import check_chunk, check_member, check_metadata_size, too_deep
from stratascope.store.io.links import StoreFolder
from stratascope.store.io.remote import PatientStore, open_remote
from stratascope.store.io.remote_errors import UnreachableError, silenced_panics

__all__ = ["GuardedStore", "UnreachableError", "checked_array", "is_url", "open_root", "open_target"]

RESULT_FORMAT = "stratascope-result"
"""Format name in the root of a results file."""
MARKERS = "written/c/"
"""Folder of the markers; an absent marker means that the block is not written."""
_DAMAGED_MEMBER = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""Errors from reading a zip member that is damaged, encrypted, or compressed in an unknown way."""


class GuardedStore(WrapperStore[Store]):
    """A read-only view of a Zarr store that raises for missing or empty chunk files.

    Symbolic links in a folder, and files that unpack to absurd sizes, are refused before they are read.

    Parameters
    ----------
    store
        The store.
    folder
        Where in the store the keys begin, such as "demo/original.zarr/" in a zip of that folder.
    """

    def __init__(self, store: Store, folder: str = "") -> None:
        super().__init__(store)
        self.folder = folder
        """Prefix of all keys."""
        self.files: StoreFolder | None = StoreFolder(Path(store.root)) if isinstance(store, LocalStore) else None
        """Checked paths of a local folder."""

    def _with_store(self, store: Store) -> GuardedStore:
        return type(self)(store, self.folder)

    @property
    def wrapped(self) -> Store:
        """The underlying store."""
        return self._store

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Bytes of a key for the Zarr library to decompress.

        Raises
        ------
        StoreError
            For a missing or empty file of values other than a marker, for one that unpacks to an absurd size, a symbolic link in a
            folder.
        UnreachableError
            For a server that ignores ranges, refuses, or does not answer.
        """
        value = await self.raw(key, prototype, byte_range)
        if value is not None and byte_range is None and _holds_values(key):
            check_chunk(value.as_numpy_array()[:18].tobytes(), len(value), key)
        return value

    async def raw(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Bytes of a key that this package decompresses itself; raises as `get`."""
        self._check_size(key)
        try:
            value = await self._store.get(f"{self.folder}{key}", prototype, byte_range)
        except Exception as error:
            if isinstance(error, _DAMAGED_MEMBER) and not out_of_memory(error):
                raise StoreError(f"expected a whole file in the zip, found damage in {key}: {error}; fetch it again") from error
            raise
        if _holds_values(key) and (value is None or len(value) == 0):
            if value is None and key.startswith(MARKERS):
                return None
            what = "no such file" if value is None else "an empty file"
            raise StoreError(
                f"expected values in {key}, found {what}; run `stratascope verify --repair` and extract again, or fetch it again"
            )
        return value

    def forget(self, key: str | None = None) -> None:
        """Fetch a damaged file of the Hub again when it is read next, or all files."""
        if isinstance(self._store, PatientStore):
            self._store.forget(key)

    def _check_size(self, key: str) -> None:
        """Refuse a link, oversized metadata and a zip member of an absurd decompressed size."""
        if self.files is not None:
            path = self.files.path(key)
            if key.endswith("zarr.json") and path.is_file():
                check_metadata_size(path.stat().st_size, key)
        elif isinstance(self._store, ZipStore) and (member := self._store._zf.NameToInfo.get(f"{self.folder}{key}")) is not None:
            check_member(member, str(self._store.path))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As `get`, for several keys."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]


def open_target(target: str | Path | Store) -> tuple[GuardedStore, str]:
    """Return a guarded, read-only Zarr store and its name for messages.

    Raises
    ------
    StoreError
        Where there is no such file or folder, or a zip that cannot be read.
    """
    if isinstance(target, Store):
        return GuardedStore(target), str(target)
    name = str(target)
    if is_url(name):
        return GuardedStore(open_remote(name)), without_secrets(name)
    path = Path(target).absolute()  # what is read later must not depend on the working folder
    if path.is_dir():
        return GuardedStore(LocalStore(path, read_only=True)), name
    if not path.exists():
        raise StoreError(f"{name}: expected a store (folder, zip or URL), found nothing; check the path")
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise StoreError(f"{name}: expected a folder or a zip, found a file of another kind or a damaged zip; fetch it again")
    zipped = ZipStore(path, mode="r")
    try:
        zipped._sync_open()
    except (zipfile.BadZipFile, NotImplementedError, OSError) as error:
        raise StoreError(f"{name}: expected a folder or a zip, found a damaged zip: {error}; fetch it again") from error
    return GuardedStore(zipped, folder_in_zip(zipped._zf.namelist(), name)), name


def folder_in_zip(members: Iterable[str], name: str) -> str:
    """Folder of the store in a zip, ending in a slash; empty if the store is at the top or absent.

    Raises
    ------
    StoreError
        Where several folders hold a store.
    """
    roots = [member.removesuffix("zarr.json") for member in members if member.endswith("/zarr.json") or member == "zarr.json"]
    depth = min((root.count("/") for root in roots), default=0)
    found = sorted({root for root in roots if root.count("/") == depth})
    if len(found) > 1:
        listed = ", ".join(root.rstrip("/") for root in found[:5])
        raise StoreError(f"{name}: expected one store in the zip, found {len(found)}: {listed}; unpack it and give the folder of one")
    return found[0] if found else ""


def open_root(store: Store, name: str) -> zarr.Group:
    """Open the root group by its consolidated metadata, in one request.

    Raises
    ------
    StoreError
        Where there is no Zarr v3 group with consolidated metadata.
    """
    try:
        with silenced_panics() if is_url(name) else contextlib.nullcontext():
            return zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=True)
    except StoreError:
        raise
    except FileNotFoundError as error:
        if is_url(name) and name.partition("?")[0].endswith(".zip"):
            raise StoreError(
                f"{name}: expected a store's folder at an address, found a zip; download it and give its path, or unpack it on the host"
            ) from error
        raise StoreError(f"{name}: expected a store, found no zarr.json there; check the path") from error
    except Exception as error:  # damaged or foreign metadata fails in many ways
        if out_of_memory(error):
            raise
        if isinstance(store, GuardedStore):
            store.forget("zarr.json")
        if isinstance(error, RecursionError):
            raise too_deep(f"{name}: zarr.json") from error
        if _holds_results(store):
            raise StoreError(f"{name}: expected a store, found a results file; give the store that it was made from") from error
        raise StoreError(f"{name}: expected the consolidated metadata of a Zarr v3 group, found: {error}") from error


def _holds_results(store: Store) -> bool:
    try:
        return bool(zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False).attrs.get("format") == RESULT_FORMAT)
    except Exception:  # it is about to be said what it is not; what else it may be does not matter
        return False


def checked_array(root: zarr.Group, spec: ArraySpec, name: str) -> Any:
    """The Zarr array of a spec; StoreError if it contradicts the layout."""
    array: Any = root.get(spec.name)
    if array is None:
        raise StoreError(f"{name}: expected array {spec.name}, found none; the store is damaged: fetch it again")
    dims = tuple(array.metadata.dimension_names or ())
    shards = array.shards if spec.shard is not None else None
    # what is written at creation may be cut otherwise: Zarr reads it by its own metadata
    chunks = array.chunks if spec.by_block or spec.when == "marker" else spec.chunk
    found = (array.shape, dims, chunks, shards)
    if found != (spec.shape, spec.dims, spec.chunk, spec.shard):
        wanted = (spec.shape, spec.dims, spec.chunk, spec.shard)
        raise StoreError(f"{name}: expected {spec.name} with shape, dimensions, chunks and shards {wanted}, found {found}; fetch it again")
    return array


def is_url(name: str) -> bool:
    """Whether a target is a URL."""
    return is_address(name)


def _holds_values(key: str) -> bool:
    return "/c/" in key or key.endswith("/c")
