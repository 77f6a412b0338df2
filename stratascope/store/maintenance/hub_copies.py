"""Copies to and from repositories of the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stratascope.errors import StoreError
from stratascope.store.io.bucket import Parts
from stratascope.store.io.durable import PARTIAL, digest_of, lost_files, make_folder, move_folder
from stratascope.store.io.hub import FORM
from stratascope.store.io.hub_repository import HubFile, HubRepository
from stratascope.store.io.store_files import BEGUN, MARKERS, ROOT
from stratascope.store.io.writer_locks import CLAIMS
from stratascope.store.maintenance.copy_target import CopyTarget
from stratascope.store.maintenance.verify import verify

COMMIT_FILES = 1000
COMMIT_SECONDS = 300.0
"""A commit is made at the end of a block, once this many files are uploaded, or this long after the last one."""
Documents = Callable[[Callable[[str], bytes | None]], Mapping[str, bytes]]
"""Given how to read a file of the repository (None where there is none): path in the repository -> bytes of files beside the store."""


class HubTarget(CopyTarget):
    """Files in a repository of the Hub, which are a store once the root metadata are committed, at the end.

    A block's files and its marker are in one commit. Files that the repository has with the same hash are not sent again.

    Parameters
    ----------
    url
        Address of the store, such as hf://datasets/USER/NAME/run.zarr.
    documents
        Returns the files beside the store, which the last commit adds.
    public
        Whether a repository that does not exist yet is created for everybody to read.

    Raises
    ------
    StoreError
        For an address of another form or without a path, and without a token.
    MissingExtraError
        Without huggingface_hub.
    UnreachableError
        The Hub refuses or does not answer.
    """

    def __init__(self, url: str, documents: Documents, *, public: bool = False) -> None:
        self._repository = HubRepository(url, "write")
        self.partial = self._repository.address.url
        """Where files are until the copy is whole."""
        self._path = self._repository.address.path
        if not self._path:
            raise StoreError(f"{url}: expected the path of the store in the repository, such as {FORM}, found none")
        self._documents, self._public = documents, public
        self._staging = Path()
        self._held: dict[str, HubFile | None] = {}
        self._staged: dict[str, Path] = {}
        self._uploaded: list[Any] = []
        self._sizes: dict[str, int] = {}
        self._root = b""
        self._committed_at = time.monotonic()
        self.sent = 0
        """Bytes that the repository did not have."""

    def begin(self, what: str) -> None:
        """Create the repository unless it exists, and say there what is being copied.

        Parameters
        ----------
        what
            Digest of what is copied: a later copy of the same goes on where this one stopped.

        Raises
        ------
        StoreError
            Where an unfinished copy of something else lies, or files that are no copy.
        UnreachableError
            The Hub refuses or does not answer, or another program changes the repository meanwhile.
        """
        self._staging = Path(tempfile.mkdtemp(prefix="stratascope-"))
        repository, begun = self._repository, f"{self._path}/{BEGUN}"
        repository.create(private=not self._public)
        head = repository.head()
        self._held = repository.files(self._path, head)
        if f"{self._path}/{ROOT}" in self._held:
            return
        if begun in self._held:
            if repository.read(begun, head) != what.encode():
                raise StoreError(
                    f"{self.partial}: expected a new path, found an unfinished copy of another store; choose another, or remove it there"
                )
            return
        if self._held:
            raise StoreError(
                f"{self.partial}: expected a new path, found {len(self._held):,} other files there, such as {min(self._held)}; choose "
                "another path"
            )
        additions = repository.upload({begun: what.encode()})
        repository.commit(additions, f"Begin {self._path}", parent=head)
        self._held[begun] = None

    def kept(self, key: str) -> bytes | None:
        return None

    def keep(self, key: str, data: bytes) -> int:
        return self.put(key, lambda: [data])

    def put(self, key: str, parts: Parts) -> int:
        """As of `CopyTarget`; StoreError where another store's root metadata lie there."""
        staged = self._staging / key
        staged.parent.mkdir(parents=True, exist_ok=True)
        with open(staged, "wb") as file:
            size = sum(file.write(part) for part in parts())
        self._sizes[key] = size
        path = f"{self._path}/{key}"
        there = self._held.get(path)
        if key == ROOT:
            if there is not None and not there.holds(staged):
                raise StoreError(
                    f"{self.partial}: expected a new path, or the same store, found another store there; choose another path, or remove it"
                )
            self._root = staged.read_bytes()
            staged.unlink()
        elif there is not None and there.holds(staged):
            staged.unlink()
        else:
            self._staged[path] = staged
            self.sent += size
        if key.startswith(f"{MARKERS}/"):
            self._upload()
            if len(self._uploaded) >= COMMIT_FILES or time.monotonic() - self._committed_at > COMMIT_SECONDS:
                self._commit_uploaded()
        return size

    def commit(self) -> None:
        """Commit what is left and the root metadata, and compare what the Hub lists with what was written; StoreError if they differ."""
        self._upload()
        self._commit_uploaded()
        repository, head = self._repository, self._repository.head()
        listed = repository.files("", head, recursive=False)
        beside = self._documents(lambda path: repository.read(path, head) if path in listed else None)
        remove = [begun] if (begun := f"{self._path}/{BEGUN}") in self._held else []
        additions = repository.upload({**beside, f"{self._path}/{ROOT}": self._root})
        head = repository.commit(additions, f"Add {self._path}", remove=remove)
        found = repository.files(self._path, head)
        missing = [key for key in self._sizes if f"{self._path}/{key}" not in found]
        sizes = {key: file.size for key in self._sizes if (file := found.get(f"{self._path}/{key}")) is not None}
        changed = [key for key, size in sizes.items() if size != self._sizes[key]]
        if missing or changed:
            raise StoreError(lost_files(self.partial, len(self._sizes), missing, changed))
        self.discard(resumable=False)

    def discard(self, *, resumable: bool) -> None:
        """Remove the copies on this machine; what is in the repository stays."""
        if self._staging.name:
            shutil.rmtree(self._staging, ignore_errors=True)

    def _upload(self) -> None:
        if self._staged:
            self._uploaded += self._repository.upload(self._staged)
        for path in self._staged.values():
            path.unlink()
        self._staged.clear()

    def _commit_uploaded(self) -> None:
        if self._uploaded:
            self._repository.commit(self._uploaded, f"Add files of {self._path}")
            self._uploaded = []
        self._committed_at = time.monotonic()


