"""Offline cache of the Hub: bytes read from a commit, which never change, kept on disk."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import time
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from stratascope.addresses import without_secrets
from stratascope.errors import InvalidInputError
from stratascope.store.io.remote_errors import UnreachableError

BOUND_VARIABLE = "STRATASCOPE_HUB_CACHE_GB"
DEFAULT_BOUND = 20.0
"""Gigabytes of all repositories together."""
_WHOLE, _ABSENT, _ROOT, _REFERENCES = "whole", "absent", "zarr.json", "refs"
_DIGEST = 32
_DISK_BLOCK = 4096
_PARTIAL = ".new-"
_ABANDONED_AFTER = 3600.0
"""Seconds after which a partial file counts as that of a killed process."""


def hub_home() -> Path:
    """Folder of the Hub's own files on this machine, as huggingface_hub finds it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.path.expandvars(os.environ.get("HF_HOME") or cache / "huggingface")).expanduser()


def cache_folder() -> Path:
    """Folder of the cache, with a folder per repository: `cached_assets_path("stratascope", "hub", REPOSITORY)` of huggingface_hub."""
    named = os.environ.get("HF_ASSETS_CACHE") or os.environ.get("HUGGINGFACE_ASSETS_CACHE")
    assets = Path(os.path.expandvars(named)).expanduser() if named else hub_home() / "assets"
    return assets / "stratascope" / "hub"


def cache_bound() -> float:
    """Bytes that the cache may hold; 0 where it is switched off.

    Raises
    ------
    InvalidInputError
        Where STRATASCOPE_HUB_CACHE_GB is no number.
    """
    text = os.environ.get(BOUND_VARIABLE, "").strip() or str(DEFAULT_BOUND)
    try:
        bound = float(text)
    except ValueError:
        bound = -1.0
    if not 0 <= bound < float("inf"):
        raise InvalidInputError(f"{BOUND_VARIABLE}: expected gigabytes such as {DEFAULT_BOUND:g}, or 0 for no cache, found {text!r}")
    return bound * 1e9


