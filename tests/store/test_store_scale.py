"""One example, very many examples, and memory that is bounded by a block."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stores import birth, block_arrays, make_store, small_layout

from stratascope.errors import InvalidInputError
from stratascope.store import ActivationStore, BlockWriter, create_store, verify


def test_no_example_is_refused():
    with pytest.raises(InvalidInputError, match="at least 1, found 0"):
        small_layout(0)


def test_one_example(tmp_path):
    path = make_store(tmp_path / "one.zarr", small_layout(1))
    store = ActivationStore.open(path)
    assert store.read("residual", layer=1, position="final").shape == (1, 8)
    assert store.maps(0).shape[0] == 3
    assert store.to_xarray().residual.shape == (4, 4, 1, 8)
    assert verify(path).ok


@pytest.mark.slow
@pytest.mark.parametrize("examples", [63, 64, 65])
def test_the_edges_of_a_block_of_64(tmp_path, examples):
    layout = small_layout(examples, block=64)
    path = make_store(tmp_path / "a.zarr", layout)
    store = ActivationStore.open(path)
    expected = np.concatenate([block_arrays(layout, birth(layout), b)["residual"] for b in range(layout.blocks)], 2)
    good = store.available("residual", "final")
    np.testing.assert_array_equal(store.read("residual", position="final", examples=good), expected[:, 0, good])
    assert verify(path).ok


@pytest.mark.slow
def test_the_metadata_of_a_hundred_thousand_examples(tmp_path):
    n = 100_000
    layout = small_layout(n, block=64, tokens=64, layers=28, hidden=3584)
    known = birth(small_layout(8, tokens=64))
    tiled = {
        name: np.tile(known[name], (n // 8, *[1] * (known[name].ndim - 1)))
        for name in ("spans", "token_ids", "n_tokens", "grid", "position_present", "has_map")
    }
    examples = pd.concat([known["examples"]] * (n // 8), ignore_index=True).assign(id=[f"e{i}" for i in range(n)])
    create_store(tmp_path / "a.zarr", layout, examples=examples, vocabulary=known["vocabulary"], provenance=known["provenance"], **tiled)
    store = ActivationStore.open(tmp_path / "a.zarr")
    assert len(store.examples) == n
    assert store.index_of("e99999") == n - 1
    assert not store.written.any()
    assert store.tokens(99_999) == store.tokens(7)
    assert "1,563 blocks of 64" in repr(store)
    assert len(BlockWriter(tmp_path / "a.zarr").pending(3, 7)) == 223
    files = [p.stat().st_size for p in (tmp_path / "a.zarr").rglob("*") if p.is_file()]
    assert len(files) < 2000
    assert sum(files) < 30e6


MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from stores import small_layout, birth
from stratascope.store import ActivationStore, BlockWriter, create_store, verify
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
layout = small_layout(256, block=64, layers=28, hidden=3584, positions=("final", "image"), record={"residual"}, thumbnail=None)
create_store(sys.argv[1], layout, **birth(layout))
values = np.random.default_rng(0).standard_normal(layout.array("residual").block_shape(64), dtype=np.float32)
base = peak()
with BlockWriter(sys.argv[1]) as writer:
    for block in writer.pending():
        writer.write(block, {"residual": values, "answer_logits": np.zeros((64, 2), np.float32), "status": np.ones(64, np.uint8)})
written = peak()
store = ActivationStore.open(sys.argv[1])
for block in range(layout.blocks):
    store.read("residual", position=["final", "image"], examples=layout.block_examples(block))
read = peak()
assert verify(sys.argv[1]).ok
print(base, written, read, peak(), values.nbytes / 2**20)
"""


@pytest.mark.slow
def test_memory_is_bounded_by_a_block(tmp_path):
    pytest.importorskip("resource")
    arguments = [sys.executable, "-c", MEMORY, str(tmp_path / "a.zarr"), str(Path(__file__).parent)]
    out = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    base, written, read, verified, block = map(float, out.split())
    assert written - base < 1.5 * block + 20
    assert read - base < 2.5 * block + 20
    assert verified - base < 4 * block + 20


def test_importing_is_light():
    heavy = ("torch", "sklearn", "dask", "matplotlib", "xarray", "obstore")
    code = f"import sys, stratascope.store; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
