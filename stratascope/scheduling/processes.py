"""Worker processes that end with their parent, however it ends."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1
_ORPHANED = 1
"""Exit code of a worker whose parent is gone."""


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes that end with the context, with an error, or with this process.

    Each worker holds the reading end of a pipe whose writing end is here alone: the system closes it when this process ends, whatever
    ended it. On Linux the system also kills them itself, even while a worker's interpreter is locked by a long computation.
    """
    context = multiprocessing.get_context("spawn")  # a forked worker would hold the writing end, too
    watched, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent, initargs=(watched, os.getpid()))
    try:
        yield pool
    except BaseException:
        held.close()  # workers end at once, in the middle of their tasks
        pool.shutdown(cancel_futures=True)
        raise
    else:
        pool.shutdown()
    finally:
        held.close()
        watched.close()


def end_with_parent(watched: Connection, parent: int) -> None:
    """Make this worker process end when its parent does.

    Parameters
    ----------
    watched
        Reading end of a pipe that only the parent holds open.
    parent
        Its process id.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal: the parent handles it
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
