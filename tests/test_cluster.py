"""A Dask cluster: the scheduler opens nothing, workers open what they are named, and whatever is missing ends in one line that names it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stratascope.errors import ClusterLostError, InvalidInputError, StoreError
from stratascope.scheduling import cluster, run_all
from stratascope.store import ActivationStore

pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="stops processes by signals")
GOLDEN = Path(__file__).parent / "store" / "golden" / "v1.zarr"
NO_PACKAGE = "import sys\nfor name in ('stratascope', 'zarr'): sys.modules[name] = None\n"
"""A process that loads this cannot open a store, nor unpickle one."""
OTHER_VERSION = "import stratascope\nstratascope.__version__ = '0.0.7'\n"


@dataclass
class Cluster:
    """A scheduler and its workers, as processes of their own in another folder."""

    folder: Path
    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]

    def start_worker(self, preload: str = "") -> None:
        """One more worker, which has joined when this returns."""
        from distributed import Client

        command = ["distributed.cli.dask_worker", self.address, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        self.workers.append(started(self.folder, *command, preload=preload))
        with Client(self.address, timeout="30s", set_as_default=False) as client:
            client.wait_for_workers(sum(worker.poll() is None for worker in self.workers), timeout=30)

    def stop_workers(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
        self.workers.clear()


def started(folder: Path, *command: str, preload: str = "") -> subprocess.Popen[bytes]:
    arguments = []
    if preload:
        path = folder / f"preload{time.monotonic_ns()}.py"
        path.write_text(preload)
        arguments = ["--preload", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", *command, *arguments], cwd=folder, env=environment, **quiet)


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    note = folder / "scheduler.json"
    command = ["distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(note)]
    found = Cluster(folder, "", started(folder, *command, preload=NO_PACKAGE), [])
    try:
        from distributed import Client

        while not note.exists():
            assert found.scheduler.poll() is None
            time.sleep(0.05)
        with Client(scheduler_file=str(note), timeout="30s", set_as_default=False) as client:
            found.address = client.scheduler.address
        yield found
    finally:
        found.stop_workers()
        found.scheduler.kill()
        found.scheduler.wait()


@pytest.fixture(scope="module")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("elsewhere")) as found:
        yield found


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "WORKER_TIMEOUT", 1.0)
    monkeypatch.setattr(cluster, "_CHECK_EVERY", 0.5)


def first_example(store: ActivationStore) -> tuple[str, int]:
    return str(store.examples["id"].iloc[0]), os.getpid()


def slept(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.mark.slow
def test_workers_open_a_relative_path_and_the_scheduler_opens_nothing(dask_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    dask_cluster.start_worker()
    monkeypatch.chdir(GOLDEN.parent)
    store = ActivationStore.open(GOLDEN.name)
    monkeypatch.chdir("/")
    ((name, process),) = run_all(first_example, [store], scheduler=dask_cluster.address)
    assert (name, process) == (first_example(store)[0], dask_cluster.workers[0].pid)
    dask_cluster.stop_workers()


@pytest.mark.slow
def test_a_worker_that_cannot_see_the_store_is_named_with_the_path(dask_cluster: Cluster, tmp_path: Path) -> None:
    import shutil

    dask_cluster.start_worker()
    path = Path(shutil.copytree(GOLDEN, tmp_path / "here.zarr"))
    store = ActivationStore.open(path)
    store.fingerprint()
    path.rename(tmp_path / "there.zarr")
    with pytest.raises(StoreError, match=rf"worker tcp://\S+: {path}: expected a store .* every worker must see") as caught:
        run_all(first_example, [store, store], scheduler=dask_cluster.address)
    assert "\n" not in str(caught.value)
    dask_cluster.stop_workers()


@pytest.mark.slow
def test_a_worker_of_another_version_is_named(dask_cluster: Cluster) -> None:
    import stratascope

    dask_cluster.start_worker(OTHER_VERSION)
    expected = rf"worker tcp://\S+: expected stratascope {stratascope.__version__}, as here, found 0\.0\.7"
    with pytest.raises(InvalidInputError, match=expected):
        run_all(slept, [0.0], scheduler=dask_cluster.address)
    dask_cluster.stop_workers()
    dask_cluster.start_worker(NO_PACKAGE)
    with pytest.raises(InvalidInputError, match=r"worker tcp://\S+: expected stratascope .*, found no such package"):
        run_all(slept, [0.0], scheduler=dask_cluster.address)
    dask_cluster.stop_workers()


@pytest.mark.slow
def test_an_error_of_the_work_itself_is_raised_as_it_is(dask_cluster: Cluster) -> None:
    dask_cluster.start_worker()
    with pytest.raises(ValueError, match="sleep length must be non-negative"):
        run_all(slept, [-1.0], scheduler=dask_cluster.address)
    dask_cluster.stop_workers()


@pytest.mark.slow
def test_a_scheduler_without_workers_is_not_waited_for(dask_cluster: Cluster) -> None:
    import dask

    with pytest.raises(ClusterLostError, match=r"no worker joined within 1 s; start one with `dask worker tcp://"):
        run_all(slept, [0.0], scheduler=dask_cluster.address)
    with dask.config.set({"stratascope.worker-timeout": "1500ms"}), pytest.raises(ClusterLostError, match=r"joined within 1\.5 s"):
        run_all(slept, [0.0], scheduler=dask_cluster.address)


@pytest.mark.slow
def test_a_worker_that_joins_in_time_is_waited_for(dask_cluster: Cluster) -> None:
    import threading

    import dask

    with dask.config.set({"stratascope.worker-timeout": "60s"}):
        late = threading.Timer(1.0, dask_cluster.start_worker)
        late.start()
        assert run_all(slept, [0.0, 0.1], scheduler=dask_cluster.address) == [0.0, 0.1]
        late.join()
    dask_cluster.stop_workers()


@pytest.mark.slow
def test_killed_workers_end_the_work(dask_cluster: Cluster) -> None:
    dask_cluster.start_worker()
    saved: list[float] = []

    def killing(_: int, answer: float) -> None:
        saved.append(answer)
        dask_cluster.stop_workers()

    with pytest.raises(ClusterLostError, match=r"lost all, and no other joined within 1 s; start the cluster again"):
        run_all(slept, [0.0, 600.0], scheduler=dask_cluster.address, finished=killing)
    assert saved == [0.0]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGTERM])
def test_a_scheduler_that_stops_ends_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals) -> None:
    monkeypatch.setattr(cluster, "SCHEDULER_TIMEOUT", 1.0)
    monkeypatch.setattr(cluster, "_CLOSE_TIMEOUT", 1.0)
    with running(tmp_path) as found:
        found.start_worker()
        with pytest.raises(ClusterLostError, match=r"expected the scheduler to go on at tcp://\S+, lost it half-way"):
            run_all(slept, [0.0, 600.0], scheduler=found.address, finished=lambda *_: found.scheduler.send_signal(how))
