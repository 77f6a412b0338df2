"""Files that are whole or absent, and still there after a power loss."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

PARTIAL = ".partial"
"""Ending of files that are being written; readers never see them under their final name."""


def write_file(path: Path, parts: Iterable[bytes]) -> int:
    """Write a file beside its name, flush it to the disk, then rename: after a crash it is whole or absent.

    Returns the number of bytes. Any error (a full disk, no permission) leaves what was there before.
    """
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    size = 0
    try:
        with open(partial, "xb") as file:
            for part in parts:
                file.write(part)
                size += len(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)
    return size


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
