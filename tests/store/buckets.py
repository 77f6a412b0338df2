"""A real S3 server (moto) on a port of this machine, for tests."""

from __future__ import annotations

import json
import logging
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stratascope.errors import StoreError
from stratascope.store import ActivationStore, copy_store
from stratascope.store.io import remote
from stratascope.store.io.bucket import Bucket
from stratascope.store.io.remote_errors import UnreachableError
from tests.store.faulty_proxy import Proxy
from tests.store.stores import make_store, small_layout

VARIABLES = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "zq-secret", "AWS_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[str]:
    """Address of a server with an empty bucket named `bucket`; skips the test where moto is not installed."""
    moto = pytest.importorskip("moto.server", reason="no S3 server: pip install 'moto[server]'")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    try:
        # all servers of a process hold the same buckets
        urllib.request.urlopen(urllib.request.Request(f"{address}/moto-api/reset", method="POST"), timeout=30).close()
        make_bucket(address)
        yield address
    finally:
        server.stop()


def make_bucket(address: str, name: str = "bucket") -> None:
    urllib.request.urlopen(urllib.request.Request(f"{address}/{name}", method="PUT"), timeout=30).close()


def environment(address: str) -> dict[str, str]:
    """Variables with which a client reads and writes at a server."""
    return {**VARIABLES, "AWS_ENDPOINT_URL": address}


def objects(url: str) -> dict[str, bytes]:
    """Key -> bytes of what lies under an address, read by another client than the package's own writer."""
    import obstore
    from obstore.store import from_url

    client = from_url(url, client_options={"allow_http": True})
    keys = [entry["path"] for page in obstore.list(client) for entry in page]
    return {key: bytes(obstore.get(client, key).bytes()) for key in keys}


def files(root: Path) -> dict[str, bytes]:
    """Key -> bytes of a store's folder, without claims."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() and "claims" not in p.parts}


def claim_of(pid: int, host: str = "elsewhere", processes: str = "another machine") -> bytes:
    """What a claim says of a process of another machine."""
    record = {"pid": pid, "host": host, "processes": processes, "since": "2026-01-01T00:00:00+0000", "token": "t", "renewed": 0}
    return json.dumps(record).encode()


def without_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)


def check_writing(bucket: Bucket) -> None:
    """Objects `k`, written on conditions, and `large`, written in parts, are what was written last."""
    assert bucket.conditional("check")
    first = bucket.create("k", b"1")
    assert first is not None
    assert bucket.create("k", b"2") is None
    assert bucket.replace("k", b"3", first) is not None
    assert bucket.replace("k", b"4", first) is None
    assert bucket.get("k") == b"3"
    pieces = [bytes([k]) * 700_000 for k in range(7)]
    bucket.put("large", lambda: pieces)
    assert bucket.get("large") == b"".join(pieces)


def check_faults(proxy: Proxy, url: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faults of a service before its answer, of two requests for a file of a block or of all: in both directions, as of S3."""
    monkeypatch.setattr(remote, "RETRIES", 0)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "PATIENCE", 1.5)
    monkeypatch.setattr(remote, "SILENCE", 0.3)
    layout = small_layout(4, record={"residual"}, thumbnail=None)
    local, key = make_store(folder / "a.zarr", layout), layout.array("residual").key(0)
    for number, what in enumerate((503, "reset", "lost", "cut", "silent")):
        target, back = f"{url}/{number}.zarr", folder / f"{number}.zarr"
        for source, goal in ((local, target), (target, back)):
            proxy.forget()
            proxy.ill = lambda _, path, count, what=what: what if path.endswith(key) and count < 2 else None
            copy_store(source, goal)
            proxy.ill = lambda *_: None
        assert proxy.done.count(what) >= 2
        assert objects(target) == files(back) == files(local)
    for what, said in ((403, "403 Forbidden (AccessDenied)"), ("silent", "sends nothing")):
        target = f"{url}/{what}.zarr"
        proxy.ill = lambda _, path, __, what=what: what if path.endswith(key) else None
        with pytest.raises(UnreachableError) as caught:
            copy_store(local, target)
        message = str(caught.value)
        assert f"expected to write {key} of {target}, found: the server " in message
        assert said in message
        assert not any(secret in message for secret in ("zq", "StringToSign", "<?xml", "169.254"))
        proxy.ill = lambda *_: None
        with pytest.raises(StoreError, match="expected a store"):
            ActivationStore.open(target)
        copy_store(local, target)
        assert objects(target) == files(local)
