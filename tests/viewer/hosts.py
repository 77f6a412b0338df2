"""Web hosts as stores meet them: plain ones, and ones that ignore ranges, forbid other pages, refuse, or hold damaged files."""

from __future__ import annotations

import http.server
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEDIA = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@dataclass
class Host:
    """A folder on a port of this machine, and what was asked of it."""

    root: Path
    ranges: bool = True
    cors: bool = False
    status: int | None = None
    """Answered to everything, where it is set."""
    changed: Mapping[str, Callable[[bytes], bytes | None]] = field(default_factory=dict)
    """End of a path -> what becomes of the file's bytes; None for no file."""
    address: str = ""
    asked: list[tuple[str, int]] = field(default_factory=list)
    """Path and bytes sent."""

    def data(self, path: str) -> bytes | None:
        """Bytes of a file, as this host has them."""
        file = self.root / urllib.parse.unquote(path).lstrip("/")
        data = file.read_bytes() if file.is_file() else None
        for end, change in self.changed.items():
            if path.endswith(end) and data is not None:
                data = change(data)
        return data


@contextmanager
def hosting(root: Path, **options: Any) -> Iterator[Host]:
    """Serve until the context ends."""
    host = Host(root, **options)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = urllib.parse.urlsplit(self.path).path
            data = host.data(path)
            if host.status is not None or data is None:
                self.answer(host.status or 404, b"", path)
                return
            asked = self.headers.get("Range")
            if asked is None or not host.ranges:
                self.answer(200, data, path)
                return
            first, last = asked.removeprefix("bytes=").split("-")
            start = max(0, len(data) - int(last)) if not first else int(first)
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            if start >= len(data):
                self.answer(416, b"", path)
            else:
                self.answer(206, data[start:stop], path, f"bytes {start}-{stop - 1}/{len(data)}")

        do_HEAD = do_GET

        def answer(self, status: int, data: bytes, path: str, part: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Type", MEDIA.get(Path(path).suffix, "application/octet-stream"))
            if host.cors:
                self.send_header("Access-Control-Allow-Origin", "*")
            if part:
                self.send_header("Content-Range", part)
            self.end_headers()
            sent = 0
            if self.command == "GET":
                self.wfile.write(data)
                sent = len(data)
            host.asked.append((path, sent))

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host.address = f"http://127.0.0.1:{server.server_port}/"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()
