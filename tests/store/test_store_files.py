"""Files: what any Zarr reader sees, chunks in row-major order, the same bytes every time, nothing left out."""

from __future__ import annotations

import numcodecs.blosc
import numpy as np
import pytest
import zarr
from stores import birth, block_arrays, make_store, small_layout

from stratascope.errors import StoreError
from stratascope.store import ActivationStore
from stratascope.store.format.shards import ABSENT, decode_file, decode_index, encode_file, index_size


def _values(spec, examples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = spec.block_shape(examples)
    kind = np.dtype(spec.dtype)
    return rng.integers(0, 200, shape).astype(kind) if kind.kind == "u" else rng.normal(size=shape).astype(kind)


EVERYTHING = {
    "record": {"residual", "attention_rows", "attention_maps", "value_norms", "head_outputs", "head_logits", "vision_residual"},
    "head_dim": 4, "vision_layers": 2, "vision_hidden": 6, "vision_positions": ("image", "subject"),
}  # fmt: skip
NAMES = [s.name for s in small_layout(**EVERYTHING).arrays() if s.by_block]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("examples", [70, 64, 3])
def test_zarr_reads_what_is_encoded(tmp_path, name, examples):
    layout = small_layout(examples, block=64, **EVERYTHING)
    path = tmp_path / "a.zarr"
    make_store(path, layout, blocks=[])
    spec = layout.array(name)
    values = _values(spec, examples)
    for block in range(layout.blocks):
        members = layout.block_examples(block)
        part = values[(slice(None),) * spec.example_axis + (slice(members.start, members.stop),)]
        file = path / spec.key(block)
        file.parent.mkdir(parents=True, exist_ok=True)
        data = b"".join(encode_file(spec, part))
        file.write_bytes(data)
        np.testing.assert_array_equal(decode_file(spec, data, len(members)), part)
    np.testing.assert_array_equal(zarr.open_array(path / name, mode="r")[...], values)


def test_chunks_lie_in_row_major_order_and_fill_is_written():
    layout = small_layout(40, block=64, layers=2)
    spec = layout.array("residual")
    values = np.full(spec.block_shape(40), np.nan, np.float32)
    data = b"".join(encode_file(spec, values))
    index = decode_index(spec, data[-index_size(spec) :]).reshape(-1, 2)
    assert (index != ABSENT).all()
    assert index[0, 0] == 0
    np.testing.assert_array_equal(index[1:, 0], index[:-1].sum(1))


def test_the_same_values_give_the_same_bytes_however_many_threads_blosc_may_use():
    layout = small_layout(64, block=64, hidden=3584)
    spec = layout.array("residual")
    values = _values(spec, 64)
    before = numcodecs.blosc.use_threads
    found = set()
    try:
        for threads in (None, True, False):
            numcodecs.blosc.use_threads = threads
            found.add(b"".join(encode_file(spec, values)))
            assert numcodecs.blosc.use_threads is threads
    finally:
        numcodecs.blosc.use_threads = before
    assert len(found) == 1


def test_a_zarr_writer_that_leaves_out_fill_is_found(tmp_path):
    """Plain Zarr drops chunks that are all fill: such a file must not read as if nothing had happened."""
    layout = small_layout(4)
    path = make_store(tmp_path / "a.zarr", layout)
    array = zarr.open_array(path / "residual", mode="r+")
    values = array[...]
    values[1, 0] = np.nan
    array[...] = values
    with pytest.raises(StoreError, match="found none in the index"):
        ActivationStore.open(path).read("residual", layer=1, position="final")


def test_two_stores_of_the_same_values_are_the_same_files(tmp_path):
    layout = small_layout()
    a, b = make_store(tmp_path / "a.zarr", layout), make_store(tmp_path / "b.zarr", layout)
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file())
    for file in files:
        assert (a / file).read_bytes() == (b / file).read_bytes(), file


def test_block_arrays_of_the_fixture_are_whole():
    layout = small_layout()
    assert set(block_arrays(layout, birth(layout), 0)) == {s.name for s in layout.arrays() if s.when == "block"}
