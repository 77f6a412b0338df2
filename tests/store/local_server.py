"""A web server on this machine that tests let misbehave: silent about errors, gone with its context."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class LocalHandler(http.server.BaseHTTPRequestHandler):
    """A request; nothing is logged, and a peer that is gone is no error."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def write_body(self, data: bytes, how: object, *, pieces: int, pause: float) -> None:
        """Write a body: whole, half of it for "cut", in `pieces` with a `pause` of seconds after each for "drip"."""
        if how == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
        elif how == "drip":
            step = max(1, -(-len(data) // pieces))
            for start in range(0, len(data), step):
                self.wfile.write(data[start : start + step])
                time.sleep(pause)
        else:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # cut by this server, or by who asked
            super().finish()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *_: object) -> None:
        pass


@contextmanager
def serving_locally(handler: type[LocalHandler], stop: threading.Event) -> Iterator[str]:
    """Address of a server for the requests of `handler`; `stop` is set at its end."""
    server = _Server(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        stop.set()
        server.shutdown()
        server.server_close()
