"""Who writes what: a block is claimed while it is written, and a store is swept only while nobody writes.

Claims are locks of the operating system on small files in `written/claims`: a process that dies loses them at once, whatever killed it,
so nothing stale is ever left in the way. Where a file system knows no locks, a claim is the existence of its file.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stratascope.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HOLDER = ".holder"
ABANDONED_AFTER = 900.0
"""Seconds after which a claim on a file system without locks counts as abandoned: a block takes seconds to write."""


def claims_folder(store: Path) -> Path:
    """Where claims lie: inside an array's folder, where no Zarr reader looks for groups."""
    return store / "written" / "claims"


@contextmanager
def block_claim(store: Path, block: int) -> Iterator[None]:
    """Hold a block while writing it.

    Raises
    ------
    StoreError
        Where another writer, here or on another machine, holds it; it names that writer.
    """
    folder = claims_folder(store)
    folder.mkdir(exist_ok=True)
    path = folder / str(block)
    held = _take(path)
    if held is None:
        raise StoreError(
            f"{store}: expected block {block} to be free, found it being written by {_holder(path)}; "
            "give each process a part of its own (--shard 0/2 and --shard 1/2)",
            in_python="rank i of n takes blocks i, i + n, ...",
        )
    descriptor, path = held
    try:
        os.ftruncate(descriptor, 0)
        me = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        os.write(descriptor, json.dumps(me).encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # while still held: whoever waits on this file sees that it is gone
        os.close(descriptor)


class WriterPresence:
    """Says that a writer is at work, so that nobody sweeps its files; `alone` says whether it was the only one at the start."""

    def __init__(self, store: Path) -> None:
        self._descriptor: int | None = None
        self.alone = False
        if fcntl is None:
            return
        folder = claims_folder(store)
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder / "writers", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.alone = True
        except OSError:
            pass
        self._descriptor = descriptor

    def share(self) -> None:
        """Let other writers in."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # no locks on this file system: then nobody sweeps either
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def close(self) -> None:
        """Stop being present; may be called more than once."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _take(path: Path) -> tuple[int, Path] | None:
    """A descriptor that holds the claim, with its file, or None where another holds it."""
    while fcntl is not None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # a file system without locks
            path.unlink(missing_ok=True)
            os.close(descriptor)
            break
        # the holder before may have removed the file between our opening and our locking it
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor, path
        os.close(descriptor)
    return _take_by_existence(path.with_name(f"{path.name}{_HOLDER}"))


def _take_by_existence(path: Path) -> tuple[int, Path] | None:
    with contextlib.suppress(FileExistsError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), path
    mine = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    mine.touch()  # by the file system's own clock, not this machine's
    try:
        if mine.stat().st_mtime - path.stat().st_mtime < ABANDONED_AFTER:
            return None
        os.replace(path, mine)  # one process alone can move the abandoned file away
    except FileNotFoundError:
        return None
    finally:
        mine.unlink(missing_ok=True)
    with contextlib.suppress(FileExistsError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), path
    return None


def _holder(path: Path) -> str:
    try:
        held = path.with_name(f"{path.name}{_HOLDER}")
        who = json.loads((held if held.exists() else path).read_text())
        return f"process {who['pid']} on {who['host']} since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
