"""Stores in repositories of the Hub: a server that speaks its API as far as it is used, and a content network that redirects lead to."""

from __future__ import annotations

import contextlib
import http.server
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import zarr.abc.store as parts
from buckets import files
from click.testing import CliRunner
from stores import make_store, small_layout
from unwell import unwell

from stratascope.cli import main
from stratascope.errors import InvalidInputError, StoreError
from stratascope.store import ActivationStore, copy_store, diff_stores, verify
from stratascope.store.io import remote
from stratascope.store.io.hub_cache import RepositoryCache, cache_folder
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
    asked: int = 0
    down: bool = False
    resolved: list[str] = field(default_factory=list)


@contextmanager
def hub(content: str):
    known = Hub(content)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            known.asked += 1
            if known.down:
                self.close_connection = True
                return self.connection.close()
            if known.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401)
            if self.path in ("/api/datasets/me/data/revision/main", "/api/datasets/me/data/revision/refs%2Fpr%2F1"):
                return self.answer(200, b'{"id": "me/data", "sha": "%s"}' % known.commit.encode())
            for start in (f"/datasets/me/data/resolve/{commit}/" for commit in (COMMIT, LATER)):
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

        def finish(self):
            with contextlib.suppress(OSError, ValueError):
                super().finish()

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
    with pytest.raises(StoreError, match="found HF_HUB_OFFLINE set, and nothing in the cache; unset it, or give a copy on a disk"):
        ActivationStore.open(URL)
    assert not served.asked


# the cache: what was read of a commit is read again without the Hub

URL = "hf://datasets/me/data/run.zarr"
HELD = [0, 2, 6, 9]


def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "")


def entries(name: str = "*") -> list[Path]:
    return [path for path in cache_folder().rglob(name) if path.is_file() and path.parent.name != "refs"]


@pytest.fixture
def incomplete(served, tmp_path):
    """A store whose block 1 is not written, at the same address."""
    path = make_store(tmp_path / "served" / "run.zarr", LAYOUT, blocks=[0, 2])
    with unwell(path.parent, lambda *_: None) as served.network:
        served.content = served.network.address
        yield path


def test_what_was_read_is_read_offline_and_the_rest_is_named(served, incomplete, monkeypatch):
    local = ActivationStore.open(incomplete)

    def read(store, **chosen):
        return store.read("residual", examples=[0, 2, 9], **chosen)

    online = ActivationStore.open(URL)
    for chosen in ({"layer": 1}, {"layer": 2, "position": "final"}):
        np.testing.assert_array_equal(read(online, **chosen), read(local, **chosen))
    assert online.written.tolist() == [True, False, True]
    asked = served.asked, len(served.network.asked)
    for switch in (lambda: None, lambda: offline(monkeypatch)):  # again with the Hub: only the commit is asked for
        switch()
        store = ActivationStore.open(URL)
        for chosen in ({"layer": 1}, {"layer": 1, "position": "image"}, {"layer": 2, "position": "final"}):
            np.testing.assert_array_equal(read(store, **chosen), read(local, **chosen))
        np.testing.assert_array_equal(store.read("residual", layer=1, examples=[2]), local.read("residual", layer=1, examples=[2]))
        assert store.written.tolist() == [True, False, True]
    assert (served.asked - 1, len(served.network.asked)) == asked
    with pytest.raises(UnreachableError) as caught:
        store.read("residual", layer=3, examples=[0])
    said = "expected to read run.zarr/residual/c/0/0/0/0 of http://127.0.0.1:"
    assert said in str(caught.value)
    assert "found HF_HUB_OFFLINE set and no earlier answer in the cache; do this once with the Hub at hand" in str(caught.value)
    assert "zq" not in str(caught.value)
    assert (served.asked - 1, len(served.network.asked)) == asked


def test_commands_work_offline_on_what_they_read_before(served, source, monkeypatch, tmp_path):
    before = CliRunner().invoke(main, ["verify", URL])
    assert before.exit_code == 0, before.output
    asked = served.asked
    offline(monkeypatch)
    after = CliRunner().invoke(main, ["verify", URL])
    assert (after.exit_code, after.output) == (0, before.output)
    assert diff_stores(URL, source).same  # parts of files that were read whole
    copy_store(URL, tmp_path / "a.zarr")
    assert files(tmp_path / "a.zarr") == files(source)
    other = CliRunner().invoke(main, ["info", "hf://datasets/me/data/other.zarr"])
    assert other.exit_code == 2
    assert "expected to read other.zarr/zarr.json of " in other.stderr
    assert served.asked == asked


