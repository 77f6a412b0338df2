"""The demo's curves show what is true by construction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from stratascope.analysis import RolloutResult, rollout
from stratascope.datasets.scenes import render, sample_scene, sample_statement
from stratascope.demo import run_demo
from stratascope.extract.model_files import resolve_model
from stratascope.probe import LayerCurve
from stratascope.store import ActivationStore


def curve(demo: Path, name: str) -> LayerCurve:
    return LayerCurve.load(demo / "results" / f"probe-{name}.zarr.zip")


@pytest.mark.slow
def test_truth_is_absent_from_the_embeddings_and_readable_in_the_last_block(demo: Path) -> None:
    truth = curve(demo, "truth-final")
    assert truth.value(0, "accuracy") < 0.6
    assert truth.value(1, "accuracy") < 0.65
    assert truth.value(6, "accuracy") > 0.9
    assert truth.value(6, "auroc") > 0.95


def test_blank_images_and_shuffled_labels_stay_at_chance(demo: Path) -> None:
    for name in ("truth-final-blank", "truth-shuffled-final"):
        for layer in range(7):
            assert abs(curve(demo, name).value(layer, "accuracy") - 0.5) < 0.1


def test_truth_is_not_readable_at_the_subject_which_comes_before_the_relation(demo: Path) -> None:
    assert max(curve(demo, "truth-subject").value(layer, "accuracy") for layer in range(7)) < 0.62


def test_the_stored_rollout_equals_the_matrix_product(demo: Path) -> None:
    store = ActivationStore.open(demo / "original.zarr")
    found = RolloutResult.load(demo / "results" / "rollout.zarr.zip")
    for row, example in enumerate(found.examples["example"]):
        maps = store.maps(int(example))
        product = np.eye(maps.shape[-1])
        for layer in maps:
            product = 0.5 * (layer + np.eye(len(layer))) @ product
        tokens = int(store.n_tokens[int(example)])
        np.testing.assert_allclose(found.values[row, 0, :tokens], product[-1], atol=1e-6)
        np.testing.assert_allclose(rollout(maps)[0], product[-1], atol=1e-6)


def test_every_figure_is_there_and_holds_something(demo: Path) -> None:
    for name in ("truth", "relation", "share", "rollout"):
        with Image.open(demo / "results" / f"{name}.png") as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 50


def test_run_again_it_changes_nothing(demo: Path) -> None:
    files = {path: path.read_bytes() for path in demo.rglob("*") if path.is_file()}
    run_demo(demo, scenes=512)
    assert {path: path.read_bytes() for path in demo.rglob("*") if path.is_file()} == files


@pytest.fixture(scope="module")
def built_in():
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = resolve_model("demo").folder
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval(), AutoProcessor.from_pretrained(folder)


def right_answers(built_in, images: list[Image.Image], captions: list[str], labels: list[bool]) -> float:
    """Share of right verdicts through stock transformers, none of our code in between."""
    import torch

    model, processor = built_in
    words = [processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in ("False", "True")]
    texts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"True or false: {c} Answer True or False."}]}],
            add_generation_prompt=True,
        )
        for c in captions
    ]
    inputs = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    with torch.no_grad():
        answers = model(**inputs, logits_to_keep=1).logits[:, -1, words].argmax(-1)
    return float(np.mean([bool(a) == label for a, label in zip(answers.tolist(), labels, strict=True)]))


@pytest.mark.slow
def test_the_built_in_model_answers_unseen_scenes_and_needs_the_image(built_in) -> None:
    rng = np.random.default_rng(987)
    scenes = [sample_scene(rng) for _ in range(400)]
    images = [Image.fromarray(render(things, rng)) for things in scenes]
    statements = [sample_statement(things, rng) for things in scenes]
    captions = [s.caption(things) for s, things in zip(statements, scenes, strict=True)]
    labels = [s.label for s in statements]
    blank = [Image.new("RGB", image.size, (230, 230, 230)) for image in images]
    assert right_answers(built_in, images, captions, labels) >= 0.95
    assert abs(right_answers(built_in, blank, captions, labels) - 0.5) < 0.1
    assert abs(right_answers(built_in, images[1:] + images[:1], captions, labels) - 0.5) < 0.1


@pytest.mark.slow
def test_the_built_in_model_says_where(built_in) -> None:
    import torch

    from stratascope.datasets.scenes import EXCLUSIVE, exclusive_relation

    model, processor = built_in
    words = [processor.tokenizer.encode(r.split()[0], add_special_tokens=False)[0] for r in EXCLUSIVE]
    rng = np.random.default_rng(5)
    right = []
    for _ in range(150):
        things = sample_scene(rng)
        held = exclusive_relation(things[0], things[1])
        image = Image.fromarray(render(things, rng))
        if held is None:
            continue
        question = f"Where is the {things[0].kind} in relation to the {things[1].kind}?"
        text = processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}], add_generation_prompt=True
        )
        inputs = processor(text=[text], images=[image], return_tensors="pt")
        with torch.no_grad():
            right.append(int(model(**inputs, logits_to_keep=1).logits[0, -1, words].argmax()) == EXCLUSIVE.index(held))
    assert np.mean(right) > 0.85
