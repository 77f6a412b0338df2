"""Unmark damaged shard blocks, so that extraction writes them again."""

from __future__ import annotations

from pathlib import Path

from stratascope.errors import StoreError
from stratascope.store.io.links import check_no_links
from stratascope.store.io.reader import ActivationStore
from stratascope.store.io.store_files import place_of, store_files
from stratascope.store.maintenance.verify import Verification, verify


def repair(path: str | Path, found: Verification | None = None) -> list[int]:
    """Unmark bad shard blocks and remove their files, so that extraction writes them again.

    Parameters
    ----------
    path
        Folder of the store, or its address in a bucket (s3, gs, az).
    found
        Result of `verify`; by default the store is checked now.

    Returns
    -------
    list of int
        The unmarked blocks.

    Raises
    ------
    StoreError
        The store is neither a folder nor in a bucket, a bad block is being written, or something is damaged that extraction cannot write
        again. Bad blocks
        are unmarked nevertheless.
    """
    place = place_of(path)
    if isinstance(place, Path):
        if not place.is_dir():
            raise StoreError(f"{path}: expected a folder, found none; a zip cannot be repaired in place: copy it to a folder first")
        check_no_links(place)
    files = store_files(place)
    found = found or verify(place)
    layout = ActivationStore.open(place).layout
    for block in found.bad_blocks:
        try:
            with files.claim(block):
                files.unmark(block, [spec.key(block) for spec in layout.arrays() if spec.by_block])
        except OSError as error:
            raise StoreError(f"{path}: expected to unmark block {block}, found: {error}; fix permissions and run again") from error
    if found.beyond_repair:
        first = found.problems[found.problems["block"] < 0].iloc[0]
        raise StoreError(
            f"{path}: expected damage in blocks only, found {first['file']}: {first['problem']}; extraction does not write that again: "
            "fetch the store from where it came, or extract into a new one"
        )
    return found.bad_blocks
