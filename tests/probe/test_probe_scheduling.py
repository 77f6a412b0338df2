"""Where and how much at once: memory known beforehand, the same numbers from any scheduler, workers that die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import planted_store

from stratascope.errors import ClusterLostError, InvalidInputError
from stratascope.probe import layer_curve, plan_study
from stratascope.probe.solver.blas_threads import one_blas_thread
from stratascope.probe.solver.standardised_rows import Rows
from stratascope.probe.study.cost import ridge_bytes, task_bytes
from stratascope.probe.validation.cross_validation import classify, regress
from stratascope.probe.validation.fold_design import design_for
from stratascope.probe.validation.folds import grouped_folds
from stratascope.scheduling import run_all

sys.path.append(str(Path(__file__).parents[1] / "store"))
from serving import serving


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns", "classes"), [(2500, 640, 2), (1200, 384, 24), (500, 900, 2)])
def test_memory_of_a_task_is_known_beforehand(rows, columns, classes):
    """Never less than what is allocated, and not twice as much."""
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((rows, columns), dtype=np.float32), np.arange(rows) % classes
    folds = grouped_folds(np.arange(rows), labels, folds=5)
    tracemalloc.start()
    try:
        table = Rows(x.copy(), folds.of)
        classify(table, labels[None], folds, classes=classes, basis=table.eigenbasis(), strengths=(1e-2, 1.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    outputs = 1 if classes == 2 else classes
    expected = task_bytes(rows, columns, 16 * outputs, outputs)
    assert 0.5 * expected < peak + x.nbytes < 1.05 * expected


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(2500, 640), (900, 800), (500, 900)])
def test_memory_of_a_ridge_task_is_known_beforehand(rows, columns):
    """Never less than what is allocated, and not twice as much."""
    rng = np.random.default_rng(0)
    x, values = rng.standard_normal((rows, columns), dtype=np.float32), rng.standard_normal((2, rows, 6))
    folds = grouped_folds(np.arange(rows), np.arange(rows) % 2, folds=5)
    tracemalloc.start()
    try:
        regress(Rows(x.copy(), folds.of), values, folds, strengths=(1e-2, 1.0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    expected = ridge_bytes(rows, columns, 2 * 16 * 6, design_for(folds, 2).training)
    print("RIDGE", peak + x.nbytes, expected, (peak + x.nbytes) / expected)
    assert 0.5 * expected < peak + x.nbytes < 1.05 * expected


def test_a_study_says_what_it_takes(tmp_path):
    """VSR's size, truth and control: well under 3 GB."""
    assert 0.3e9 < task_bytes(10_972, 3_584, 32) < 1e9
    store = planted_store(tmp_path / "a.zarr", heads=True)
    study = plan_study(store, ("truth", "relation:shuffled"))
    cost = study.cost(scheduler="threads", workers=3)
    assert (cost.tasks, cost.at_once) == (12, 3)
    assert cost.bytes_at_once == 3 * cost.bytes_each
    assert str(cost).startswith("12 layer tasks of up to ")
    assert "3 at once" in str(cost)
    assert "each thread of a worker" in str(study.cost(scheduler="tcp://somewhere:8786"))
    assert study.cost(scheduler="synchronous").at_once == 1
    assert (
        plan_study(store, array="head_outputs", by_head=True).cost().bytes_each < plan_study(store, array="head_outputs").cost().bytes_each
    )
    with pytest.raises(InvalidInputError, match="at least one worker"):
        study.run(scheduler="threads", workers=0)


def test_products_stay_on_one_thread_until_the_last_is_done():
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with one_blas_thread():
            entered.set()
            leave.wait(10)

    with threadpool_limits(2, user_api="blas"):
        pass  # nobody controls the number of threads from here on
    before = threads()
    beside = threading.Thread(target=other)
    beside.start()
    entered.wait(10)
    leave_late = one_blas_thread()
    with leave_late:
        leave.set()
        beside.join()
        assert threads() == {1}, "the one that came first has left, the other still computes"
    assert threads() == before
    with threadpool_limits(2, user_api="blas"):
        assert threads() == {2}, "and everyone may set it again"


STUDY = """
import hashlib, sys
from stratascope.probe import layer_curve
curve = layer_curve(sys.argv[1], layers=(1, 3, 4), draws=100, scheduler=sys.argv[2])
print(hashlib.sha256(curve.logits.tobytes() + curve.directions.tobytes()).hexdigest())
"""


