"""Files that may be served: those of one folder, or the members of one zip, and no others; the requested range of bytes."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stratascope.errors import StoreError
from stratascope.store.io.access import folder_in_zip

PIECE = 1 << 20
"""Bytes that are read at once while a file is sent."""
_KEY = re.compile(r"[^/\\\0]+(?:/[^/\\\0]+)*")
_LOCAL_HEADER = 30
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)
_RANGE_DIGITS = 19


@dataclass(frozen=True)
class Stretch:
    """Bytes of a file on disk: a whole file, or a member of a zip."""

    path: Path
    start: int
    size: int

    def read(self, first: int, last: int) -> Iterator[bytes]:
        """The bytes from `first` to `last` inclusive, piece by piece; fewer where the file has shrunk since."""
        with self.path.open("rb") as file:
            file.seek(self.start + first)
            left = last - first + 1
            while left > 0 and (piece := file.read(min(left, PIECE))):
                left -= len(piece)
                yield piece


class ServedFiles(Protocol):
    """What can be asked for by key."""

    def find(self, key: str) -> Stretch | None:
        """Where a key's bytes lie; None where there is no such file, or where it must not be served."""
        ...


def well_formed(key: str) -> bool:
    """Whether a key names a file by plain steps down: no way up, no backslash, no NUL."""
    return bool(_KEY.fullmatch(key)) and not {".", ".."} & set(key.split("/"))


class FolderFiles:
    """Files in a folder and the folders in it. What a link leads out of it to is not there."""

    def __init__(self, folder: Path) -> None:
        self._root = Path(os.path.realpath(folder))

    def find(self, key: str) -> Stretch | None:
        """See `ServedFiles.find`."""
        if not well_formed(key) or key.startswith("written/claims/") or key.endswith(".partial"):
            return None
        try:
            path = Path(os.path.realpath(self._root / key, strict=True))
            found = path.stat()
        except (OSError, ValueError):
            return None
        if not path.is_relative_to(self._root) or not stat.S_ISREG(found.st_mode):
            return None
        return Stretch(path, 0, found.st_size)


class ZipFiles:
    """Members of a zip that holds them without compression, as files.

    Raises
    ------
    StoreError
        For a file that is no zip, or one whose members are compressed or encrypted: no part of them could be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                members = [m for m in archive.infolist() if not m.is_dir()]
        except (OSError, zipfile.BadZipFile) as error:
            raise StoreError(f"{path}: expected a store (folder or zip), found: {error}; check the path, or fetch it again") from error
        odd = next((m for m in members if m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1), None)
        if odd is not None:
            raise StoreError(
                f"{path}: expected a zip without compression, found {odd.filename} compressed or encrypted; "
                "make it with `stratascope copy STORE NEW.zip`, or unpack it"
            )
        folder = folder_in_zip((m.filename for m in members), str(path))
        self._members = {m.filename.removeprefix(folder): m for m in members if m.filename.startswith(folder)}

    def find(self, key: str) -> Stretch | None:
        """See `ServedFiles.find`."""
        member = self._members.get(key) if well_formed(key) else None
        if member is None:
            return None
        with self._path.open("rb") as file:
            file.seek(member.header_offset)
            header = file.read(_LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            return None
        after = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        return Stretch(self._path, member.header_offset + _LOCAL_HEADER + after, member.file_size)


def files_of(store: Path) -> FolderFiles | ZipFiles:
    """The files of a store that is a folder or a zip; StoreError where it is neither."""
    if store.is_dir():
        if not (store / "zarr.json").is_file():
            raise StoreError(f"{store}: expected a store, found a folder without zarr.json; give the folder that holds it")
        return FolderFiles(store)
    if not store.exists():
        raise StoreError(f"{store}: expected a store (folder, zip or URL), found nothing; check the path")
    return ZipFiles(store)


class UnsatisfiableRangeError(ValueError):
    """A range that names no byte of the file: the answer is 416."""


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last byte that the header Range asks for (RFC 9110, section 14), both inclusive.

    None where all is asked for, or where the header is not one range of bytes, which a server may leave out of account.

    Raises
    ------
    UnsatisfiableRangeError
        Where the range begins beyond the file, or asks for its last 0 bytes.
    """
    found = _RANGE.fullmatch(header.strip()) if header else None
    if found is None or max(map(len, found.groups())) > _RANGE_DIGITS:
        return None
    first, last = found.groups()
    if not first:
        if not last:
            return None
        if not int(last) or not size:
            raise UnsatisfiableRangeError
        return max(0, size - int(last)), size - 1
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise UnsatisfiableRangeError
    return int(first), min(int(last), size - 1) if last else size - 1
