"""Faults of a service, of one request or for good, while a store is copied to or from a bucket; the table of docs/reliability.md."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from buckets import environment, files, objects, s3_server, without_cloud
from click.testing import CliRunner
from faulty_proxy import Proxy, faulty_proxy
from stores import make_store, small_layout

from stratascope.cli import main
from stratascope.errors import StoreError
from stratascope.store import ActivationStore, copy_store, verify
from stratascope.store.io import remote
from stratascope.store.io.remote_errors import UnreachableError

LAYOUT = small_layout(8, record={"residual"}, thumbnail=None)
FILE = LAYOUT.array("residual").key(1)
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
HEADS = ("fault", "passes", "stays: writing", "stays: reading")
FAULTS = {
    403: "403 (no permission)",
    400: "400 (expired credentials)",
    500: "500",
    503: "503 (overloaded)",
    "reset": "connection reset",
    "lost": "done, but the answer is lost",
    "cut": "body cut off",
    "range": "bytes of another range",
    "drip": "slow bytes, longer in all than the silence that is allowed",
    "silent": "silence",
}
PART = ("--layers", "1", "--positions", "final")
"""Of a copy that asks for ranges."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with s3_server() as address:
        yield address


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("local") / "a.zarr", LAYOUT)


@pytest.fixture
def proxy(server, monkeypatch):
    without_cloud(monkeypatch)
    with faulty_proxy(server) as before:
        for name, value in environment(before.address).items():
            monkeypatch.setenv(name, value)
        yield before


@pytest.fixture
def hurried(monkeypatch):
    """The same policy within two seconds instead of minutes."""
    monkeypatch.setattr(remote, "RETRIES", 0)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "PATIENCE", 1.5)
    monkeypatch.setattr(remote, "SILENCE", 0.4)


def hit(what: object, times: float, *, method: str | None = None) -> object:
    """A fault of the first requests for one file of a block."""
    return lambda asked, path, count: what if path.endswith(f"a.zarr/{FILE}") and count < times and method in (None, asked) else None


def outcome(result: object) -> str:
    assert result.exit_code in (0, 2)
    lines = result.stderr.strip().splitlines()
    if result.exit_code == 0:
        return "exit 0, the same bytes"
    assert len(lines) == 1, result.stderr
    for secret in ("zq", "StringToSign", "Signature", "<?xml", "169.254"):
        assert secret not in lines[0]
    assert "s3://bucket/" in lines[0]
    assert FILE in lines[0]
    said = re.search(r"found(?:: | )([^,;:(]*?)(?: for \d+ s)? ?(?:\((?!http)(\w+)\) ?)?(?:[,;(]|$)", lines[0])
    assert said is not None, lines[0]
    return f'exit 2, "{said[1].strip()}{f" ({said[2]})" if said[2] else ""}"'


def tried(way: str, proxy: Proxy, local: Path, folder: Path, name: str, part: Sequence[str] = ()) -> str:
    """What a copy of the store, or a part, to or from a bucket comes to; the same command without the fault must then end well."""
    url, goal = f"s3://bucket/{name if way == 'writing' else 'source'}/a.zarr", folder / name
    words = ["copy", str(local), url] if way == "writing" else ["copy", url, str(goal), *part]
    found = outcome(CliRunner().invoke(main, words))
    if found.startswith("exit 2"):
        assert not goal.exists()
        proxy.ill = lambda *_: None
        if way == "writing":
            with pytest.raises(ValueError, match="expected a store"):
                ActivationStore.open(url)
        again = CliRunner().invoke(main, words)
        assert again.exit_code == 0, again.output
    if part:
        copy_store(local, folder / f"{name}-part", layers=[1], positions=["final"])
    expected = files(folder / f"{name}-part" if part else local)
    assert (objects(url) if way == "writing" else files(goal)) == expected
    return found


