"""The server of `stratascope view`: for this machine alone, and only for whoever was told its address."""

from __future__ import annotations

import gzip
import http.server
import re
import secrets
import socket
import sys
import threading
import urllib.parse
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

from stratascope.errors import StoreError
from stratascope.report.viewer.address import check_page_can_ask
from stratascope.report.viewer.files import FolderFiles, ServedFiles, Stretch, UnsatisfiableRangeError, byte_range, files_of
from stratascope.report.viewer.page_files import PAGE_FILES, page_config, page_file, result_index
from stratascope.results.locations import ENDING
from stratascope.store.io.hub import hub_endpoint

HOST = "127.0.0.1"
_CORS_NOTE = (
    "The page reads this address itself, not through the server: its host must allow other pages to read it (CORS), for GET and HEAD "
    "with the header Range. See docs/viewer.md, or fetch the store first with `stratascope copy`."
)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; worker-src 'self'; connect-src {connect}; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types stratascope"
)
_JSON = "application/json"
_BYTES = "application/octet-stream"
_MARKER = re.compile(r"written/c/\d+", re.ASCII)
MOST_CONNECTIONS = 128
"""Answered at once, each by a thread; more wait for their turn."""
_WAITING = 1024
"""Connections that the system keeps waiting; beyond them it drops some."""
_IDLE, _IDLE_CROWDED = 60.0, 2.0
"""Seconds after which a silent connection is closed; the second where others may wait."""
_MOST_PACKED = 64 << 20
"""Bytes of metadata that are packed in memory; larger ones are sent as they are."""


class ViewServer:
    """A running server; a context manager that stops it.

    Parameters
    ----------
    store
        Folder, zip, or http(s) address.
    results
        Folder of results to show beside it.
    port
        0 for any that is free.
    shown
        Names of the results to show; all by default.

    Raises
    ------
    StoreError
        Where there is no such store, or the port is taken.
    InvalidInputError
        For an address that a web page cannot read, such as s3://; see `check_page_can_ask`.
    """

    def __init__(self, store: str, *, results: Path | None = None, port: int = 0, shown: Collection[str] | None = None) -> None:
        remote = "://" in store
        if remote:
            check_page_can_ask(store)
        self.token = secrets.token_urlsafe(24)
        """The part of the path that nobody can guess."""
        self._routes = _Routes(store, None if remote else files_of(Path(store)), results, shown)
        handler = type("Handler", (_Handler,), {"server_of": self})
        try:
            self._server = _Server((HOST, port), handler)
        except (OSError, OverflowError) as error:
            raise StoreError(f"expected port {port} to be free, found: {error}; choose another `port`, or leave it out") from error
        self.port = self._server.server_port
        self.hosts = frozenset({f"{HOST}:{self.port}", f"localhost:{self.port}"})
        """Values of the header Host that are answered: a foreign name that was made to lead here is refused."""
        self.address = f"http://{HOST}:{self.port}/{self.token}/"
        """Where the page is."""
        self.routes = self._routes

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve_forever(self) -> None:
        """Answer until interrupted."""
        try:
            self._server.serve_forever()
        finally:
            self._server.server_close()


def serve_store(store: str, *, results: Path | None = None, port: int = 0, shown: Collection[str] | None = None) -> ViewServer:
    """A server of a store's page, not yet running; see `ViewServer`."""
    return ViewServer(store, results=results, port=port, shown=shown)


