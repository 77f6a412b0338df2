"""Probes on other arrays, other targets, other machines; VSR's own figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps
from planted import planted_store

from stratascope.cli import main
from stratascope.errors import InvalidInputError
from stratascope.probe import accuracy_by, confusion, grouped_folds, head_curves, layer_curve, probe_study, split_leakage, task_from_values
from stratascope.probe.solver.standardised_rows import Rows
from stratascope.probe.tasks.task import find_task
from stratascope.probe.validation.cross_validation import classify, regress
from stratascope.store import ActivationStore
from stratascope.store.io.example_filter import CATEGORIES, category_of

SHARED = Path(__file__).parents[3] / "shared" / "data" / "vsr"
vsr = pytest.mark.skipif(not SHARED.exists(), reason="needs the published VSR files beside the repository")


@pytest.mark.slow
def test_box_geometry_is_read_where_it_was_planted(tmp_path):
    store = ActivationStore.open(planted_store(tmp_path / "g.zarr", boxes=True))
    curve = layer_curve(store, "geometry", draws=300)
    assert curve.targets == ("subject_x", "subject_y", "object_x", "object_y", "offset_x", "offset_y")
    assert len(curve.examples) == 399, "one example has no box"
    subject = curve.rows("r2_subject_x").set_index("layer")
    assert (subject.loc[2:, "value"] > 0.6).all()
    assert (subject.loc[:1, "value"] < 0.1).all()
    assert (curve.rows("r2_object_y")["value"] < 0.1).all()
    assert 0.2 < curve.value(4, "r2_offset_x") < 0.6, "half of the offset is the object's"
    assert curve.onset.layer == 2
    shuffled = layer_curve(store, "geometry:shuffled", draws=300)
    assert shuffled.onset.layer is None
    with pytest.raises(InvalidInputError, match="geometry:shuffled"):
        layer_curve(store, "geometry:control")


@pytest.mark.parametrize("condition", ["original", "mirror"])
def test_places_are_those_in_the_image_that_the_model_was_shown(tmp_path, condition):
    """Against the pixels of an image in which the box is painted, flipped by Pillow where the images were."""
    store = ActivationStore.open(planted_store(tmp_path / "g.zarr", examples=80, boxes=True, condition=condition))
    found, _ = find_task(store, "geometry", np.ones(80, bool))
    table = store.examples.round()
    for k in (0, 1, 7, 30):
        image = Image.new("L", (56, 56))
        x0, y0, x1, y1 = table.loc[k, [f"subject_{side}" for side in ("x0", "y0", "x1", "y1")]]
        image.paste(255, tuple(map(int, (x0, y0, x1, y1))))
        rows, columns = np.nonzero(np.asarray(ImageOps.mirror(image) if condition == "mirror" else image))
        assert found.values is not None
        assert np.abs(found.values[k, :2] - ((columns.mean() + 0.5) / 56, (rows.mean() + 0.5) / 56)).max() < 0.51 / 56
    assert np.allclose(found.values[:, 4:], found.values[:, :2] - found.values[:, 2:4])


@pytest.mark.slow
def test_one_probe_per_head(tmp_path):
    store = ActivationStore.open(planted_store(tmp_path / "h.zarr", heads=True))
    curves = head_curves(store, draws=300)
    heat = pd.concat([c.rows() for c in curves]).pivot(index="position", columns="layer", values="value")
    assert heat.shape == (2, 5)
    assert (heat.loc["head 1", 3:] > 0.9).all()
    assert (heat.loc["head 0"] < 0.62).all()
    assert curves[0].onset.layer is None
    assert curves[1].onset.layer == 3
    whole = layer_curve(store, array="head_outputs", position=None, layers=(4,), draws=300)
    assert whole.value(4) > 0.9
    with pytest.raises(InvalidInputError, match="a vector for each head"):
        head_curves(store, array="residual")


def test_the_vision_tower_is_probed_like_the_rest(tmp_path):
    store = ActivationStore.open(planted_store(tmp_path / "v.zarr", vision=True))
    (curve,) = probe_study(store, ("truth",), array="vision_residual", draws=300)
    assert curve.position == "image"
    assert curve.layers.tolist() == [0, 1, 2]
    assert curve.onset.layer == 1


@pytest.mark.slow
def test_what_the_tower_hands_on_has_no_layers_and_is_probed_all_the_same(tmp_path):
    path = planted_store(tmp_path / "v.zarr", vision=True)
    store = ActivationStore.open(path)
    (curve,) = probe_study(store, ("truth",), array="vision_output", draws=300)
    assert (curve.position, curve.layers.tolist()) == ("image", [0])
    assert curve.value(0) > 0.9
    said = CliRunner().invoke(
        main, ["probe", str(path), "--array", "vision_output", "--tasks", "truth,relation", "--controls", "shuffled", "--strengths",
               "1e-2,1e-1", "--measures", "mdl", "--out", str(tmp_path / "r")],
    )  # fmt: skip
    assert said.exit_code == 0, said.output
    truth, relation = said.output.split("truth at image: ")[1], said.output.split("relation at image: ")[1]
    assert "(chance" in truth.splitlines()[0]
    assert "at layer" not in truth.splitlines()[0]
    assert "all of these: detected, by +0.4" in truth.partition("relation at image")[0]
    assert re.search("above chance.*: not detected, by", relation.partition("truth at image")[0])
    assert "in layer" not in said.output
    assert (tmp_path / "r" / "probe-truth.png").exists()


@pytest.mark.slow
def test_curves_can_be_taken_apart(tmp_path):
    store = ActivationStore.open(planted_store(tmp_path / "a.zarr"))
    truth, relation = probe_study(store, ("truth", "relation"), ("final",), layers=(1, 4), draws=200)
    by = accuracy_by(truth, dict(zip(store.examples["id"], store.examples["relation"], strict=True)))
    assert len(by) == 4 * 2
    assert (by.query("layer == 4")["low"] > 0.6).all()
    assert by.query("layer == 1")["examples"].sum() == 400
    table = confusion(relation, 4)
    assert table.to_numpy().sum() == 400
    assert table.loc["above"].sum() == (store.examples["relation"] == "above").sum()


def test_categories_are_those_of_vsr():
    assert len(CATEGORIES) == 7
    assert category_of("left of") == "Projective"
    assert category_of("inside") == "Topological"
    assert category_of("orbiting") == "Unallocated"


def statistics(table: pd.DataFrame) -> dict[str, float]:
    """What is known of the published VSR: sizes, balance, leakage, and what the caption alone tells of the label."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.metrics import roc_auc_score
    from sklearn.naive_bayes import MultinomialNB

    train, test = table[table["split"] == "train"], table[table["split"] == "test"]
    words = CountVectorizer(ngram_range=(1, 2)).fit(train["caption"])
    naive = MultinomialNB().fit(words.transform(train["caption"]), train["label"])
    mostly = table.groupby("relation")["label"].mean() >= 0.5
    return {
        "relations": table["relation"].nunique(),
        "rare": int((table["relation"].value_counts() < 20).sum()),
        "true": table["label"].mean(),
        "leaked": split_leakage(table).share,
        "majority per relation": (table["relation"].map(mostly) == table["label"]).mean(),
        "caption alone": roc_auc_score(test["label"], naive.predict_proba(words.transform(test["caption"]))[:, 1]),
        "relation is in the caption": np.mean([r in c for r, c in zip(table["relation"], table["caption"], strict=True)]),
    }


