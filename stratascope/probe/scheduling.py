"""Running independent tasks with Dask: here, in threads, in processes, or on a cluster that exists already."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from stratascope.errors import InvalidInputError, MissingExtraError

Work = TypeVar("Work")
Answer = TypeVar("Answer")
LOCAL = ("synchronous", "threads", "processes")
_PATIENCE = "10s"
"""To reach a scheduler."""


class _Pin:
    """Holds the limit of one BLAS thread for as long as anyone asks for it.

    The limit belongs to the whole process, and only the thread that sets it may take it back (threadpoolctl 3.8 ignores others).
    So a thread of its own sets it for the first of several that need it and takes it back after the last, or one task that ends
    would lift it under the others.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.holders = 0
        self.released = threading.Event()
        self.thread: threading.Thread | None = None

    def acquire(self) -> None:
        with self.lock:
            self.holders += 1
            if self.holders > 1:
                return
            limited = threading.Event()
            self.released = threading.Event()
            self.thread = threading.Thread(target=self._limit, args=(limited, self.released), name="one-blas-thread", daemon=True)
            self.thread.start()
            limited.wait()

    def release(self) -> None:
        with self.lock:
            self.holders -= 1
            if not self.holders and self.thread is not None:
                self.released.set()
                self.thread.join()
                self.thread = None

    @staticmethod
    def _limit(limited: threading.Event, released: threading.Event) -> None:
        from threadpoolctl import threadpool_limits

        try:
            with threadpool_limits(1, user_api="blas"):
                limited.set()
                released.wait()
        finally:
            limited.set()


_PIN = _Pin()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Matrix products on one thread, so that the same work gives the same last digits whatever runs beside it."""
    import scipy.linalg  # noqa: F401 (it brings a BLAS of its own, which must be loaded before it can be limited)

    _PIN.acquire()
    try:
        yield
    finally:
        _PIN.release()


def run_all(
    function: Callable[[Work], Answer],
    work: Sequence[Work],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: bool = False,
    finished: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """function of every item, in order; `finished` is called in this process with the number and answer of each as it is done.

    Parameters
    ----------
    scheduler : None or `synchronous`, `threads`, `processes`, or the address of a Dask scheduler
    workers : threads or processes at once; one a core by default
    progress : a bar, where there is a terminal

    Raises
    ------
    InvalidInputError
        The scheduler is none of these, or does not answer.
    MissingExtraError
        An address is given and the package distributed is not installed.
    """
    from tqdm.auto import tqdm

    name = scheduler or "synchronous"
    if workers is not None and workers < 1:
        raise InvalidInputError(f"expected at least one worker, found {workers}; leave it out for one a core")
    answers: dict[int, Answer] = {}
    with tqdm(total=len(work), disable=None if progress else True, desc="layers") as bar:

        def done(number: int, answer: Answer) -> None:
            answers[number] = answer
            if finished is not None:
                finished(number, answer)
            bar.update()

        if not work:
            return []
        if "://" in name:
            _on_cluster(function, work, name, done)
        elif name in LOCAL:
            _here(function, work, name, done, workers)
        else:
            raise InvalidInputError(f"expected a scheduler of {', '.join(LOCAL)} or an address such as tcp://host:8786, found {name!r}")
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

    names = [f"layer-{number}" for number in range(len(work))]
    numbers = {key: number for number, key in enumerate(names)}

    def after(key: Any, result: Any, *_: Any) -> None:
        if key in numbers:
            done(numbers[key], result)

    # the work itself is passed as an opaque object, so that Dask looks for nothing inside
    delayed = dask.delayed(function, pure=False, traverse=False)
    tasks = [delayed(item, dask_key_name=key) for item, key in zip(work, names, strict=True)]
    with one_blas_thread(), Callback(posttask=after):
        dask.compute(*tasks, scheduler=name, num_workers=workers_of(name, workers), optimize_graph=False)


def _on_cluster(function: Callable[[Work], Answer], work: Sequence[Work], address: str, done: Callable[[int, Answer], None]) -> None:
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise MissingExtraError(
            "expected the package distributed for a scheduler's address; install it with pip install distributed"
        ) from error
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except OSError as error:
        raise InvalidInputError(f"expected a Dask scheduler at {address}, found none: {error}; start one with `dask scheduler`") from error
    with client:
        futures = client.map(function, list(work), pure=False, retries=2)
        numbers = {future.key: number for number, future in enumerate(futures)}
        for future, answer in as_completed(futures, loop=client.loop, with_results=True):
            done(numbers[future.key], answer)
