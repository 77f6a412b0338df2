"""Work that is done ahead of the one that needs it, and behind the one that made it: in threads, in order, bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from threading import Semaphore
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def ahead(pool: Executor, make: Callable[[Item], Made], items: Iterable[Item], depth: int) -> Generator[Made, None, None]:
    """make(item) of each item in turn, with up to `depth` of those that follow in the making; an error comes where its turn is."""
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


class Behind:
    """Does pieces of work in its own threads while the caller goes on; who is too far ahead waits.

    The first error of a piece is raised in the caller's thread, once: by the next `submit`, by `drain` or at the end; pieces after it are
    not begun. At the end of a `with` block everything that was submitted is done, even where the block ends by an error: what was
    handed over whole is finished, and the error goes on.

    Parameters
    ----------
    name
        Of the threads.
    threads
        Pieces that are worked on at once; with one, pieces are done in order.
    waiting
        Pieces that may wait for a thread; the next `submit` blocks until there is room.
    """

    def __init__(self, name: str, *, threads: int = 1, waiting: int = 1) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._room = Semaphore(threads + waiting)
        self._pieces: list[Future[Any]] = []
        self._error: BaseException | None = None
        self._raised = False

    def submit(self, work: Callable[..., Made], *arguments: Any) -> Future[Made | None]:
        """Hand over a piece; the future holds what it gives, or None where an earlier piece failed."""
        self._room.acquire()
        try:
            self._raise()
        except BaseException:
            self._room.release()
            raise
        piece = self._pool.submit(self._do, work, arguments)
        self._pieces = [*(each for each in self._pieces if not each.done()), piece]
        return piece

    def drain(self) -> None:
        """Wait until everything that was handed over is done."""
        wait(self._pieces)
        self._raise()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True)
        if error is None:
            self._raise()
        elif self._error is not None and not self._raised and self._error is not error:
            error.add_note(f"beside it: {self._error}")

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
