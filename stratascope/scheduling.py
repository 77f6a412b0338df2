"""Independent tasks, one after the other or with Dask: in threads, in processes, or on a cluster that exists already."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from stratascope.errors import ClusterLostError, InvalidInputError, MissingExtraError

Work = TypeVar("Work")
Answer = TypeVar("Answer")
LOCAL = ("synchronous", "threads", "processes")
_PATIENCE = "10s"
"""To reach a scheduler."""


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
    """function of every item, in order; `finished` is called in this process with the number and answer of each as it is done.

    Parameters
    ----------
    function
        Of one item; processes and clusters need what pickle can send, and so for the items.
    work
        The items; Dask looks for nothing inside of them.
    scheduler
        None or `synchronous` (no Dask at all), `threads`, `processes`, or the address of a Dask scheduler.
    workers
        Threads or processes at once; one a core by default.
    progress
        A bar, where there is a terminal.
    label
        What the bar counts.
    finished
        May save each answer while others are computed.

    Returns
    -------
    list
        Answers in the order of `work`.

    Raises
    ------
    InvalidInputError
        The scheduler is none of these, or does not answer; or there are no workers.
    MissingExtraError
        An address is given and the package distributed is not installed.
    ClusterLostError
        The scheduler died, or one worker after the other did; answers that `finished` was told are safe.
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
            _on_cluster(function, work, name, done)
    return [answers[number] for number in range(len(work))]


def workers_of(scheduler: str | None, workers: int | None = None) -> int:
    """How many tasks run at once on this machine; 0 where the scheduler is elsewhere."""
    name = scheduler or "synchronous"
    if "://" in name:
        return 0
    return 1 if name == "synchronous" else workers or os.cpu_count() or 1


def _here(
    function: Callable[[Work], Answer], work: Sequence[Work], name: str, done: Callable[[int, Answer], None], workers: int | None
) -> None:
    import dask
    from dask.callbacks import Callback

    names = [f"{number}-of-{len(work)}" for number in range(len(work))]
    numbers = {key: number for number, key in enumerate(names)}

    def after(key: Any, result: Any, *_: Any) -> None:
        if key in numbers:
            done(numbers[key], result)

    # each item is bundled with the function, so that Dask looks for nothing inside
    tasks = [
        dask.delayed(partial(function, item), pure=False, traverse=False)(dask_key_name=key) for item, key in zip(work, names, strict=True)
    ]
    with Callback(posttask=after):
        dask.compute(*tasks, scheduler=name, num_workers=workers_of(name, workers), optimize_graph=False)


def _on_cluster(function: Callable[[Work], Answer], work: Sequence[Work], address: str, done: Callable[[int, Answer], None]) -> None:
    try:
        from distributed import CancelledError, Client, KilledWorker, as_completed
        from distributed.comm import CommClosedError
    except ImportError as error:
        raise MissingExtraError(
            "expected the package distributed for a scheduler's address, found none; run pip install 'stratascope[cluster]', "
            "or in a checkout pip install '.[cluster]'"
        ) from error
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except OSError as error:
        raise InvalidInputError(f"expected a Dask scheduler at {address}, found none: {error}; start one with `dask scheduler`") from error
    with _no_word_of("distributed"), client:
        futures = client.map(function, list(work), pure=False, retries=2)
        numbers = {future.key: number for number, future in enumerate(futures)}
        try:
            for future, answer in as_completed(futures, loop=client.loop, with_results=True):
                if isinstance(answer, CancelledError):  # the scheduler is gone
                    raise answer
                done(numbers[future.key], answer)
        except (CancelledError, CommClosedError, KilledWorker) as error:
            what = "workers that live" if isinstance(error, KilledWorker) else "the scheduler to go on"
            raise ClusterLostError(
                f"expected {what} at {address}, lost them half-way; start the cluster again and run the same command: what was saved is "
                "not done again"
            ) from error


@contextmanager
def _no_word_of(package: str) -> Iterator[None]:
    """Keep a package's loggers silent: what went wrong is said by an error."""
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.partition(".")[0] == package]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
