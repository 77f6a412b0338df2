"""A small web server for tests: it counts bytes and may be told to ignore Range, as `python -m http.server` does."""

from __future__ import annotations

import http.server
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Served:
    """What a server has sent."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.bytes_sent = 0
        self.requests: list[tuple[str, str | None]] = []
        """Path and Range of every request."""


@contextmanager
def serving(root: Path, *, ranges: bool = True) -> Iterator[Served]:
    """Serve a folder on a free port of this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = root / urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/")
            asked = self.headers.get("Range")
            served.requests.append((self.path, asked))
            if not path.is_file():
                self._answer(404, b"")
                return
            data = path.read_bytes()
            if asked is None or not ranges:
                self._answer(200, data)
                return
            first, last = asked.removeprefix("bytes=").split("-")
            start = len(data) - int(last) if not first else int(first)
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            self._answer(206, data[max(start, 0) : stop], f"bytes {max(start, 0)}-{stop - 1}/{len(data)}")

        do_HEAD = do_GET

        def _answer(self, code: int, data: bytes, part: str | None = None) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            if part is not None:
                self.send_header("Content-Range", part)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)
                served.bytes_sent += len(data)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
