"""Rollout against the full matrix product, and its options against vit-explain's algorithm written out with its faults corrected."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from analysis_stores import random_maps
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stratascope.analysis import (
    AttentionShare,
    RolloutResult,
    attention_share,
    discard_weakest,
    fuse_heads,
    rollout,
    rollout_examples,
    rollout_packed,
    rollout_stops,
)
from stratascope.cli import main
from stratascope.errors import InvalidInputError, NotRecordedError, StoreError, StratascopeError
from stratascope.store import decode_maps, encode_maps

SHARED = Path(__file__).parents[3] / "shared" / "data"


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


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    layers=st.integers(1, 7),
    tokens=st.integers(2, 15),
    seed=st.integers(0, 10_000),
    form=st.sampled_from(["raw", "dropped", "conditional"]),
)
def test_every_stop_is_the_rollout_of_a_model_that_stopped_there(layers: int, tokens: int, seed: int, form) -> None:
    maps = random_maps(layers, tokens, seed)
    stops = rollout_stops(maps, form=form)
    assert stops.shape == (layers + 1, tokens)
    assert stops[0].tolist() == [0.0] * (tokens - 1) + [1.0]
    for k in range(1, layers + 1):
        np.testing.assert_allclose(stops[k], rollout(maps[:k], form=form)[0], atol=1e-14)


def test_stops_of_a_window_start_at_its_first_layer() -> None:
    maps = random_maps(6, 10, 0)
    np.testing.assert_allclose(rollout_stops(maps, window=(2, 5)), rollout_stops(maps[2:5]), atol=1e-15)


def test_dropped_sinks_are_gone_from_the_end_and_the_rest_keeps_its_proportions() -> None:
    maps = random_maps(5, 12, 2)
    raw, dropped = rollout(maps), rollout(maps, form="dropped", sinks=[0, 3])
    assert (dropped[:, [0, 3]] == 0).all()
    kept = np.delete(raw, [0, 3], axis=1)
    np.testing.assert_allclose(np.delete(dropped, [0, 3], axis=1), kept / kept.sum(-1, keepdims=True), atol=1e-14)


@hypothesis_settings(max_examples=30, deadline=None)
@given(layers=st.integers(1, 5), tokens=st.integers(4, 12), seed=st.integers(0, 10_000))
def test_conditional_rollout_is_that_of_maps_where_no_token_can_see_a_sink(layers: int, tokens: int, seed: int) -> None:
    maps = random_maps(layers, tokens, seed, 1.0)
    blind = maps.copy()
    blind[:, :, [0, 2]] = 0
    for layer in blind:
        for row in layer:
            total = row.sum()
            row[:] = row / total if total else 0
    blind[:, 0, 0] = blind[:, 2, 2] = np.where(blind.sum(-1)[:, [0]] == 0, 1, 0)[:, 0]
    blind /= blind.sum(-1, keepdims=True)
    found = rollout(maps, form="conditional", sinks=[0, 2])
    # the sinks' own rows are never reached
    np.testing.assert_allclose(found, matrix_rollout(blind), atol=1e-12)
    assert (found[:, [0, 2]] == 0).all()


def corrected_vit_explain(maps: np.ndarray, ratio: float) -> np.ndarray:
    """vit-explain's loop, one weight at a time: ranks the lower triangle, keeps the first column, divides rows."""
    tokens = maps.shape[-1]
    whole = np.eye(tokens)
    for layer in maps:
        entries = sorted((layer[i, j], i * tokens + j) for i in range(tokens) for j in range(i + 1))
        kept = layer.copy()
        for _, place in entries[: int(len(entries) * ratio)]:
            if place % tokens:
                kept[place // tokens, place % tokens] = 0
        mixed = kept + np.eye(tokens)
        for row in mixed:
            row /= row.sum()
        whole = mixed @ whole
    return whole[-1]


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.9])
def test_discarding_is_vit_explain_s_with_its_faults_corrected(ratio: float) -> None:
    maps = random_maps(4, 14, 5, 1.0)
    np.testing.assert_allclose(rollout(maps, discard=ratio)[0], corrected_vit_explain(maps, ratio), atol=1e-13)
    np.testing.assert_allclose(rollout(maps, discard=ratio).sum(-1), 1)
    np.testing.assert_allclose(rollout_stops(maps, discard=ratio)[-1], rollout(maps, discard=ratio)[0], atol=1e-14)


def test_discarding_counts_the_lower_triangle_of_a_causal_map_and_all_of_another() -> None:
    causal = random_maps(1, 20, 0, 1.0)[0]
    entries = 20 * 21 // 2
    lost = (discard_weakest(causal, 0.5) == 0).sum() - (causal == 0).sum()
    assert entries // 2 - 20 <= lost <= entries // 2
    assert (discard_weakest(causal, 0.99)[:, 0] == causal[:, 0]).all()
    full = np.full((6, 6), 1 / 6)
    assert (discard_weakest(full, 0.5) == 0).sum() == 18 - 3


