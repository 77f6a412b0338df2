"""Files that are whole or absent, and still there after a power loss."""

from __future__ import annotations

import os
import uuid
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO, TypeVar

Written = TypeVar("Written")

PARTIAL = ".partial"
"""Ending of files that are being written; readers never see them under their final name."""


def write_file(path: Path, parts: Iterable[bytes]) -> int:
    """Write a file as `write_with` does, and return the number of its bytes."""
    return write_with(path, lambda file: sum(file.write(part) for part in parts))


def write_with(path: Path, write: Callable[[BinaryIO], Written]) -> Written:
    """Write a file beside its name, flush it to the disk, then rename: after a crash it is whole or absent.

    Returns what `write` does. Any error (a full disk, no permission) leaves what was there before.
    """
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        with open(partial, "xb") as file:
            written = write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
    return written


def make_folder(path: Path) -> None:
    """Create a folder with its parents, each new name flushed to the disk."""
    new = []
    while not path.exists():
        new.append(path)
        path = path.parent
    for folder in reversed(new):
        folder.mkdir(exist_ok=True)
        flush_folder(folder.parent)


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


def zip_entry(name: str) -> zipfile.ZipInfo:
    """The header of a file in a zip, without date or owner."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    entry.create_system = 3
    return entry
