"""Stores behind addresses: what a server does wrong is never taken for damage, and no secret of an address is shown."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from local_server import LocalHandler, serving_locally
from stores import make_store, small_layout
from unwell import unwell

from stratascope.addresses import without_secrets
from stratascope.cli import INTERRUPTED, main
from stratascope.errors import StoreError
from stratascope.store import ActivationStore, copy_store, verify
from stratascope.store.io import remote
from stratascope.store.io.remote_errors import UnreachableError

pytest.importorskip("obstore")

LAYOUT = small_layout(record={"residual"}, thumbnail=None)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("served") / "a.zarr", LAYOUT)


@pytest.fixture
def hurried(monkeypatch):
    """Without the seconds that a server is given."""
    monkeypatch.setattr(remote, "RETRIES", 0)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.002)
    monkeypatch.setattr(remote, "PATIENCE", 0.0)
    monkeypatch.setattr(remote, "FIRST_PATIENCE", 0.0)


@pytest.fixture
def no_cloud(monkeypatch):
    """Without credentials, and without a service that would have some."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)


def files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file() and "claims" not in p.parts}


def of_each_kind(root):
    """A file of each array and group, but of three only their metadata."""
    names = sorted(files(root))
    metadata = [n for n in names if n.endswith("zarr.json")]
    one_each = {n.partition("/c")[0]: n for n in names if not n.endswith("zarr.json")}
    return ["zarr.json", *metadata[-4::2], *list(one_each.values())[::3], "residual/c/0/0/1/0", "written/c/1"]


@pytest.mark.slow
@pytest.mark.parametrize("illness", [500, "reset", "cut", 403])
def test_a_file_that_a_server_does_not_send_is_not_damaged(source, hurried, illness):
    names = of_each_kind(source)
    with unwell(source.parent, lambda *_: None) as host:
        for name in names if illness == 500 else names[:6]:
            host.ill = lambda path, _, name=name: illness if path == f"/a.zarr/{name}" else None
            with pytest.raises(UnreachableError) as refused:
                verify(f"{host.address}/a.zarr")
            assert "extract again" not in str(refused.value), name


def test_verify_of_a_server_that_fails_exits_2_in_one_line(source, hurried):
    with unwell(source.parent, lambda path, _: 500 if path.endswith("residual/zarr.json") else None) as host:
        result = CliRunner().invoke(main, ["verify", f"{host.address}/a.zarr"])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "expected to read residual/zarr.json, found: the server answers 500 Internal Server Error" in result.stderr
    assert "extract" not in result.stderr
    assert not result.stdout


def test_other_bytes_are_damage(source):
    with unwell(source.parent, lambda path, _: (lambda data: data[:-1] + b" ") if path.endswith("residual/zarr.json") else None) as host:
        found = verify(f"{host.address}/a.zarr")
    assert found.problems["file"].tolist() == ["residual/zarr.json"]


@pytest.mark.slow
@pytest.mark.parametrize("status", [503, 429, 500])
def test_an_overloaded_server_is_asked_again(tmp_path, source, hurried, monkeypatch, status):
    monkeypatch.setattr(remote, "PATIENCE", 60.0)
    with unwell(source.parent, lambda _, before: status if before < 5 else None) as host:
        copy_store(f"{host.address}/a.zarr", tmp_path / "b.zarr")
    assert files(tmp_path / "b.zarr") == files(source)


def test_pauses_grow_and_end(source, hurried, monkeypatch):
    paused = []

    async def pause(seconds):
        paused.append(seconds)

    clock = iter(float(n) for n in range(1000))
    monkeypatch.setattr(remote, "asyncio", SimpleNamespace(sleep=pause))
    monkeypatch.setattr(remote, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.5)
    monkeypatch.setattr(remote, "PATIENCE", 30.0)
    with (
        unwell(source.parent, lambda *_: 503) as host,
        pytest.raises(UnreachableError, match=r"503 Service Unavailable \(SlowDown\).*after \d+ s of trying; the host is overloaded"),
    ):
        ActivationStore.open(f"{host.address}/a.zarr")
    assert len(paused) > 10
    for n, seconds in enumerate(paused):
        longest = min(remote.LONGEST_PAUSE, 0.5 * 2**n)
        assert longest / 2 <= seconds <= longest
    assert len(set(paused)) == len(paused)  # at random


