"""Atomic, durable writing of files and folders."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

from stratascope.addresses import was_address
from stratascope.errors import InvalidInputError, StoreError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Written = TypeVar("Written")

PARTIAL = ".partial"
"""Ending of files that are being written."""
ABANDONED_AFTER = 900.0
"""Seconds without a write after which a partial file counts as abandoned on a file system without locks."""
_NEWBORN = 1.0
"""Seconds after its creation in which a partial file may not be locked yet."""
_PREFIX_BYTES = 180
"""Bytes of a file's name kept in the name of its partial file; names have at most 255 bytes."""


def write_file(path: Path, parts: Iterable[bytes]) -> int:
    """Write a file as `write_with` does, and return the number of its bytes."""
    return write_with(path, lambda file: sum(file.write(part) for part in parts))


def write_with(path: Path, write: Callable[[BinaryIO], Written]) -> Written:
    """Write a file atomically: to a partial file, flushed to disk, then renamed.

    Returns what `write` does. Any error (a full disk, no permission) leaves what was there before; a file system that loses the file in
    renaming it is an error too.
    """
    make_folder(path.parent)
    return _write_beside(path, path.with_name(f"{_prefix(path)}{uuid.uuid4().hex}{PARTIAL}"), write)


def write_output(path: Path, write: Callable[[BinaryIO], Written]) -> Written:
    """Write a results file, figure or page atomically and remove partial files of killed writers."""
    make_folder(path.parent)
    partial = path.with_name(f"{_prefix(path)}{uuid.uuid4().hex}{PARTIAL}")

    def swept(file: BinaryIO) -> Written:
        _sweep_beside(path, partial)
        return write(file)

    return _write_beside(path, partial, swept)


def _prefix(path: Path) -> str:
    return f"{os.fsencode(path.name)[:_PREFIX_BYTES].decode(errors='ignore')}."


def _write_beside(path: Path, partial: Path, write: Callable[[BinaryIO], Written]) -> Written:
    try:
        with open(partial, "xb") as file:
            if fcntl is not None:
                with contextlib.suppress(OSError):  # a file system without locks: leftovers are recognised by their age
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            written = write(file)
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
            if fcntl is not None:  # while the lock is held: nobody takes the finished file for a leftover
                os.replace(partial, path)
        if fcntl is None:  # Windows renames no open file
            os.replace(partial, path)
        _check_size(path, size)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
    return written


def _sweep_beside(path: Path, own: Path) -> None:
    """Remove partial files of `path` whose writer is gone; `own` is the one that is being written."""
    now = own.stat().st_mtime  # by the file system's clock
    for other in _partials(path):
        if other == own:
            continue
        with contextlib.suppress(OSError):  # another sweeper was faster, or a writer on Windows holds it
            if _is_abandoned(other, now):
                other.unlink()


def _partials(path: Path) -> list[Path]:
    """The partial files of a file, by their names."""
    prefix, digits = _prefix(path), len(uuid.uuid4().hex)
    names = [name for name in os.listdir(path.parent) if name.startswith(prefix) and name.endswith(PARTIAL)]
    return [path.with_name(name) for name in names if len(name) == len(prefix) + digits + len(PARTIAL)]


def _is_abandoned(partial: Path, now: float) -> bool:
    age = now - partial.stat().st_mtime
    if fcntl is None:
        return age > ABANDONED_AFTER
    descriptor = os.open(partial, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return age > _NEWBORN
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return age > ABANDONED_AFTER
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder with its parents durably.

    Raises
    ------
    InvalidInputError
        For a path that was made of an address.
    """
    refuse_address(path)
    new = []
    while not path.exists():
        new.append(path)
        path = path.parent
    for folder in reversed(new):
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


def refuse_address(path: Path) -> None:
    """InvalidInputError for a path that was made of an address such as s3://bucket/a: it would become the folder `s3:`."""
    if was_address(path):
        raise InvalidInputError(f"{path}: expected a path to write on this machine, found an address; write to a folder and upload that")


def move_folder(partial: Path, target: Path, written: Mapping[str, bytes]) -> None:
    """Rename a finished folder, then read back every file.

    Parameters
    ----------
    partial
        Folder of the store.
    target
        Its new path, where nothing is.
    written
        Path of each file in the folder -> SHA-256 of what was written.

    Raises
    ------
    StoreError
        Where files are missing or changed after the renaming, as on mounted buckets; what is at `target` is removed.
    OSError
        Where the folder cannot be renamed; nothing is left at `target`.
    """
    try:
        os.rename(partial, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):  # those mean that another process was there first
            shutil.rmtree(target, ignore_errors=True)
        raise
    flush_folder(target.parent)
    missing = [name for name in written if not (target / name).is_file()]
    changed = [name for name in written.keys() - set(missing) if digest_of(target / name) != written[name]]
    if missing or changed:
        shutil.rmtree(target, ignore_errors=True)
        raise StoreError(lost_files(target, len(written), missing, changed))


def lost_files(target: str | Path, files: int, missing: list[str], changed: list[str]) -> str:
    """Message about a file system that lost or changed files."""
    rest = f"; remove {target}, which is not whole" if isinstance(target, Path) and os.path.lexists(target) else ""
    return (
        f"{target}: expected {files} files as they were written, found {len(missing)} missing and {len(changed)} changed, such as "
        f"{[*missing, *changed][0]}; this file system loses files, as some mounted buckets do: write to a local disk and upload that{rest}"
    )


def digest_of(path: Path) -> bytes:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        found = -1
    if found != size:
        what = "no file" if found < 0 else f"{found} bytes"
        raise OSError(errno.EIO, f"the file system lost what was written, {what} after renaming", str(path))


def flush_folder(path: Path) -> None:
    """Flush the entries of a folder to disk; does nothing on Windows."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(root: Path) -> list[Path]:
    """Remove partial files of killed writers; call it only while no writer runs."""
    found = sorted(root.rglob(f"*{PARTIAL}"))
    for path in found:
        path.unlink(missing_ok=True)
    return found


def zip_entry(name: str) -> zipfile.ZipInfo:
    """Header of a zip member without date or owner, so that equal contents give equal bytes."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    entry.create_system = 3
    return entry
