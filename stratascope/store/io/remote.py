"""Remote stores over HTTP, S3, GCS and Azure: opening, retries, errors."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import random
import re
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from stratascope.addresses import without_secrets
from stratascope.errors import MissingExtraError, StoreError, UnreadError

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
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
"""HTTP statuses that are retried."""
_METADATA_SERVICE = re.compile(r"latest/api/token|latest/meta-data|computeMetadata|metadata/identity|169\.254\.1[67]\d|fd00:ec2")
"""Cloud metadata services, which provide credentials if none are set."""
RETRIES = 2
"""Retries of the client library within each request."""

SCHEMES = "http, https, s3, gs, az"
CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (AWS_SESSION_TOKEN too where they are temporary), or AWS_SKIP_SIGNATURE=true "
    "for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account or run `gcloud auth application-default login`, or set "
    "GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME, and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_KEY, or AZURE_SKIP_SIGNATURE=true for a "
    "public container",
}
"""Advice for a service without credentials."""
_SERVICES = {"s3": "s3", "s3a": "s3", "gs": "gs", "az": "az", "azure": "az", "adl": "az", "abfs": "az", "abfss": "az"}
_ENDPOINTS = {
    "gs": ("GOOGLE_BASE_URL",),
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}


class UnreachableError(UnreadError):
    """A server did not answer or refused; nothing shows that the store is damaged."""


def open_remote(url: str) -> Store:
    """Open the read-only Zarr store at an address.

    Raises
    ------
    StoreError
        For an address that cannot be read, and for credentials that are missing or cannot be used.
    MissingExtraError
        Without obstore.
    """
    try:
        from obstore.store import HTTPStore, from_url
        from zarr.storage import ObjectStore
    except ImportError as error:
        raise MissingExtraError("expected the package obstore for reading URLs, found none; run `pip install obstore`") from error
    scheme, _, rest = url.partition("://")
    service = service_of(url)
    client: dict[str, Any] = {
        "timeout": _NO_LIMIT,
        "read_timeout": timedelta(seconds=SILENCE),
        "connect_timeout": timedelta(seconds=CONNECT),
    }
    if scheme == "http" or _endpoint(service).startswith("http://"):
        client["allow_http"] = True
    retries: Any = {"max_retries": RETRIES, "retry_timeout": timedelta(seconds=PATIENCE)}
    made: Any
    try:
        with silenced_panics():
            if scheme in ("http", "https"):
                place, client["default_headers"] = _web_address(url)
                signed = "?" in place
                made = (HTTPStore.from_url if signed else from_url)(place, client_options=client, retry_config=retries)
            else:
                quoted = urllib.parse.quote(rest.rstrip("/"), safe="/:%@[]-._~")
                made = from_url(f"{scheme}://{quoted}", client_options=client, retry_config=retries)
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        found = _first_line(error)
        if service and scheme in ("s3", "gs", "az") and "ecognise" not in found:
            raise StoreError(f"{url}: expected settings of {scheme}://, found: {found}; {CREDENTIALS[service]}; {_DOCS}") from error
        raise StoreError(f"{url}: expected an address that can be read ({SCHEMES}), found: {found}") from error
    return PatientStore(ObjectStore(made, read_only=True), service)


def service_of(url: str) -> str:
    """Service of an address: s3, gs or az; empty for others."""
    return _SERVICES.get(url.partition("://")[0].lower(), "")


_DOCS = "docs/remote.md lists all variables"


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


class PatientStore(WrapperStore[Store]):
    """A remote store that retries requests while the server is overloaded or unreachable.

    Parameters
    ----------
    store
        The store on the server.
    service
        Whose credentials it needs: s3, gs, az; empty for others.
    """

    def __init__(self, store: Store, service: str = "") -> None:
        super().__init__(store)
        self._service = service
        self._answered = False

    def _with_store(self, store: Store) -> PatientStore:
        return PatientStore(store, self._service)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of a key, None where there are none.

        Raises
        ------
        UnreachableError
            Where the server refuses, or does not answer well for PATIENCE seconds.
        """
        started = time.monotonic()
        longest = FIRST_PAUSE
        while True:
            try:
                value = await self._store.get(key, prototype, byte_range)
            except BaseException as error:
                if is_panic(error):
                    said = f"expected to read {key}, found that the client library obstore failed: {_first_line(error)}"
                    raise UnreachableError(f"{said}; check the address and the variables of its service ({_DOCS})") from error
                if not type(error).__module__.startswith("obstore"):
                    raise
                refusal = _Refusal(error)
                self._answered |= refusal.status is not None
                waited = time.monotonic() - started
                pause = random.uniform(longest / 2, longest)
                if not refusal.passing or waited + pause > (PATIENCE if self._answered else FIRST_PATIENCE):
                    raise UnreachableError(refusal.sentence(key, self._service, waited if self._answered else 0.0)) from error
                longest = min(2 * longest, LONGEST_PAUSE)
                await asyncio.sleep(pause)
            else:
                self._answered = True
                return value

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """As `get`, for several keys."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]


class _Refusal:
    """Reason of a failed request, parsed from obstore's message."""

    def __init__(self, error: BaseException) -> None:
        text = _first_line(error)
        # of the answer itself only the error's code is kept: pages and XML are long and may hold what was signed
        found = re.search(r"status code: (\d{3})(?: ([A-Za-z' -]+))?(.*)", text)
        self.status = int(found[1]) if found else None
        code = re.search(r"<Code>(\w{1,60})</Code>", found[3]) if found else None
        address = re.search(r"performing \w+ (\S+)", text)
        self.address = without_secrets(address[1]) if address and "REDACTED" not in address[1] else ""
        self.ranges = "ange" in text and ("upport" in text or "artial" in text)
        self.credentials = _METADATA_SERVICE.search(text) is not None or (self.status is None and "redential" in text)
        self.passing = not self.ranges and not self.credentials and (self.status in _PASSING or self.status is None)
        if found:
            self.cause = f"the server answers {found[1]} {(found[2] or '').strip()}".rstrip() + (f" ({code[1]})" if code else "")
        else:
            self.cause = _cause(text, silent="TimedOut" in str(error))

    def sentence(self, key: str, service: str, waited: float) -> str:
        if self.ranges:
            return (
                f"expected a server that answers Range requests, found one that does not (asked for a part of {key}); "
                "python -m http.server is such a one: use nginx, caddy or an object store, or fetch the whole store first"
            )
        if self.credentials:
            return f"expected to read {key}, found no credentials: {CREDENTIALS.get(service, 'set them')}; {_DOCS}"
        where = f" ({self.address})" if self.address else ""
        long = f", after {waited:.0f} s of trying" if waited >= 1 else ""
        advice = "check the address and the network, then run again"
        if self.status in (401, 403):
            advice = f"check the address and the credentials: some hosts answer so for files that do not exist; {_DOCS}"
        elif self.status in _PASSING:
            advice = "the host is overloaded or broken: run the same command again later"
        return f"expected to read {key}, found: {self.cause}{where}{long}; {advice}"


