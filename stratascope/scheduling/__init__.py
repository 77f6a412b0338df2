"""Run independent tasks in sequence, in threads, in processes or on a Dask cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

from stratascope.errors import ClusterLostError, InvalidInputError

Work = TypeVar("Work")
Answer = TypeVar("Answer")
LOCAL = ("synchronous", "threads", "processes")


def run_all(
    function: Callable[[Work], Answer],
    work: Sequence[Work],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: bool = False,
    label: str = "tasks",
    finished: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """Apply a function to every item and return the answers in order.

    Parameters
    ----------
    function
        Function of one item; processes and clusters require picklable functions and items.
    work
        The items. Dask does not look inside them.
    scheduler
        None or `synchronous` (no Dask at all), `threads`, `processes`, or the address of a Dask scheduler.
    workers
        Concurrent threads or processes; by default one per core.
    progress
        Whether to show a progress bar on a terminal.
    label
        Label of the progress bar.
    finished
        Called in this process with number and answer of each item as it completes, for example to save it.

    Returns
    -------
    list
        Answers in the order of `work`.

    Raises
    ------
    InvalidInputError
        The scheduler is unknown or does not answer; `workers` is below 1; a cluster's worker has another version of this package.
    StoreError
        A cluster's worker cannot open the store of a task.
    MissingExtraError
        The scheduler is an address and the package distributed is not installed.
    ClusterLostError
        No worker joined, or the workers or the scheduler died; answers passed to `finished` are safe.

    Examples
    --------
    >>> run_all(abs, [-1, 2, -3])
    [1, 2, 3]
    """
    from tqdm.auto import tqdm

    name = scheduler or "synchronous"
    if workers is not None and workers < 1:
        raise InvalidInputError(f"expected at least one worker, found {workers}; leave it out for one a core")
    if name not in LOCAL and "://" not in name:
        raise InvalidInputError(f"expected a scheduler of {', '.join(LOCAL)} or an address such as tcp://host:8786, found {name!r}")
    answers: dict[int, Answer] = {}
    with tqdm(total=len(work), disable=None if progress else True, desc=label) as bar:

        def done(number: int, answer: Answer) -> None:
            answers[number] = answer
            if finished is not None:
                finished(number, answer)
            bar.update()

        if not work:
            return []
        if name == "synchronous":
            for number, item in enumerate(work):
                done(number, function(item))
        elif name in LOCAL:
            _here(function, work, name, done, workers)
        else:
            from stratascope.scheduling.cluster import run_on_cluster

            run_on_cluster(function, work, name, done)
    return [answers[number] for number in range(len(work))]


def workers_of(scheduler: str | None, workers: int | None = None) -> int:
    """Number of concurrent tasks on this machine; 0 for a remote scheduler."""
    name = scheduler or "synchronous"
    if "://" in name:
        return 0
    return 1 if name == "synchronous" else workers or os.cpu_count() or 1


def _here(
    function: Callable[[Work], Answer], work: Sequence[Work], name: str, done: Callable[[int, Answer], None], workers: int | None
) -> None:
    from concurrent.futures.process import BrokenProcessPool

    import dask
    from dask.callbacks import Callback

    from stratascope.scheduling.processes import process_pool

    names = [f"{number}-of-{len(work)}" for number in range(len(work))]
    numbers = {key: number for number, key in enumerate(names)}

    def after(key: Any, result: Any, *_: Any) -> None:
        if key in numbers:
            done(numbers[key], result)

    # each item is bundled with the function, so that Dask looks for nothing inside
    tasks = [
        dask.delayed(partial(function, item), pure=False, traverse=False)(dask_key_name=key) for item, key in zip(work, names, strict=True)
    ]
    count = min(workers_of(name, workers), len(work))
    with Callback(posttask=after), process_pool(count) if name == "processes" else nullcontext() as pool:
        try:
            # one task at a time: Dask would give the first process six of them
            dask.compute(*tasks, scheduler=name, num_workers=count, optimize_graph=False, chunksize=1, **({"pool": pool} if pool else {}))
        except BrokenProcessPool as error:
            raise ClusterLostError(
                "expected worker processes that live, found that one of them ended half-way (killed, or out of memory); give fewer at once "
                "and run again: saved results are kept",
                in_python="workers=2",
            ) from error
