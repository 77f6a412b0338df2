"""Results of commands in a bucket: the same bytes as on a disk, gone on from, sent also after an error."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent / "store"))
from buckets import environment, files, objects, s3_server, without_cloud

from stratascope.cli import main
from stratascope.commands import bucket_outputs
from stratascope.commands.options import OUTPUT, RESULTS_INPUT
from stratascope.commands.terminal import echo
from stratascope.store import copy_store
from stratascope.store.io.bucket import Bucket
from stratascope.store.io.remote_errors import UnreachableError


@pytest.fixture(scope="module")
def server():
    with s3_server() as address:
        yield address


@pytest.fixture(autouse=True)
def credentials(server, monkeypatch):
    without_cloud(monkeypatch)
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)


def run(*words: object) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_results_in_a_bucket_are_those_on_a_disk(store_path, tmp_path):
    """Of each kind of output: a folder of results, a page, a figure, results that are read again."""
    url, here = "s3://bucket/results of it", tmp_path / "results of it"
    for place in (url, here):
        said = run("answers", store_path, "--out", place)
        assert f"results in {place}" in said
        run("share", store_path, "--out", place)
        page = f"{place}/../page.html" if place is here else "s3://bucket/page.html"
        said = run("report", store_path, place, "-o", page)
        assert f"report {page}" in said
        assert "/stratascope-" not in said  # a temporary folder
    there = objects(url)
    assert there == files(here)
    assert any(name.endswith(".zarr.zip") for name in there)
    pages = objects("s3://bucket")["page.html"], (tmp_path / "page.html").read_bytes()
    assert pages[0].replace(url.encode(), b"X") == pages[1].replace(str(here).encode(), b"X")
    for place, goal in ((url, "a"), (here, "b"), (f"{url}/share.zarr.zip", "c")):
        run("figure", "share", place, "-o", tmp_path / f"{goal}.pdf")
        assert (tmp_path / f"{goal}.pdf").read_bytes() == (tmp_path / "a.pdf").read_bytes()
    copy_store(store_path, "s3://bucket/store.zarr")
    run("figure", "share", "s3://bucket/store.zarr", url, "-o", tmp_path / "d.pdf")
    assert (tmp_path / "d.pdf").read_bytes() == (tmp_path / "a.pdf").read_bytes()
    run("view", store_path, "--results", url, "--export", tmp_path / "page")
    assert (tmp_path / "page" / "results" / "share.zarr.zip").read_bytes() == there["share.zarr.zip"]


def command_that(act):
    @click.command()
    @click.argument("results", type=RESULTS_INPUT, nargs=-1)
    @click.option("--out", type=OUTPUT)
    def command(results, out):
        act(out, *results)

    return command


def test_a_command_goes_on_from_what_lies_there_and_removes_what_it_removed():
    bucket = Bucket("s3://bucket/again")
    for key in ("a.txt", "layers/b.txt"):
        bucket.put(key, lambda: [b"old"])

    def act(out):
        assert {p.name: p.read_text() for p in out.rglob("*.txt")} == {"a.txt": "old", "b.txt": "old"}
        (out / "a.txt").unlink()
        (out / "layers" / "c.txt").write_text("new")
        (out / "layers" / "d.partial").write_text("half")
        echo(f"wrote {out}")

    done = CliRunner().invoke(command_that(act), ["--out", "s3://bucket/again"])
    assert done.exit_code == 0, done.output
    assert done.output == "wrote s3://bucket/again\n"
    assert objects("s3://bucket/again") == {"layers/b.txt": b"old", "layers/c.txt": b"new"}


def test_what_was_finished_before_an_error_is_sent():
    def act(out):
        out.mkdir()
        (out / "a.txt").write_text("finished")
        raise ValueError("later")

    done = CliRunner().invoke(command_that(act), ["--out", "s3://bucket/failed"])
    assert str(done.exception) == "later"
    assert objects("s3://bucket/failed") == {"a.txt": b"finished"}


def test_finished_files_are_sent_while_a_command_runs(monkeypatch):
    monkeypatch.setattr(bucket_outputs, "SENT_EVERY", 0.05)

    def act(out):
        out.mkdir()
        (out / "a.txt").write_text("finished")
        for _ in range(200):
            if objects("s3://bucket/running"):
                return
        pytest.fail("nothing was sent")

    assert CliRunner().invoke(command_that(act), ["--out", "s3://bucket/running"]).exception is None


def test_a_service_that_fails_at_the_end_is_an_error(monkeypatch):
    def refuse(*_):
        raise UnreachableError("expected to write, found: no server answers")

    def act(out):
        out.write_text("page")
        monkeypatch.setattr(Bucket, "put", refuse)

    done = CliRunner().invoke(command_that(act), ["--out", "s3://bucket/pages/a.html"])
    assert isinstance(done.exception, UnreachableError)


def test_a_bucket_that_is_not_there_is_refused_before_a_command_runs(store_path):
    done = CliRunner().invoke(main, ["share", str(store_path), "--out", "s3://nowhere/results"])
    assert done.exit_code == 2
    assert done.stderr == (
        "stratascope: s3://nowhere/results: expected a bucket to write into, found none of that name; create it, or check the address\n"
    )


def test_a_page_names_the_address_and_not_the_copy_on_this_machine():
    def act(out):
        out.mkdir()
        (out / "report.html").write_text(f"stratascope report {out}/original.zarr")

    assert CliRunner().invoke(command_that(act), ["--out", "s3://bucket/named"]).exception is None
    assert objects("s3://bucket/named") == {"report.html": b"stratascope report s3://bucket/named/original.zarr"}
