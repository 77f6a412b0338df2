"""The viewer's server: only the page and the store, only to this machine, only to whoever has the address; ranges to the byte."""

from __future__ import annotations

import contextlib
import gzip
import json
import shutil
import socket
import threading
import urllib.parse
import zipfile
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from stratascope.cli import main
from stratascope.errors import InvalidInputError, StoreError
from stratascope.report.viewer import PAGE_FILES, ViewServer, export_page, result_index
from stratascope.report.viewer.address import check_address
from stratascope.report.viewer.files import FolderFiles, UnsatisfiableRangeError, ZipFiles, byte_range, well_formed
from stratascope.report.viewer.page_files import page_file
from stratascope.report.viewer.server import MOST_CONNECTIONS
from stratascope.results.file import ResultFile
from stratascope.results.registry import save_result
from stratascope.store import copy_store
from tests.store.serving import serving
from tests.viewer.asking import ask

GOLDEN = Path(__file__).parents[1] / "store" / "golden" / "v1.zarr"
NAME = "store/v1.zarr/"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a secret beside the store, and links in the store that lead out of it and within it."""
    top = tmp_path_factory.mktemp("top")
    shutil.copytree(GOLDEN, top / "v1.zarr")
    (top / "secret.txt").write_text("secret")
    (top / "v1.zarr2").mkdir()
    (top / "v1.zarr2" / "zarr.json").write_text("secret")
    (top / "v1.zarr" / "out").symlink_to(top / "secret.txt")
    (top / "v1.zarr" / "outside").symlink_to(top)
    (top / "v1.zarr" / "within").symlink_to(top / "v1.zarr" / "zarr.json")
    (top / "v1.zarr" / "loop").symlink_to(top / "v1.zarr" / "loop")
    (top / "v1.zarr" / "written" / "claims").mkdir(exist_ok=True)
    (top / "v1.zarr" / "written" / "claims" / "0").write_text("claimed")
    return top


@pytest.fixture(scope="module")
def server(folder):
    with ViewServer(str(folder / "v1.zarr")) as running:
        yield running


def test_the_page_and_nothing_but_its_files(server):
    for name, media in PAGE_FILES.items():
        answer = ask(server, name)
        assert (answer.status, answer.headers["content-type"], answer.body) == (200, media, page_file(name))
    assert ask(server, "").body == page_file("index.html")
    for other in ("__init__.py", "page/index.html", "server.py", "viewer.js.map", "../viewer/page.py", "index.html/", "INDEX.HTML"):
        assert ask(server, other).status == 404
    assert json.loads(ask(server, "view.json").body) == {"store": NAME}


def test_every_file_of_the_store_byte_for_byte(server):
    for path in sorted(p for p in GOLDEN.rglob("*") if p.is_file()):
        answer = ask(server, NAME + path.relative_to(GOLDEN).as_posix())
        assert answer.status == 200
        assert answer.body == path.read_bytes()
    assert ask(server, NAME + "within").body == (GOLDEN / "zarr.json").read_bytes()


ESCAPES = [
    "out", "outside/secret.txt", "loop", "../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "%2e%2e%2fsecret.txt", "..%5csecret.txt",
    "..\\secret.txt", "written/../../secret.txt", "./zarr.json", "written/./c/0", "//etc/passwd", "/etc/passwd", "%2fetc%2fpasswd", "",
    "written", "written/", "zarr.json/", "zarr.json%00", "zarr.json%00.txt", "%00", "written//c/0", "%c0%ae%c0%ae/secret.txt",
    "%ff", "..", ".", "../v1.zarr2/zarr.json", "../v1.zarr/zarr.json", "written/claims/0", "a" * 5000, "zarr.json?../../secret.txt#..",
]  # fmt: skip


@pytest.mark.parametrize("key", ESCAPES)
def test_no_path_leads_out_of_the_store(server, key):
    answer = ask(server, NAME + key)
    assert b"secret" not in answer.body
    assert b"root:" not in answer.body
    assert answer.status in (400, 404, 414) or key.startswith("zarr.json?")


@given(st.text(max_size=60))
def test_a_key_names_a_file_within_or_nothing(key):
    found = FolderFiles(GOLDEN).find(key)
    assert found is None or found.path.is_relative_to(GOLDEN.resolve())
    assert not well_formed(key) or not {"..", "."} & set(key.replace("\\", "/").split("/"))


def test_without_the_token_there_is_nothing(server):
    wrong = [
        "/",
        "/index.html",
        "/store/v1.zarr/zarr.json",
        f"/{server.token[:-1]}/",
        f"/{server.token}x/",
        "/%00/",
        "/é/",
    ]
    for path in wrong:
        answer = ask(server, path)
        assert answer.status == 404
        assert server.token.encode() not in answer.body
    assert len(server.token) >= 32


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:{port}", "localhost.evil.example:{port}", " "]
)
def test_a_foreign_name_for_this_machine_is_refused(server, host):
    assert ask(server, "", host=host.format(port=server.port)).status == 421


def test_localhost_is_this_machine_too(server):
    assert ask(server, "", host=f"localhost:{server.port}").status == 200


def test_only_this_machine_can_connect(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            own = probe.getsockname()[0]
        except OSError:
            pytest.skip("this machine has no other address to try")
    if own.startswith("127."):
        pytest.skip("this machine has no other address to try")
    with pytest.raises(OSError, match=r"refused|timed out"), socket.create_connection((own, server.port), timeout=2):
        pass


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "<script>"])
def test_only_reading(server, method):
    answer = ask(server, "", method=method)
    assert answer.status in (400, 501)
    assert b"script" not in answer.body


def test_headers_that_keep_the_page_to_itself(server):
    for path in ("", NAME + "zarr.json", "nothing"):
        headers = ask(server, path).headers
        assert "require-trusted-types-for 'script'" in headers["content-security-policy"]
        assert "'unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["referrer-policy"] == "no-referrer"
        assert not [name for name in headers if name.startswith("access-control")]


KEY = "attention_mean/c/0/0/0"


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [("bytes=0-0", slice(0, 1)), ("bytes=3-9", slice(3, 10)), ("bytes=5-", slice(5, None)), ("bytes=-7", slice(-7, None)),
     ("bytes=0-99999999", slice(None)), ("bytes=-99999999", slice(None)), (" bytes=2-3 ", slice(2, 4))],
)  # fmt: skip
def test_ranges(server, asked, wanted):
    data = (GOLDEN / KEY).read_bytes()
    answer = ask(server, NAME + KEY, Range=asked)
    assert (answer.status, answer.body) == (206, data[wanted])
    first = data.index(data[wanted]) if wanted.start is None else range(len(data))[wanted].start
    assert answer.headers["content-range"] == f"bytes {first}-{first + len(answer.body) - 1}/{len(data)}"
    assert answer.headers["content-length"] == str(len(answer.body))


@pytest.mark.parametrize("asked", ["bytes=99999999-", "bytes=-0"])
def test_ranges_beyond_the_file(server, asked):
    answer = ask(server, NAME + KEY, Range=asked)
    assert (answer.status, answer.body) == (416, b"")
    assert answer.headers["content-range"] == f"bytes */{(GOLDEN / KEY).stat().st_size}"


@pytest.mark.parametrize("asked", ["bytes=9-3", "bytes=-", "bytes=a-b", "items=0-3", "bytes=0-3,5-9", "bytes=٣-٤", "bytes=0-" + "9" * 40])
def test_what_is_no_single_range_is_left_out_of_account(server, asked):
    answer = ask(server, NAME + KEY, Range=asked.encode("utf-8").decode("latin-1"))
    assert (answer.status, answer.body) == (200, (GOLDEN / KEY).read_bytes())


@given(st.integers(0, 40), st.one_of(st.none(), st.integers(0, 60)), st.one_of(st.none(), st.integers(0, 60)))
def test_a_range_is_what_slicing_says(size, first, last):
    header = f"bytes={'' if first is None else first}-{'' if last is None else last}"
    data = bytes(range(size))
    try:
        found = byte_range(header, size)
    except UnsatisfiableRangeError:
        assert (first is not None and first >= size) or (first is None and (last == 0 or not size))
        return
    if (first is None and last is None) or (first is not None and last is not None and last < first):
        assert found is None
    else:
        assert found is not None
        wanted = data[-last:] if first is None and last is not None else data[first : None if last is None else last + 1]
        assert data[found[0] : found[1] + 1] == wanted


def test_head_tells_the_size(server):
    answer = ask(server, NAME + KEY, method="HEAD")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", str((GOLDEN / KEY).stat().st_size))
    assert ask(server, NAME + "nothing", method="HEAD").status == 404


def test_metadata_come_compressed_where_that_is_understood(server):
    answer = ask(server, NAME + "zarr.json", Accept_Encoding="gzip, br")
    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(answer.body) == (GOLDEN / "zarr.json").read_bytes()


def test_a_zip_is_served_like_its_folder(tmp_path):
    copy_store(GOLDEN, tmp_path / "v1.zip")
    with ViewServer(str(tmp_path / "v1.zip")) as server, zipfile.ZipFile(tmp_path / "v1.zip") as archive:
        for name in archive.namelist():
            assert ask(server, f"store/v1.zip/{name}").body == archive.read(name)
        data = archive.read(KEY)
        assert ask(server, f"store/v1.zip/{KEY}", Range="bytes=4-8").body == data[4:9]
        for key in ("../v1.zip", "nothing", "attention_mean"):
            assert ask(server, f"store/v1.zip/{key}").status == 404


def test_a_compressed_zip_and_what_is_no_store_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zarr.json", "{}" * 100)
    with pytest.raises(StoreError, match="without compression"):
        ZipFiles(tmp_path / "packed.zip")
    (tmp_path / "text").write_text("no zip")
    with pytest.raises(StoreError, match="expected a store"):
        ViewServer(str(tmp_path / "text"))
    with pytest.raises(StoreError, match=r"zarr\.json"):
        ViewServer(str(tmp_path))
    with pytest.raises(StoreError, match="nothing"):
        ViewServer(str(tmp_path / "nothing"))


def test_results_and_only_results(tmp_path):
    (tmp_path / "notes.txt").write_text("secret")
    (tmp_path / "fake.zarr.zip").write_text("no zip")
    save_result(tmp_path / "probe.zarr.zip", ResultFile("layer_curve", attributes={"task": "<b>truth</b>", "position": "final"}))
    with ViewServer(str(GOLDEN), results=tmp_path) as server:
        index = json.loads(ask(server, "results/index.json").body)
        assert [(e["name"], e["kind"], e["task"]) for e in index["files"]] == [("probe.zarr.zip", "layer_curve", "<b>truth</b>")]
        assert ask(server, "results/probe.zarr.zip").body == (tmp_path / "probe.zarr.zip").read_bytes()
        for key in ("notes.txt", "../results/probe.zarr.zip", "sub/probe.zarr.zip", ""):
            assert ask(server, f"results/{key}").status == 404


def test_an_address_is_read_by_the_page_itself():
    with ViewServer("https://host.example/run.zarr") as server:
        told = json.loads(ask(server, "view.json").body)
        assert told["store"] == "https://host.example/run.zarr/"
        assert "CORS" in told["note"]
        assert "connect-src 'self' https://host.example;" in ask(server, "").headers["content-security-policy"]
    with pytest.raises(InvalidInputError, match="stratascope copy"):
        ViewServer("s3://bucket/run.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v1.zarr", "v1.zarr/", "v1.zarr.zip"])
def test_an_address_is_asked_before_the_page_is_shown(name, tmp_path):
    copy_store(GOLDEN, tmp_path / "v1.zarr.zip")
    shutil.copytree(GOLDEN, tmp_path / "v1.zarr")
    with serving(tmp_path) as served:
        check_address(f"{served.address}/{name}")
        with pytest.raises(StoreError, match="the server answers 404"):
            check_address(f"{served.address}/other-{name}")
        address = served.address
    with pytest.raises(StoreError, match=r"expected a server that answers, found: .*refused"):
        check_address(f"{address}/{name}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "said"), [("<html>", "found no JSON"), ("[]", "found other JSON"), ('{"attributes": {}}', "found other JSON")]
)
def test_an_address_of_something_else_is_refused_in_one_line(content, said, tmp_path):
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.zarr" / "zarr.json").write_text(content)
    (tmp_path / "a.zip").write_text(content)
    with serving(tmp_path) as served:
        result = CliRunner().invoke(main, ["view", f"{served.address}/a.zarr", "--no-browser"])
        with pytest.raises(StoreError, match="expected a zip"):
            check_address(f"{served.address}/a.zip")
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert said in result.stderr
    assert not result.stdout


def test_a_port_that_is_taken(server):
    with pytest.raises(StoreError, match="`port`"):
        ViewServer(str(GOLDEN), port=server.port)


@pytest.mark.parametrize("place", ["page", "beside/deeper"])
def test_the_exported_page_finds_its_store(tmp_path, place):
    copy_store(GOLDEN, tmp_path / "my run#1.zarr")
    save_result(tmp_path / "r" / "probe.zarr.zip", ResultFile("layer_curve", attributes={"task": "truth"}))
    index = export_page(tmp_path / place, str(tmp_path / "my run#1.zarr"), tmp_path / "r")
    assert {p.name for p in index.parent.iterdir()} == {*PAGE_FILES, "view.json", "results"}
    told = json.loads((index.parent / "view.json").read_text())
    assert (index.parent / urllib.parse.unquote(told["store"]) / "zarr.json").is_file()
    assert "#" not in told["store"]
    assert json.loads((index.parent / "results" / "index.json").read_text()) == json.loads(result_index(tmp_path / "r"))


def test_the_command_exports_and_refuses(tmp_path):
    done = CliRunner().invoke(main, ["view", str(GOLDEN), "--export", str(tmp_path / "page")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page" / "index.html").is_file()
    refused = CliRunner().invoke(main, ["view", str(tmp_path / "nothing"), "--no-browser"])
    assert refused.exit_code == 2
    assert "expected a store" in refused.output


def test_a_thousand_requests_at_once_are_all_answered_by_a_bounded_number_of_threads(server):
    """They all wait before the first is answered; each is a connection of its own."""
    most, counted = 0, threading.Event()

    def count():
        nonlocal most
        while not counted.wait(0.002):
            most = max(most, threading.active_count())

    before = threading.active_count()
    counting = threading.Thread(target=count)
    counting.start()
    request = f"GET /{server.token}/view.json HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nConnection: close\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20)) for _ in range(1000)]
        for connection in connections:
            connection.sendall(request)
        answers = [b"".join(iter(partial(connection.recv, 1 << 16), b"")) for connection in connections]
    counted.set()
    counting.join()
    assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 200 OK"}
    assert most <= before + 1 + MOST_CONNECTIONS


def test_silent_connections_do_not_keep_others_from_an_answer(server, monkeypatch):
    monkeypatch.setattr("stratascope.report.viewer.server._IDLE_CROWDED", 0.2)
    with contextlib.ExitStack() as stack:
        for _ in range(2 * MOST_CONNECTIONS):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
        assert ask(server, "view.json").status == 200
    assert ask(server, "view.json").status == 200


def test_a_server_that_is_full_stops_at_once(folder):
    with contextlib.ExitStack() as stack:
        with ViewServer(str(folder / "v1.zarr")) as full:
            for _ in range(MOST_CONNECTIONS + 2):
                stack.enter_context(socket.create_connection(("127.0.0.1", full.port), timeout=20))
        with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the system likes
            socket.create_connection(("127.0.0.1", full.port), timeout=1).close()