def test_a_copy_goes_on_where_the_server_left_it(tmp_path, source, hurried):
    last = f"/a.zarr/{LAYOUT.array('residual').key(2)}"
    with unwell(source.parent, lambda path, _: "reset" if path == last else None) as host:
        with pytest.raises(UnreachableError, match=r"2 of 3 blocks are copied: run the same command to continue from there"):
            copy_store(f"{host.address}/a.zarr", tmp_path / "b.zarr")
        assert not (tmp_path / "b.zarr").exists()
        host.ill = lambda *_: None
        host.asked.clear()
        copy_store(f"{host.address}/a.zarr", tmp_path / "b.zarr")
        assert last in host.asked
        assert not {f"/a.zarr/{LAYOUT.array('residual').key(b)}" for b in (0, 1)} & set(host.asked)
    assert files(tmp_path / "b.zarr") == files(source)
    assert [p.name for p in tmp_path.iterdir()] == ["b.zarr"]


def test_what_a_stopped_copy_left_is_checked(tmp_path, source, hurried):
    last, first = (f"/a.zarr/{LAYOUT.array('residual').key(b)}" for b in (2, 0))
    with unwell(source.parent, lambda path, _: "reset" if path == last else None) as host:
        with pytest.raises(UnreachableError):
            copy_store(f"{host.address}/a.zarr", tmp_path / "b.zarr")
        (left,) = tmp_path.iterdir()
        kept = left / LAYOUT.array("residual").key(0)
        kept.write_bytes(kept.read_bytes()[:-9])
        host.ill = lambda *_: None
        host.asked.clear()
        copy_store(f"{host.address}/a.zarr", tmp_path / "b.zarr")
        assert first in host.asked
    assert files(tmp_path / "b.zarr") == files(source)