def test_statistics_of_a_small_set_in_the_form_of_vsr():
    """Made by hand: 40 captions on 20 images; 6 of 10 test examples are on images of training."""
    rows = [
        {
            "image": f"{(k // 2 if k < 30 else (k - 30) // 2 if k < 36 else k):03d}.jpg",
            "caption": f"The cat is {relation} the bed.",
            "relation": relation,
            "label": k % 2,
            "split": "train" if k < 30 else "test",
        }
        for k in range(40)
        for relation in (("under", "left of", "touching")[k // 2 % 3],)
    ]
    found = statistics(pd.DataFrame(rows))
    assert found["relations"] == found["rare"] == 3
    assert found["true"] == 0.5
    assert found["leaked"] == 0.6
    assert found["caption alone"] == 0.5, "every caption is said of a true and a false image"
    assert found["relation is in the caption"] == 1
    assert found["majority per relation"] == 0.5
    with_a_hint = statistics(pd.DataFrame([row | {"caption": row["caption"] + (" Yes." if row["label"] else "")} for row in rows]))
    assert with_a_hint["caption alone"] == 1, "a word that gives the label away is seen"


@vsr
def test_vsr_is_as_described():
    parts = {}
    for split in ("random", "zeroshot"):
        rows = []
        for name in ("train", "dev", "test"):
            rows += [json.loads(line) | {"split": name} for line in (SHARED / split / f"{name}.jsonl").read_text().splitlines()]
        parts[split] = pd.DataFrame(rows)
    random = parts["random"]
    assert (len(random), random["image"].nunique(), random["relation"].nunique()) == (10_972, 6_259, 66)
    assert (random["relation"].value_counts() < 20).sum() == 14
    assert random["label"].mean() == pytest.approx(0.512, abs=5e-4)
    assert split_leakage(random).share == pytest.approx(0.56, abs=0.005)
    assert parts["zeroshot"]["split"].value_counts().tolist() == [3_489, 1_222, 340]
    for name, caption_alone, majority in (("random", 0.486, 0.524), ("zeroshot", 0.518, 0.527)):
        found = statistics(parts[name])
        assert found["majority per relation"] == pytest.approx(majority, abs=5e-4), "told the labels, it guesses hardly better than .512"
        assert found["caption alone"] == pytest.approx(caption_alone, abs=0.005), "the caption alone tells nothing"
        assert found["relation is in the caption"] == 1
    published = (SHARED / "relation_categories.txt").read_text()
    for line in published.splitlines():
        category, relations = line.split(": ")
        for relation in relations.strip().split(", "):
            assert category_of(relation) == category or relation == "among"
    task = task_from_values("relation", random["relation"]).among(np.ones(len(random), bool), 20)
    assert len(task.classes) == 52
    folds = grouped_folds(random["image"].to_numpy(), task.codes, class_names=task.classes)
    sizes = np.bincount(folds.of[folds.of >= 0])
    assert np.ptp(sizes) < 0.02 * sizes.mean()
    spread = pd.crosstab(folds.of[folds.of >= 0], task.codes[folds.of >= 0])
    assert (spread.max() - spread.min() <= 3).all(), "every relation in equal parts"


def test_a_target_that_cannot_be_read_does_not_hide_one_that_can():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(300, 80)).astype(np.float32)
    values = rng.normal(size=(1, 300, 6))
    values[0, :, 0] = x[:, 7] + 0.5 * rng.normal(size=300)
    folds = grouped_folds(np.arange(300).astype(str), np.zeros(300, np.intp), folds=5, seed=0)
    rows = Rows(x, folds.of)
    (together,), (alone,) = regress(rows, values, folds), regress(rows, values[:, :, :1], folds)
    assert np.array_equal(together.logits[0], alone.logits[0])
    assert 1 - np.square(together.logits[0] - values[0, :, 0]).mean() / values[0, :, 0].var() > 0.6
    assert together.strength.reshape(6, 5)[0].min() > together.strength.reshape(6, 5)[1:].max()


@pytest.mark.slow
def test_what_lies_in_directions_of_little_variance_is_found_behind_those_of_much():
    rng = np.random.default_rng(0)
    count, columns = 1000, 300
    x = rng.normal(size=(count, columns)) + 8 * rng.normal(size=(count, 24)) @ rng.normal(size=(24, columns))
    direction = np.linalg.qr(rng.normal(size=(columns, 1)))[0][:, 0]
    values = rng.normal(size=(1, count, 1))
    x += values[0] * direction
    labels = (values[0, :, 0] > 0).astype(np.intp)
    folds = grouped_folds(np.arange(count).astype(str), labels, folds=5, seed=0)
    rows = Rows(x.astype(np.float32), folds.of)
    (found,) = regress(rows, values, folds)
    assert 1 - np.square(found.logits[0] - values[0, :, 0]).mean() > 0.25
    (classified,) = classify(rows, labels[None], folds, classes=2)
    assert ((classified.logits[0] > 0) == labels).mean() > 0.62
    curve = classified.inner_loss.mean(1)
    assert curve[1] < curve[2] < curve[3], "the loss rises at first, as what lies along much variance is fitted in vain"
