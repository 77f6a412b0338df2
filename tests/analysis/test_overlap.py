"""Overlap with boxes, AUROC against scikit-learn and the bootstrap, prediction of planted answers, confidence by relation."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from analysis_stores import GRID, HEADS, IMAGE, LAYERS, TELLING, cells_inside, planted_store
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from stratascope.analysis import (
    AnswerConfidence,
    AnswerPrediction,
    BoxOverlap,
    answer_confidence,
    answer_prediction,
    attention_overlap,
    box_geometry,
    box_overlap,
    cell_overlap,
    rollout_examples,
)
from stratascope.analysis.box_cells import box_tokens
from stratascope.cli import main
from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError
from stratascope.stats.auroc import Auroc
from stratascope.store import ActivationStore
from stratascope.store.format.prompt_parts import shown_boxes


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return planted_store(tmp_path_factory.mktemp("planted") / "planted.zarr", examples=320)


@hypothesis_settings(max_examples=40, deadline=None)
@given(cells=st.integers(2, 30), seed=st.integers(0, 10_000))
def test_measures_of_overlap_written_out(cells: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    inside = np.zeros(cells, bool)
    inside[rng.choice(cells, rng.integers(1, cells), replace=False)] = True
    weights = np.round(rng.gamma(1, size=(2, 3, cells)), 1) + 0.1
    for measure, expected in {
        "share": lambda w: w[inside].sum() / w.sum(),
        "lift": lambda w: w[inside].sum() / w.sum() / inside.mean(),
        "cosine": lambda w: w @ inside / np.linalg.norm(w) / np.linalg.norm(inside.astype(float)),
        "auc": lambda w: roc_auc_score(inside, w),
    }.items():
        found = cell_overlap(weights, inside, measure)
        np.testing.assert_allclose(found, [[expected(w) for w in row] for row in weights], atol=1e-12)


def test_an_even_map_overlaps_by_chance_alone_and_an_empty_one_not_at_all() -> None:
    inside = np.arange(20) < 5
    assert [float(cell_overlap(np.ones(20), inside, m)) for m in ("share", "lift", "auc")] == [0.25, 1, 0.5]
    assert np.isnan(cell_overlap(np.zeros(20), inside))
    assert np.isnan(cell_overlap(np.ones(20), np.zeros(20, bool)))


@pytest.mark.parametrize(
    ("weights", "measure", "message"),
    [(np.ones(5), "iou", "measure"), (np.ones(4), "share", "5 cells"), (-np.ones(5), "share", "at least 0")],
)
def test_bad_overlaps_are_refused(weights: np.ndarray, measure, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        cell_overlap(weights, np.arange(5) < 2, measure)


def test_the_cells_of_a_box_are_those_that_extraction_used(store, plan) -> None:
    inside = box_tokens(store, np.arange(96))
    for example in range(96):
        both = []
        for b, position in enumerate(("subject_box", "object_box")):
            expected = plan.position_tokens(example, position)
            assert np.flatnonzero(inside[example, b]).tolist() == sorted(expected)
            both += list(expected)
        assert np.flatnonzero(inside[example, 2]).tolist() == sorted(set(both))


def test_a_mirrored_store_has_mirrored_boxes(settings, store, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from stratascope.extract import plan_extraction, run_extraction

    plan = plan_extraction(dataclasses.replace(settings, condition="mirror", limit=4, record=("attention_rows",)))
    run_extraction(plan, tmp_path / "mirror.zarr")
    mirrored = ActivationStore.open(tmp_path / "mirror.zarr")
    there, here = shown_boxes(mirrored), shown_boxes(store)[:4]
    np.testing.assert_allclose(there[..., 0], 1 - here[..., 2])
    np.testing.assert_allclose(there[..., 2], 1 - here[..., 0])
    np.testing.assert_allclose(there[..., [1, 3]], here[..., [1, 3]])
    inside = box_tokens(mirrored, np.arange(4))
    for example in range(4):
        assert np.flatnonzero(inside[example, 0]).tolist() == sorted(plan.position_tokens(example, "subject_box"))


def test_geometry_written_out(planted) -> None:
    geometry = box_geometry(planted)
    row = planted.examples.iloc[7]
    s, o = ([float(row[f"{who}_{side}"]) / 100 for side in ("x0", "y0", "x1", "y1")] for who in ("subject", "object"))
    fine = np.linspace(0, 1, 2001)[:-1] + 1 / 4000
    in_s, in_o = (((fine >= b[1]) & (fine < b[3]))[:, None] & ((fine >= b[0]) & (fine < b[2])) for b in (s, o))
    assert geometry["subject_area"][7] == pytest.approx(in_s.mean(), abs=2e-3)
    assert geometry["overlap"][7] == pytest.approx((in_s & in_o).sum() / (in_s | in_o).sum(), abs=5e-3)
    assert geometry["covered"][7] == pytest.approx((in_s | in_o).mean(), abs=2e-3)
    assert geometry["offset_x"][7] == pytest.approx((s[0] + s[2] - o[0] - o[2]) / 2)


def test_overlap_of_attention_is_that_of_its_rows(planted, tmp_path: Path) -> None:
    found = attention_overlap(planted, [5, 70], measure="share")
    assert found.values.shape == (2, LAYERS, HEADS, 3)
    for k, example in enumerate((5, 70)):
        row = planted.examples.iloc[example]
        box = cells_inside(np.array([float(row[f"subject_{side}"]) for side in ("x0", "y0", "x1", "y1")]))
        rows = planted.read("attention_rows", layer=2, examples=[example])[0, :, IMAGE[0] : IMAGE[1]].astype(float)
        np.testing.assert_allclose(found.values[k, 2, :, 0], rows[:, box].sum(1) / rows.sum(1), rtol=1e-5)
    fused = attention_overlap(planted, [5], measure="share", fused=True)
    assert fused.values.shape == (1, LAYERS, 1, 3)
    mean = planted.read("attention_rows", examples=[5]).mean(2)
    by_hand = box_overlap(planted, np.moveaxis(mean, 0, 1), [5], name="mean row")
    np.testing.assert_allclose(fused.values, by_hand.values, atol=1e-3)
    np.testing.assert_array_equal(attention_overlap(planted, [5, 70], measure="share", scheduler="threads").values, found.values)
    found.save(tmp_path / "o.zarr.zip")
    again = BoxOverlap.load(tmp_path / "o.zarr.zip")
    np.testing.assert_array_equal(again.values, found.values)
    assert again.attributes == found.attributes


def test_overlap_of_rollouts(store) -> None:
    rolled = rollout_examples(store, [4, 9])
    found = box_overlap(store, rolled.values, [4, 9], name="rollout", measure="lift")
    assert found.values.shape == (2, store.layout.layers + 1, 1, 3)
    inside = box_tokens(store, np.array([9]))[0, 1, slice(*store.spans["image"][9])]
    np.testing.assert_allclose(found.values[1, 0, 0, 1], cell_overlap(rolled.onto_image(1).ravel(), inside, "lift"), rtol=1e-5)
    with pytest.raises(InvalidInputError, match="maps of 1 examples"):
        box_overlap(store, rolled.values, [4], name="rollout")
    with pytest.raises(InvalidInputError, match="cover the image's tokens"):
        box_overlap(store, rolled.values[..., :20], [4, 9], name="rollout")


@pytest.mark.slow
def test_a_store_without_boxes_says_so(settings, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from stratascope.extract import plan_extraction, run_extraction

    run_extraction(plan_extraction(dataclasses.replace(settings, boxes=None, limit=4)), tmp_path / "bare.zarr")
    with pytest.raises(NotRecordedError, match="`boxes`"):
        attention_overlap(ActivationStore.open(tmp_path / "bare.zarr"))


@hypothesis_settings(max_examples=40, deadline=None)
@given(examples=st.integers(8, 60), seed=st.integers(0, 10_000))
def test_auroc_is_scikit_learn_s_and_its_influences_add_up(examples: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=(examples, 5)), 1)  # with ties
    positive = np.arange(examples) % 3 == 0
    found = Auroc.of(scores, positive, np.arange(examples))
    np.testing.assert_allclose(found.value, [roc_auc_score(positive, column) for column in scores.T], atol=1e-12)
    np.testing.assert_allclose(found.influence.sum(0), 0, atol=1e-12)


@pytest.mark.slow
def test_the_error_of_auroc_and_of_a_difference_is_that_of_drawing_images_anew() -> None:
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(200), 2)
    positive = np.repeat(rng.random(200) < 0.4, 2)
    scores = np.repeat(rng.normal(size=(200, 2)), 2, axis=0) + 0.3 * rng.normal(size=(400, 2)) + positive[:, None]
    found = Auroc.of(scores, positive, images)
    drawn = []
    for _ in range(600):
        picked = rng.integers(0, 200, 200)
        rows = np.concatenate([2 * picked, 2 * picked + 1])
        drawn.append([roc_auc_score(positive[rows], scores[rows, c]) for c in range(2)])
    spread = np.array(drawn)
    np.testing.assert_allclose(found.error, spread.std(0), rtol=0.12)
    first, second = (Auroc.of(scores[:, [c]], positive, images) for c in range(2))
    assert first.minus(second).error[0] == pytest.approx((spread[:, 0] - spread[:, 1]).std(), rel=0.12)
    # taking the two examples of an image for two would make the error too small
    assert (Auroc.of(scores, positive, np.arange(400)).error < 0.85 * found.error).all()


@pytest.mark.slow
def test_the_simultaneous_band_of_noise_holds_all_scores_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    positive = np.arange(150) % 2 == 0
    held = single = 0
    for trial in range(150):
        found = Auroc.of(rng.normal(size=(150, 40)), positive, np.arange(150))
        low, high = found.simultaneous(seed=trial)
        held += bool(((low <= 0.5) & (high >= 0.5)).all())
        low, high = found.interval()
        single += bool(((low <= 0.5) & (high >= 0.5)).all())
    assert 0.86 <= held / 150 <= 1
    assert single / 150 < 0.5


@pytest.mark.parametrize("wanted", [0.5, 0.9])
def test_the_band_of_an_auroc_covers_in_few_images_and_near_1(wanted: float) -> None:
    """36 heads, 60 images of two examples; normal ends without Student's t cover in 85 % at .5 and 47 % at .9."""
    groups, held = np.repeat(np.arange(60), 2), []
    for trial in range(60):
        rng = np.random.default_rng([trial, 5])
        positive = rng.random(120) < 0.7
        scores = (rng.standard_normal((36, 60))[:, groups] + rng.standard_normal((36, 120))).T + 2 * norm.ppf(wanted) * positive[:, None]
        low, high = Auroc.of(scores, positive, groups).simultaneous(seed=trial)
        assert ((low > 0) & (high < 1)).all()
        held.append(bool(((low <= wanted) & (high >= wanted)).all()))
    assert np.mean(held) >= 0.95 - 2.5 * np.sqrt(0.05 * 0.95 / 60)


