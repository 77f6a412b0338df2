"""Bounded, ordered background work in threads: prefetching, and queues of results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from threading import Semaphore
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def prefetch(pool: Executor, make: Callable[[Item], Made], items: Iterable[Item], depth: int) -> Generator[Made, None, None]:
    """Yield make(item) for each item in order, with up to `depth` later items in progress; an error is raised in its turn."""
    coming: deque[Future[Made]] = deque()
    try:
        for item in items:
            coming.append(pool.submit(make, item))
            if len(coming) > depth:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        for future in coming:
            future.cancel()


class BackgroundQueue:
    """Run tasks in background threads; `submit` blocks while the queue is full.

    The first error of a task is raised once in the caller's thread: by the next `submit`, by `drain` or at the end; later tasks are not
    started. At the end of a `with` block all submitted tasks are done, even if the block ends by an error, which is then raised again.

    Parameters
    ----------
    name
        Name of the threads.
    threads
        Tasks that run at once; a single thread runs them in order.
    waiting
        Tasks that may wait for a thread; the next `submit` blocks.
    """

    def __init__(self, name: str, *, threads: int = 1, waiting: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._room = Semaphore(threads + waiting)
        self._tasks: list[Future[Any]] = []
        self._error: BaseException | None = None
        self._raised = False

    def submit(self, work: Callable[..., Made], *arguments: Any) -> Future[Made | None]:
        """Add a task; the future holds its result, or None if an earlier task failed."""
        self._room.acquire()
        try:
            self._raise()
        except BaseException:
            self._room.release()
            raise
        task = self._pool.submit(self._do, work, arguments)
        self._tasks = [*(each for each in self._tasks if not each.done()), task]
        return task

    def drain(self) -> None:
        """Wait until all submitted tasks are done."""
        wait(self._tasks)
        self._raise()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self._raise()
        elif self._error is not None and not self._raised and self._error is not error:
            error.add_note(f"also: {self._error}")

    def _do(self, work: Callable[..., Made], arguments: tuple[Any, ...]) -> Made | None:
        try:
            return None if self._error else work(*arguments)
        except BaseException as error:
            self._error = self._error or error
            return None
        finally:
            self._room.release()

    def _raise(self) -> None:
        if self._error is not None and not self._raised:
            self._raised = True
            raise self._error
