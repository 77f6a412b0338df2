"""A proxy before an S3 server that answers some requests wrongly, as tests choose."""

from __future__ import annotations

import http.client
import http.server
import socket
import struct
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.store.local_server import LocalHandler, serving_locally

ERROR = "<?xml version='1.0'?><Error><Code>{}</Code><Message>No</Message><StringToSign>zq-signed</StringToSign></Error>"
CODES = {400: "ExpiredToken", 403: "AccessDenied", 500: "InternalError", 503: "SlowDown"}
HOP_BY_HOP = frozenset(("connection", "transfer-encoding", "content-length", "date", "server"))


@dataclass
class Proxy:
    """A proxy on a port of this machine."""

    ill: Callable[[str, str, int], object] = lambda _method, _path, _count: None
    """(method, path, how often it was asked before) -> what happens: None for the server's answer, a status, or

    "reset"  the connection is reset
    "lost"   the server does what was asked, and its answer is lost
    "cut"    half of the answer's body, then the end
    "range"  bytes of another range than was asked for
    "drip"   the answer in small pieces, slowly
    "silent" nothing at all
    """
    address: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)
    done: list[object] = field(default_factory=list)
    """Faults that happened; "range" only where a range was asked for."""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    stop: threading.Event = field(default_factory=threading.Event)

    def forget(self) -> None:
        """Count from 0 again."""
        self.counts.clear()


@contextmanager
def faulty_proxy(server: str) -> Iterator[Proxy]:
    """Forward to a server until the context ends."""
    proxy = Proxy()
    place = urllib.parse.urlsplit(server).netloc

    class Handler(LocalHandler):
        def handle_any(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.asked.append((self.command, self.path))
            what = proxy.ill(self.command, path, proxy.counts[self.command, path])
            proxy.counts[self.command, path] += 1
            if what is not None and (what != "range" or "Range" in self.headers):
                proxy.done.append(what)
            if what == "reset":
                self.reset()
                return
            if what == "silent":
                proxy.stop.wait(60)
                self.close_connection = True
                return
            if isinstance(what, int):
                data = ERROR.format(CODES[what]).encode()
                self.send(what, [("Content-Type", "application/xml")], data, "")
                return
            status, headers, data = self.forward(body, moved=what == "range")
            if what == "lost":
                self.reset()
                return
            self.send(status, headers, data, str(what))

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def forward(self, body: bytes, *, moved: bool) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(place, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "host", "range")}
            headers["Host"] = place
            if asked := self.headers.get("Range"):
                headers["Range"] = "bytes=0-3" if moved else asked
            try:
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_BY_HOP]
                if self.command == "HEAD" and (length := answer.getheader("Content-Length")):
                    kept.append(("Content-Length", length))
                return answer.status, kept, answer.read()
            finally:
                connection.close()

        def send(self, status: int, headers: list[tuple[str, str]], data: bytes, how: str) -> None:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            self.write_body(data, how, pieces=8, pause=0.1)

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

    with serving_locally(Handler, proxy.stop) as proxy.address:
        yield proxy
