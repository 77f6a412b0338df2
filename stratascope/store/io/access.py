"""Where a store lies: a folder, a zip, a URL or any Zarr store, opened so that nothing missing reads as fill."""

from __future__ import annotations

import re
import urllib.parse
import zipfile
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore, ZipStore

from stratascope.errors import MissingExtraError, StoreError
from stratascope.store.format.arrays import ArraySpec

RESULT_FORMAT = "stratascope-result"
"""What the root of a results file calls its format."""
MARKERS = "written/c/"
"""The one place where absence has a meaning: the block is not written."""
PATIENCE: Any = {"max_retries": 4, "retry_timeout": timedelta(seconds=60)}
"""With a server that does not answer, or not well: some seconds, so that a wrong address is told soon."""


class UnreachableError(StoreError):
    """A store behind an address could not be asked: nothing is known to be wrong with it."""


class GuardedStore(WrapperStore[Store]):
    """A read-only view of a Zarr store in which a file of values that is missing or empty is an error, never fill."""

    @property
    def wrapped(self) -> Store:
        """The store behind the view."""
        return self._store

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of a key.

        Raises
        ------
        StoreError
            For a missing or empty file of values other than a marker, and for a server that ignores ranges.
        """
        try:
            value = await self._store.get(key, prototype, byte_range)
        except Exception as error:
            if type(error).__module__.startswith("obstore"):
                raise UnreachableError(_network(key, error)) from error
            raise
        if _holds_values(key) and (value is None or len(value) == 0):
            if value is None and key.startswith(MARKERS):
                return None
            what = "no such file" if value is None else "an empty file"
            raise StoreError(
                f"expected values in {key}, found {what}; run `stratascope verify --repair` and extract again, or fetch it again"
            )
        return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As `get`, for several keys."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]


def open_target(target: str | Path | Store) -> tuple[GuardedStore, str]:
    """A guarded, read-only Zarr store and the name to call it by.

    Raises
    ------
    StoreError
        Where there is no such file or folder, or a zip that cannot be read.
    """
    if isinstance(target, Store):
        return GuardedStore(target), str(target)
    name = str(target)
    if is_url(name):
        return GuardedStore(_remote(name)), name
    path = Path(target)
    if path.is_dir():
        return GuardedStore(LocalStore(path, read_only=True)), name
    if not path.exists():
        raise StoreError(f"{name}: expected a store (folder, zip or URL), found nothing; check the path")
    if not zipfile.is_zipfile(path):
        raise StoreError(f"{name}: expected a folder or a zip, found a file of another kind or a damaged zip; fetch it again")
    return GuardedStore(ZipStore(path, mode="r")), name


def open_root(store: Store, name: str) -> zarr.Group:
    """The root group, by its consolidated metadata: one request.

    Raises
    ------
    StoreError
        Where there is no Zarr v3 group with consolidated metadata.
    """
    try:
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
        if _holds_results(store):
            raise StoreError(f"{name}: expected a store, found a results file; give the store that it was made from") from error
        raise StoreError(f"{name}: expected the consolidated metadata of a Zarr v3 group, found: {error}") from error


def _holds_results(store: Store) -> bool:
    try:
        return bool(zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False).attrs.get("format") == RESULT_FORMAT)
    except Exception:  # it is about to be said what it is not; what else it may be does not matter
        return False


def checked_array(root: zarr.Group, spec: ArraySpec, name: str) -> Any:
    """The Zarr array of a spec; StoreError where it is not as the layout says."""
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
    """Whether a target is an address and not a path."""
    return "://" in name


def _remote(url: str) -> Store:
    try:
        from obstore.store import from_url
        from zarr.storage import ObjectStore
    except ImportError as error:
        raise MissingExtraError("expected the package obstore for reading URLs, found none; run `pip install obstore`") from error
    scheme, _, rest = url.rstrip("/").partition("://")
    quoted = urllib.parse.quote(rest, safe="/:%@[]-._~")
    options: dict[str, Any] = {"client_options": {"allow_http": True}} if scheme == "http" else {}
    try:
        return ObjectStore(from_url(f"{scheme}://{quoted}", retry_config=PATIENCE, **options), read_only=True)
    except Exception as error:
        raise StoreError(f"{url}: expected an address that can be read (http, https, s3, gs, az), found: {_short(error)}") from error


def _network(key: str, error: Exception) -> str:
    text = _short(error)
    if "ange" in text and ("upport" in text or "artial" in text):
        return (
            f"expected a server that answers Range requests, found one that does not (asked for a part of {key}); "
            "python -m http.server is such a one: use nginx, caddy or an object store, or fetch the whole store first"
        )
    return f"expected to read {key}, found: {_plain(text)}; check the address and the network, then run again"


def _plain(text: str) -> str:
    """What went wrong, without how often and how long the client tried."""
    address = re.search(r"performing \w+ (\S+)", text)
    cause = text.rpartition(" - ")[2].removeprefix("HTTP error: ")
    if address is None or not cause:
        return text
    return f"{'no server answers' if cause == 'error sending request' else cause} ({address[1]})"


def _short(error: Exception) -> str:
    """The message without the dump of the request that obstore appends."""
    return " ".join(str(error).partition("Debug source")[0].split())


def _holds_values(key: str) -> bool:
    return "/c/" in key or key.endswith("/c")