@pytest.mark.slow
def test_each_fault_has_the_outcome_of_the_table(proxy, local, tmp_path, hurried):
    copy_store(local, "s3://bucket/source/a.zarr")
    rows = []
    for number, (what, text) in enumerate(FAULTS.items()):
        found = {}
        for way in ("writing", "reading"):
            for times in (2, 1e9):
                if what in ("drip", "range") and way == "writing":
                    found[way, times] = ""
                    continue
                method = {"writing": "PUT", "reading": "GET"}[way]
                proxy.forget()
                proxy.ill = hit(what, times, method=method)
                found[way, times] = tried(way, proxy, local, tmp_path, f"{number}-{way}-{times}", PART if what == "range" else ())
                assert what != "range" or "range" in proxy.done
        passes = {found[way, 2] for way in ("writing", "reading")} - {""}
        assert len(passes) == 1, (text, found)
        rows.append((text, passes.pop(), found["writing", 1e9] or "-", found["reading", 1e9]))
    table = ["| " + " | ".join(HEADS) + " |", "|---|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    page = PAGE.read_text()
    begin, end = "<!-- faults -->\n", "<!-- /faults -->"
    before, _, rest = page.partition(begin)
    there, _, after = rest.partition(end)
    if os.environ.get("STRATASCOPE_WRITE_FAULTS"):
        PAGE.write_text("".join((before, begin, "\n".join(table), "\n", end, after)))
        return
    assert there.splitlines() == table, "run this test with STRATASCOPE_WRITE_FAULTS=1 and look at what changed"


def test_bytes_of_another_range_are_never_taken_for_values(proxy, hurried, tmp_path):
    layout = small_layout(8, block=8, record={"residual"}, thumbnail=None)
    url, key = "s3://bucket/range/a.zarr", layout.array("residual").key(0)
    make_store(url, layout)
    store = ActivationStore.open(url)
    proxy.ill = lambda method, path, count: "range" if path.endswith(key) else None
    with pytest.raises(StoreError):
        store.read("residual", layer=1, position="final", examples=[2])
    assert any(what == "range" for what in proxy.done)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [2, 60])
def test_an_outage_is_waited_for(proxy, local, tmp_path, monkeypatch, seconds):
    """A server that is away in the middle of a copy, in both directions; the minute with the times of the policy as they are."""
    if seconds < 10:
        monkeypatch.setattr(remote, "FIRST_PAUSE", 0.1)
    url = f"s3://bucket/outage-{seconds}/a.zarr"

    def away(method, path, count, began=[]):  # noqa: B006 - the moment of the first request for the file
        if path.endswith(FILE) and not began:
            began.append(time.monotonic())
        return "reset" if began and time.monotonic() - began[0] < seconds else None

    proxy.ill = lambda *asked, began=[]: away(*asked, began=began)
    copy_store(local, url)
    assert objects(url) == files(local)
    proxy.ill = lambda *asked, began=[]: away(*asked, began=began)
    copy_store(url, tmp_path / "b.zarr")
    assert files(tmp_path / "b.zarr") == files(local)


def test_a_lost_answer_to_a_creation_is_not_taken_for_another_writer(proxy, local, hurried):
    """The marker, the claim and the root metadata are created once; the answer to each is lost once."""
    proxy.ill = lambda method, path, count: "lost" if method == "PUT" and count == 0 else None
    url = "s3://bucket/lost answers/a.zarr"
    make_store(url, LAYOUT)
    assert objects(url) == files(local)


def test_a_host_that_answers_403_for_absent_files_serves_incomplete_stores(proxy, server, monkeypatch):
    """As S3 does to a reader who may get objects and not list the bucket."""
    url = "s3://bucket/part/a.zarr"
    make_store(url, small_layout(record={"residual"}, thumbnail=None), blocks=[0, 2])
    held = set(objects(url))

    def unlisted(method, path, count):
        return 403 if method != "PUT" and path.partition("a.zarr/")[2] not in held else None

    proxy.ill = unlisted
    store = ActivationStore.open(url)
    assert store.written.tolist() == [True, False, True]
    assert verify(url).ok
    # credentials that end between two requests are no absent marker
    proxy.ill = lambda *_: None
    late = ActivationStore.open(url)
    proxy.ill = lambda *_: 403
    with pytest.raises(
        UnreachableError, match=r"expected to read .* of s3://bucket/part/a\.zarr, found: the server answers 403 Forbidden \(Acc"
    ):
        _ = late.written


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (400, "(ExpiredToken)"),
        (403, "check the address and whether the credentials may write there"),
    ],
)
def test_messages_on_writing_say_what_to_set(proxy, local, status, said):
    proxy.ill = lambda *_: status
    result = CliRunner().invoke(main, ["copy", str(local), "s3://bucket/said/a.zarr"])
    assert result.exit_code == 2
    assert said in result.stderr or "credentials" in result.stderr
    assert "of s3://bucket/said/a.zarr" in result.stderr
