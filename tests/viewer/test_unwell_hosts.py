"""`stratascope view` of a host that is unwell, or of an address that a page cannot ask for: one line, nothing of its secrets."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from stratascope.cli import main
from stratascope.store import copy_store
from tests.store.unwell import unwell
from tests.viewer.test_server import GOLDEN


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    copy_store(GOLDEN, folder / "a.zarr")
    copy_store(GOLDEN, folder / "a.zip")
    return folder


@pytest.mark.parametrize("name", ["a.zarr", "a.zip"])
@pytest.mark.parametrize(
    ("illness", "said"),
    [
        ("cut", "found that the server cuts it off after"),
        ("noise", "expected a server that speaks HTTP, found one that does not (its first line is no status)"),
        ("closed", "expected a server that speaks HTTP, found one that does not (it closes the connection without an answer)"),
        ("reset", "expected a server that answers, found: "),
        (503, "the server answers 503"),
    ],
)
def test_a_host_that_is_unwell_is_named(root, name, illness, said):
    with unwell(root, lambda *_: illness) as host:
        result = CliRunner().invoke(main, ["view", f"{host.address}/{name}", "--no-browser"])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert said in result.stderr
    assert "SSH" not in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://zqme:zq@host.example/a.zarr", "found one with a user name"),
        ("https://host.example/a.zarr?sig=zq", "found one with a query"),
        ("https://zqme:zq@[host/a.zarr", "expected an address such as https://host/store.zarr"),
        ("https://host.example:zq/a.zarr", "expected an address such as https://host/store.zarr"),
        ("s3://zqme:zq@bucket/a.zarr", "a web page cannot sign"),
        ("s3://bucket/a.zarr", "a web page cannot sign requests to a bucket"),
    ],
)
@pytest.mark.parametrize("more", [["--no-browser"], ["--export", "page"]])
def test_an_address_that_a_page_cannot_ask_for_is_refused(tmp_path, monkeypatch, address, said, more):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["view", address, *more])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert said in result.stderr
    assert "sig=zq" not in result.stderr
    assert "zqme" not in result.stderr
    assert not list(tmp_path.iterdir())