def test_fused_heads() -> None:
    attention = np.stack([random_maps(3, 6, seed) for seed in range(4)], axis=1)
    np.testing.assert_allclose(fuse_heads(attention), attention.mean(1))
    for fusion, fold in (("max", np.maximum.reduce), ("min", np.minimum.reduce)):
        folded = fold([attention[:, h] for h in range(4)])
        np.testing.assert_allclose(fuse_heads(attention, fusion), folded / folded.sum(-1, keepdims=True))
    apart = np.stack([np.eye(2)[[0, 0]], np.eye(2)[[0, 1]]])[None]
    np.testing.assert_array_equal(fuse_heads(apart, "min")[0], np.eye(2))
    with pytest.raises(InvalidInputError, match="median"):
        fuse_heads(attention, "median")


@pytest.mark.parametrize("form", ["raw", "dropped", "conditional"])
def test_packed_maps_give_the_rollout_of_the_decoded(form) -> None:
    packed = encode_maps(random_maps(6, 25, 8))
    np.testing.assert_allclose(
        rollout_packed(packed, form=form, window=(1, 6)), rollout(decode_maps(packed), form=form, window=(1, 6)), atol=1e-14
    )


def test_a_packed_map_that_is_not_there_is_refused() -> None:
    packed = encode_maps(random_maps(2, 4, 0))
    packed[1] = 0
    with pytest.raises(InvalidInputError, match="empty row"):
        rollout_packed(packed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "clean"}, "raw, dropped, conditional"),
        ({"form": "dropped", "sinks": [5]}, "final token is never a sink"),
        ({"discard": 1.0}, "discard ratio"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        rollout(random_maps(2, 6, 0), **options)


def test_rollout_through_the_vision_tower_is_refused_with_the_reason(store) -> None:
    with pytest.raises(NotRecordedError, match="the vision tower in the store for rollout through it, found no vision_maps"):
        rollout_examples(store, [0], tower="vision")


@pytest.mark.parametrize("options", [{}, {"form": "conditional", "sinks": [0, 20]}, {"window": (2, 5), "discard": 0.5}])
def test_rollouts_of_a_store_are_those_of_its_maps_wherever_they_run(store, options: dict) -> None:
    chosen = [70, 3, 64, 8]
    found = rollout_examples(store, chosen, **options)
    for k, example in enumerate(chosen):
        tokens = int(store.n_tokens[example])
        np.testing.assert_allclose(found.values[k, :, :tokens], rollout(store.maps(example), **options), atol=1e-12)
        assert np.isnan(found.values[k, :, tokens:]).all()
    np.testing.assert_array_equal(rollout_examples(store, chosen, scheduler="threads", **options).values, found.values)
    assert found.examples["example"].tolist() == chosen


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
    with pytest.raises(StoreError, match="expected a result of kind 'attention_share'"):
        AttentionShare.load(tmp_path / "r.zarr.zip")


@pytest.mark.slow
def test_a_store_without_maps_says_why_rollout_is_impossible(settings, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import dataclasses

    from stratascope.extract import plan_extraction, run_extraction
    from stratascope.store import ActivationStore

    plan = plan_extraction(dataclasses.replace(settings, limit=4, record=("residual",)))
    run_extraction(plan, tmp_path / "bare.zarr")
    bare = ActivationStore.open(tmp_path / "bare.zarr")
    with pytest.raises(NotRecordedError, match="rollout needs the attention of every token"):
        rollout_examples(bare, [0])
    with pytest.raises(StratascopeError, match="attention_rows"):
        attention_share(bare)


@pytest.mark.slow
def test_the_command_rolls_in_every_form_and_says_what_it_did(store, tmp_path) -> None:
    for options, said in (((), "raw rollout, blocks 0 to 5"), (("--form", "dropped", "--window", "3-5"), "dropped rollout, blocks 3 to 5")):
        done = CliRunner().invoke(main, ["rollout", store.name, "--examples", "0-1", *options, "--out", str(tmp_path)])
        assert done.exit_code == 0, done.output
        assert f"{said}, 2 examples: " in done.output
    found = RolloutResult.load(tmp_path / "rollout.zarr.zip")
    assert (found.attributes["form"], found.attributes["window"]) == ("dropped", [3, 6])
    refused = CliRunner().invoke(main, ["rollout", store.name, "--tower", "vision"])
    assert refused.exit_code == 2
    assert "extract again with vision_maps in --record" in refused.output
