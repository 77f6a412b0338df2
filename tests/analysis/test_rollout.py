"""Rollout against the full matrix product; share against sums written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stratascope.analysis import AttentionShare, RolloutResult, attention_share, rollout, rollout_examples
from stratascope.analysis.share import PARTS
from stratascope.errors import InvalidInputError, NotRecordedError, StratascopeError

SHARED = Path(__file__).parents[3] / "shared" / "data"


def random_maps(layers: int, tokens: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    maps = np.tril(rng.gamma(0.3, size=(layers, tokens, tokens)) + 1e-12)
    return maps / maps.sum(-1, keepdims=True)


def matrix_rollout(maps: np.ndarray) -> np.ndarray:
    """Abnar & Zuidema's equation 1 as it stands: products of whole matrices; row k: from the top down to layer k's input."""
    tokens = maps.shape[-1]
    out = [np.eye(tokens)]
    for layer in reversed(range(len(maps))):
        mixed = maps[layer] + np.eye(tokens)
        out.append(out[-1] @ (mixed / mixed.sum(-1, keepdims=True)))
    return np.stack(out[::-1])[:, -1]


@hypothesis_settings(max_examples=50, deadline=None)
@given(layers=st.integers(1, 8), tokens=st.integers(1, 20), seed=st.integers(0, 10_000))
def test_rollout_equals_the_matrix_product(layers: int, tokens: int, seed: int) -> None:
    maps = random_maps(layers, tokens, seed)
    np.testing.assert_allclose(rollout(maps), matrix_rollout(maps), atol=1e-12)


def test_rollout_of_stored_maps_equals_the_matrix_product(store) -> None:
    for example in (0, 50):
        np.testing.assert_allclose(rollout(store.maps(example)), matrix_rollout(store.maps(example)), atol=1e-6)


def test_a_window_is_the_rollout_of_its_layers() -> None:
    maps = random_maps(6, 12, 0)
    np.testing.assert_allclose(rollout(maps, window=(2, 5)), rollout(maps[2:5]), atol=1e-15)


def test_every_row_sums_to_one_and_the_last_is_the_final_token() -> None:
    rolled = rollout(random_maps(5, 9, 1))
    np.testing.assert_allclose(rolled.sum(-1), 1)
    assert rolled[-1].tolist() == [0.0] * 8 + [1.0]


def test_attention_to_itself_alone_stays_there() -> None:
    assert rollout(np.stack([np.eye(4)] * 3))[0].tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("maps", "window", "message"),
    [
        (np.ones((2, 3, 4)), None, r"\(layer, token, token\)"),
        (np.ones((2, 3, 3)), None, "sum to 1"),
        (random_maps(3, 4, 0), (2, 2), "window"),
        (random_maps(3, 4, 0), (0, 4), "window"),
    ],
)
def test_bad_maps_are_refused(maps: np.ndarray, window: tuple[int, int] | None, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        rollout(maps, window=window)


@pytest.mark.skipif(not SHARED.exists(), reason="the real model's maps are not at hand")
def test_full_depth_rollout_of_a_real_decoder_sits_on_the_first_token() -> None:
    file = np.load(SHARED / "attention_maps" / "smollm2_135m_t200.npz")
    maps = next(file[name] for name in file.files if file[name].ndim == 3).astype(np.float64)
    maps = maps / maps.sum(-1, keepdims=True)
    assert rollout(maps)[0, 0] > 0.99


def test_results_load_back(store, tmp_path: Path) -> None:
    found = rollout_examples(store, [3, 8])
    found.save(tmp_path / "r.zarr.zip")
    again = RolloutResult.load(tmp_path / "r.zarr.zip")
    np.testing.assert_array_equal(found.values, again.values)
    assert found.examples.to_dict() == again.examples.to_dict()
    assert found.attributes == again.attributes
    cells = found.onto_image(1)
    a, b = store.spans["image"][8]
    np.testing.assert_array_equal(cells.ravel(), found.values[1, 0, a:b])
    assert cells.shape == (6, 6)


def test_results_of_another_kind_are_refused(store, tmp_path: Path) -> None:
    rollout_examples(store, [0]).save(tmp_path / "r.zarr.zip")
    with pytest.raises(InvalidInputError, match="expected results of kind 'attention_share'"):
        AttentionShare.load(tmp_path / "r.zarr.zip")


def test_share_is_the_sum_over_each_part(store, plan) -> None:
    share = attention_share(store, [0, 7])
    np.testing.assert_allclose(share.values.sum(-1), 1, atol=1e-5)
    for row, example in enumerate((0, 7)):
        spans = plan.layouts[example].spans
        tokens = int(plan.token_counts[example])
        rows = store.read("attention_rows", examples=[example])[:, 0, :, :tokens]
        rows = rows / rows.sum(-1, keepdims=True)
        owner = np.array(["template"] * tokens, dtype=object)
        owner[slice(*spans["system"])] = "system"
        owner[slice(*spans["image"])] = "image"
        owner[slice(*spans["caption"])] = "caption_rest"
        for name in ("subject", "relation", "object"):
            owner[slice(*spans[name])] = name
        for k, part in enumerate(PARTS):
            np.testing.assert_allclose(share.values[row, ..., k], rows[..., owner == part].sum(-1), atol=1e-5)
            assert share.tokens[row, k] == pytest.approx((owner == part).mean())


def test_share_loads_back(store, tmp_path: Path) -> None:
    share = attention_share(store)
    share.save(tmp_path / "s.zarr.zip")
    again = AttentionShare.load(tmp_path / "s.zarr.zip")
    np.testing.assert_array_equal(share.values, again.values)
    np.testing.assert_array_equal(share.examples, again.examples)


def test_a_store_without_maps_says_why_rollout_is_impossible(settings, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import dataclasses

    from stratascope.extract import plan_extraction, run_extraction
    from stratascope.store import ActivationStore

    plan = plan_extraction(dataclasses.replace(settings, limit=4, record=("residual",)))
    run_extraction(plan, tmp_path / "bare.zarr")
    bare = ActivationStore.open(tmp_path / "bare.zarr")
    with pytest.raises(NotRecordedError, match="rollout needs every token's attention"):
        rollout_examples(bare, [0])
    with pytest.raises(StratascopeError, match="attention_rows"):
        attention_share(bare)