def _cause(text: str, *, silent: bool) -> str:
    """Reason of a transport error without the client's retry statistics."""
    cause = text.rpartition(" - ")[2].removeprefix("Generic ").partition("error: ")[2] or text.rpartition(" - ")[2]
    cause = cause.removeprefix("HTTP error: ")
    if silent:
        return f"the server sends nothing for {SILENCE:.0f} s"
    if "error sending request" in cause:
        return "no server answers"
    if "body error" in cause:
        return "the server cuts its answer off"
    if "builder error" in cause:
        return "an address that cannot be asked for"
    return without_secrets(cause)


def _first_line(error: BaseException) -> str:
    """The message without obstore's dump of the request."""
    return without_secrets(" ".join(str(error).partition("Debug source")[0].split()))


_REDIRECTING = threading.Lock()
"""Held while standard error is redirected."""


def is_panic(error: BaseException) -> bool:
    """Whether an error is a panic of a Rust library; some panics are no `Exception`."""
    return type(error).__module__.startswith("pyo3") or type(error).__name__ in ("PanicException", "RustPanic")


@contextmanager
def silenced_panics() -> Iterator[None]:
    """Suppress what a Rust panic prints (a hundred lines); other output is printed at the end."""
    alone = _REDIRECTING.acquire(blocking=False)
    try:
        kept = os.dup(2) if alone else -1
    except OSError:  # no standard error at all
        kept = -1
    if kept < 0:
        try:
            yield
        finally:
            if alone:
                _REDIRECTING.release()
        return
    crashed = False
    with tempfile.TemporaryFile() as said:
        try:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.flush()
            os.dup2(said.fileno(), 2)
            yield
        except BaseException as error:
            crashed = is_panic(error) or (error.__cause__ is not None and is_panic(error.__cause__))
            raise
        finally:
            with contextlib.suppress(OSError, ValueError, AttributeError):
                sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            _REDIRECTING.release()
            said.seek(0)
            text = b"" if crashed else said.read()
            while text:
                text = text[os.write(2, text) :]
