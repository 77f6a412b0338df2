"""SHA-256 digests of the files in a local model folder that can change a number. No torch.

Digests of large files are cached in `$XDG_CACHE_HOME/stratascope/digests` (`~/.cache` by default) by path, size, modification time, change
time and inode.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from stratascope.datasets.progress import progress_bar
from stratascope.errors import InvalidInputError

SETTINGS_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "additional_chat_templates/*.jinja")
"""Configuration, processor, tokenizer and chat templates, by pattern."""
WEIGHT_FILES = ("*.safetensors", "*.bin")
"""Weights and adapters, by pattern."""
INDEX_FILES = ("*.index.json",)
"""Indices of sharded weights, by pattern."""

KEPT_FROM = 16 * 2**20
"""Least file size in bytes for which the digest is cached."""
SETTLED = 2.0
"""Least seconds since the last change for which the digest is cached: time stamps are coarse on some file systems."""


def settings_files(folder: Path) -> list[Path]:
    """Files other than weights that can change a number, sorted."""
    indices = set(_found(folder, INDEX_FILES))
    return sorted(path for path in _found(folder, SETTINGS_FILES) if path not in indices)


def weight_files(folder: Path) -> list[Path]:
    """Weight files and their indices, sorted."""
    indices = list(_found(folder, INDEX_FILES))
    shards = {folder / name for index in indices for name in shard_names(index)}
    return sorted({*_found(folder, WEIGHT_FILES), *indices, *(path for path in shards if path.is_file())})


def shard_names(index: Path) -> list[str]:
    """Names of the files in an index of sharded weights, sorted.

    Raises
    ------
    InvalidInputError
        If the index cannot be read.
    """
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({os.fspath(name) for name in names})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"{index}: expected an index of weights, JSON with a weight_map, found {type(error).__name__}: {error}; fetch the file again"
        ) from error


def file_digests(paths: list[Path], folder: Path, *, progress: bool = False) -> dict[str, str]:
    """SHA-256 digests in hex by path relative to `folder`.

    Parameters
    ----------
    paths
        Files to hash, in parallel.
    folder
        Folder of the model.
    progress
        Show a progress bar.

    Raises
    ------
    InvalidInputError
        If a file cannot be read, or changes while it is read.
    """
    names = [Path(os.path.relpath(path, folder)).as_posix() for path in paths]
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "hash") as pool:
        found = progress_bar(pool.map(file_digest, paths), "hash", len(paths), unit="file", show=progress)
        return dict(zip(names, found, strict=True))


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex, from the cache if it is large and unchanged.

    Raises
    ------
    InvalidInputError
        If the file cannot be read, or changes while it is read.
    """
    try:
        with path.open("rb") as file:
            before = _identity(path, file)
            kept = _kept_at(before) if before["size"] >= KEPT_FROM else None
            if kept is not None and (known := _known(kept, before)):
                return known
            found = hashlib.file_digest(file, "sha256").hexdigest()
            after = _identity(path, file)
    except OSError as error:
        raise InvalidInputError(f"{path}: expected a readable file of the model, found: {error}") from error
    if before != after:
        raise InvalidInputError(
            f"{path}: expected a file that does not change while it is read, found it changed; run this again once it is complete"
        )
    if kept is not None and time.time() - max(after["mtime_ns"], after["ctime_ns"]) / 1e9 > SETTLED:
        _keep(kept, after, found)
    return found


def _found(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in folder.glob(pattern) if path.is_file())


def _identity(path: Path, file: BinaryIO) -> dict[str, Any]:
    """What a file is known by; of the open file, since a network file system answers that afresh."""
    state = os.fstat(file.fileno())
    return {
        "path": str(path.resolve()),
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "ctime_ns": state.st_ctime_ns,
        "inode": state.st_ino,
    }


def _kept_at(identity: dict[str, Any]) -> Path | None:
    """Where the digest of a file is kept; None where there is no home folder."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    name = hashlib.sha256(identity["path"].encode("utf-8", "surrogateescape")).hexdigest()
    return cache / "stratascope" / "digests" / f"{name}.json"


def _known(kept: Path, identity: dict[str, Any]) -> str | None:
    """The cached digest of exactly this file."""
    try:
        held = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(held, dict) or held.get("file") != identity:
        return None
    found = held.get("sha256")
    return found if isinstance(found, str) and len(found) == 64 else None


def _keep(kept: Path, identity: dict[str, Any], digest: str) -> None:
    """Cache a digest for other processes, if possible."""
    partial = kept.with_name(f"{kept.name}.{uuid.uuid4().hex}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps({"file": identity, "sha256": digest}), encoding="utf-8")
        os.replace(partial, kept)
    except (OSError, UnicodeError):
        with suppress(OSError):
            partial.unlink()
