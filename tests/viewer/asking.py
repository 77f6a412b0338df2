"""Requests as an attacker may send them: byte by byte, with nothing put right by a client library."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from stratascope.report.viewer import ViewServer


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def ask(server: ViewServer, path: str, *, method: str = "GET", host: str | None = None, **headers: str) -> Answer:
    """The answer to one request; `path` goes as it is, behind the token where it does not begin with a slash."""
    target = path if path.startswith("/") else f"/{server.token}/{path}"
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host or f'127.0.0.1:{server.port}'}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        received = b""
        while piece := connection.recv(1 << 16):
            received += piece
    head, _, body = received.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    fields = dict(line.split(": ", 1) for line in rest)
    return Answer(int(first.split()[1]), {name.lower(): value for name, value in fields.items()}, body)
