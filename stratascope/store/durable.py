"""Files that are whole or absent, and still there after a power loss."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO, TypeVar

from stratascope.addresses import was_address
from stratascope.errors import InvalidInputError, StoreError

Written = TypeVar("Written")

PARTIAL = ".partial"
"""Ending of files that are being written; readers never see them under their final name."""


def write_file(path: Path, parts: Iterable[bytes]) -> int:
    """Write a file as `write_with` does, and return the number of its bytes."""
    return write_with(path, lambda file: sum(file.write(part) for part in parts))


def write_with(path: Path, write: Callable[[BinaryIO], Written]) -> Written:
    """Write a file beside its name, flush it to the disk, then rename: after a crash it is whole or absent.

    Returns what `write` does. Any error (a full disk, no permission) leaves what was there before; a file system that loses the file in
    renaming it is an error too.
    """
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with open(partial, "xb") as file:
            written = write(file)
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        os.replace(partial, path)
        _check_size(path, size)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
    return written


def make_folder(path: Path) -> None:
    """Create a folder with its parents, each new name flushed to the disk.

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
    """Give a finished folder its name, then read every file of it back.

    Parameters
    ----------
    partial
        The folder.
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


def lost_files(target: Path, files: int, missing: list[str], changed: list[str]) -> str:
    """What to say of a file system that does not hold what was written."""
    rest = f"; remove {target}, which is not whole" if os.path.lexists(target) else ""
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
    """Flush a folder's names to the disk, where the system can (Windows cannot, and does not need it)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(root: Path) -> list[Path]:
    """Remove what killed writers left half-written. Only when no writer runs: it would lose its files."""
    found = sorted(root.rglob(f"*{PARTIAL}"))
    for path in found:
        path.unlink(missing_ok=True)
    return found
