"""Run tasks on a Dask cluster; only workers unpickle them, and every wait has a time-out."""

from __future__ import annotations

import builtins
import importlib
import logging
import queue
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeVar

from stratascope.errors import ClusterLostError, InvalidInputError, MissingExtraError, StoreError

Work = TypeVar("Work")
Answer = TypeVar("Answer")

CONNECT_TIMEOUT = 10.0
"""Seconds to reach a scheduler."""
SCHEDULER_TIMEOUT = 30.0
"""Seconds within which a scheduler that was reached answers."""
WORKER_TIMEOUT = 60.0
"""Seconds without any worker; Dask's configuration stratascope.worker-timeout (DASK_STRATASCOPE__WORKER_TIMEOUT) changes it."""
_CHECK_EVERY = 2.0
_CLOSE_TIMEOUT = 5.0
_RETRIES = 2
_AGAIN = "start the cluster again and run the same command: what was saved is not done again"


def run_on_cluster(function: Callable[[Work], Answer], work: Sequence[Work], address: str, done: Callable[[int, Answer], None]) -> None:
    """Apply a function to every item on the workers of a scheduler.

    The function and its item travel as bytes that only a worker unpickles: the scheduler opens no store, and needs neither its
    credentials nor this package.

    Parameters
    ----------
    function, work
        As of `run_all`.
    address
        Of the scheduler.
    done
        Called in this process with the number and answer of each item as it is done.

    Raises
    ------
    InvalidInputError
        No scheduler answers, or a worker has another version of this package.
    MissingExtraError
        The package distributed is not installed.
    StoreError
        A worker cannot open what a task needs.
    ClusterLostError
        No worker joined in time, all were lost, or the scheduler was.
    """
    try:
        import cloudpickle
        from distributed import Client, KilledWorker
    except ImportError as error:
        raise MissingExtraError(
            "expected the package distributed for a scheduler's address, found none; run pip install 'stratascope[cluster]', "
            "or in a checkout pip install '.[cluster]'"
        ) from error
    sealed = [cloudpickle.dumps((function, item)) for item in work]
    with _silent("distributed"):
        try:
            client = Client(address, timeout=CONNECT_TIMEOUT, set_as_default=False)
        except OSError as error:
            raise InvalidInputError(
                f"expected a Dask scheduler at {address}, found none: {error}; start one with `dask scheduler`"
            ) from error
        try:
            watch = _Watch(client, address)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sending large graph")
                futures = client.map(_by_value(_unsealed), sealed, version=_version(), pure=False, retries=_RETRIES)
            del sealed
            for number, future in _as_completed(futures, watch):
                try:
                    kind, value = _result(future, watch)
                except KilledWorker as error:
                    raise ClusterLostError(f"expected workers that live at {address}, lost them half-way; {_AGAIN}") from error
                if kind == "version":
                    raise InvalidInputError(value)
                if kind == "unreadable":
                    raise StoreError(value)
                watch.had_workers = True
                done(number, value)
        finally:
            client.close(timeout=_CLOSE_TIMEOUT)


def _unsealed(sealed: bytes, version: str) -> tuple[str, Any]:
    """Run one task in a worker: ("answer", value), or what kept it from beginning.

    It travels by value and uses nothing of this module, so that a worker with another version of the package can say so.
    """
    import importlib
    import pickle

    from distributed import get_worker

    here = get_worker().address
    try:
        found = importlib.import_module("stratascope").__version__
    except ImportError:
        return "version", f"worker {here}: expected stratascope {version}, as here, found no such package; install it there"
    if found != version:
        return "version", f"worker {here}: expected stratascope {version}, as here, found {found}; install the same version there"
    try:
        function, item = pickle.loads(sealed)
    except Exception as error:
        said = getattr(error, "message", None) or f"{type(error).__name__} {error}"
        return "unreadable", f"worker {here}: {said}; every worker must see the same files under the same paths or addresses"
    return "answer", function(item)


def _version() -> str:
    """Of this package, whose root imports all units for type checkers: it is not named as an import here."""
    found: str = importlib.import_module("stratascope").__version__
    return found


def _by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of the function that pickle sends by value."""
    assert isinstance(function, FunctionType)
    sent = FunctionType(function.__code__, {"__builtins__": builtins, "__name__": "__main__"}, "stratascope_task")
    sent.__module__, sent.__qualname__ = "__main__", "stratascope_task"
    return sent


class _Watch:
    """Health check of a cluster: the scheduler answers and there are workers."""

    def __init__(self, client: Any, address: str) -> None:
        from dask import config
        from dask.utils import parse_timedelta

        self._client, self._address = client, address
        self._patience = float(parse_timedelta(config.get("stratascope.worker-timeout", WORKER_TIMEOUT)))
        self._seen, self.had_workers = time.monotonic(), False

    def check(self) -> None:
        """ClusterLostError where the scheduler does not answer, or there was no worker for too long."""
        begin = time.monotonic()
        try:
            known = self._client.sync(self._client.scheduler.identity, callback_timeout=SCHEDULER_TIMEOUT)
        except Exception as error:  # closed, unreachable, or silent: each fails in its own way
            raise self.lost_scheduler(f"no answer for {time.monotonic() - begin:.0f} s") from error
        if known["workers"]:
            self._seen, self.had_workers = time.monotonic(), True
        elif time.monotonic() - self._seen > self._patience:
            waited = f"{self._patience:g} s"
            if self.had_workers:
                raise ClusterLostError(
                    f"expected workers that live at {self._address}, lost all, and no other joined within {waited}; {_AGAIN}"
                )
            raise ClusterLostError(
                f"expected a worker at {self._address}, found none: no worker joined within {waited}; start one with "
                f"`dask worker {self._address}`, or wait longer (DASK_STRATASCOPE__WORKER_TIMEOUT=10m)"
            )

    def lost_scheduler(self, found: str) -> ClusterLostError:
        """The error that says so."""
        return ClusterLostError(f"expected the scheduler to go on at {self._address}, lost it half-way ({found}); {_AGAIN}")


def _as_completed(futures: Sequence[Any], watch: _Watch) -> Iterator[tuple[int, Any]]:
    """Number and future of each task as it ends."""
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    waiting = {future.key: (number, future) for number, future in enumerate(futures)}
    for future in futures:
        future.add_done_callback(ended.put)
    checked = time.monotonic()
    while waiting:
        try:
            key = ended.get(timeout=_CHECK_EVERY).key
        except queue.Empty:
            key = None
        if key in waiting:
            yield waiting.pop(key)  # no longer held here: the cluster may forget its result
        if time.monotonic() - checked > _CHECK_EVERY:
            watch.check()
            checked = time.monotonic()


def _result(future: Any, watch: _Watch) -> tuple[str, Any]:
    """What a task returned, or its error raised; the result lies on a worker, which may be gone."""
    from concurrent.futures import CancelledError as Cancelled

    from distributed import CancelledError
    from distributed.comm import CommClosedError

    while True:
        try:
            answer: tuple[str, Any] = future.result(timeout=_CHECK_EVERY)
            return answer
        except TimeoutError:
            if future.done() and future.status == "error":  # the task's own
                raise
            watch.check()
        except (CancelledError, Cancelled, CommClosedError) as error:
            raise watch.lost_scheduler("its tasks were cancelled") from error


@contextmanager
def _silent(package: str) -> Iterator[None]:
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
