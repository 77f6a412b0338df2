"""Image files of a data set: their paths within one folder, and their bytes, bounded."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stratascope.errors import InvalidInputError

MOST_BYTES = 256 << 20
"""Size of the largest image file that is read."""
MOST_IMAGES = 16
"""Most images of an example."""
NUMBERED = tuple(f"image_{number}" for number in range(1, MOST_IMAGES + 1))
"""Columns of the images of an example that has several."""
_PLAIN_NAME = re.compile(r"(?:\w[\w .-]*/)*\w[\w .-]*")
"""Names of images that cannot lead out of the folder: no part is `..`, a drive or empty."""


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


def has_images(fields: Mapping[str, Any]) -> bool:
    """Whether a row names an image."""
    return "image" in fields or NUMBERED[0] in fields


def image_names(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The images that a row names: by `image`, a text or a list of texts, or by `image_1`, `image_2`, and so on.

    Raises
    ------
    InvalidInputError
        If there are none, a number is left out, or a name leads out of the folder of images.

    Examples
    --------
    >>> image_names({"image": "a.jpg"}), image_names({"image": ["a.jpg", "b.jpg"]}), image_names({"image_1": "a.jpg", "image_2": "b.jpg"})
    (('a.jpg',), ('a.jpg', 'b.jpg'), ('a.jpg', 'b.jpg'))
    """
    found = fields.get("image")
    if found is None:
        there = [name for name in NUMBERED if name in fields]
        if there != list(NUMBERED[: len(there)]):
            raise InvalidInputError(f"expected images in the fields image_1, image_2, ... without a gap, found {', '.join(there)}")
        found = [fields[name] for name in there]
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise InvalidInputError(f"expected text in field 'image', found {json.dumps(found)[:160]}; several images are a list of texts")
    if len(names) > MOST_IMAGES:
        raise InvalidInputError(f"expected at most {MOST_IMAGES} images, found {len(names)}")
    for name in names:
        if not _PLAIN_NAME.fullmatch(name):
            image_path(Path(), name)
    return tuple(names)


def numbered_fields(fields: Mapping[str, Any]) -> set[str]:
    """Fields that hold images by number; others of such a name are columns like any other."""
    return set() if "image" in fields else {name for name in NUMBERED if name in fields}


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
