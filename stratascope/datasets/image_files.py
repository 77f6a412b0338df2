"""Image files of a data set: their paths within one folder, and their bytes, bounded."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stratascope.errors import InvalidInputError

MOST_BYTES = 256 << 20
"""Size of the largest image file that is read."""


def image_path(folder: Path, name: str) -> Path:
    """Path of an image within the folder of images.

    Parameters
    ----------
    folder
        The folder of images.
    name
        File name relative to it, as an example or a store gives it.

    Raises
    ------
    InvalidInputError
        If the name leads out of the folder: an absolute path, or one with `..`.

    Examples
    --------
    >>> image_path(Path("photos"), "train/1.jpg").as_posix()
    'photos/train/1.jpg'
    """
    if not name or "\0" in name or ".." in Path(name).parts or Path(name).anchor:
        raise InvalidInputError(f"expected an image's name within the folder of images, found {name!r}")
    return folder / name


def read_image_file(path: Path) -> bytes:
    """Bytes of an image file.

    Named pipes and devices are never opened: reading one can block for ever or fill the memory.

    Raises
    ------
    InvalidInputError
        If it is a folder, named pipe, socket or device, or larger than `MOST_BYTES`.
    OSError
        If it is missing or cannot be read.
    """
    _require_regular(path, os.stat(path))
    with open(path, "rb", opener=_opened_without_waiting) as file:
        _require_regular(path, os.fstat(file.fileno()))
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise _too_large(path)
    return data


def _opened_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _require_regular(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise InvalidInputError(f"{path} is not a regular file but {kind}")
    if found.st_size > MOST_BYTES:
        raise _too_large(path)


def _too_large(path: Path) -> InvalidInputError:
    return InvalidInputError(f"{path} is larger than {MOST_BYTES >> 20} MiB, the largest image file that is read")
