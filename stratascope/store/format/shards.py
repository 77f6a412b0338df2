"""Encode and decode one file of an array, following the Zarr v3 specification of `sharding_indexed`.

Files are encoded here and not by the Zarr library because its releases order the chunks of a shard differently (3.1 along a Morton
curve, which puts a layer's chunks far apart), drop chunks that are all fill (so that absence proves nothing), and compress in as
many threads as there are cores (so that bytes depend on the machine). Any Zarr reader reads the result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc, Zstd, blosc
from numpy.typing import NDArray

from stratascope.errors import StoreError, UnreadError
from stratascope.store.format.arrays import ArraySpec
from stratascope.store.format.limits import blosc_size, zstd_size

ZSTD_LEVEL = 3
BLOSC = {"cname": "lz4", "clevel": 5, "shuffle": Blosc.BITSHUFFLE}
_CODECS = {"floats": Blosc(**BLOSC), "zstd": Zstd(level=ZSTD_LEVEL)}
ABSENT = np.uint64(2**64 - 1)
"""Offset and length of an absent chunk in an index."""


def encode_file(spec: ArraySpec, values: NDArray[Any], held: NDArray[np.bool_] | None = None) -> Iterator[bytes]:
    """Encode a file: every chunk in row-major order, then the index.

    `values` has the array's dimensions with the block's examples along the example axis, of an array with a mask those that are `held`
    (example,); the chunks of the others, and what reaches beyond the examples, are fill. The same values always give the same bytes.
    """
    counts = chunk_counts(spec)
    shape = values.shape if held is None else spec.block_shape(len(held))
    index = np.full((*counts, 2), ABSENT, dtype="<u8")
    offset = 0
    with _one_thread_per_chunk():
        for at in itertools.product(*map(range, counts)):
            if _overlaps(at, spec.chunk, shape):
                own = _place_among(spec, at, held)
                data = _fill_chunk(spec) if own is None else encode_chunk(spec, _cut(spec, values, own))
                index[at] = (offset, len(data))
                offset += len(data)
                yield data
    if spec.shard is not None:
        yield _with_checksum(index.tobytes())


def encode_chunk(spec: ArraySpec, chunk: NDArray[Any]) -> bytes:
    """Compress a chunk and append its CRC-32C."""
    plain = np.ascontiguousarray(chunk, dtype=np.dtype(spec.dtype).newbyteorder("<"))
    codec = _CODECS.get(spec.codec)
    return _with_checksum(bytes(codec.encode(plain)) if codec else plain.tobytes())


def decode_chunk(spec: ArraySpec, data: bytes | memoryview, what: str, into: NDArray[Any] | None = None) -> NDArray[Any]:
    """Verify and decompress a chunk, into `into` (contiguous, of the array's type) if given.

    Raises
    ------
    StoreError
        For bytes that do not fit their checksum or announce another size than that of a chunk; `what` names it.
    UnreadError
        For bytes that fit their checksum but could not be decompressed: they are as they were written.
    """
    inner = _without_checksum(data, what)
    expected = math.prod(spec.chunk) * np.dtype(spec.dtype).itemsize
    # before anything is allocated: a chunk of another size would fill memory, or leave part of `into` as it was
    size = {"floats": blosc_size, "zstd": zstd_size}[spec.codec](inner) if spec.codec in _CODECS else len(inner)
    if size != expected:
        raise StoreError(f"expected {expected} bytes in {what}, found {'no' if size is None else size}")
    try:
        plain = _CODECS[spec.codec].decode(inner, out=into) if spec.codec in _CODECS else inner
    except MemoryError as error:
        raise MemoryError(f"expected {expected:,} bytes for {what} of {spec.name}") from error
    except Exception as error:  # the codecs raise many kinds, also where they get no memory
        raise UnreadError(
            f"expected to decompress {what} of {spec.name}, whose checksum is right, found: {error}; "
            "free memory and run again: nothing shows that it is damaged"
        ) from error
    if into is not None and spec.codec in _CODECS:
        return into
    return np.frombuffer(plain, dtype=np.dtype(spec.dtype).newbyteorder("<")).reshape(spec.chunk)


def index_size(spec: ArraySpec) -> int:
    """Bytes of the index at the end of a file."""
    return 16 * int(np.prod(chunk_counts(spec))) + 4


def decode_index(spec: ArraySpec, data: bytes | memoryview) -> NDArray[np.uint64]:
    """(chunks along each axis..., 2) offset and length of every chunk; StoreError for a damaged index."""
    if len(data) != index_size(spec):
        raise StoreError(f"expected {index_size(spec)} bytes of index, found {len(data)}")
    return np.frombuffer(_without_checksum(data, "the index"), dtype="<u8").reshape(*chunk_counts(spec), 2)


def decode_file(spec: ArraySpec, data: bytes, examples: int, held: NDArray[np.bool_] | None = None) -> NDArray[Any]:
    """Decode all values of a file with `examples` examples, of an array with a mask those that are `held` (example,), checking it strictly.

    Raises
    ------
    StoreError
        Saying what is wrong: an index or a chunk that does not fit its checksum, a chunk that is absent or out of order, bytes to spare.
    """
    shape = spec.block_shape(examples)
    if spec.shard is None:
        return decode_chunk(spec, data, "the chunk")[tuple(map(slice, shape))]
    index = decode_index(spec, data[-index_size(spec) :])
    out = np.empty(shape if held is None else spec.block_shape(int(held.sum())), dtype=spec.dtype)
    end = 0
    for at in itertools.product(*map(range, chunk_counts(spec))):
        start, length = (int(v) for v in index[at])
        if not _overlaps(at, spec.chunk, shape):
            if start != int(ABSENT):
                raise StoreError(f"expected no chunk {at}, which lies beyond the array, found one")
            continue
        if start != end:
            found = "none" if start == int(ABSENT) else f"it at byte {start}"
            raise StoreError(f"expected chunk {at} at byte {end}, chunks in row-major order, found {found}")
        end = start + length
        own = _place_among(spec, at, held)
        if own is None and data[start:end] == _fill_chunk(spec):
            continue
        chunk = decode_chunk(spec, memoryview(data)[start:end], f"chunk {at}")
        if own is None:
            if not np.array_equal(chunk, np.full(spec.chunk, spec.fill, spec.dtype), equal_nan=True):
                raise StoreError(f"expected fill in chunk {at}, an example that {spec.mask} leaves out, found values")
            continue
        part = out[tuple(slice(i * c, (i + 1) * c) for i, c in zip(own, spec.chunk, strict=True))]
        part[...] = chunk[tuple(map(slice, part.shape))]
    if end + index_size(spec) != len(data):
        raise StoreError(f"expected {end + index_size(spec)} bytes, found {len(data)}")
    return out


def _place_among(spec: ArraySpec, at: tuple[int, ...], held: NDArray[np.bool_] | None) -> tuple[int, ...] | None:
    """Index of a chunk among those of the held examples; None for an example that is not held."""
    if held is None:
        return at
    axis = spec.example_axis
    assert spec.chunk[axis] == 1, "a chunk of an array with a mask holds one example"
    return (*at[:axis], int(held[: at[axis]].sum()), *at[axis + 1 :]) if held[at[axis]] else None


@lru_cache(maxsize=8)
def _fill_chunk(spec: ArraySpec) -> bytes:
    """A chunk of nothing but fill."""
    return encode_chunk(spec, np.full(spec.chunk, spec.fill, dtype=spec.dtype))


def _with_checksum(data: bytes) -> bytes:
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def _without_checksum(data: bytes | memoryview, what: str) -> memoryview:
    view = memoryview(data)
    # the checksum library takes bytes and read-only buffers alike, but wants them contiguous
    if len(view) < 4 or int(google_crc32c.value(np.frombuffer(view[:-4], np.uint8))) != int.from_bytes(view[-4:], "little"):
        raise StoreError(f"expected {what} to fit its checksum, found other bytes")
    return view[:-4]


def chunk_counts(spec: ArraySpec) -> tuple[int, ...]:
    """Chunks of a file along each axis."""
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


_threads_lock = Lock()
_threads_users = 0
_threads_before: bool | None = None


@contextmanager
def _one_thread_per_chunk() -> Iterator[None]:
    """Keep Blosc from compressing a chunk in several threads, which would make its bytes depend on timing."""
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
