"""Locks between writers: on shard blocks, on copies, and on removing partial files.

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stratascope.errors import StoreError
from stratascope.store.io.links import own_path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_HOLDER = ".holder"
CLAIMS = "written/claims"
"""Where claims lie: inside an array's folder, where no Zarr reader looks for groups."""
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
ABANDONED_AFTER = 900.0
"""Seconds after which a claim on a file system without locks counts as abandoned: a block takes seconds to write."""


@contextmanager
def block_claim(store: Path, block: int) -> Iterator[None]:
    """Lock a shard block while writing it.

    Raises
    ------
    StoreError
        Where another writer, here or on another machine, holds it; it names that writer.
    """
    own_path(store, CLAIMS).mkdir(exist_ok=True)
    path = own_path(store, f"{CLAIMS}/{block}")
    own_path(store, f"{CLAIMS}/{block}{_HOLDER}")
    held = _take(path)
    if held is None:
        raise StoreError(
            f"{store}: expected block {block} to be free, found it being written by {_holder(path)}; "
            + _left_behind(path)
            + "give each process its own share of the blocks",
            in_python="rank i of n takes blocks i, i + n, ...",
        )
    with _signed(*held):
        yield


@contextmanager
def file_claim(path: Path, what: str) -> Iterator[Callable[[], None]]:
    """Lock a file that stands for work of one process; `what` describes the work.

    Yields
    ------
    callable
        To be called now and then in work of more than ABANDONED_AFTER seconds, so that the claim does not count as abandoned.

    Raises
    ------
    StoreError
        Where another process holds it.
    """
    held = _take(path)
    if held is None:
        raise StoreError(
            f"expected no other process {what}, found {_holder(path)} at it; {_left_behind(path)}wait until it is done, or stop it"
        )
    with _signed(*held):
        yield lambda: os.utime(held[1])


@contextmanager
def _signed(descriptor: int, path: Path) -> Iterator[None]:
    """Write the holder into a claim; remove the claim at the end."""
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(own_record()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)  # while still held: whoever waits on this file sees that it is gone
        os.close(descriptor)


def _left_behind(path: Path) -> str:
    """Advice for file systems without locks, where a claim outlives its process; else empty."""
    held = path.with_name(f"{path.name}{_HOLDER}")
    if not held.exists():
        return ""
    return (
        f"this file system knows no locks: if that process is dead, remove {held} and run again, or wait until the file is "
        f"{ABANDONED_AFTER / 60:.0f} minutes old; if it runs, "
    )


class WriterPresence:
    """Lock that protects the partial files of running writers; `alone` is true if no other writer ran at the start."""

    def __init__(self, store: Path) -> None:
        self._descriptor: int | None = None
        self.alone = False
        if fcntl is None:
            return
        own_path(store, CLAIMS).mkdir(exist_ok=True)
        descriptor = os.open(own_path(store, f"{CLAIMS}/writers"), os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.alone = True
        except OSError:
            pass
        self._descriptor = descriptor

    def share(self) -> None:
        """Allow other writers."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # no locks on this file system: then nobody sweeps either
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def close(self) -> None:
        """Release the lock; may be called more than once."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _take(path: Path) -> tuple[int, Path] | None:
    """Descriptor and path of a new claim; None if another process holds it."""
    while fcntl is not None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _NO_LINK, 0o666)
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
        if not _died_here(path) and mine.stat().st_mtime - path.stat().st_mtime < ABANDONED_AFTER:
            return None
        os.replace(path, mine)  # one process alone can move the abandoned file away
    except FileNotFoundError:
        return None
    finally:
        mine.unlink(missing_ok=True)
    with contextlib.suppress(FileExistsError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), path
    return None


def _died_here(path: Path) -> bool:
    """Whether the claiming process ran on this machine and has ended."""
    try:
        return runs_here(json.loads(path.read_text())) is False
    except (OSError, ValueError):
        return False


def own_record() -> dict[str, Any]:
    """What a claim says of its holder."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "processes": _processes(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def runs_here(record: Any) -> bool | None:
    """Whether the process of a claim's record runs on this machine; None where it ran on another, or that is unknown."""
    try:
        if not record["processes"] or record["processes"] != _processes():
            return None
        os.kill(int(record["pid"]), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return True


def holder_text(record: Any) -> str:
    """The process of a claim's record, for messages."""
    try:
        return f"process {record['pid']} on {record['host']} since {record['since']}"
    except (KeyError, TypeError):
        return "another process"


def _processes() -> str:
    """Identity of this machine's or container's process ids; empty if unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _holder(path: Path) -> str:
    try:
        held = path.with_name(f"{path.name}{_HOLDER}")
        return holder_text(json.loads((held if held.exists() else path).read_text()))
    except (OSError, ValueError):
        return "another process"
