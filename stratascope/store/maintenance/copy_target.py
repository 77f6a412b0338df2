"""Targets of a copy: a folder or zip, written atomically and read back."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from stratascope.errors import StoreError
from stratascope.store.io.bucket import Parts
from stratascope.store.io.durable import PARTIAL, flush_folder, lost_files, make_folder, move_folder, write_file, zip_entry
from stratascope.store.io.writer_locks import file_claim

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class CopyTarget(Protocol):
    """Files by key."""

    at_once: int = 1
    """Files that may be written at once."""

    def kept(self, key: str) -> bytes | None:
        """Bytes of a file that an earlier, interrupted copy left; None where there is none."""

    def keep(self, key: str, data: bytes) -> int:
        """Take over what `kept` gave; the number of its bytes."""

    def put(self, key: str, parts: Parts) -> int:
        """Write a file of the bytes that `parts` returns; the number of its bytes."""

    def commit(self) -> None:
        """Give the copy its name and read it back.

        Raises
        ------
        StoreError
            Where files are missing or changed; nothing then stays under the name.
        """

    def discard(self, *, resumable: bool) -> None:
        """Remove what was written; what a later copy can go on from stays where `resumable`."""


class FolderTarget(CopyTarget):
    """A folder beside the target, renamed at the end.

    Parameters
    ----------
    path
        The target.
    what
        Digest of what is copied: a later copy of the same goes on where this one stopped.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self.partial = path.with_name(f"{path.name}.{what[:16]}{PARTIAL}")
        """Where files are until the copy is whole."""
        self._written: dict[str, bytes] = {}
        self._claims = self.partial / "written" / "claims"
        make_folder(self._claims)
        self._held = contextlib.ExitStack()
        self._renew: Callable[[], None] = self._held.enter_context(file_claim(self._claims / "copy", f"that copies to {path}"))

    def kept(self, key: str) -> bytes | None:
        try:
            return (self.partial / key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def keep(self, key: str, data: bytes) -> int:
        self._written[key] = hashlib.sha256(data).digest()
        return len(data)

    def put(self, key: str, parts: Parts) -> int:
        self._renew()
        total = hashlib.sha256()
        size = write_file(self.partial / key, _hashed(parts(), total))
        self._written[key] = total.digest()
        return size

    def commit(self) -> None:
        self._held.close()
        shutil.rmtree(self._claims, ignore_errors=True)
        for path in [p for p in self.partial.rglob("*") if p.is_file()]:  # of an earlier copy of less
            if path.relative_to(self.partial).as_posix() not in self._written:
                path.unlink()
        try:
            move_folder(self.partial, self._path, self._written)
        except StoreError:  # what is left of it cannot be gone on from
            self.discard(resumable=False)
            raise

    def discard(self, *, resumable: bool) -> None:
        self._held.close()
        if not resumable:
            shutil.rmtree(self.partial, ignore_errors=True)


class ZipTarget(CopyTarget):
    """A stored zip, whose entries can be read in parts, written beside the target and renamed at the end.

    Parameters
    ----------
    path
        The target.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written: dict[str, bytes] = {}
        make_folder(path.parent)
        _sweep_zips(path)
        self._partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        self._file = open(self._partial, "xb")  # noqa: SIM115 - closed by commit and discard
        _lock(self._file.fileno())
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)

    def kept(self, key: str) -> bytes | None:
        return None

    def keep(self, key: str, data: bytes) -> int:
        return self.put(key, lambda: [data])

    def put(self, key: str, parts: Parts) -> int:
        size, total = 0, hashlib.sha256()
        with self._zip.open(zip_entry(key), "w", force_zip64=True) as entry:
            for part in _hashed(parts(), total):
                entry.write(part)
                size += len(part)
        self._written[key] = total.digest()
        return size

    def commit(self) -> None:
        """Give the zip its name and read it back; StoreError where entries are missing or changed."""
        self._zip.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.rename(self._partial, self._path)
        flush_folder(self._path.parent)
        missing, changed = self._read_back()
        if missing or changed:
            self._path.unlink(missing_ok=True)
            raise StoreError(lost_files(self._path, len(self._written), missing, changed))

    def _read_back(self) -> tuple[list[str], list[str]]:
        """Entries that are missing, and those with other bytes than were written."""
        try:
            with zipfile.ZipFile(self._path) as archive:
                held = set(archive.namelist())
                changed = []
                for key in self._written.keys() & held:
                    with archive.open(key) as entry:
                        if hashlib.file_digest(entry, "sha256").digest() != self._written[key]:  # type: ignore[arg-type]
                            changed.append(key)
                return [key for key in self._written if key not in held], changed
        except (OSError, zipfile.BadZipFile):
            return list(self._written), []

    def discard(self, *, resumable: bool) -> None:
        try:
            # it writes its table of contents, and both flush: the disk may be full
            with contextlib.suppress(OSError, ValueError):
                self._zip.close()
            with contextlib.suppress(OSError, ValueError):
                self._file.close()
        finally:
            self._partial.unlink(missing_ok=True)


def _hashed(parts: Iterable[bytes], total: hashlib._Hash) -> Iterable[bytes]:
    for part in parts:
        total.update(part)
        yield part


def _sweep_zips(path: Path) -> None:
    """Remove what killed copies to a zip left half-written: nobody holds a lock on it any more."""
    name = re.compile(re.escape(path.name) + r"\.[0-9a-f]{32}" + re.escape(PARTIAL))
    for left in [p for p in path.parent.iterdir() if name.fullmatch(p.name) and p.is_file() and not p.is_symlink()]:
        with contextlib.suppress(OSError), open(left, "rb") as file:
            if _lock(file.fileno()):
                left.unlink()


def _lock(descriptor: int) -> bool:
    """Whether a lock was there for the taking; False where the file system knows none."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
