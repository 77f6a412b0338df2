"""The golden store of format version 1: every reader opens it, and plain Zarr sees the same numbers."""

from __future__ import annotations

import json
import shutil

import make_golden as golden
import numpy as np
import pytest
import zarr

from stratascope.errors import UnwrittenBlockError
from stratascope.store import ActivationStore, BlockWriter, copy_store, verify

PATH = golden.GOLDEN / "v1.zarr"
WRITTEN = [0, 1, 4]


def test_it_is_whole_and_says_what_it_is():
    attributes = json.loads((PATH / "zarr.json").read_text())["attributes"]
    assert attributes["format"] == "stratascope-activations"
    assert attributes["format_version"] == 1
    assert verify(PATH).ok


def test_our_reader_reads_it():
    store = ActivationStore.open(PATH)
    assert store.layout == golden.LAYOUT
    assert store.written.tolist() == [True, False, True]
    np.testing.assert_array_equal(store.read("residual", examples=WRITTEN), golden.residual(range(5))[:, :, WRITTEN])
    np.testing.assert_array_equal(store.read("attention_rows", examples=WRITTEN), golden.attention_rows(range(5))[:, WRITTEN])
    expected = np.full((2, 4, 4), 0.0)
    expected[:, range(4), range(4)] = expected[:, :, 0] = 0.5
    expected[:, 0, 0] = 1
    np.testing.assert_array_equal(store.maps(4), expected)
    assert store.tokens(1) == ["▁the", "▁cat", "\n"]
    assert store.examples["split"].isna().tolist() == [False] * 4 + [True]
    assert store.examples["image"][4] == "ü.png"
    with pytest.raises(UnwrittenBlockError, match="not written yet: 1 "):
        store.read("answer_logits")


def test_results_made_by_an_earlier_version_stay_its_results():
    """Whatever fields later versions give to layouts."""
    assert ActivationStore.open(PATH).fingerprint() == "99b054cee7de329faba0ff01d2f7c89e4fa4793807c2abf112e37fb634b4fade"


def test_any_zarr_reader_reads_it():
    """No word of this package: what docs/format.md promises to readers in other languages."""
    group = zarr.open_group(PATH, mode="r")
    residual = group["residual"]
    assert residual.metadata.dimension_names == ("layer", "position", "example", "hidden")
    np.testing.assert_array_equal(residual[:, :, WRITTEN], golden.residual(range(5))[:, :, WRITTEN])
    assert np.isnan(residual[:, :, 2]).all()
    np.testing.assert_array_equal(group["written"][...], [1, 0, 1])
    assert [str(p) for p in group["position"][...]] == ["final", "image", "subject"]
    packed = np.square(group["attention_maps"][0].astype(float))
    packed /= packed.sum(-1, keepdims=True)
    assert packed[1, 2].tolist() == [0.5, 0, 0.5, 0]


def test_it_resumes(tmp_path):
    shutil.copytree(PATH, tmp_path / "a.zarr")
    with BlockWriter(tmp_path / "a.zarr") as writer:
        assert writer.pending() == [1]


def test_the_generator_still_writes_the_same_numbers(tmp_path):
    golden.main(tmp_path / "a.zarr")
    new, old = ActivationStore.open(tmp_path / "a.zarr"), ActivationStore.open(PATH)
    assert new.layout == old.layout
    for name in ("residual", "attention_rows", "attention_mean", "answer_logits", "status", "thumbnail"):
        np.testing.assert_array_equal(new.read(name, examples=WRITTEN), old.read(name, examples=WRITTEN))
    assert new.examples.equals(old.examples)
    copy_store(PATH, tmp_path / "b.zip", examples=WRITTEN)
    assert verify(tmp_path / "b.zip").ok