def test_a_branch_is_offline_the_commit_that_was_last_seen(served, source, monkeypatch):
    ActivationStore.open(URL).read("residual", layer=1, examples=HELD)
    served.commit = LATER
    ActivationStore.open(URL).read("residual", layer=2, examples=HELD)
    offline(monkeypatch)
    later, first = ActivationStore.open(URL), ActivationStore.open(f"hf://datasets/me/data@{COMMIT}/run.zarr")
    local = ActivationStore.open(source)
    np.testing.assert_array_equal(later.read("residual", layer=2, examples=HELD), local.read("residual", layer=2, examples=HELD))
    np.testing.assert_array_equal(first.read("residual", layer=1, examples=HELD), local.read("residual", layer=1, examples=HELD))
    for store, layer in ((later, 1), (first, 2)):
        with pytest.raises(UnreachableError, match="no earlier answer in the cache"):
            store.read("residual", layer=layer, examples=HELD)
    for revision in ("c" * 40, "v2"):
        with pytest.raises(StoreError, match="nothing in the cache"):
            ActivationStore.open(f"hf://datasets/me/data@{revision}/run.zarr")


def test_a_hub_that_does_not_answer_is_replaced_by_the_cache_with_a_warning(served, source):
    ActivationStore.open(URL).read("residual", layer=1, examples=HELD)
    served.down = True
    with pytest.warns(UserWarning, match=f"the Hub does not answer; this reads what is in the cache, of commit {COMMIT[:12]}"):
        store = ActivationStore.open(URL)
    np.testing.assert_array_equal(
        store.read("residual", layer=1, examples=HELD), ActivationStore.open(source).read("residual", layer=1, examples=HELD)
    )
    with pytest.raises(UnreachableError, match="found that the Hub does not answer and no earlier answer in the cache"):
        store.read("residual", layer=2, examples=HELD)
    with pytest.raises(UnreachableError, match="expected an answer of the Hub"):
        ActivationStore.open("hf://datasets/me/other/run.zarr")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda _: b""])
def test_a_torn_file_of_the_cache_is_fetched_again(served, source, monkeypatch, damage):
    expected = ActivationStore.open(source).read("residual", layer=1, examples=HELD)
    ActivationStore.open(URL).read("residual", layer=1, examples=HELD)
    sizes = {path: path.stat().st_size for path in entries()}
    for path in sizes:
        path.write_bytes(damage(path.read_bytes()))
    np.testing.assert_array_equal(ActivationStore.open(URL).read("residual", layer=1, examples=HELD), expected)
    assert {path: path.stat().st_size for path in entries()} == sizes
    for path in entries():
        path.write_bytes(damage(path.read_bytes()))
    offline(monkeypatch)
    with pytest.raises(UnreachableError, match=r"zarr\.json .* no earlier answer in the cache"):
        ActivationStore.open(URL)


def test_damage_that_the_hub_sent_is_not_kept(served, source):
    damaged = [True]

    def ill(path, _):
        return (lambda data: data[:40] + bytes(40) + data[80:]) if damaged[0] and "/residual/c" in path else None

    served.network.ill = ill
    with pytest.raises(StoreError, match="expected whole files of residual, found damage"):
        ActivationStore.open(URL).read("residual", examples=HELD)
    assert not verify(URL).ok
    damaged[0] = False
    np.testing.assert_array_equal(
        ActivationStore.open(URL).read("residual", examples=HELD), ActivationStore.open(source).read("residual", examples=HELD)
    )
    assert verify(URL).ok


def test_a_repository_that_hides_its_files_says_nothing_about_them(served, source, monkeypatch):
    store = ActivationStore.open(URL)
    served.network.ill = lambda *_: 404  # as where the token was withdrawn meanwhile
    assert not store.written.any()
    assert not entries("absent")
    served.network.ill = lambda *_: None
    assert ActivationStore.open(URL).complete
    served.network.ill = lambda path, _: 403 if "written/c/1" in path else None
    monkeypatch.setattr(remote, "FIRST_PATIENCE", 0.1)
    (entry,) = [path for path in entries() if path.parent.name == placed("written/c/1")]
    entry.unlink()
    assert ActivationStore.open(URL).written.tolist() == [True, False, True]
    assert not entries("absent")


def placed(key: str) -> str:
    import hashlib

    return hashlib.sha256(f"run.zarr/{key}".encode()).hexdigest()[:40]


def test_the_cache_lies_where_huggingface_hub_keeps_assets_and_can_be_switched_off(served, monkeypatch, tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("STRATASCOPE_HUB_CACHE_GB", "0")
    ActivationStore.open(URL).read("residual", layer=1, examples=HELD)
    assert not cache_folder().exists()
    assert cache_folder() / "r" == hub.cached_assets_path("stratascope", "hub", "r", assets_dir=tmp_path / "nobody" / "assets")
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "assets"))
    monkeypatch.setenv("STRATASCOPE_HUB_CACHE_GB", "much")
    with pytest.raises(
        InvalidInputError, match=r"STRATASCOPE_HUB_CACHE_GB: expected gigabytes such as 20, or 0 for no cache, found 'much'"
    ):
        ActivationStore.open(URL)
    monkeypatch.delenv("STRATASCOPE_HUB_CACHE_GB")
    ActivationStore.open(URL)
    assert (tmp_path / "assets" / "stratascope" / "hub").is_dir()


