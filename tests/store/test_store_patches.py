"""Residual streams at every image token of some examples: written, read, copied, compared and verified like any other array."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store import ActivationStore, BlockWriter, StoreLayout, copy_store, create_store, diff_stores, estimate_sizes, verify
from stratascope.store.format.block_checks import BlockFacts, unstorable_examples
from stratascope.store.format.shards import encode_file
from tests.store.stores import birth, block_arrays, small_layout

LAYOUT = small_layout(record={"residual", "attention_rows", "patch_residual"}, patches=6, patch_layers=(0, 2, 3))
HELD = np.arange(10) % 3 == 0
"""Examples with patches: 0, 3, 6, 9."""


def known() -> dict:
    grid = np.array([(2, 2), (1, 3), (2, 3)])[np.arange(10) // 3 % 3]
    return birth(LAYOUT) | {"has_patches": HELD, "grid": grid}


def patches_of(example: int) -> np.ndarray:
    """(layer, patch, hidden) with NaN beyond the cells of the image."""
    values = np.random.default_rng(example).normal(size=(3, 6, 8)).astype(np.float32)
    values[:, int(known()["grid"][example].prod()) :] = np.nan
    return values


def arrays_of(block: int) -> dict[str, np.ndarray]:
    held = [k for k in LAYOUT.block_examples(block) if HELD[k]]
    return block_arrays(LAYOUT, known(), block) | {"patch_residual": np.stack([patches_of(k) for k in held], 1)}


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("patched") / "store.zarr"
    create_store(path, LAYOUT, **known())
    with BlockWriter(path) as writer:
        for block in range(LAYOUT.blocks):
            writer.write(block, arrays_of(block))
    return path


def test_each_example_reads_back_with_nan_beyond_its_image(patched: Path) -> None:
    store = ActivationStore.open(patched)
    assert store.available("patch_residual").tolist() == HELD.tolist()
    assert store.patch_counts.tolist() == [4, 0, 0, 3, 0, 0, 6, 0, 0, 4]
    np.testing.assert_array_equal(store.read("patch_residual", examples=[9, 3]), np.stack([patches_of(9), patches_of(3)], 1))
    np.testing.assert_array_equal(store.read("patch_residual", layer=2, examples=6), patches_of(6)[1])
    np.testing.assert_array_equal(
        store.lazy("patch_residual", layer=3, examples=[0, 6]).compute(), np.stack([patches_of(0)[2], patches_of(6)[2]])
    )
    with pytest.raises(NotRecordedError, match="have no patches: 1"):
        store.read("patch_residual", examples=[0, 1])
    with pytest.raises(NotRecordedError, match="found 1; it holds 0, 2"):
        store.read("patch_residual", layer=1, examples=0)
    # any Zarr reader finds the same numbers, and NaN where nothing is held
    plain = np.asarray(zarr.open_group(patched, mode="r")["patch_residual"])
    np.testing.assert_array_equal(plain[:, HELD], np.stack([patches_of(k) for k in np.flatnonzero(HELD)], 1))
    assert np.isnan(plain[:, ~HELD]).all()
    table = pytest.importorskip("xarray").Dataset.to_dataframe(store.to_xarray()[["has_patches"]])
    assert table["has_patches"].tolist() == HELD.tolist()
    np.testing.assert_array_equal(store["patch_residual"].sel(patch_layer=2)[6].values, patches_of(6)[1])


@pytest.mark.slow
def test_copies_keep_layers_and_examples(patched: Path, tmp_path: Path) -> None:
    copy_store(patched, tmp_path / "whole.zarr")
    assert diff_stores(patched, tmp_path / "whole.zarr").same
    for file in patched.rglob("*"):
        if file.is_file() and "claims" not in file.parts:
            assert file.read_bytes() == (tmp_path / "whole.zarr" / file.relative_to(patched)).read_bytes()
    copy_store(patched, tmp_path / "part.zip", examples=[6, 1, 3], layers=[1, 2], arrays=["patch_residual"])
    part = ActivationStore.open(tmp_path / "part.zip")
    assert part.layout.layers_of("patch_layer") == (2,)
    assert part.patch_counts.tolist() == [6, 0, 3]
    np.testing.assert_array_equal(part.read("patch_residual", layer=2, examples=[0, 2]), np.stack([patches_of(6)[1], patches_of(3)[1]]))
    assert verify(tmp_path / "part.zip").ok
    found = diff_stores(patched, tmp_path / "part.zip").numbers.set_index("array").loc["patch_residual"]
    assert (found["examples"], found["different"]) == (2, 0)
    copy_store(patched, tmp_path / "without.zip", layers=[1])
    assert "patch_residual" not in ActivationStore.open(tmp_path / "without.zip").arrays


def test_values_where_nothing_is_held_are_damage(patched: Path, tmp_path: Path) -> None:
    copy_store(patched, tmp_path / "damaged.zarr")
    assert verify(tmp_path / "damaged.zarr").ok
    spec = LAYOUT.array("patch_residual")
    forged = np.stack([patches_of(0), patches_of(3), patches_of(0)], 1)
    (tmp_path / "damaged.zarr" / spec.key(0)).write_bytes(b"".join(encode_file(spec, forged, np.array([True, False, True, True]))))
    found = verify(tmp_path / "damaged.zarr")
    assert found.bad_blocks == [0]
    assert "an example that has_patches leaves out" in found.problems["problem"].iloc[0]


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="has_patches: expected shape"):
        create_store(tmp_path / "a.zarr", LAYOUT, **{**known(), "has_patches": None})
    with pytest.raises(InvalidInputError, match="patches: expected the most image cells of an example with patches, 6, found 5"):
        create_store(tmp_path / "a.zarr", LAYOUT.subset(patches=5), **known())
    with pytest.raises(InvalidInputError, match="patches and patch_layers: expected a value because patch_residual"):
        small_layout(record={"patch_residual"})
    with pytest.raises(InvalidInputError, match="patch_layers: expected rising numbers"):
        LAYOUT.subset(patch_layers=(0, 9))
    create_store(tmp_path / "a.zarr", LAYOUT, **known())
    facts = BlockFacts(range(4), known()["n_tokens"][:4], known()["position_present"][:4], known()["has_map"][:4], np.array([4, 0, 0, 3]))
    with BlockWriter(tmp_path / "a.zarr") as writer:
        arrays = arrays_of(0)
        with pytest.raises(InvalidInputError, match="patch_residual: expected shape"):
            writer.write(0, arrays | {"patch_residual": arrays["patch_residual"][:, :1]})
        arrays["patch_residual"][1, 1, 2, 5] = np.inf
        where = "patch_residual: expected finite numbers, found inf at layer 2, example 3, patch 2, hidden 5"
        assert unstorable_examples(LAYOUT, facts, arrays) == {3: where}
        with pytest.raises(InvalidInputError, match="found inf at layer 2, example 3"):
            writer.write(0, arrays)
        arrays["patch_residual"][1, 1, 2, 5] = 0
        arrays["patch_residual"][:, 1, 5] = 0
        with pytest.raises(InvalidInputError, match="expected NaN beyond each example's image tokens"):
            writer.write(0, arrays)


def test_layouts_without_patches_say_nothing_of_them() -> None:
    """Releases before patches refuse fields that they do not know."""
    assert not {"patches", "patch_layers"} & set(small_layout().to_json())
    assert StoreLayout.from_json(LAYOUT.to_json()) == LAYOUT


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_estimate_is_near_what_is_written(dtype: str) -> None:
    layout = small_layout(
        32, record={"patch_residual"}, patches=70, patch_layers=(1, 2), hidden=512, block=32, computed_dtype=dtype, thumbnail=None
    )
    spec, counts = layout.array("patch_residual"), np.where(np.arange(32) % 4, 0, 60 + np.arange(32) % 10)
    rng = np.random.default_rng(0)
    values = (rng.standard_t(5, (2, 8, 70, 512)) * np.exp(rng.normal(size=512))).astype(np.float32)
    if dtype == "bfloat16":
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    for row, count in enumerate(counts[counts > 0]):
        values[:, row, count:] = np.nan
    size = sum(map(len, encode_file(spec, values, counts > 0)))
    table = estimate_sizes(layout, patches=counts).set_index("array")["estimated_bytes"]
    assert table["patch_residual"] == pytest.approx(size, rel=0.1)