def test_too_few_answers_of_a_kind_are_refused() -> None:
    with pytest.raises(TooFewExamplesError, match="two negatives"):
        Auroc.of(np.ones((4, 1)), np.array([True, True, True, False]), np.arange(4))


def test_the_head_that_was_planted_predicts_right_answers_and_beats_the_boxes(planted, tmp_path: Path) -> None:
    overlap = attention_overlap(planted, measure="lift")
    found = answer_prediction(planted, overlap)
    best = found.best
    assert (best["layer"], best["head"]) == TELLING
    assert best["auroc"] > 0.7
    assert best["low_simultaneous"] > 0.5
    assert best["advantage_low"] > 0
    others = found.table[(found.table["layer"] != TELLING[0]) | (found.table["head"] != TELLING[1])]
    assert (others["low_simultaneous"] < 0.5).all()
    assert abs(found.baseline["auroc"] - 0.5) < 0.12
    assert found.baseline["low"] < 0.5
    right = planted.read("answer_logits").argmax(-1) == 1 - planted.examples["label"].to_numpy()
    scores = overlap.values[:, TELLING[0], TELLING[1], 2]
    assert best["auroc"] == pytest.approx(roc_auc_score(right, scores), abs=1e-6)
    found.save(tmp_path / "p.zarr.zip")
    again = AnswerPrediction.load(tmp_path / "p.zarr.zip")
    assert again.table.to_dict() == found.table.to_dict()
    assert (again.baseline, again.attributes) == (found.baseline, found.attributes)


