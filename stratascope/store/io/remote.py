"""Remote stores over HTTP, S3, GCS and Azure: connecting, reading, retries."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import re
import time
import urllib.parse
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import MemoryStore, ObjectStore, WrapperStore

from stratascope.addresses import without_secrets
from stratascope.errors import InvalidInputError, MissingExtraError, StoreError, is_panic
from stratascope.store.format.limits import check_file_size
from stratascope.store.io.hub import HubFolder, hub_folder
from stratascope.store.io.hub_cache import CachedStore
from stratascope.store.io.remote_errors import CREDENTIALS, DOCS, Refusal, UnreachableError, first_line, silenced_panics

PATIENCE = 120.0
"""Seconds in total for retries of a request."""
FIRST_PATIENCE = 3.0
"""The same for a server that has never answered, so that a wrong address is reported soon."""
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
"""Seconds before a request is sent again: at random up to FIRST_PAUSE, twice that, and so on up to LONGEST_PAUSE."""
SILENCE = 60.0
"""Seconds without a byte after which a request fails."""
CONNECT = 10.0
"""Seconds for a connection."""
_NO_LIMIT = timedelta(days=30)
RETRIES = 2
"""Retries of the client library within each request."""
SCHEMES = "http, https, s3, gs, az, hf"
WRITABLE = "s3, gs, az"
_SERVICES = {"s3": "s3", "s3a": "s3", "gs": "gs", "az": "az", "azure": "az", "adl": "az", "abfs": "az", "abfss": "az"}
_ENDPOINTS = {
    "gs": ("GOOGLE_BASE_URL",),
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_OPTIONAL = ("written/c/", "lens/zarr.json")
"""Keys that a store may lack."""


def open_remote(url: str) -> Store:
    """Open the read-only Zarr store at an address.

    Raises
    ------
    StoreError
        For an address that cannot be read, and for credentials that are missing or cannot be used.
    MissingExtraError
        Without obstore.
    """
    if not url.startswith("hf://"):
        return PatientStore(BoundedStore(connect(url), read_only=True), Server(url))
    hub = hub_folder(url)
    store: Store = MemoryStore(read_only=True) if hub.offline else BoundedStore(connect(url, hub=hub), read_only=True)
    return PatientStore(CachedStore(store, hub.cache, hub.commit, hub.path, hub.offline), Server(url))


def connect(url: str, *, retries: int | None = None, hub: HubFolder | None = None) -> Any:
    """Obstore's client for an address.

    Parameters
    ----------
    url
        Of a folder on a web host or a prefix in a bucket.
    retries
        Retries of the client library within each request; RETRIES by default.
    hub
        The folder of an hf:// address.

    Raises
    ------
    StoreError
        For an address that cannot be used, and for credentials that are missing or cannot be used.
    MissingExtraError
        Without obstore.
    """
    try:
        from obstore.store import HTTPStore, from_url
    except ImportError as error:
        raise MissingExtraError("expected the package obstore for reading URLs, found none; run `pip install obstore`") from error
    scheme, _, rest = url.partition("://")
    service = service_of(url)
    client: dict[str, Any] = {
        "timeout": _NO_LIMIT,
        "read_timeout": timedelta(seconds=SILENCE),
        "connect_timeout": timedelta(seconds=CONNECT),
    }
    if scheme == "http" or (hub and hub.web.startswith("http://")) or _endpoint(service).startswith("http://"):
        client["allow_http"] = True
    again: Any = {"max_retries": RETRIES if retries is None else retries, "retry_timeout": timedelta(seconds=PATIENCE)}
    try:
        with silenced_panics():
            if hub:
                client["default_headers"] = hub.headers
                return HTTPStore.from_url(hub.web, client_options=client, retry_config=again)
            if scheme in ("http", "https"):
                place, client["default_headers"] = _web_address(url)
                signed = "?" in place
                return (HTTPStore.from_url if signed else from_url)(place, client_options=client, retry_config=again)
            quoted = urllib.parse.quote(rest.rstrip("/"), safe="/:%@[]-._~")
            return from_url(f"{scheme}://{quoted}", client_options=client, retry_config=again)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        found = first_line(error)
        if service and scheme in ("s3", "gs", "az") and "ecognise" not in found:
            raise StoreError(f"{url}: expected settings of {scheme}://, found: {found}; {CREDENTIALS[service]}; {DOCS}") from error
        raise StoreError(f"{url}: expected an address that can be read ({SCHEMES}), found: {found}") from error


def service_of(url: str) -> str:
    """Service of an address: s3, gs or az; empty for others."""
    return _SERVICES.get(url.partition("://")[0].lower(), "")


def refuse_unwritable(address: str) -> None:
    """InvalidInputError for an address of a kind that is read-only, or with a password or a query."""
    shown = without_secrets(address)
    if address.startswith("hf://"):
        raise InvalidInputError(
            f"expected a path on this machine or an address in a bucket ({WRITABLE}), found the address {shown}; share a store there with "
            "`stratascope push`"
        )
    if not service_of(address):
        raise InvalidInputError(
            f"expected a path on this machine or an address in a bucket ({WRITABLE}), found the address {shown}; write to a folder and "
            "upload that (docs/remote.md)"
        )
    if shown != address:
        raise InvalidInputError(
            f"expected an address without a password or a query, found one with it: {shown}; set the variables of its service ({DOCS})"
        )


def _endpoint(service: str) -> str:
    """The address of a service, where the environment names one.

    Raises
    ------
    StoreError
        For one that is no http or https address: the client library would crash.
    """
    for name in _ENDPOINTS.get(service, ()):
        found = os.environ.get(name, "")
        if found:
            if not re.match(r"https?://[^/\s]", found):
                raise StoreError(f"{name}: expected an address that begins with http:// or https://, found another value; set it again")
            return found
    return ""


def _web_address(url: str) -> tuple[str, dict[str, str]]:
    """Address and authorisation headers for a client."""
    parts = urllib.parse.urlsplit(url)
    headers = {}
    user, at, host = parts.netloc.rpartition("@")
    if at:
        pair = urllib.parse.unquote(user)
        headers["authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    path = urllib.parse.quote(parts.path.rstrip("/"), safe="/:%@[]-._~")
    path += urllib.parse.quote(f"#{parts.fragment}", safe="/:%@[]-._~") if parts.fragment else ""
    return f"{parts.scheme}://{host}{path}{f'?{parts.query}' if parts.query else ''}", headers


class Server:
    """The server behind an address, and whether it ever answered.

    Parameters
    ----------
    url
        Of the store.
    """

    def __init__(self, url: str) -> None:
        self.service = service_of(url)
        """Whose credentials it needs: s3, gs, az; empty for others."""
        self.address = without_secrets(url).rstrip("/") if self.service else ""
        """Of a store in a bucket; empty for a web host, whose errors name the address."""
        self.answered = False

    def request(self, purpose: str, key: str) -> Request:
        """A request that is about to be sent: to `read`, `write`, `list` or `remove` a key."""
        return Request(self, purpose, key)


class Request:
    """A request and its retries: exponential back-off with jitter, up to a total time."""

    def __init__(self, server: Server, purpose: str, key: str) -> None:
        self._server, self._purpose = server, purpose
        self._what = f"{key} of {server.address}" if server.address else key
        self._started, self._longest = time.monotonic(), FIRST_PAUSE
        self.failures = 0
        """How often it failed."""

    def pause(self, error: BaseException) -> float:
        """Seconds to wait before the request is sent again after an error.

        Raises
        ------
        UnreachableError
            Where trying again does not help, or the time is over.
        """
        if is_panic(error):
            said = f"expected to {self._purpose} {self._what}, found that the client library obstore failed: {first_line(error)}"
            raise UnreachableError(f"{said}; check the address and the variables of its service ({DOCS})") from error
        if not type(error).__module__.startswith("obstore") and not isinstance(error, PermissionError):
            raise error
        server, refusal = self._server, Refusal(error, SILENCE)
        server.answered |= refusal.status is not None
        waited = time.monotonic() - self._started
        pause = random.uniform(self._longest / 2, self._longest)
        if not refusal.passing or waited + pause > (PATIENCE if server.answered else FIRST_PATIENCE):
            tried = waited if server.answered else 0.0
            sentence = refusal.sentence(self._purpose, self._what, server.service, tried)
            raise UnreachableError(sentence, status=refusal.status) from error
        self.failures += 1
        self._longest = min(2 * self._longest, LONGEST_PAUSE)
        return pause


class BoundedStore(ObjectStore[Any]):
    """Objects on a server; those of an absurd size are refused before their bytes are read."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of a key, None where there are none.

        Raises
        ------
        StoreError
            For a whole file that is larger than a store's can be.
        """
        if byte_range is not None:
            return await super().get(key, prototype, byte_range)
        import obstore

        try:
            answer = await obstore.get_async(self.store, key)
        except FileNotFoundError:
            return None
        check_file_size(answer.meta["size"], key)
        return prototype.buffer.from_bytes(await answer.bytes_async())

    def __str__(self) -> str:
        return "object store"  # the text of obstore's client of Azure panics where the account comes from the environment


class PatientStore(WrapperStore[Store]):
    """A remote store that retries requests while the server is overloaded or unreachable.

    Parameters
    ----------
    store
        The store on the server.
    server
        The server.
    """

    def __init__(self, store: Store, server: Server) -> None:
        super().__init__(store)
        self._server = server

    def _with_store(self, store: Store) -> PatientStore:
        return PatientStore(store, self._server)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of a key, None where there are none.

        A host that answers 401 or 403 for a key that a store may lack, and serves the store's metadata, has no such key: object stores
        answer so to readers who may not list a bucket.

        Raises
        ------
        UnreachableError
            Where the server refuses, or does not answer well for PATIENCE seconds.
        """
        try:
            return await self._get(key, prototype, byte_range)
        except UnreachableError as error:
            if error.status not in (401, 403) or not key.startswith(_OPTIONAL):
                raise
            await self._get("zarr.json", prototype, RangeByteRequest(0, 1))  # raises where the credentials expired
            return None

    async def _get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        request = self._server.request("read", key)
        while True:
            try:
                value = await self._store.get(key, prototype, byte_range)
            except BaseException as error:
                await asyncio.sleep(request.pause(error))
            else:
                self._server.answered = True
                return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As `get`, for several keys."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    def forget(self, key: str | None = None) -> None:
        """Remove a key that turned out to be damaged from the cache of the Hub, or all keys."""
        if isinstance(self._store, CachedStore):
            self._store.forget(key)

    def names(self, folder: str) -> frozenset[str] | None:
        """Names of the files in a folder of a bucket; None where they cannot be listed, as on a web host."""
        if not self._server.service:
            return None
        import obstore

        client = getattr(self._store, "store", None)
        try:
            found = [entry["path"] for page in obstore.list(client, prefix=folder) for entry in page]
        except Exception as error:  # readers may be allowed to read a bucket and not to list it: each file is then asked for
            if not type(error).__module__.startswith("obstore") and not isinstance(error, PermissionError):
                raise
            return None
        return frozenset(path.rpartition("/")[2] for path in found if path.rpartition("/")[0] == folder)
