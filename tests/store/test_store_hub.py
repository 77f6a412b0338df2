"""Stores in repositories of the Hub: a server that speaks its API as far as it is used, and a content network that redirects lead to."""

from __future__ import annotations

import http.server
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from buckets import files
from click.testing import CliRunner
from stores import make_store, small_layout
from unwell import unwell

from stratascope.cli import main
from stratascope.errors import StoreError
from stratascope.store import ActivationStore, copy_store, verify
from stratascope.store.io.remote_errors import UnreachableError

LAYOUT = small_layout(record={"residual"}, thumbnail=None)
COMMIT, LATER = "a" * 40, "b" * 40
TOKEN = "hf_zq"


@dataclass
class Hub:
    """What the server knows and was asked."""

    content: str
    """Address of the content network."""
    commit: str = COMMIT
    private: bool = True
    address: str = ""
    resolved: list[str] = field(default_factory=list)


@contextmanager
def hub(content: str):
    known = Hub(content)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if known.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401)
            if self.path in ("/api/datasets/me/data/revision/main", "/api/datasets/me/data/revision/refs%2Fpr%2F1"):
                return self.answer(200, b'{"id": "me/data", "sha": "%s"}' % known.commit.encode())
            start = f"/datasets/me/data/resolve/{COMMIT}/"
            if self.path.startswith(start):
                known.resolved.append(self.path)
                return self.answer(302, location=f"{known.content}/{self.path.removeprefix(start)}")
            return self.answer(404)

        do_HEAD = do_GET

        def answer(self, status, data=b"", location=""):
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if location:
                self.send_header("Location", location)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    known.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield known
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("repository") / "run.zarr", LAYOUT)


@pytest.fixture
def served(source, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with unwell(source.parent, lambda *_: None) as content, hub(content.address) as known:
        monkeypatch.setenv("HF_ENDPOINT", known.address)
        known.network = content
        yield known


@pytest.mark.parametrize(
    "address", ["hf://datasets/me/data/run.zarr", "hf://datasets/me/data@main/run.zarr/", "hf://datasets/me/data@refs%2Fpr%2F1/run.zarr"]
)
def test_a_store_of_a_private_repository_is_read(served, source, tmp_path, address):
    store = ActivationStore.open(address)
    np.testing.assert_array_equal(
        store.read("residual", layer=1, examples=[0, 6]), ActivationStore.open(source).read("residual", layer=1, examples=[0, 6])
    )
    assert served.network.authorizations == {None}  # the token stays with the Hub
    assert all(COMMIT in path for path in served.resolved)
    assert "hf_zq" not in repr(store)


def test_a_store_of_the_hub_is_copied_and_verified(served, source, tmp_path):
    copy_store("hf://datasets/me/data/run.zarr", tmp_path / "a.zarr")
    assert files(tmp_path / "a.zarr") == files(source)
    assert verify("hf://datasets/me/data/run.zarr").ok


def test_the_token_of_a_login_is_used(served, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UnreachableError, match=r"found: the server answers 401; .* set HF_TOKEN, or run `hf auth login`"):
        ActivationStore.open("hf://datasets/me/data/run.zarr")
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / "token").write_text(f"{TOKEN}\n")
    assert len(ActivationStore.open("hf://datasets/me/data/run.zarr")) == LAYOUT.examples


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("hf://datasets/me/other/run.zarr", "the server answers 404"),
        ("hf://datasets/me/data@nothing/run.zarr", "the server answers 404"),
        ("hf://datasets/me/data", "expected an address such as hf://datasets/USER/NAME"),
        ("hf://me", "expected an address such as hf://datasets/USER/NAME"),
        ("hf://datasets/me/data/nothing.zarr", "expected a store, found no zarr.json there"),
    ],
)
def test_what_is_not_on_the_hub_is_named(served, address, said):
    result = CliRunner().invoke(main, ["info", address])
    assert result.exit_code == 2
    assert said in result.stderr
    assert "zq" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_offline_is_respected(served, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE"):
        ActivationStore.open("hf://datasets/me/data/run.zarr")
    assert not served.resolved
