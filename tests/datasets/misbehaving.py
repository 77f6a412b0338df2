"""A web server for tests that serves bytes by path and misbehaves as told."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

Fault = Callable[["Handler", bytes], bool]
"""Answers a request badly, given the file, and says whether it did."""


@dataclass
class Site:
    """What is served, how badly, and what was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    """Further headers by path."""
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    """By path, used up one a request; then the file is served well."""
    always: dict[str, Fault] = field(default_factory=dict)
    ranges: bool = True
    tags: bool = True
    address: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    from_byte: list[int] = field(default_factory=list)
    """Where in a file each answer to a GET began."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    site: Site

    def do_GET(self) -> None:
        site, path = self.site, self.path.split("?")[0]
        if self.command == "GET":
            site.asked[path] += 1
        data = site.files.get(path)
        if data is None:
            self.answer(404, b"not here")
            return
        fault = site.always.get(path) or (site.faults[path].pop(0) if site.faults.get(path) else None)
        if fault is None or self.command == "HEAD" or not fault(self, data):
            self.good(data, site.headers.get(path, {}))

    do_HEAD = do_GET

    def good(self, data: bytes, headers: dict[str, str]) -> None:
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        headers = {**({"ETag": tag} if self.site.tags else {}), **headers}
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and self.site.ranges else 0
        if self.headers.get("If-Range") not in (None, tag):
            start = 0
        if start >= len(data) and start:
            self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return
        if self.command == "GET":
            self.site.from_byte.append(start)
        extra = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        self.answer(206 if start else 200, data[start:], {**headers, **extra})

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body) if length is None else length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with suppress(OSError):
                self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def status(code: int, **headers: str) -> Fault:
    """An error by its number."""

    def fault(handler: Handler, data: bytes) -> bool:
        handler.answer(code, b"<html>sorry</html>", {k.replace("_", "-"): v for k, v in headers.items()})
        return True

    return fault


def cut(share: float) -> Fault:
    """The connection ends after a share of what is left of the file."""

    def fault(handler: Handler, data: bytes) -> bool:
        asked = handler.headers.get("Range")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and handler.site.ranges else 0
        rest = data[start:]
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        extra = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        handler.site.from_byte.append(start)
        handler.answer(206 if start else 200, rest[: int(len(rest) * share)], {**extra, "ETag": tag}, length=len(rest))
        handler.close_connection = True
        return True

    return fault


def page(handler: Handler, data: bytes) -> bool:
    """A web page, with status 200, instead of the file."""
    handler.answer(200, b"<!DOCTYPE html><html>please log in</html>", {"Content-Type": "text/html"})
    return True


def wrong_length(handler: Handler, data: bytes) -> bool:
    """A file whose stated length is too long."""
    handler.answer(200, data, length=len(data) + 100)
    handler.close_connection = True
    return True


def wrong_place(handler: Handler, data: bytes) -> bool:
    """A part of the file that was not asked for, if one was asked for."""
    if handler.headers.get("Range") is None:
        return False
    handler.answer(206, data[1:], {"Content-Range": f"bytes 1-{len(data) - 1}/{len(data)}"})
    return True


def damaged(handler: Handler, data: bytes) -> bool:
    """All bytes but the last third, and nothing that says so."""
    handler.answer(200, data[: 2 * len(data) // 3])
    return True


def silent(handler: Handler, data: bytes) -> bool:
    """Headers, then nothing for a while."""
    handler.answer(200, data[:10], length=len(data))
    time.sleep(1.5)
    handler.close_connection = True
    return True


def dripping(handler: Handler, data: bytes) -> bool:
    """A byte now and then."""
    handler.answer(200, b"", length=len(data))
    with suppress(OSError):
        for k in range(12):
            handler.wfile.write(data[k : k + 1])
            time.sleep(0.1)
    handler.close_connection = True
    return True


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serve a site on a free port of this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    server.daemon_threads = True
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
