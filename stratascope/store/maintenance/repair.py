"""Unmark damaged shard blocks, so that extraction writes them again."""

from __future__ import annotations

import contextlib
from pathlib import Path

from stratascope.errors import StoreError
from stratascope.store.io.durable import flush_folder
from stratascope.store.io.links import check_no_links, own_path
from stratascope.store.io.reader import ActivationStore
from stratascope.store.io.writer_locks import block_claim
from stratascope.store.maintenance.verify import Verification, verify


def repair(path: str | Path, found: Verification | None = None) -> list[int]:
    """Unmark bad shard blocks and remove their files, so that extraction writes them again.

    Parameters
    ----------
    path
        Folder of the store.
    found
        Result of `verify`; by default the store is checked now.

    Returns
    -------
    list of int
        The unmarked blocks.

    Raises
    ------
    StoreError
        The store is no folder, a bad block is being written, or something is damaged that extraction cannot write again. Bad blocks
        are unmarked nevertheless.
    """
    root = Path(path)
    if not root.is_dir():
        raise StoreError(f"{path}: expected a folder, found none; a zip or URL cannot be repaired in place: copy it to a folder first")
    check_no_links(root)
    found = found or verify(root)
    layout = ActivationStore.open(root).layout
    for block in found.bad_blocks:
        try:
            with block_claim(root, block):
                marker = own_path(root, f"written/c/{block}")
                marker.unlink(missing_ok=True)  # first: no reader may trust the block while its files go
                flush_folder(marker.parent)
                for spec in layout.arrays():
                    if spec.by_block:
                        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                            own_path(root, spec.key(block)).unlink()
        except OSError as error:
            raise StoreError(f"{path}: expected to unmark block {block}, found: {error}; fix permissions and run again") from error
    if found.beyond_repair:
        first = found.problems[found.problems["block"] < 0].iloc[0]
        raise StoreError(
            f"{path}: expected damage in blocks only, found {first['file']}: {first['problem']}; extraction does not write that again: "
            "fetch the store from where it came, or extract into a new one"
        )
    return found.bad_blocks
