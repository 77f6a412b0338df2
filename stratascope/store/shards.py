"""Bytes of one file of an array, to the letter of the Zarr v3 specification of `sharding_indexed`.

Files are encoded here and not by the Zarr library because its releases order the chunks of a shard differently (3.1 along a Morton
curve, which puts a layer's chunks far apart), drop chunks that are all fill (so that absence proves nothing), and compress in as
many threads as there are cores (so that bytes depend on the machine). Any Zarr reader reads the result.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc, Zstd, blosc
from numpy.typing import NDArray

from stratascope.errors import StoreError
from stratascope.store.arrays import ArraySpec

ZSTD_LEVEL = 3
BLOSC = {"cname": "lz4", "clevel": 5, "shuffle": Blosc.BITSHUFFLE}
_ABSENT = np.uint64(2**64 - 1)
_AHEAD = 16
"""Chunks that wait to be written while others are compressed: bounds memory."""


def encode_file(spec: ArraySpec, values: NDArray[Any]) -> Iterator[bytes]:
    """Bytes of the file that holds `values`, piece by piece: every chunk in row-major order, then the index.

    `values` has the array's dimensions with the block's examples along the example axis; chunks that reach beyond are padded
    with fill. The same values always give the same bytes.
    """
    counts = _chunk_counts(spec)
    index = np.full((*counts, 2), _ABSENT, dtype="<u8")
    present = [at for at in itertools.product(*map(range, counts)) if _overlaps(at, spec.chunk, values.shape)]
    offset = 0
    with _one_thread_per_chunk(), ThreadPoolExecutor(2) as pool:
        for group in _batched(present, _AHEAD):
            encoded = pool.map(lambda at: encode_chunk(spec, _cut(spec, values, at)), group)
            for at, data in zip(group, encoded, strict=True):
                index[at] = (offset, len(data))
                offset += len(data)
                yield data
    if spec.shard is not None:
        yield _with_checksum(index.tobytes())


def encode_chunk(spec: ArraySpec, chunk: NDArray[Any]) -> bytes:
    """One chunk, compressed, followed by its CRC-32C."""
    plain = np.ascontiguousarray(chunk, dtype=np.dtype(spec.dtype).newbyteorder("<"))
    if spec.codec == "floats":
        return _with_checksum(bytes(Blosc(**BLOSC).encode(plain)))
    if spec.codec == "zstd":
        return _with_checksum(bytes(Zstd(level=ZSTD_LEVEL).encode(plain)))
    return _with_checksum(plain.tobytes())


def check_file(spec: ArraySpec, data: bytes, examples: int) -> None:
    """Decode every chunk of a file that holds `examples` examples.

    Raises
    ------
    StoreError
        Saying what is wrong: an index or a chunk that does not fit its checksum, a chunk that is absent, bytes to spare.
    """
    counts = _chunk_counts(spec)
    shape = spec.block_shape(examples)
    if spec.shard is None:
        _check_chunk(spec, data, "the chunk")
        return
    size = 16 * int(np.prod(counts)) + 4
    if len(data) < size:
        raise StoreError(f"expected at least {size} bytes of index, found a file of {len(data)} bytes")
    index = np.frombuffer(_without_checksum(data[-size:], "the index"), dtype="<u8").reshape(*counts, 2)
    end = 0
    for at in itertools.product(*map(range, counts)):
        start, length = (int(v) for v in index[at])
        if not _overlaps(at, spec.chunk, shape):
            continue
        if start == int(_ABSENT):
            raise StoreError(f"expected chunk {at}, found none in the index")
        if start != end:
            raise StoreError(f"expected chunk {at} at byte {end}, found it at {start}: chunks must follow each other in row-major order")
        end = start + length
        _check_chunk(spec, data[start:end], f"chunk {at}")
    if end + size != len(data):
        raise StoreError(f"expected {end + size} bytes, found {len(data)}")


def _check_chunk(spec: ArraySpec, data: bytes, what: str) -> None:
    inner = _without_checksum(data, what)
    expected = int(np.prod(spec.chunk)) * np.dtype(spec.dtype).itemsize
    try:
        plain = Blosc().decode(inner) if spec.codec == "floats" else Zstd().decode(inner) if spec.codec == "zstd" else inner
    except Exception as error:  # the codecs raise many kinds
        raise StoreError(f"expected {what} to decompress, found: {error}") from error
    if len(plain) != expected:
        raise StoreError(f"expected {expected} bytes in {what}, found {len(plain)}")


def _with_checksum(data: bytes) -> bytes:
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def _without_checksum(data: bytes, what: str) -> bytes:
    if len(data) < 4 or int(google_crc32c.value(data[:-4])) != int.from_bytes(data[-4:], "little"):
        raise StoreError(f"expected {what} to fit its checksum, found other bytes")
    return data[:-4]


def _chunk_counts(spec: ArraySpec) -> tuple[int, ...]:
    return tuple(s // c for s, c in zip(spec.shard or spec.chunk, spec.chunk, strict=True))


def _overlaps(at: tuple[int, ...], chunk: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return all(i * c < n for i, c, n in zip(at, chunk, shape, strict=True))


def _cut(spec: ArraySpec, values: NDArray[Any], at: tuple[int, ...]) -> NDArray[Any]:
    part = values[tuple(slice(i * c, (i + 1) * c) for i, c in zip(at, spec.chunk, strict=True))]
    if part.shape == spec.chunk:
        return part
    whole = np.full(spec.chunk, spec.fill, dtype=spec.dtype)
    whole[tuple(map(slice, part.shape))] = part
    return whole


def _batched(items: list[tuple[int, ...]], size: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    for start in range(0, len(items), size):
        yield tuple(items[start : start + size])


_threads_lock = Lock()
_threads_users = 0
_threads_before: bool | None = None


@contextmanager
def _one_thread_per_chunk() -> Iterator[None]:
    """Keep Blosc from compressing one chunk in several threads: the order of its blocks would depend on timing."""
    global _threads_users, _threads_before
    with _threads_lock:
        if _threads_users == 0:
            _threads_before, blosc.use_threads = blosc.use_threads, False
        _threads_users += 1
    try:
        yield
    finally:
        with _threads_lock:
            _threads_users -= 1
            if _threads_users == 0:
                blosc.use_threads = _threads_before
