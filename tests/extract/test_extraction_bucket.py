"""`extract --out s3://...`: the bytes of an extraction to a disk, continued after an interruption, refused before anything runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
from buckets import environment, files, objects, s3_server, without_cloud

from stratascope.cli import main
from stratascope.extract import ExtractionSettings, extract
from stratascope.store import ActivationStore, diff_stores
from stratascope.store.io.bucket import Bucket

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow


@pytest.fixture
def place(monkeypatch):
    without_cloud(monkeypatch)
    with s3_server() as address:
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        yield "s3://bucket/runs/e.zarr"


def words(scenes: Path, out: object) -> list[str]:
    given = ["--model", "demo", "--examples", str(scenes / "scenes.jsonl"), "--images", str(scenes / "images")]
    return ["extract", *given, "--limit", "2", "--record", "residual", "--device", "cpu", "--out", str(out)]


@pytest.mark.slow
def test_an_extraction_to_a_bucket_equals_one_to_a_disk(scenes, tmp_path, place):
    done = CliRunner().invoke(main, words(scenes, place))
    assert done.exit_code == 0, done.output
    assert f"{place}: wrote 2 examples in 1 of 1 blocks" in done.output
    assert f"next: stratascope view {place}" in done.output
    assert CliRunner().invoke(main, words(scenes, tmp_path / "e.zarr")).exit_code == 0
    assert diff_stores(place, tmp_path / "e.zarr").same
    there, here = objects(place), files(tmp_path / "e.zarr")
    assert there.keys() == here.keys()
    assert {key for key in there if there[key] != here[key]} <= {"zarr.json"}  # the date and the command


def test_an_extraction_to_a_bucket_is_continued(scenes, place):
    settings = ExtractionSettings(
        model="demo", examples=(scenes / "scenes.jsonl",), images=scenes / "images", device="cpu", limit=6, block=2, record=("residual",)
    )
    report = extract(settings, place, shard=(0, 2))
    assert report.summary() == f"{place}: wrote 4 examples in 2 of 3 blocks"
    assert not ActivationStore.open(place).complete
    assert extract(settings, place).written_blocks == 1
    whole = objects(place)
    key = ActivationStore.open(place).layout.array("residual").key(1)
    Bucket(place).remove(["written/c/1", key, "lens/zarr.json"])
    assert extract(settings, place).written_blocks == 1
    assert objects(place) == whole
    assert extract(settings, place).summary() == f"{place}: nothing left to do"


def test_a_bucket_that_is_not_there_is_refused_before_anything_runs(scenes, place, monkeypatch):
    from stratascope.extract.run import extraction

    monkeypatch.setattr(extraction, "plan_extraction", lambda *_, **__: pytest.fail("it was planned"))
    refused = CliRunner().invoke(main, words(scenes, "s3://nowhere/e.zarr"))
    assert refused.exit_code == 2
    assert "s3://nowhere/e.zarr: expected a bucket to write into, found none of that name; create it" in refused.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("stratascope.store.io.remote.FIRST_PATIENCE", 0.1)
    refused = CliRunner().invoke(main, words(scenes, place))
    assert refused.exit_code == 2
    assert "of s3://bucket/runs/e.zarr, found: no server answers" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