class _Server(http.server.ThreadingHTTPServer):
    """Keeps many connections waiting, and answers a bounded number of them at once."""

    daemon_threads = True
    request_queue_size = _WAITING

    def __init__(self, address: tuple[str, int], handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._open, self._counting, self._stopping = 0, threading.Lock(), threading.Event()
        super().__init__(address, handler)

    @property
    def crowded(self) -> bool:
        """Whether so many connections are open that idle ones should make room."""
        return self._open > MOST_CONNECTIONS // 2

    def process_request(self, request: Any, client_address: Any) -> None:
        while not self._free.acquire(timeout=0.1):
            if self._stopping.is_set():
                return self.shutdown_request(request)
        with self._counting:
            self._open += 1
        return super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._counting:
                self._open -= 1
            self._free.release()

    def shutdown(self) -> None:
        self._stopping.set()
        super().shutdown()

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: Any) -> None:
        """Browsers close connections whenever they like: that is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Routes:
    """What lies at which path behind the token."""

    def __init__(self, store: str, served: ServedFiles | None, results: Path | None, shown: Collection[str] | None = None) -> None:
        self._store = served
        self._results = FolderFiles(results) if results is not None else None
        self._folder, self._shown = results, shown
        if served is None:
            parts = urllib.parse.urlsplit(store)
            # the Hub redirects to hosts of its own choice
            hub = parts.netloc == urllib.parse.urlsplit(hub_endpoint()).netloc
            self.policy = _POLICY.format(connect="'self' http: https:" if hub else f"'self' {parts.scheme}://{parts.netloc}")
            self._config = page_config(store if store.endswith(".zip") else store.rstrip("/") + "/", self._address, _CORS_NOTE)
        else:
            self.policy = _POLICY.format(connect="'self' http: https:")
            # the folder's own name is what the page calls the store
            self.store_name = Path(store).resolve().name
            self._config = page_config(f"store/{urllib.parse.quote(self.store_name, safe='')}/", self._address)

    @property
    def _address(self) -> str | None:
        return "results/" if self._results is not None else None

    def find(self, path: str) -> tuple[bytes | Stretch | None, str] | None:
        """Content and media type, or None; no content for a block that is not written, which is no error that a browser should report."""
        name = path or "index.html"
        if name in PAGE_FILES:
            return page_file(name), PAGE_FILES[name]
        if name == "view.json":
            return self._config, _JSON
        area, _, key = name.partition("/")
        if area == "results" and self._results is not None and self._folder is not None:
            if key == "index.json":
                return result_index(self._folder, self._shown), _JSON
            listed = "/" not in key and key.endswith(ENDING) and (self._shown is None or key in self._shown)
            found = self._results.find(key) if listed else None
            return None if found is None else (found, _BYTES)
        if area == "store" and self._store is not None:
            called, _, key = key.partition("/")
            found = self._store.find(key) if called == self.store_name else None
            if found is None and called == self.store_name and _MARKER.fullmatch(key):
                return None, _BYTES
            return None if found is None else (found, _JSON if key.endswith("zarr.json") else _BYTES)
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "stratascope"
    sys_version = ""
    disable_nagle_algorithm = True
    server_of: ViewServer

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(_IDLE_CROWDED if self._crowded else _IDLE)

    @property
    def _crowded(self) -> bool:
        return isinstance(self.server, _Server) and self.server.crowded

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        if self.headers.get("Host") not in self.server_of.hosts:
            return self._send(421, b"not the host of this server\n")
        try:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path, errors="strict")
        except (UnicodeDecodeError, ValueError):
            return self._send(400, b"no path\n")
        token, _, rest = path.removeprefix("/").partition("/")
        if not secrets.compare_digest(token.encode(), self.server_of.token.encode()):
            return self._send(404, b"nothing here\n")
        found = self.server_of.routes.find(rest)
        if found is None:
            return self._send(404, b"nothing here\n")
        content, media = found
        if content is None:
            return self._send(204, b"", media)
        if isinstance(content, bytes):
            return self._send(200, content, media)
        if (
            media == _JSON
            and content.size <= _MOST_PACKED
            and "gzip" in self.headers.get("Accept-Encoding", "")
            and "Range" not in self.headers
        ):
            # a store's metadata are mostly the same words again and again
            packed = gzip.compress(b"".join(content.read(0, content.size - 1)), 6, mtime=0)
            return self._send(200, packed, media, {"Content-Encoding": "gzip"})
        return self._part(content, media)

    def _part(self, content: Stretch, media: str) -> None:
        try:
            part = byte_range(self.headers.get("Range"), content.size)
        except UnsatisfiableRangeError:
            return self._send(416, b"", media, {"Content-Range": f"bytes */{content.size}"})
        first, last = part or (0, content.size - 1)
        extra = {"Content-Range": f"bytes {first}-{last}/{content.size}"} if part else {}
        self._head(206 if part else 200, last - first + 1, media, extra)
        if self.command == "HEAD":
            return None
        sent = 0
        for piece in content.read(first, last):
            self.wfile.write(piece)
            sent += len(piece)
        if sent <= last - first:
            # the file shrank under our hands: the answer must not look whole
            self.close_connection = True
        return None

    def _send(self, status: int, body: bytes, media: str = "text/plain", extra: dict[str, str] | None = None) -> None:
        self._head(status, len(body), media, extra or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def _head(self, status: int, length: int, media: str, extra: dict[str, str]) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": media, "Content-Length": str(length), "Accept-Ranges": "bytes", "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin", "Content-Security-Policy": self.server_of.routes.policy, **extra,
        }  # fmt: skip
        if status == 204:
            del headers["Content-Length"]
        if self._crowded:  # whoever waits comes sooner
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answers to malformed requests: plain, so that nothing of the request comes back as markup."""
        self.close_connection = True
        if not hasattr(self, "headers"):
            self.headers = http.server.BaseHTTPRequestHandler.MessageClass()
        self._send(int(code), b"not answered\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged: the path holds the token."""
