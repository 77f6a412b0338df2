"""A web server that is unwell in ways that tests choose: overloaded, cut off, silent, slow, without a word of HTTP."""

from __future__ import annotations

import socket
import struct
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.store.local_server import LocalHandler, serving_locally

SLOW_DOWN = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Reduce</Message><StringToSign>zq-signed</StringToSign></Error>"


@dataclass
class Unwell:
    """A folder on a port of this machine."""

    root: Path
    ill: Callable[[str, int], object]
    """(path, how often it was asked before) -> what happens: None for a right answer, a status, "reset", "cut", "silent", "drip", "closed",
    "noise", or a function of the file's bytes."""
    address: str = ""
    asked: list[str] = field(default_factory=list)
    """Paths, with their queries."""
    authorizations: set[str | None] = field(default_factory=set)
    stop: threading.Event = field(default_factory=threading.Event)


@contextmanager
def unwell(root: Path, ill: Callable[[str, int], object]) -> Iterator[Unwell]:
    """Serve until the context ends."""
    host = Unwell(root, ill)
    counts: Counter[str] = Counter()

    class Handler(LocalHandler):
        def do_GET(self) -> None:
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            host.asked.append(self.path)
            host.authorizations.add(self.headers.get("Authorization"))
            what = host.ill(path, counts[path])
            counts[path] += 1
            if what in ("reset", "closed"):
                if what == "reset":
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.connection.close()
                return
            if what == "noise":
                self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
                self.close_connection = True
                return
            if isinstance(what, int):
                self.answer(what, SLOW_DOWN)
                return
            file = root / path.lstrip("/")
            if not file.is_file():
                self.answer(404, b"")
                return
            data = file.read_bytes()
            data = what(data) if callable(what) else data
            asked = self.headers.get("Range")
            if asked is None:
                self.answer(200, data, str(what))
                return
            first, last = asked.removeprefix("bytes=").split("-")
            start = max(0, len(data) - int(last)) if not first else int(first)
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            self.answer(206, data[start:stop], str(what), f"bytes {start}-{stop - 1}/{len(data)}")

        do_POST = do_PUT = do_HEAD = do_GET

        def answer(self, status: int, data: bytes, how: str = "", part: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if part is not None:
                self.send_header("Content-Range", part)
            self.end_headers()
            if self.command == "HEAD":
                return
            if how == "silent":
                host.stop.wait(60)
                self.close_connection = True
            else:
                self.write_body(data, how, pieces=12, pause=0.15)

    with serving_locally(Handler, host.stop) as host.address:
        yield host