class RepositoryCache:
    """What was read of one repository.

    Entries are the answers to requests: `whole` files, byte ranges `START-STOP`, endings `last-N`, and `absent`. Each begins with its
    SHA-256. Several processes may read and write at once.

    Parameters
    ----------
    repository
        Address of the repository on the Hub, such as https://huggingface.co/datasets/USER/NAME.
    """

    def __init__(self, repository: str) -> None:
        self.name = without_secrets(repository)
        """The repository for messages."""
        self._folder = cache_folder() / re.sub(r"[^\w.-]+", "--", self.name.partition("://")[2])
        self._bound = cache_bound()
        self._unscanned = self._bound  # nothing is known of what is there
        self._writable = self._bound > 0

    def commit_of(self, revision: str) -> str | None:
        """The commit that a branch, tag or commit was when it was last resolved."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            found = self._reference(revision).read_text()
            return found if re.fullmatch("[0-9a-f]{7,64}", found) else None
        return revision if re.fullmatch("[0-9a-f]{40}", revision) and (self._folder / revision).is_dir() else None

    def resolved(self, revision: str, commit: str) -> None:
        """Note which commit a revision is now."""
        if self._writable and self.commit_of(revision) != commit:
            self._write(self._reference(revision), commit.encode())

    def get(self, commit: str, path: str, part: ByteRequest | None) -> bytes | None:
        """Bytes of a file or of a part of it; None where they were not read before, or are damaged on this disk."""
        folder = self._place(commit, path)
        whole = self._content(folder / _WHOLE)
        if whole is not None:
            return whole[_slice(part)]
        if isinstance(part, RangeByteRequest):
            return self._joined(folder, part.start, part.end)
        return None if part is None else self._content(folder / _name(part, 0))

    def is_absent(self, commit: str, path: str) -> bool:
        """Whether the commit was seen to have no such file."""
        return self._content(self._place(commit, path) / _ABSENT) is not None

    def keep(self, commit: str, path: str, part: ByteRequest | None, data: bytes | None) -> None:
        """Keep an answer; None says that there is no such file. A disk that is full or cannot be written is no error."""
        if not self._writable or len(data or b"") > self._bound / 2:
            return
        target = self._place(commit, path) / (_ABSENT if data is None else _name(part, len(data)))
        data = data or b""
        self._unscanned += len(data) + _DISK_BLOCK
        if self._unscanned > self._bound / 20:
            self._unscanned = 0
            self._make_room(len(data))
        self._write(target, _digest(target, data) + data)

    def forget(self, commit: str, path: str | None = None) -> None:
        """Remove what was read of a file, or of a whole commit, so that it is fetched again."""
        shutil.rmtree(self._folder / commit if path is None else self._place(commit, path), ignore_errors=True)

    def _reference(self, revision: str) -> Path:
        return self._folder / _REFERENCES / urllib.parse.quote(revision, safe="")

    def _place(self, commit: str, path: str) -> Path:
        name = hashlib.sha256(path.encode()).hexdigest()[:40]
        return self._folder / commit / name[:2] / name

    def _content(self, file: Path) -> bytes | None:
        try:
            held = file.read_bytes()
            data = held[_DIGEST:]
            if held[:_DIGEST] == _digest(file, data):
                os.utime(file)  # the time of its last use
                return data
            file.unlink()
        except OSError:
            pass
        return None

    def _joined(self, folder: Path, start: int, stop: int) -> bytes | None:
        """Bytes [start, stop) of the ranges that were read."""
        try:
            held = [(int(a), int(b)) for a, dash, b in (name.partition("-") for name in os.listdir(folder)) if a.isdigit() and b.isdigit()]
        except OSError:
            return None
        pieces = []
        while start < stop:
            there = max((one for one in held if one[0] <= start < one[1]), key=lambda one: one[1], default=None)
            if there is None:
                return None
            data = self._content(folder / f"{there[0]}-{there[1]}")
            if data is None:
                held.remove(there)
                continue
            pieces.append(data[start - there[0] : stop - there[0]])
            start = there[1]
        return b"".join(pieces)

    def _write(self, target: Path, data: bytes) -> None:
        partial = target.with_name(f"{_PARTIAL}{uuid.uuid4().hex}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, target)
        except FileNotFoundError:  # another process removed the folder to make room
            pass
        except OSError:
            self._writable = False
            with contextlib.suppress(OSError):
                partial.unlink()

    def _make_room(self, needed: int) -> None:
        """Remove what was used longest ago of all repositories, until the rest is below the bound."""
        files = []
        for entry in _files(cache_folder()):
            with contextlib.suppress(OSError):
                facts = entry.stat()
                files.append((facts.st_mtime, -(-facts.st_size // _DISK_BLOCK) * _DISK_BLOCK, entry))
        excess = sum(size for _, size, _ in files) + needed - self._bound * 0.95
        for used, size, entry in sorted(files, key=lambda one: one[0]):
            if excess > 0 or (entry.name.startswith(_PARTIAL) and time.time() - used > _ABANDONED_AFTER):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    excess -= size
                    os.rmdir(os.path.dirname(entry.path))


class CachedStore(WrapperStore[Store]):
    """A folder of a commit on the Hub whose answers are kept, and given again without asking.

    Parameters
    ----------
    store
        The folder on the server.
    cache
        What was read of the repository.
    commit
        The commit.
    path
        Folder in the repository.
    offline
        Why the server is not asked, such as "found HF_HUB_OFFLINE set"; empty where it is.
    """

    def __init__(self, store: Store, cache: RepositoryCache, commit: str, path: str, offline: str = "") -> None:
        super().__init__(store)
        self._cache, self._commit, self._path, self._offline = cache, commit, path, offline

    def _with_store(self, store: Store) -> CachedStore:
        return CachedStore(store, self._cache, self._commit, self._path, self._offline)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of a key, None where there are none.

        Raises
        ------
        UnreachableError
            Where the server is not asked, and the answer was not kept.
        """
        path = f"{self._path}/{key}"
        kept = await asyncio.to_thread(self._cache.get, self._commit, path, byte_range)
        if kept is not None:
            return prototype.buffer.from_bytes(kept)
        if await asyncio.to_thread(self._cache.is_absent, self._commit, path):
            return None
        if self._offline:
            raise UnreachableError(
                f"expected to read {path} of {self._cache.name}, {self._offline} and no earlier answer in the cache; do this once with "
                "the Hub at hand, or give a copy on a disk"
            )
        value = await self._store.get(key, prototype, byte_range)
        if value is not None:
            await asyncio.to_thread(self._cache.keep, self._commit, path, byte_range, value.to_bytes())
        elif key != _ROOT and await self._store.get(_ROOT, prototype, RangeByteRequest(0, 1)) is not None:
            # the repository is there and may be read: the file is absent, not hidden
            await asyncio.to_thread(self._cache.keep, self._commit, path, None, None)
        return value

    def forget(self, key: str | None = None) -> None:
        """Fetch a key again when it is read next, or everything."""
        self._cache.forget(self._commit, None if key is None else f"{self._path}/{key}")


def _name(part: ByteRequest | None, size: int) -> str:
    """File name of an answer of `size` bytes."""
    if isinstance(part, RangeByteRequest):
        return f"{part.start}-{part.start + size}"
    if isinstance(part, SuffixByteRequest):
        return f"last-{part.suffix}"
    return f"from-{part.offset}" if isinstance(part, OffsetByteRequest) else _WHOLE


def _slice(part: ByteRequest | None) -> slice:
    if isinstance(part, RangeByteRequest):
        return slice(part.start, part.end)
    if isinstance(part, SuffixByteRequest):
        return slice(-part.suffix, None)
    return slice(part.offset if isinstance(part, OffsetByteRequest) else 0, None)


def _digest(file: Path, data: bytes) -> bytes:
    """SHA-256 of an entry with its place, so that no other file's bytes are taken for it."""
    found = hashlib.sha256(f"{file.parent.name}/{file.name}:".encode())
    found.update(data)
    return found.digest()


def _files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """All entries of the cache below a folder."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    yield entry
                elif entry.name != _REFERENCES:
                    yield from _files(Path(entry.path))
    except OSError:
        return
