"""One BLAS thread, so that results do not depend on concurrent work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Pin:
    """Limit of one BLAS thread while at least one context is open.

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
    """Context in which every thread of this process computes matrix products on one BLAS thread."""
    import scipy.linalg  # noqa: F401 (it brings a BLAS of its own, which must be loaded before it can be limited)

    _PIN.acquire()
    try:
        yield
    finally:
        _PIN.release()
