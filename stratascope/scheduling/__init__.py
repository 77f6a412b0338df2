"""Run independent tasks in sequence, in threads, in processes or on a Dask cluster."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from stratascope.errors import ClusterLostError, InvalidInputError

Work = TypeVar("Work")
Answer = TypeVar("Answer")
LOCAL = ("synchronous", "threads", "processes")
_PR_SET_PDEATHSIG = 1
_ORPHANED = 1
"""Exit code of a worker whose parent is gone."""
_shared: ContextVar[ProcessPoolExecutor | None] = ContextVar("stratascope_processes", default=None)


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
    processes: AbstractContextManager[ProcessPoolExecutor | None] = nullcontext()
    if name == "processes":
        processes = process_pool(count) if (shared := _shared.get()) is None else nullcontext(shared)
    with Callback(posttask=after), processes as pool:
        try:
            # one task at a time: Dask would give the first process six of them
            dask.compute(*tasks, scheduler=name, num_workers=count, optimize_graph=False, chunksize=1, **({"pool": pool} if pool else {}))
        except BrokenProcessPool as error:
            raise ClusterLostError(
                "expected worker processes that live, found that one of them ended half-way (killed, or out of memory); give fewer at once "
                "and run again: saved results are kept",
                in_python="workers=2",
            ) from error


@contextmanager
def shared_processes(workers: int, modules: Sequence[str] = ()) -> Iterator[ProcessPoolExecutor]:
    """A pool that calls of `run_all` with `processes` use while it is open, instead of starting processes each time.

    Parameters
    ----------
    workers
        Processes at once; they start with the first task.
    modules
        Names of modules that take seconds to import, and whose import starts nothing. The import begins at once, in the background; on
        Linux once for all processes, which are forked from the one that imported them (multiprocessing's server, which this process
        starts once: later names are imported by each worker).
    """
    forked = bool(modules) and sys.platform == "linux"
    if forked:
        from multiprocessing import forkserver, resource_tracker  # not on Windows

        resource_tracker.ensure_running()  # it unblocks signals
        multiprocessing.set_forkserver_preload(list(modules))
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C would interrupt the import
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with process_pool(workers, forked=forked) as pool:
        for _ in range(0 if forked else workers):  # starting a forked one waits until the server has imported them
            for module in modules:
                pool.submit(_import, module)
        token = _shared.set(pool)
        try:
            yield pool
        finally:
            _shared.reset(token)


def _import(module: str) -> None:
    import_module(module)


@contextmanager
def process_pool(workers: int, *, forked: bool = False) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that end with the context, with an error, or with this process.

    Each worker holds the reading end of a pipe whose writing end is here alone: the system closes it when this process ends, whatever
    ended it. On Linux the system also kills spawned workers itself, even while a worker's interpreter is locked by a long computation.

    Parameters
    ----------
    workers
        Processes at once.
    forked
        Fork workers from multiprocessing's server instead of spawning them.
    """
    # one that is forked from this process would hold the writing end, too
    context = multiprocessing.get_context("forkserver" if forked else "spawn")
    watched, held = context.Pipe(duplex=False)
    parent = None if forked else os.getpid()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent, initargs=(watched, parent))
    try:
        yield pool
    except BaseException:
        held.close()  # workers end at once, in the middle of their tasks
        if forked:
            _end_server()
        pool.shutdown(cancel_futures=True)
        raise
    else:
        pool.shutdown()
    finally:
        held.close()
        watched.close()


def _end_server() -> None:
    """Kill multiprocessing's server: workers that it has not started yet would fail with a traceback. It is started anew when needed."""
    from multiprocessing import forkserver

    pid = getattr(getattr(forkserver, "_forkserver", None), "_forkserver_pid", None)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def end_with_parent(watched: Connection, parent: int | None) -> None:
    """Make this worker process end when its parent does.

    Parameters
    ----------
    watched
        Reading end of a pipe that only the parent holds open.
    parent
        Its process id; None if it did not start this process itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the parent handles it
    if parent is not None:
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the line above
            os._exit(_ORPHANED)
    threading.Thread(target=_exit_at_end, args=(watched,), daemon=True).start()


def _exit_at_end(watched: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        watched.recv_bytes()
    os._exit(_ORPHANED)
