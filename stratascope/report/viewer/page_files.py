"""The built page: its files, what it is told of a store, and a copy of it beside one."""

from __future__ import annotations

import json
import os
import shutil
import urllib.parse
from collections.abc import Collection
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from stratascope.errors import InvalidInputError, StoreError
from stratascope.results.file import result_head
from stratascope.results.locations import ENDING
from stratascope.results.stored_result import other_store, relation_to, results_in
from stratascope.store import ActivationStore, condition_of
from stratascope.store.io.durable import make_folder, write_output

PAGE_FILES = {
    "index.html": "text/html; charset=utf-8",
    "viewer.js": "text/javascript; charset=utf-8",
    "worker.js": "text/javascript; charset=utf-8",
    "viewer.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "NOTICES.txt": "text/plain; charset=utf-8",
}
"""Name -> media type of every file of the page; there are no others."""


def page_file(name: str) -> bytes:
    """Bytes of one of `PAGE_FILES`."""
    return (files("stratascope.report.viewer") / "page" / name).read_bytes()


def page_config(store: str, results: str | None, note: str | None = None, unwritten: list[tuple[int, int]] | None = None) -> bytes:
    """What the page finds as view.json: addresses relative to itself, what to say where the store cannot be read, and half-open ranges of
    blocks that are not written, so that the page asks no host for their markers."""
    told = {"store": store, "results": results, "note": note, "unwritten": unwritten or None}
    return json.dumps({key: value for key, value in told.items() if value is not None}).encode()


def results_shown(folder: Path, store: ActivationStore, *, shared: bool = False) -> tuple[list[str], int]:
    """Names of the results in a folder that are of a store or its baselines, and how many are of other stores.

    Parameters
    ----------
    folder
        Of results.
    store
        Whose results are to be shown.
    shared
        Whether several stores may have results there; those of others are then counted, else refused.

    Raises
    ------
    InvalidInputError
        A result is of another store, and the folder is not shared.
    """
    names, others, fingerprint = [], 0, store.fingerprint()
    for found in results_in(folder):
        if relation_to(found, store, fingerprint) != "other":
            names.append(found.name)
        elif shared:
            others += 1
        else:
            raise other_store(found, store)
    return names, others


def result_index(folder: Path, shown: Collection[str] | None = None) -> bytes:
    """The page's index.json of a folder of results: name, size, kind, condition, and of a probe its task and position.

    Parameters
    ----------
    folder
        Of results.
    shown
        Names of the files to list; all by default.
    """
    entries: list[dict[str, Any]] = []
    for path in sorted(folder.glob(f"*{ENDING}")):
        try:
            head = result_head(path)
        except StoreError:  # refused when the page was made, or it came later
            continue
        if head is None or (shown is not None and path.name not in shown):
            continue
        attributes = head.get("attributes")
        told = attributes if isinstance(attributes, dict) else {}
        entry = {"name": path.name, "bytes": path.stat().st_size, "kind": str(head.get("kind"))}
        known = {"task": told.get("task"), "position": told.get("position"), "condition": _condition(told)}
        entries.append(entry | {key: value for key, value in known.items() if isinstance(value, str)})
    return json.dumps({"files": entries}).encode()


def _condition(told: dict[str, Any]) -> Any:
    """What was done to the images of the store that a result is of; None where it does not say."""
    found: Any = told
    for name in ("settings", "provenance"):
        found = found.get(name) if isinstance(found, dict) else None
    return told.get("condition", condition_of(found) if isinstance(found, dict) else None)


def export_page(folder: Path, store: str, results: Path | None = None, shown: Collection[str] | None = None) -> Path:
    """Put the page into a folder, with what it needs to find a store on the same host, or at an address.

    Parameters
    ----------
    folder
        Where index.html will lie; it may exist, and files of an older page in it are replaced.
    store
        Path of a folder or zip, which the page will look for at the same place relative to `folder`, or an http(s) address.
    results
        Folder of results; copied.
    shown
        Names of the results to copy; all by default.

    Returns
    -------
    pathlib.Path
        The page, index.html.

    Raises
    ------
    InvalidInputError
        Where the store lies on another drive, so that no relative address leads to it.
    StoreError
        Where the folder cannot be written, or a folder that is given as store is none.
    """
    address = store if "://" in store else _relative(Path(store), folder)
    try:
        for name in PAGE_FILES:
            _put(folder / name, page_file(name))
        if results is not None:
            for path in sorted(path for path in results.glob(f"*{ENDING}") if shown is None or path.name in shown):
                with path.open("rb") as source:
                    write_output(folder / "results" / path.name, partial(shutil.copyfileobj, source))
            make_folder(folder / "results")
            _put(folder / "results" / "index.json", result_index(folder / "results"))
        beside = "results/" if results is not None else None
        _put(folder / "view.json", page_config(address, beside, unwritten=_unwritten(Path(store)) if "://" not in store else None))
    except OSError as error:
        raise StoreError(f"{folder}: expected to write the page, found: {error}; make room or choose another folder") from error
    return folder / "index.html"


def _put(path: Path, content: bytes) -> None:
    write_output(path, lambda file: file.write(content))


def _unwritten(store: Path) -> list[tuple[int, int]]:
    """Half-open ranges of a folder's blocks without a marker; none of a zip, whose members are known."""
    if not store.is_dir():
        return []
    missing = np.flatnonzero(~ActivationStore.open(store).written)
    if not missing.size:
        return []
    starts = np.flatnonzero(np.diff(missing, prepend=missing[0] - 2) > 1)
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(missing, starts[1:])]


def _relative(store: Path, folder: Path) -> str:
    try:
        steps = os.path.relpath(store.resolve(), folder.resolve())
    except ValueError as error:
        raise InvalidInputError(f"{store}: expected a store on the same drive as {folder}, found another; export beside it") from error
    return urllib.parse.quote(Path(steps).as_posix()) + ("/" if store.is_dir() else "")
