"""Independent tasks: the same answers in the same order wherever they run, each told as it is done."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from stratascope.errors import InvalidInputError
from stratascope.scheduling import LOCAL, run_all, shared_processes, workers_of

WORK: list[Any] = [[3, [1, 2]], {"a": (4, 5)}, "text", range(3), 7]
"""Containers too: Dask would look into them, if it were let."""


def described(item: Any) -> tuple[str, int]:
    return repr(item), os.getpid()


@pytest.mark.parametrize("scheduler", [None, *LOCAL])
def test_answers_stand_in_the_order_of_the_work_and_each_is_told_once(scheduler: str | None) -> None:
    told: dict[int, tuple[str, int]] = {}
    answers = run_all(described, WORK, scheduler=scheduler, workers=2, finished=lambda number, answer: told.update({number: answer}))
    assert [text for text, _ in answers] == [repr(item) for item in WORK]
    assert [told[number] for number in range(len(WORK))] == answers
    assert ({process for _, process in answers} == {os.getpid()}) is (scheduler != "processes")


def test_a_cluster_gives_the_same_answers() -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        assert [text for text, _ in run_all(described, WORK, scheduler=address)] == [repr(item) for item in WORK]
        assert workers_of(address) == 0


def test_no_work_has_no_answers_and_one_at_a_time_needs_no_dask() -> None:
    assert [run_all(described, [], scheduler=name) for name in LOCAL] == [[], [], []]
    code = "import sys; from stratascope.scheduling import run_all; run_all(print, [1]); assert not {'dask', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_what_cannot_be_is_refused_before_any_work() -> None:
    with pytest.raises(InvalidInputError, match="a scheduler of synchronous, threads, processes or an address such as"):
        run_all(described, [], scheduler="thread")
    with pytest.raises(InvalidInputError, match="at least one worker, found 0"):
        run_all(described, WORK, workers=0)
    assert workers_of("threads", 3) == 3
    assert workers_of(None) == 1


def imported(name: str) -> tuple[bool, int]:
    return name in sys.modules, os.getpid()


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_shared_processes_have_their_modules_serve_several_calls_and_end(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", platform)  # darwin: spawned
    with shared_processes(2, ["wave"]):
        found = [run_all(imported, ["wave"] * 4, scheduler="processes", workers=2) for _ in range(2)]
        with pytest.raises(ZeroDivisionError):
            run_all(divided, [1, 0], scheduler="processes", workers=2)
        with pytest.raises(InvalidInputError):
            run_all(refused, [1], scheduler="processes")
        found.append(run_all(imported, ["wave"] * 4, scheduler="processes", workers=2))
    processes = {process for answers in found for _, process in answers}
    assert platform == "linux" or any(there for answers in found for there, _ in answers)  # there the server may run with other modules
    assert len(processes) <= 2
    assert os.getpid() not in processes
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    assert {process for _, process in run_all(imported, ["wave"], scheduler="processes")}.isdisjoint(processes)


def divided(item: int) -> float:
    return 1 / item


def refused(item: int) -> None:
    raise InvalidInputError(f"expected another item than {item}")