def pull_store(url: str, target: str | Path | None = None) -> Path:
    """Download a store from a repository of the Hub, and verify it.

    After an interruption or a network failure, the same call goes on. The target appears when the store is whole.

    Parameters
    ----------
    url
        Address such as hf://datasets/USER/NAME@REVISION/run.zarr; without a path, the repository's only folder that ends in .zarr.
    target
        New folder; by default of the store's name, in the working folder.

    Returns
    -------
    pathlib.Path
        The store.

    Raises
    ------
    StoreError
        The target exists or cannot be written; there is no store or no single one at the address, or it is damaged.
    UnreachableError
        The Hub refuses or does not answer.
    MissingExtraError
        Without huggingface_hub.
    """
    repository = HubRepository(url, "read")
    commit = repository.head()
    if not repository.address.path:
        folders = [name for name, file in repository.files("", commit, recursive=False).items() if file is None and name.endswith(".zarr")]
        if len(folders) != 1:
            found = f"{len(folders)}: {', '.join(sorted(folders)[:5])}" if folders else "none"
            raise StoreError(f"{url}: expected one store at the top of the repository, found {found}; give its path, such as {FORM}")
        repository = HubRepository(f"{repository.address.url}/{folders[0]}", "read")
    folder = repository.address.path
    target = Path(folder.rpartition("/")[2] if target is None else target)
    if os.path.lexists(target):
        raise StoreError(f"{target}: expected a new path, found an existing one; choose another or remove it")
    held = {path: file for path, file in repository.files(folder, commit).items() if file is not None and f"/{CLAIMS}/" not in path}
    if f"{folder}/{ROOT}" not in held:
        found = "an unfinished copy" if held else "nothing"
        raise StoreError(f"{repository.address.url}: expected a store, found {found} there; check the address")
    partial = target.with_name(f"{target.name}.{commit[:16]}{PARTIAL}")
    try:
        make_folder(partial)
        repository.download(partial, commit)
        lost = [path for path, file in held.items() if not (partial / path).is_file() or not file.holds(partial / path)]
        if lost:
            shutil.rmtree(partial, ignore_errors=True)
            raise StoreError(lost_files(partial, len(held), [], lost))
        checked = verify(partial / folder)
        if not checked.ok:
            raise StoreError(f"{repository.address.url}: expected a whole store, found it damaged on the Hub: {checked.summary()}")
        kept = {path.removeprefix(f"{folder}/"): digest_of(partial / path) for path in held}
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(partial / folder / CLAIMS)
        move_folder(partial / folder, target, kept)
    except OSError as error:
        raise StoreError(f"{target}: expected to write the store, found: {error}; make room or choose another path") from error
    shutil.rmtree(partial, ignore_errors=True)
    return target
