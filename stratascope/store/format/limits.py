"""Size limits on metadata, chunks and zip members, checked before memory is allocated."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from stratascope.errors import InvalidInputError, StoreError
from stratascope.store.format.arrays import ArraySpec

MOST_METADATA = 1 << 25
"""Largest zarr.json, in bytes."""
MOST_MARKER, MOST_FILE = 1 << 16, 1 << 34
"""Largest marker of a block, and largest other file that is read whole from a server, in bytes."""
MOST_DEPTH = 64
"""Deepest nesting of lists and objects in JSON."""
MOST_CHUNK, MOST_CHUNK_RATIO = 1 << 26, 200
"""A chunk or zip member may decompress to MOST_CHUNK bytes, or to MOST_CHUNK_RATIO times its compressed size if that is more."""
MOST_ARRAY = 1 << 29
"""Most characters in a text array that is read at once."""
_MOST: dict[str, int] = {
    "examples": 1 << 25, "layers": 1 << 12, "hidden": 1 << 20, "heads": 1 << 14, "tokens": 1 << 20, "block": 1 << 16,
    "head_dim": 1 << 20, "vision_layers": 1 << 12, "vision_hidden": 1 << 20, "ranks": 1 << 20,
    "patches": 1 << 20, "generated": 1 << 16,
    "vision_blocks": 1 << 12, "vision_views": 1 << 10, "vision_tokens": 1 << 16, "vision_class_tokens": 1 << 10,
    "change_blocks": 1 << 12, "change_cells": 1 << 20,
}  # fmt: skip
"""Field of a layout -> the largest value: far beyond any model, and small enough that a stranger's metadata cannot fill memory."""
_MOST_BLOCKS = 1 << 20
MOST_SIDE = 1 << 14
"""Pixels of a thumbnail's side."""
_MOST_PIECE, _MOST_PIECES = 1 << 31, 1 << 20
"""Bytes of what is compressed together, and pieces in a file."""
_ZSTD = b"\x28\xb5\x2f\xfd"


def check_metadata_size(size: int, where: str) -> None:
    """Refuse a zarr.json of more than `MOST_METADATA` bytes before it is read; StoreError names it."""
    if size > MOST_METADATA:
        raise StoreError(f"{where}: expected metadata of at most {MOST_METADATA >> 20} MB, found {size:,} bytes; fetch the file again")


def check_file_size(size: int, key: str) -> None:
    """Refuse a file of a size that none of a store has, before it is read from a server; StoreError names it."""
    if key.endswith("zarr.json"):
        check_metadata_size(size, key)
    most = MOST_MARKER if key.startswith("written/c/") else MOST_FILE
    if size > most:
        raise StoreError(f"{key}: expected a file of at most {most:,} bytes, found {size:,} bytes; fetch the store from another place")


def check_depth(value: Any, where: str) -> None:
    """Refuse JSON that is nested deeper than `MOST_DEPTH`; StoreError names it."""
    level, depth = [value], 0
    while level:
        if depth > MOST_DEPTH:
            raise too_deep(where)
        level = [inner for one in level if isinstance(one, dict | list) for inner in (one.values() if isinstance(one, dict) else one)]
        depth += 1


def too_deep(where: str) -> StoreError:
    """Return the error for JSON that is nested too deeply."""
    return StoreError(f"{where}: expected JSON nested at most {MOST_DEPTH} deep, found it nested deeper; fetch the file again")


def parse_json(data: bytes, where: str) -> Any:
    """Parse JSON within the limits for metadata.

    Raises
    ------
    StoreError
        For too many bytes, text that is no JSON, or JSON that is nested too deeply.
    """
    check_metadata_size(len(data), where)
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise too_deep(where) from error
    except ValueError as error:
        raise StoreError(f"{where}: expected JSON, found: {error}; fetch the file again") from error
    check_depth(value, where)
    return value


def check_member(member: zipfile.ZipInfo, where: str) -> None:
    """Refuse a zip member that decompresses to an absurd size; StoreError names it."""
    if member.filename.endswith("zarr.json"):
        check_metadata_size(member.file_size, f"{where}: {member.filename}")
    check_unpacked(member.file_size, member.compress_size, f"{where}: {member.filename}")


def check_chunk(head: bytes, packed: int, where: str) -> None:
    """Refuse a zstd chunk that declares an absurd decompressed size, or none; StoreError names it.

    `head` is its first 18 bytes or more, `packed` how many it has.
    """
    if head[:4] == _ZSTD:
        check_unpacked(zstd_size(head), packed, where)


def check_unpacked(size: int | None, packed: int, where: str) -> None:
    """StoreError for data that decompresses to more than `MOST_CHUNK` bytes and more than `MOST_CHUNK_RATIO` times its size."""
    if size is None or size > max(MOST_CHUNK, MOST_CHUNK_RATIO * packed):
        found = "one that does not say to how many" if size is None else f"{packed:,} bytes that unpack to {size:,}"
        most = max(MOST_CHUNK, MOST_CHUNK_RATIO * packed)
        raise StoreError(f"{where}: expected a file that unpacks to at most {most:,} bytes, found {found}; fetch it again")


def zstd_size(data: bytes | memoryview) -> int | None:
    """Decompressed size that a zstd frame declares (RFC 8878, section 3.1.1.1); None without a size or a frame."""
    head = bytes(data[:18])
    if head[:4] != _ZSTD or len(head) < 6:
        return None
    flags = head[4]
    single = bool(flags & 0x20)
    width = (1 if single else 0, 2, 4, 8)[flags >> 6]
    start = 5 + (not single) + (0, 1, 2, 4)[flags & 3]
    if not width or len(head) < start + width:
        return None
    return int.from_bytes(head[start : start + width], "little") + (256 if width == 2 else 0)


def blosc_size(data: bytes | memoryview) -> int | None:
    """Decompressed size that a Blosc chunk declares; None for other data."""
    return int.from_bytes(bytes(data[4:8]), "little") if len(data) >= 16 else None


def check_layout_sizes(sizes: Mapping[str, Any], blocks: int) -> None:
    """Refuse sizes of a layout, by field, that no model has; InvalidInputError names the field."""
    for name, most in _MOST.items():
        if sizes[name] > most:
            raise InvalidInputError(f"{name}: expected at most {most:,}, found {sizes[name]:,}")
    if blocks > _MOST_BLOCKS:
        raise InvalidInputError(f"block: expected at most {_MOST_BLOCKS:,} blocks of examples, found {blocks:,}; take larger ones")


def check_pieces(specs: Iterable[ArraySpec]) -> None:
    """Refuse arrays whose compressed pieces would be absurdly large or many; InvalidInputError names the array."""
    for spec in specs:
        piece = math.prod(spec.chunk) * (1 if spec.dtype == "str" else np.dtype(spec.dtype).itemsize)
        pieces = math.prod(s // c for s, c in zip(spec.shard or spec.chunk, spec.chunk, strict=True))
        if piece > _MOST_PIECE or pieces > _MOST_PIECES:
            raise InvalidInputError(
                f"{spec.name}: expected pieces of at most {_MOST_PIECE:,} bytes, {_MOST_PIECES:,} in a file, "
                f"found {piece:,} bytes and {pieces:,}"
            )
