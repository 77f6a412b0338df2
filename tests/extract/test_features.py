"""Features of an image, computed once for all its captions: the same bits, the fewest passes, bounded memory."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.run import vision_features as features_module  # noqa: E402
from stratascope.extract.run.inputs import forward_inputs  # noqa: E402
from stratascope.extract.run.vision_features import (  # noqa: E402
    FeatureCache,
    ImageFeatures,
    accepts_features,
    feature_inputs,
    image_features,
    image_grids,
)
from stratascope.store import ActivationStore  # noqa: E402
from tests.extract.families import FAMILIES, build, example  # noqa: E402
from tests.extract.test_extraction import contents  # noqa: E402


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_given_features_a_model_answers_bit_for_bit_as_given_pixels(name: str) -> None:
    model = build(name, "eager")
    assert accepts_features(model)
    given = example(name, model, 9, seed=1)
    ids, images = given.pop("input_ids"), given
    lengths = torch.tensor([ids.shape[1]])
    expected = model(**forward_inputs(model, ids, lengths, images), use_cache=False).logits
    features = image_features(model, images, images)
    for _ in range(2):  # twice: a pass must not use them up
        inputs = forward_inputs(model, ids, lengths, image_grids([features]))
        found = model(**inputs, **feature_inputs([features]), use_cache=False).logits
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "llava_next", "gemma3", "internvl"])
@torch.inference_mode()
def test_features_of_several_images_go_to_their_own_prompts(name: str) -> None:
    model = build(name, "eager")
    prompts = [example(name, model, 9, seed=seed) for seed in (1, 2)]
    ids = torch.cat([prompt.pop("input_ids") for prompt in prompts])
    features = [image_features(model, prompt, prompt) for prompt in prompts]
    lengths = torch.tensor([ids.shape[1]] * 2)
    together = model(**forward_inputs(model, ids, lengths, image_grids(features)), **feature_inputs(features), use_cache=False).logits
    for row, prompt in enumerate(prompts):
        alone = model(**forward_inputs(model, ids[row : row + 1], lengths[:1], prompt), use_cache=False).logits
        np.testing.assert_allclose(together[row], alone[0], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def captioned(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> ExtractionSettings:
    """36 captions of 12 scenes, interleaved: three of each, never in one block of eight."""
    folder = tmp_path_factory.mktemp("captioned")
    rows = [json.loads(line) for line in (scenes / "scenes.jsonl").read_text().splitlines()[:12]]
    again = [{**rows[(k + turn) % 12], "image": rows[k]["image"]} for turn in range(3) for k in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, again)))
    return ExtractionSettings(
        model="demo", examples=(folder / "rows.jsonl",), images=scenes / "images", boxes=scenes / "instances.json", device="cpu",
        block=8, record=("residual", "attention_rows", "vision_residual", "vision_output"),
    )  # fmt: skip


@pytest.mark.slow
def test_the_tower_runs_once_an_image_and_the_store_is_that_of_no_cache(
    captioned: ExtractionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_extraction(captioned)
    assert run_extraction(plan, tmp_path / "kept.zarr").tower_passes == 12
    monkeypatch.setattr(features_module, "HOST_BYTES", 0)
    assert run_extraction(plan, tmp_path / "anew.zarr").tower_passes == 36
    assert contents(tmp_path / "kept.zarr") == contents(tmp_path / "anew.zarr")
    store = ActivationStore.open(tmp_path / "kept.zarr")
    assert np.isfinite(store.read("vision_residual", position="image")).all()


@pytest.mark.slow
def test_a_run_that_stopped_and_lost_its_features_goes_on_with_the_same_bits(captioned: ExtractionSettings, tmp_path: Path) -> None:
    plan = plan_extraction(captioned)
    run_extraction(plan, tmp_path / "whole.zarr")
    for rank in (2, 0, 1):
        run_extraction(plan, tmp_path / "parts.zarr", rank=rank, of=3)
    assert contents(tmp_path / "parts.zarr") == contents(tmp_path / "whole.zarr")


@pytest.mark.slow
def test_a_model_that_takes_no_features_is_given_pixels(
    captioned: ExtractionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_extraction(dataclasses.replace(captioned, record=("residual", "attention_rows")))
    run_extraction(plan, tmp_path / "features.zarr")
    monkeypatch.setattr("stratascope.extract.run.model.accepts_features", lambda model: False)
    assert run_extraction(plan, tmp_path / "pixels.zarr").tower_passes == 0
    features, pixels = (ActivationStore.open(tmp_path / name) for name in ("features.zarr", "pixels.zarr"))
    for name, where in (("residual", {"position": "image"}), ("attention_rows", {}), ("answer_logits", {})):
        np.testing.assert_allclose(features.read(name, **where), pixels.read(name, **where), rtol=1e-4, atol=1e-3)


def _features(size: int) -> ImageFeatures:
    return ImageFeatures(torch.zeros(size, dtype=torch.uint8), (), None, None, object, False)


@functools.cache
def _fewest(order: tuple[str, ...], held: frozenset[str], room: int) -> int:
    """By trying everything: the fewest computations of a cache of `room` images of one size."""
    if not order:
        return 0
    name, rest = order[0], order[1:]
    after = held | {name}
    drops = [after] if len(after) <= room else [after - {drop} for drop in after]
    return (name not in held) + min(_fewest(rest, kept, room) for kept in drops)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("room", [1, 2, 3])
def test_no_choice_of_what_is_kept_would_compute_less(seed: int, room: int) -> None:
    order = tuple("abcdef"[k] for k in np.random.default_rng(seed).integers(0, 6, 14))
    cache = FeatureCache(order, limit=10 * room)
    for name in order:
        cache.obtain(name, lambda: _features(10))
        assert cache.bytes <= 10 * room
    assert cache.computed == _fewest(order, frozenset(), room)
    assert cache.bytes == 0


def test_nothing_is_kept_that_will_not_be_asked_for() -> None:
    cache = FeatureCache(["a", "b", "a"], limit=100)
    for name, kept in (("a", True), ("b", False), ("a", False)):
        cache.obtain(name, lambda: _features(10))
        assert (name in cache) == kept
    assert cache.computed == 2