@pytest.mark.slow
def test_fresh_processes_and_threads_give_the_same_bits(tmp_path):
    """Whatever number of BLAS threads a machine would use by itself."""
    path = planted_store(tmp_path / "a.zarr", hidden=160)
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    runs = [(scheduler, environment) for scheduler in ("threads", "threads", "synchronous")]
    runs.append(("threads", environment | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}))
    found = [
        subprocess.run([sys.executable, "-c", STUDY, str(path), scheduler], env=env, capture_output=True, text=True, check=True).stdout
        for scheduler, env in runs
    ]
    assert len(found[0]) == 65
    assert len(set(found)) == 1


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A scheduler's address, and its process and those of two workers without a nanny that would start them again."""
    pytest.importorskip("distributed")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    note = folder / "scheduler.json"
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", str(note)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(note), "--nthreads", "1", "--no-nanny"]
    worker += ["--no-dashboard", "--local-directory", str(folder)]
    running = [subprocess.Popen(dask, **quiet)]
    try:
        running += [subprocess.Popen(worker, **quiet) for _ in range(2)]
        from distributed import Client

        with Client(scheduler_file=str(note), timeout="30s", set_as_default=False) as client:
            client.wait_for_workers(2, timeout=30)
            address = client.scheduler.address
        yield address, running
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait(timeout=20)


@pytest.mark.slow
def test_a_dask_cluster_that_reads_over_http_gives_the_same_numbers_even_when_a_worker_dies(tmp_path):
    path = planted_store(tmp_path / "a.zarr")
    here = layer_curve(path, layers=(1, 2, 3, 4), draws=200)
    with serving(tmp_path) as server, cluster(tmp_path) as (scheduler, (_, worker, _)):
        there = layer_curve(f"{server.address}/a.zarr", layers=(1, 2, 3, 4), draws=200, scheduler=scheduler, output=tmp_path / "out")
        pd.testing.assert_frame_equal(here.table, there.table)
        np.testing.assert_array_equal(here.logits, there.logits)
        assert len(list((tmp_path / "out").iterdir())) == 4

        killed = threading.Thread(target=_kill_when_a_file_is_there, args=(worker, tmp_path / "half"))
        killed.start()
        half = layer_curve(f"{server.address}/a.zarr", draws=200, scheduler=scheduler, output=tmp_path / "half")
        killed.join()
        assert worker.poll() == -signal.SIGKILL
        np.testing.assert_array_equal(half.logits[1:5], here.logits)


@pytest.mark.slow
def test_what_a_scheduler_that_died_had_done_is_not_done_again(tmp_path, monkeypatch):
    path = planted_store(tmp_path / "a.zarr")
    here = layer_curve(path, draws=200)
    with cluster(tmp_path) as (address, (scheduler, *_)), monkeypatch.context() as patched:

        def killing_after_one(function, work, *, finished, **options):
            def saved(number, answer):
                finished(number, answer)
                scheduler.kill()
                scheduler.wait()

            def slowly(item):
                time.sleep(0.5)  # the kill comes before all is done
                return function(item)

            return run_all(slowly, work, finished=saved, **options)

        patched.setattr("stratascope.probe.study.layer_cache.run_all", killing_after_one)
        with pytest.raises(ClusterLostError, match=r"expected the scheduler to go on at tcp://.* run the same command"):
            layer_curve(path, draws=200, scheduler=address, output=tmp_path / "half")
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "half").iterdir()}
    assert 0 < len(done) < len(here.rows())
    again = layer_curve(path, draws=200, output=tmp_path / "half")
    assert {file: file.stat().st_mtime_ns for file in done} == done
    np.testing.assert_array_equal(again.logits, here.logits)
    pd.testing.assert_frame_equal(again.table, here.table)


def _kill_when_a_file_is_there(process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(3000):
        if folder.exists() and any(folder.iterdir()):
            break
        time.sleep(0.005)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("stratascope.scheduling.cluster.CONNECT_TIMEOUT", 1.0)
    path = planted_store(tmp_path / "a.zarr", examples=100)
    with pytest.raises(InvalidInputError, match=r"tcp://127\.0\.0\.1:9.*dask scheduler"):
        layer_curve(path, layers=(1,), draws=200, scheduler="tcp://127.0.0.1:9")