def test_the_command_and_the_figure_say_whether_overlap_predicts_a_right_answer(planted, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["overlap", planted.name, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert re.search(
        r"AUROC for a right answer: block \d head \d .* box geometry .*; best head significantly above the box geometry", done.output
    )
    drawn = CliRunner().invoke(main, ["figure", "prediction", str(tmp_path), "-o", str(tmp_path / "b.png")])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "b.png").stat().st_size > 3000


@pytest.mark.slow
def test_a_prediction_of_an_earlier_run_does_not_stay_beside_an_overlap_that_it_is_not_of(planted, tmp_path: Path, monkeypatch) -> None:
    arguments = ["overlap", planted.name, "--out", str(tmp_path)]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    (stale,) = tmp_path.glob("prediction*.zarr.zip")
    kept = tmp_path / "prediction-relation-above.zarr.zip"  # of another choice of examples
    kept.write_bytes(stale.read_bytes())

    def refuse(*_: object, **__: object) -> None:
        raise TooFewExamplesError("expected wrong answers, found none; nothing to predict")

    monkeypatch.setattr("stratascope.commands.attention.answer_prediction", refuse)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "nothing to predict" in done.output
    assert f"removed {stale.name}, which an earlier run had made" in done.output
    assert not stale.exists()
    assert kept.exists()
    assert "removed" not in CliRunner().invoke(main, arguments).output


def test_where_size_alone_decides_the_baseline_finds_it_and_attention_has_no_advantage(planted) -> None:
    """A head whose row is even overlaps with large boxes more: its lead is the boxes' alone."""
    overlap = attention_overlap(planted, measure="share")
    covered = box_geometry(planted)["covered"].to_numpy()
    right = covered > np.median(covered)

    class Answered:
        """The planted store, with answers that are right where the boxes are large."""

        examples, layout, provenance, name = planted.examples, planted.layout, planted.provenance, planted.name

        def fingerprint(self) -> str:
            return planted.fingerprint()

        def read(self, array: str, *, examples: np.ndarray) -> np.ndarray:
            label = planted.examples["label"].to_numpy()[examples]
            return np.eye(2)[np.where(right[examples], 1 - label, label)]

    found = answer_prediction(Answered(), overlap)
    assert found.baseline["auroc"] > 0.95
    assert (found.table["auroc"] > 0.55).mean() > 0.5
    assert (found.table["advantage_high"] < 0).all()
    base = found.baseline["auroc"]
    said = f"best head not significantly above the box geometry (n = {found.attributes['examples']}, {found.attributes['right']} right; "
    assert said in found.summary()
    least = found.table["minimum_detectable_effect"]
    assert ((least > found.table["advantage"] - found.table["advantage_low"]) & (least < 0.5)).all()
    assert ("not even an AUROC of 1 of every head would" in found.summary()) == (least.max() > 1 - base)


def test_a_model_that_is_always_right_is_refused_and_a_foreign_overlap_too(store, planted) -> None:
    with pytest.raises(InvalidInputError, match="from this store"):
        answer_prediction(store, attention_overlap(planted, [0, 1], measure="share"))
    with pytest.raises(TooFewExamplesError, match="at least 20 right and 20 wrong"):
        answer_prediction(planted, attention_overlap(planted, np.arange(10), measure="share"))
    with pytest.raises(InvalidInputError, match="subject, object, both"):
        answer_prediction(planted, attention_overlap(planted, np.arange(10), measure="share"), box="image")


def test_confidence_written_out(planted, tmp_path: Path) -> None:
    found = answer_confidence(planted)
    table = found.table.set_index("relation")
    assert table.index.tolist() == ["", "left of", "under"]
    logits = planted.read("answer_logits").astype(float)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    right_choice = np.where(planted.examples["label"] == 1, 0, 1)
    under = (planted.examples["relation"] == "under").to_numpy()
    right = logits.argmax(-1) == right_choice
    row = table.loc["under"]
    assert row["examples"] == under.sum()
    assert row["accuracy"] == pytest.approx(right[under].mean())
    assert row["confidence"] == pytest.approx(shares.max(-1)[under].mean())
    assert row["right_choice"] == pytest.approx(shares[np.arange(320), right_choice][under].mean())
    assert row["margin"] == pytest.approx(np.where(right, 2, -2)[under].mean())
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    found.save(tmp_path / "c.zarr.zip")
    assert AnswerConfidence.load(tmp_path / "c.zarr.zip").table.to_dict() == found.table.to_dict()


def test_intervals_of_accuracy_are_wilson_s_where_answers_are_independent() -> None:
    from scipy.stats import binomtest

    from stratascope.stats.intervals import clustered_wilson

    for right, count in ((37, 60), (60, 60), (1, 45)):
        expected = binomtest(right, count).proportion_ci(method="wilson")
        found = clustered_wilson((np.arange(count) < right).astype(float), np.arange(count), 0.95)
        np.testing.assert_allclose(found, (expected.low, expected.high), atol=2e-3)
    # two answers an image that always agree count once
    twice = np.repeat(np.arange(60) < 37, 2).astype(float)
    pairs, halves = clustered_wilson(twice, np.repeat(np.arange(60), 2), 0.95), clustered_wilson(twice[::2], np.arange(60), 0.95)
    np.testing.assert_allclose(pairs, halves, atol=1e-6)


@pytest.mark.slow
def test_a_prompt_without_a_right_choice_is_refused(settings, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from stratascope.extract import plan_extraction, run_extraction

    plan = plan_extraction(dataclasses.replace(settings, prompt="where", limit=4, record=("attention_rows",)))
    run_extraction(plan, tmp_path / "where.zarr")
    with pytest.raises(NotRecordedError, match="`prompt` true-false"):
        answer_confidence(ActivationStore.open(tmp_path / "where.zarr"))


def test_the_grid_of_the_planted_store_is_not_square() -> None:
    """So that rows and columns taken for each other are noticed above."""
    assert GRID[0] != GRID[1]