def test_the_cache_that_cannot_be_written_is_no_error(served, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path / "file"))
    assert ActivationStore.open(URL).complete


def test_what_was_used_longest_ago_makes_room(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setenv("STRATASCOPE_HUB_CACHE_GB", "0.001")
    cache = RepositoryCache("https://hub.example/datasets/me/data")
    cache.resolved("main", COMMIT)
    for number in range(60):
        cache.keep(COMMIT, f"f{number}", parts.RangeByteRequest(0, 50_000), bytes([number]) * 50_000)
        for age, path in enumerate(sorted(entries(), key=lambda one: one.stat().st_mtime, reverse=True)):
            os.utime(path, (1e9 - age, 1e9 - age))
        assert cache.get(COMMIT, "f0", parts.RangeByteRequest(10, 20)) == bytes(10)  # in use all the time
        assert sum(path.stat().st_size for path in entries()) < 1.06e6
    held = [number for number in range(60) if cache.get(COMMIT, f"f{number}", parts.RangeByteRequest(0, 50_000)) is not None]
    assert held == [0, *range(60 - len(held) + 1, 60)]
    assert len(held) >= 15
    assert cache.commit_of("main") == COMMIT
    cache.keep(COMMIT, "large", None, bytes(600_000))  # would drive out most of the rest
    assert cache.get(COMMIT, "large", None) is None


def test_ranges_that_were_read_make_up_others(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path))
    cache = RepositoryCache("https://hub.example/datasets/me/data")
    data = bytes(np.random.default_rng(0).integers(0, 256, 1000, dtype=np.uint8))
    rng = np.random.default_rng(1)
    held = np.zeros(1000, bool)
    for _ in range(40):
        start, stop = sorted(rng.choice(1001, 2, replace=False).tolist())
        part = parts.RangeByteRequest(start, stop)
        assert cache.get(COMMIT, "f", part) == (data[start:stop] if held[start:stop].all() else None)
        if stop - start < 150:
            cache.keep(COMMIT, "f", part, data[start:stop])
            held[start:stop] = True
    cache.keep(COMMIT, "f", parts.SuffixByteRequest(7), data[-7:])
    assert cache.get(COMMIT, "f", parts.SuffixByteRequest(7)) == data[-7:]
    assert cache.get(COMMIT, "f", parts.SuffixByteRequest(8)) is None
    assert cache.get(COMMIT, "f", None) is None
    cache.keep(COMMIT, "f", None, data)
    assert cache.get(COMMIT, "f", parts.SuffixByteRequest(8)) == data[-8:]
    assert cache.get(COMMIT, "f", parts.OffsetByteRequest(900)) == data[900:]
    assert cache.get(LATER, "f", None) is None


WRITER = """
import random, sys
from stratascope.store.io.hub_cache import RepositoryCache
cache = RepositoryCache("https://hub.example/datasets/me/data")
rng = random.Random(int(sys.argv[1]))
print("began", flush=True)
for _ in range(int(sys.argv[2])):
    number = rng.randrange(30)
    right = bytes([number]) * 20_000
    found = cache.get("a" * 40, f"f{number}", None)
    assert found in (None, right)
    cache.keep("a" * 40, f"f{number}", None, right)
"""


def test_processes_share_the_cache_and_a_killed_one_leaves_nothing_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ASSETS_CACHE", str(tmp_path))
    monkeypatch.setenv("STRATASCOPE_HUB_CACHE_GB", "0.0004")  # 20 of the 30 files: there is always something to remove
    start = [sys.executable, "-c", WRITER]
    killed = [subprocess.Popen([*start, str(seed), "1000000"], stdout=subprocess.PIPE, text=True) for seed in range(2)]
    ended = [subprocess.Popen([*start, "2", "150"], stderr=subprocess.PIPE, text=True)]
    for process in killed:
        assert process.stdout.readline() == "began\n"
    for process in ended:
        assert process.wait(60) == 0, process.stderr.read()
        process.stderr.close()
    for process in killed:
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        process.stdout.close()
    cache = RepositoryCache("https://hub.example/datasets/me/data")
    found = [cache.get(COMMIT, f"f{number}", None) for number in range(30)]
    assert all(data in (None, bytes([number]) * 20_000) for number, data in enumerate(found))
    assert sum(data is not None for data in found) >= 10
    left = entries(".new-*")
    assert len(left) <= 2
    for path in left:
        os.utime(path, (1e9, 1e9))
    cache.keep(COMMIT, "last", None, b"1")
    assert not entries(".new-*")