@pytest.mark.slow
def test_only_silence_times_out(source, hurried, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE", 1.0)
    name = f"/a.zarr/{LAYOUT.array('residual').key(1)}"
    with unwell(source.parent, lambda path, _: "drip" if path == name else None) as host:
        store = ActivationStore.open(f"{host.address}/a.zarr")  # each answer takes 1.8 s
        np_equal(store.read("residual", examples=[4]), ActivationStore.open(source).read("residual", examples=[4]))
        host.ill = lambda path, _: "silent" if path == name else None
        with pytest.raises(UnreachableError, match="sends nothing for 1 s"):
            store.read("residual", examples=[6])


def np_equal(a, b):
    import numpy as np

    np.testing.assert_array_equal(a, b)


SECRETS = "me:zq%20pass@", "sv=1&sig=zq%2Fsigned"


@pytest.mark.parametrize(
    ("key", "said"), [("/zarr.json", "at most 32 MB, found 70,000,000,000"), ("/written/c/1", "at most 65,536 bytes, found")]
)
def test_files_of_an_absurd_size_are_refused_unread(source, hurried, key, said):
    """The server announces gigabytes and never ends."""

    class Endless(LocalHandler):
        def do_GET(self):
            path = source / urllib.parse.urlsplit(self.path).path.removeprefix("/a.zarr/")
            absurd = self.path.endswith(f"a.zarr{key}")
            data = path.read_bytes() if path.is_file() else b""
            self.send_response(200 if absurd or data else 404)
            self.send_header("Content-Length", str(70_000_000_000 if absurd else len(data)))
            self.end_headers()
            try:
                self.wfile.write(data)
                while absurd:
                    sent.append(self.wfile.write(bytes(1 << 20)))
            except OSError:
                pass

    sent: list[int] = []
    with serving_locally(Endless, threading.Event()) as address:
        with pytest.raises(StoreError, match=f"{key[1:]}: expected .* {said}"):
            assert ActivationStore.open(f"{address}/a.zarr").complete
        assert sum(sent) < 100 << 20  # what the connection took before it was closed


@pytest.mark.parametrize("illness", [None, 401, 403, 404, 500, 503, "reset", "cut", "noise", 400])
def test_secrets_of_an_address_are_used_and_never_shown(source, hurried, illness):
    with unwell(source.parent, lambda *_: illness) as host:
        address = f"{host.address.replace('//', '//' + SECRETS[0])}/a.zarr?{SECRETS[1]}"
        result = CliRunner().invoke(main, ["info", address])
        try:
            store = ActivationStore.open(address)
            said = store.name + repr(store) + store._repr_html_()
        except StoreError as error:
            said = str(error) + error.message
        assert {urllib.parse.urlsplit(path).query for path in host.asked} == {SECRETS[1]}
        assert host.authorizations == {f"Basic {base64.b64encode(b'me:zq pass').decode()}"}
    assert result.exit_code == (0 if illness is None else 2)
    assert "zq" not in said + result.output
    assert "sig=" not in said + result.output
    assert "StringToSign" not in said + result.output


@given(
    st.sampled_from(["http", "https", "s3", "gs", "az"]),
    st.text("abcXYZ019-._~%:", max_size=8),
    st.text("abcXYZ019-._~%:@", max_size=8),
    st.text("abcXYZ019-._~%&=+/", max_size=12),
    st.sampled_from(["{}", "{}: expected a store", "found: no server answers ({}), run again", "'{}'", "a {} b; c"]),
)
def test_no_text_shows_a_password_or_a_signature(scheme, user, password, query, sentence):
    address = f"{scheme}://{user}:{password}SECRET@host.example/a.zarr?{query}SIGNED"
    said = without_secrets(sentence.format(address))
    assert "SECRET" not in said
    assert "SIGNED" not in said
    assert sentence.format(f"{scheme}://host.example/a.zarr") == said


@pytest.mark.parametrize(
    "text", ["https://host:8000/a.zarr", "abfss://container@account.dfs.core.windows.net/a", "10 % of me@host", "a?b", "s3://bucket/a@2"]
)
def test_what_is_no_secret_stays(text):
    assert without_secrets(text) == text


def test_missing_credentials_say_which_to_set(source, hurried, no_cloud, monkeypatch):
    with unwell(source.parent, lambda *_: 404) as host:
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", host.address)
        result = CliRunner().invoke(main, ["info", "s3://bucket/a.zarr"])
    assert result.exit_code == 2
    assert "found no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in result.stderr
    assert "docs/remote.md" in result.stderr
    assert "latest/" not in result.stderr
    assert host.address not in result.stderr


@pytest.mark.parametrize(
    ("address", "variables", "said"),
    [
        ("az://container/a.zarr", {}, "set AZURE_STORAGE_ACCOUNT_NAME"),
        ("s3://bucket/a.zarr", {"AWS_ACCESS_KEY_ID": "a"}, "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("gs://bucket/a.zarr", {"GOOGLE_APPLICATION_CREDENTIALS": "/nowhere.json"}, "set GOOGLE_APPLICATION_CREDENTIALS"),
        ("s3://bucket/a.zarr", {"AWS_ENDPOINT_URL": "127.0.0.1:9000"}, "AWS_ENDPOINT_URL: expected an address that begins with http"),
        ("ftp://host/a.zarr", {}, "expected an address that can be read (http, https, s3, gs, az, hf)"),
    ],
)
def test_settings_that_are_wrong_are_named(no_cloud, monkeypatch, address, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(main, ["info", address])
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_crash_of_the_client_library_is_one_line(no_cloud):
    """In a process of its own: what the library prints goes past Python."""
    crash = {"AWS_ENDPOINT_URL": "http://[", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "RUST_BACKTRACE": "full"}
    command = [sys.executable, "-m", "stratascope", "info", "s3://bucket/a.zarr"]
    done = subprocess.run(command, env={**os.environ, **crash}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr[:400]
    assert "fault of Stratascope" not in done.stderr


@pytest.mark.slow
def test_what_others_print_while_a_store_is_opened_is_not_lost():
    code = "import os\nfrom stratascope.store.io.remote_errors import silenced_panics\nwith silenced_panics():\n    os.write(2, b'kept')\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr == "kept"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")
def test_a_copy_whose_terminal_closes_leaves_no_half_zip(tmp_path, source):
    name = f"/a.zarr/{LAYOUT.array('residual').key(1)}"
    with unwell(source.parent, lambda path, _: "silent" if path == name else None) as host:
        command = [sys.executable, "-m", "stratascope", "copy", f"{host.address}/a.zarr", str(tmp_path / "b.zip")]
        # a test run under nohup ignores the signal, and so would its children
        restored = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
        running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=restored)
        while name not in host.asked and running.poll() is None:
            time.sleep(0.02)
        assert [p.suffix for p in tmp_path.iterdir()] == [".partial"]
        running.send_signal(signal.SIGHUP)
        said = running.communicate(timeout=60)[1].decode()
    assert (running.returncode, said) == (INTERRUPTED, "stratascope: interrupted; no results were saved\n")
    assert not list(tmp_path.iterdir())


def test_outputs_are_on_this_machine(tmp_path, source):
    for call in (lambda: copy_store(source, Path("s3://bucket/a.zarr")), lambda: make_store(Path("s3://bucket/a.zarr"), LAYOUT)):
        with pytest.raises(ValueError, match="found an address"):
            call()
    assert not Path("s3:").exists()
