"""What is planted is what is claimed: each case with the sentence of the command and of the report."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from planted import planted_store
from test_probe_claims import FAST, probed

from stratascope.probe import LayerCurve, layer_curve
from stratascope.store import ActivationStore, BlockWriter, StoreLayout, create_store

EXAMPLES = 400

pytestmark = pytest.mark.slow


def store_of(path: Path, x: NDArray[np.floating], label: NDArray[np.integer], **columns: object) -> ActivationStore:
    """Store of activations x (layer, example, column) at the final token; `columns` are further ones of its examples, or `condition`."""
    count = len(label)
    layout = StoreLayout(
        examples=count, layers=len(x) - 1, hidden=x.shape[2], heads=2, tokens=6, positions=("final",), spans=("image", "final"),
        choices=("True", "False"), record=frozenset({"residual"}), block=count, thumbnail=None, computed_dtype="float32",
    )  # fmt: skip
    condition = columns.pop("condition", "original")
    given = {
        "id": [f"e{i:05d}" for i in range(count)],
        "image": [f"{i:05d}.png" for i in range(count)],
        "caption": "The cat is somewhere.",
        "relation": "left of",
        "label": label,
        "subject": "cat",
        "object": "bed",
    }
    create_store(
        path,
        layout,
        examples=pd.DataFrame(given | columns),
        spans=np.tile(np.array([[0, 4], [5, 6]], np.int32), (count, 1, 1)),
        token_ids=np.zeros((count, 6), np.int32),
        vocabulary={0: "x"},
        n_tokens=np.full(count, 6),
        grid=np.tile(np.array([2, 2], np.int32), (count, 1)),
        position_present=np.ones((count, 1), bool),
        has_map=np.zeros(count, bool),
        provenance={"model": "planted", "condition": condition, "data": {"examples": {"planted.jsonl": "0" * 64}}},
    )
    with BlockWriter(path) as writer:
        arrays = {"residual": x[:, None].astype(np.float32), "answer_logits": np.zeros((count, 2), np.float32)}
        writer.write(0, {**arrays, "status": np.ones(count, np.uint8)})
    return ActivationStore.open(path)


def drawn(seed: int, *, layers: int = 2, hidden: int = 12) -> tuple[np.random.Generator, NDArray[np.floating], NDArray[np.integer]]:
    """Generator, noise (layer, example, column) and labels."""
    rng = np.random.default_rng([seed, 21])
    return rng, rng.standard_normal((layers, EXAMPLES, hidden)), rng.integers(0, 2, EXAMPLES)


UNDECIDED = "whether it is still decodable in layers 4-5 cannot be decided with n = 400"
STILL = "still detected in the last layer"


@pytest.mark.parametrize(
    ("signal", "where", "first", "end"),
    [
        ([0, 0, 0, 2, 0, 0], "layer 3", "layers 0-3", UNDECIDED),
        ([0, 2, 2, 0, 0, 2], "layers 1-2 and 5", "layers 0-1", STILL),
        ([0, 0.1, 0.3, 0.6, 1, 2], "layers 3-5", "layers 0-3", STILL),
        ([0, 2, 1, 0.6, 0.05, 0.05], "layers 1-3", "layers 0-1", UNDECIDED),
        ([0, 0.5, 0.5, 0.5, 0.5, 0.5], "layers 1-5", "layers 0-1", STILL),
    ],
    ids=["single layer", "two stretches", "ramp", "decay", "constant"],
)
def test_courses_over_layers_are_said_as_they_are(tmp_path, signal, where, first, end):
    """The label shifts one of twelve columns by `signal` in each layer; an offset is claimed nowhere."""
    _, x, label = drawn(6, layers=6)
    x[..., 0] += np.array(signal)[:, None] * (2 * label - 1)
    done, _, text = probed(tmp_path, store_of(tmp_path / "s.zarr", x, label), tasks=("truth",))
    said = f"  above chance: detected in {where}; AUROC first above 0.53 in one of {first}; {end}"
    assert said in "\n".join(done.lines)
    assert f"The truth of the caption is detected at the final token in {where.replace('-', '–')} (n = 400; above chance" in text
    assert ("It is still detected in the last layer." in text) == (end == STILL)


def test_xor_is_found_by_a_network_alone_and_named_nonlinear(tmp_path):
    """The label is the product of two signs along two directions of one vector."""
    rng, x, label = drawn(0, hidden=4)
    first = 2 * rng.integers(0, 2, EXAMPLES) - 1
    x[1, :, 0] += 2 * first
    x[1, :, 1] += 2 * first * (2 * label - 1)
    store = store_of(tmp_path / "x.zarr", x, label)
    done, _, text = probed(tmp_path / "linear", store, tasks=("truth",), layers=(1,))
    assert re.search(r"above chance: not detected, by [+-]0\.0\d\d \[.*\] \(n = 400; AUROC of at least 0\.6\d", "\n".join(done.lines))
    assert "The truth of the caption is not detected at the final token in the only layer probed, layer 1 (n = 400" in text
    done, _, text = probed(tmp_path / "mlp", store, tasks=("truth",), layers=(1,), settings={"draws": 400, "method": "mlp", "seed": 1})
    assert "a nonlinear probe (mlp) finds more than can be read linearly; compare it with the linear probe" in "\n".join(done.lines)
    assert re.search(r"above chance: detected, by \+0\.4\d\d \[0\.4", "\n".join(done.lines))
    assert "The truth of the caption is detected by a nonlinear probe at the final token in layer 1 (n = 400; above chance" in text


def test_xor_of_two_positions_is_found_by_the_bilinear_form_alone(tmp_path):
    store = ActivationStore.open(planted_store(tmp_path / "p.zarr", layers=1, onset=1, strength=2.0, pair=True))
    asked = {"tasks": ("truth",), "positions": ("final+relation",)}
    done, _, text = probed(tmp_path / "sum", store, **asked)
    assert "  above chance: not detected (n = 399; AUROC of at least 0.6" in "\n".join(done.lines)
    assert "The truth of the caption is not detected at final+relation in any layer" in text
    done, _, text = probed(tmp_path / "product", store, settings=FAST | {"pair": "bilinear", "rank": 3}, **asked)
    assert "a bilinear probe finds more than can be read linearly" in "\n".join(done.lines)
    assert "  above all of these: detected in layer 1; advantage first above 0.03 at layer 1; still detected" in "\n".join(done.lines)
    assert "is detected by a nonlinear probe at final+relation in layer 1 (n = 399; above chance and the embeddings" in text


def test_carriers_are_detected_with_the_score_that_they_allow(tmp_path):
    """One in five examples shows its label without doubt, the others nothing: the best possible AUROC is .5 + .36 / 2."""
    rng, x, label = drawn(1, layers=4)
    x[2:, :, 0] += 6 * (rng.random(EXAMPLES) < 0.2) * (2 * label - 1)
    done, _, text = probed(tmp_path, store_of(tmp_path / "c.zarr", x, label), tasks=("truth",))
    lines = "\n".join(done.lines)
    assert "  above chance: detected in layers 2-3; AUROC first above 0.53 in one of layers 0-2; still detected in the last layer" in lines
    value, low, high = (float(n) for n in re.search(r"at final: AUROC (\S+) \[(\S+), (\S+)\] at layer 2", lines).groups())
    assert value == pytest.approx(0.68, abs=0.03)
    assert 0.5 < low < 0.68 < high < 0.8
    assert f"The best probe, at layer 2, has an AUROC of {value:.2f} [{low:.2f}, {high:.2f}]; chance level 0.50." in text
    assert "is detected at the final token in layer 2 (n = 400; above chance and the embeddings" in text, "of layer 3 alone not claimed"


def test_a_rare_class_is_excluded_by_name(tmp_path):
    rng, x, label = drawn(2)
    mood = rng.choice(["calm", "grim"], EXAMPLES).astype(object)
    mood[:9], mood[9:14] = "odd", "wry"
    x[1, :, 0] += 2 * (mood == "grim")
    x[1, :, 1] += 5 * (mood == "odd")
    store = store_of(tmp_path / "r.zarr", x, label, mood=mood)
    done, _, text = probed(tmp_path, store, tasks=("mood",))
    assert "  from 386 of 400 examples; excluded because they have fewer than 20 examples: odd 9, wry 5" in done.lines
    assert "is detected at the final token in layer 1 (n = 386; above chance" in text
    assert LayerCurve.load(tmp_path / "probe-mood-final.zarr.zip").classes == ("calm", "grim")
    values = {"own": dict(zip(store.examples["id"][5:], mood[5:], strict=True))}
    done, _, _ = probed(tmp_path / "own", store, tasks=("own",), values=values, layers=(1,), settings=FAST | {"minimum": 5})
    lines = "\n".join(done.lines)
    assert "own: 5 of 400 examples have no value and are excluded" in lines
    assert "  from 391 of 400 examples; excluded because they have fewer than 5 examples: odd 4\n" in lines, "wry 5 takes part"


def test_an_image_of_many_examples_counts_once(tmp_path):
    """Twelve layers of noise tell the image and nothing else; labels are tossed for each image, and one has 120 of 400 examples."""
    rng, x, _ = drawn(3, layers=12, hidden=32)
    image = np.maximum(np.arange(EXAMPLES) - 120, -1) // 2 + 1
    count = image.max() + 1
    x, label = 0.2 * x + rng.standard_normal((12, count, 32))[:, image], rng.integers(0, 2, count)[image]
    names = {"image": [f"{i:05d}.png" for i in image], "image_sha256": [f"{i:064x}" for i in image]}
    store = store_of(tmp_path / "i.zarr", x, label, **names)
    done, _, text = probed(tmp_path, store, tasks=("truth",), settings={**FAST, "strengths": (1e-1,)})
    lines = "\n".join(done.lines)
    assert re.search(
        r"  above chance: not detected \(n = 400; AUROC of at least 0\.[789]\d would have been detected with 80 % power\)", lines
    )
    assert "The truth of the caption is not detected at the final token in any layer (n = 400" in text
    curve = LayerCurve.load(tmp_path / "probe-truth-final.zarr.zip")
    assert curve.examples.groupby("group")["fold"].nunique().max() == 1
    leaked = layer_curve(store, layers=(1, 2), groups="id", **{**FAST, "strengths": (1e-1,)})
    assert list(leaked.detected.layers) == [1, 2], "by examples: what a leak looks like"
    wide, narrow = ((c.rows()["high"] - c.rows()["low"]).to_numpy() for c in (curve, leaked))
    assert wide.min() > 3 * narrow.max()


def test_duplicates_under_other_names_are_said_and_not_a_finding(tmp_path):
    store = ActivationStore.open(planted_store(tmp_path / "t.zarr", layers=1, hidden=128, onset=9, twins=True))
    done, _, text = probed(tmp_path, store, tasks=("truth",), positions=("final",))
    assert done.lines[0] == "duplicate images: 200 of 200 images occur under 400 names; all examples of an image stay in one fold"
    assert any(line.startswith("  above chance: not detected (n = 400; AUROC of at least 0.") for line in done.lines)
    assert "The truth of the caption is not detected at the final token in any layer (n = 400" in text
    assert layer_curve(store, layers=(1,), groups="id", **FAST).detected, "names alone: what a leak looks like"


@pytest.mark.parametrize("embedded", [False, True])
def test_what_the_words_predict_is_not_a_finding(tmp_path, embedded):
    """A word of the caption, in the embeddings or from layer 1 on, agrees with 85 % of the labels; the image shows nothing."""
    rng, _, label = drawn(5 if embedded else 4)
    word = np.where(rng.random(EXAMPLES) < 0.85, label, 1 - label)
    caption = np.where(word, "The cat is on the bed.", "The cat is under the bed.")
    stores = {}
    for condition in ("original", "blank"):
        x = rng.standard_normal((4, EXAMPLES, 12))
        x[0 if embedded else 1 :, :, 0] += 4 * (2 * word - 1)
        stores[condition] = store_of(tmp_path / f"{condition}.zarr", x, label, caption=caption, condition=condition)
    baselines = {} if embedded else {"blank": stores["blank"]}
    done, _, text = probed(tmp_path, stores["original"], tasks=("truth",), baselines=baselines)
    lines = "\n".join(done.lines)
    where = "layers 0-3" if embedded else "layers 1-3"
    assert f"  above chance: detected in {where}; " in lines
    if embedded:
        assert "  above embeddings: not detected (n = 400; " in lines
        assert "  above all of these: not detected (n = 400; " in lines
    else:
        assert "  above embeddings: detected in layers 1-3" in lines
        assert "  above blank, all of these: not detected (n = 400; " in lines
        assert "(not detected): an advantage from the image is not detected." in text
    assert "The truth of the caption is not detected at the final token in any layer (n = 400; advantage of at least 0." in text
    assert f"Above chance alone it is detected in {where.replace('-', '–')}." in text


def test_an_outlier_channel_changes_no_claim(tmp_path):
    """A channel of mean 10,000 and standard deviation 1,000 instead of 0 and 1; its noise is the same."""
    _, x, label = drawn(5, layers=5)
    x[2:4, :, 0] += 2 * label - 1
    large = x.copy()
    large[..., 7] = 1e4 + 1e3 * x[..., 7]
    found = [
        probed(tmp_path / name, store_of(tmp_path / f"{name}.zarr", array, label), tasks=("truth",))
        for name, array in (("plain", x), ("outlier", large))
    ]
    assert found[0][0].lines == found[1][0].lines
    assert found[0][2] == found[1][2]
    lines = "\n".join(found[1][0].lines)
    assert "  above embeddings: detected in layers 2-3" in lines
    assert "whether it is still decodable in layer 4 cannot be decided with n = 400" in lines
    assert "The truth of the caption is detected at the final token in layers 2–3 (n = 400; above chance and the embeddings" in found[1][2]
