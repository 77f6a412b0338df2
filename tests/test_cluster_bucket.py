"""Studies on a Dask cluster whose workers, in other processes, read the store in a bucket: the bytes of a run on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from stratascope.cli import main
from stratascope.scheduling import cluster
from stratascope.store import copy_store
from tests.store.buckets import environment, objects, s3_server, without_cloud
from tests.test_cluster import Cluster, running

pytest.importorskip("distributed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="stops processes by signals")]
URL = "s3://bucket/scenes.zarr"
STUDIES = {
    "probe": ("--tasks", "truth", "--positions", "final", "--folds", "3", "--layers", "0,3,6"),
    "share": (),
    "rollout": ("--examples", "0-7"),
    "flow": ("--examples", "0-3", "--window", "3-5"),
}


@pytest.fixture(scope="module")
def bucket(store_path: Path) -> Iterator[dict[str, str]]:
    """Variables with which a store in a bucket is read."""
    with s3_server() as address, pytest.MonkeyPatch.context() as patch:
        without_cloud(patch)
        for name, value in environment(address).items():
            patch.setenv(name, value)
        copy_store(store_path, URL)
        yield environment(address)


@pytest.fixture(scope="module")
def workers(bucket: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("elsewhere")) as found:
        found.start_worker()
        found.start_worker()
        yield found


def results(command: str, store: object, out: Path | str, *more: str) -> dict[str, bytes]:
    """File -> bytes of what a command writes, without the cache of finished layers, which notes how many seconds each took."""
    words = [command, str(store), *STUDIES[command], "--out", str(out), *more]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    if isinstance(out, str):
        return objects(out)
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if not name.startswith("layers/")}


@pytest.mark.parametrize("command", STUDIES)
def test_a_study_on_the_cluster_is_that_of_this_machine_to_the_byte(
    workers: Cluster, store_path: Path, tmp_path: Path, command: str
) -> None:
    here = results(command, store_path, tmp_path / "here")
    there = results(command, URL, tmp_path / "there", "--scheduler", workers.address)
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []
    assert any(name.endswith(".zarr.zip") for name in here)


def test_results_of_a_cluster_are_written_to_a_bucket_once(workers: Cluster, store_path: Path, tmp_path: Path) -> None:
    first = results("share", URL, "s3://bucket/results", "--scheduler", workers.address)
    assert first == results("share", store_path, tmp_path / "here")
    assert first == results("share", URL, "s3://bucket/results", "--scheduler", workers.address)


def test_a_worker_without_credentials_is_named(bucket: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WORKER_TIMEOUT", 20.0)
    with running(tmp_path) as found:
        with monkeypatch.context() as without:
            for name in bucket:
                without.delenv(name)
            without.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
            without.setenv("AWS_ACCESS_KEY_ID", "nobody")
            without.setenv("AWS_SECRET_ACCESS_KEY", "zq")
            found.start_worker()
        refused = CliRunner().invoke(main, ["share", URL, "--out", str(tmp_path / "out"), "--scheduler", found.address])
    assert refused.exit_code == 2
    line = refused.stderr.strip()
    assert len(line.splitlines()) == 1
    assert f"worker {'tcp://'}" in line
    assert URL in line
    assert "every worker must see the same files under the same paths or addresses" in line
    assert "zq" not in line
    assert not list((tmp_path / "out").rglob("*.zarr.zip"))


def test_workers_that_come_and_go_change_nothing(bucket: dict[str, str], store_path: Path, tmp_path: Path) -> None:
    """As of an adaptive cluster: one worker begins, another joins, the first one is retired while tasks wait."""
    from threading import Timer

    from distributed import Client

    with running(tmp_path) as found:
        found.start_worker()

        def change() -> None:
            found.start_worker()
            with Client(found.address, timeout="30s", set_as_default=False) as client:
                client.retire_workers(n=1)

        later = Timer(1.0, change)
        later.start()
        there = results("probe", URL, tmp_path / "there", "--scheduler", found.address)
        later.join()
    assert there == results("probe", store_path, tmp_path / "here")
