"""Controls are means of many draws with the variance between them; boxes have a baseline of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner
from planted import planted_store
from simulated import TypedSimulation
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss, r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from stratascope.cli import main
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.probe import LayerCurve, ProbeSettings, codelength_of, layer_curve, plan_study, probe_study
from stratascope.probe.curve.curve_set import CurveSet
from stratascope.probe.curve.metrics import score_influences
from stratascope.probe.curve.value_metrics import value_influences
from stratascope.probe.solver.standardised_rows import Rows
from stratascope.probe.study import cost
from stratascope.probe.study.curve_assembly import label_draw_weights
from stratascope.probe.tasks.controls import shuffled_labels
from stratascope.probe.tasks.geometry import geometry_features
from stratascope.probe.validation.cross_validation import classify
from stratascope.results.registry import load_result, save_result
from stratascope.store import ActivationStore

STEP = 1e-4


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    return ActivationStore.open(planted_store(tmp_path_factory.mktemp("controls") / "a.zarr", layers=3, onset=2))


@pytest.mark.parametrize("classes", [2, 4])
def test_influences_are_derivatives_of_scikit_learns_weighted_scores(classes):
    rng = np.random.default_rng(0)
    codes = np.concatenate([np.arange(classes), rng.integers(0, classes, 60 - classes)])
    logits = np.round(rng.normal(size=(1 if classes == 2 else classes, 60)), 1)  # with ties
    if classes > 2:
        logits += 1e-3 * rng.normal(size=logits.shape)
    found = score_influences(logits, codes, np.zeros(60, int), classes, 0.0, 0.0)
    p = np.exp(logits) if classes > 2 else np.stack([np.ones(60), np.exp(logits[0])])
    p /= p.sum(axis=0)
    decided = p.argmax(axis=0) if classes > 2 else (logits[0] > 0).astype(int)
    scores = {
        "accuracy": lambda w: accuracy_score(codes, decided, sample_weight=w),
        "balanced_accuracy": lambda w: balanced_accuracy_score(codes, decided, sample_weight=w),
        "log_loss": lambda w: log_loss(codes, p.T, sample_weight=w),
    }
    if classes == 2:
        scores["auroc"] = lambda w: roc_auc_score(codes, logits[0], sample_weight=w)
    assert set(scores) == set(found)
    for metric, score in scores.items():
        value, influence = found[metric]
        assert value == pytest.approx(score(np.ones(60)))
        for example in range(0, 60, 7):
            ends = [score(1 + sign * STEP * (np.arange(60) == example)) for sign in (1, -1)]
            assert influence[example] == pytest.approx((ends[0] - ends[1]) / 2 / STEP, abs=1e-6), metric


def test_influences_of_values_are_derivatives_of_scikit_learns_r2():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(50, 2))
    predicted = 0.7 * y.T + rng.normal(size=(2, 50)) * [[0.3], [1.0]]
    found = value_influences(predicted, y, ("a", "b"), np.zeros(2))
    assert found["r2"][0] == pytest.approx(r2_score(y, predicted.T))
    for example in range(0, 50, 7):
        ends = [r2_score(y, predicted.T, sample_weight=1 + sign * STEP * (np.arange(50) == example)) for sign in (1, -1)]
        assert found["r2"][1][example] == pytest.approx((ends[0] - ends[1]) / 2 / STEP, abs=1e-6)


@pytest.mark.slow
def test_a_control_is_the_mean_over_draws_with_the_variance_between_them(store, tmp_path, monkeypatch):
    options = {"layers": (0, 3), "strengths": (1e-2,), "draws": 2000, "control_draws": 6}
    curve = layer_curve(store, "truth:shuffled", **options)
    plain = layer_curve(store, "truth", **options)
    folds = plan_study(store, ("truth",), ("final",), **options).plans["final"][0].folds
    drawn = shuffled_labels(store.examples["label"].to_numpy(), folds, draws=6)
    x = store["residual"].sel(layer=3, position="final").to_numpy()
    scores = []
    for labels in drawn:  # scikit-learn, one draw after another
        logits = np.zeros(len(x))
        for fold in range(5):
            train, test = folds.of != fold, folds.of == fold
            scaler = StandardScaler().fit(x[train])
            probe = LogisticRegression(C=1e-2, tol=1e-9, max_iter=2000).fit(scaler.transform(x[train]), labels[train])
            logits[test] = probe.decision_function(scaler.transform(x[test]))
        scores.append(np.mean(labels == (logits > 0)))
    assert curve.controls["accuracy"][1] == pytest.approx(scores, abs=1e-9)
    assert curve.value(3, "accuracy") == pytest.approx(np.mean(scores))
    between = curve.controls["accuracy"].var(axis=1, ddof=1) / 6
    images = layer_curve(store, "truth:shuffled", **options | {"control_draws": 1}).draws["accuracy"].var(axis=1) / 6
    assert (curve.draws["accuracy"].var(axis=1) > between).all()
    assert (curve.draws["accuracy"].var(axis=1) < between + 3 * images).all()
    assert any("mean of 6 draws" in remark for remark in curve.attributes["remarks"])
    selectivity = plain.difference(curve, "accuracy").table["value"]
    assert selectivity.tolist() == pytest.approx((plain.rows("accuracy")["value"] - curve.rows("accuracy")["value"]).tolist())
    monkeypatch.setattr(cost, "AT_ONCE", 1)  # one draw after another
    apart = layer_curve(store, "truth:shuffled", **options)
    np.testing.assert_allclose(apart.controls["auroc"], curve.controls["auroc"], atol=1e-6)
    curve.save(tmp_path / "c.zip")
    back = LayerCurve.load(tmp_path / "c.zip")
    np.testing.assert_array_equal(back.controls["auroc"], curve.controls["auroc"])
    old = load_result(tmp_path / "c.zip")  # as version 0.1 wrote it: one draw
    save_result(tmp_path / "old.zip", replace(old, arrays={n: a for n, a in old.arrays.items() if not n.startswith("controls_")}))
    assert LayerCurve.load(tmp_path / "old.zip").controls == {}


def test_weights_of_draws_have_the_variance_of_a_mean():
    values = np.random.default_rng(0).normal(size=20)
    resampled = label_draw_weights("truth:control", 20, 100_000, 0) @ values
    assert resampled.mean() == pytest.approx(0, abs=0.003)
    assert resampled.var() == pytest.approx(values.var(ddof=1) / 20, rel=0.02)
    assert (label_draw_weights("truth:control", 1, 10, 0) == 0).all()


@pytest.mark.slow
def test_finished_layers_codelengths_and_heads_have_all_draws(store, tmp_path):
    options = {"layers": 3, "draws": 200, "output": tmp_path, "strengths": (1e-2, 1e-1), "control_draws": 4}
    first, again = (probe_study(store, ("relation", "relation:shuffled"), ("relation",), **options)[1] for _ in range(2))
    np.testing.assert_array_equal(first.controls["balanced_accuracy"], again.controls["balanced_accuracy"])
    np.testing.assert_array_equal(first.draws["log_loss"], again.draws["log_loss"])
    study = plan_study(store, ("truth", "truth:shuffled"), ("final",), layers=3, draws=500, control_draws=8)
    codes = codelength_of(study).set_index("task")
    assert codes.loc["truth", "value"] > 1.1 > codes.loc["truth:shuffled", "value"]
    with pytest.raises(InvalidInputError, match="at least 1 draw of the labels of a control"):
        ProbeSettings(control_draws=0)


@pytest.mark.slow
def test_shuffled_labels_of_few_examples_are_stable_over_seeds(tmp_path):
    """One draw at n = 60 scatters as its standard error of .07 says; the mean of 20 draws far less."""
    store = ActivationStore.open(planted_store(tmp_path / "s.zarr", examples=60, layers=1, onset=1))
    options = {"layers": 1, "strengths": (1e-2,), "draws": 200}
    one, many = (
        np.std([layer_curve(store, "truth:shuffled", seed=seed, control_draws=count, **options).value(1) for seed in range(12)])
        for count in (1, 20)
    )
    assert many < 0.03 < one


@pytest.mark.slow
def test_intervals_of_selectivity_cover_the_expected_difference():
    """Over labellings that could have been drawn, on fresh examples."""
    inside = []
    for seed in range(30):
        interval, truth, _ = TypedSimulation(seed, n=400, d=12, method="means", further=60).selectivity()["auroc"]
        inside.append(interval.low[0] <= truth <= interval.high[0])
    assert np.mean(inside) >= 0.83


def test_the_expected_scores_of_the_simulation_are_those_of_many_fresh_examples():
    """Of the truth and of a control's labels, in both metrics: 200,000 fresh examples scored by scikit-learn."""
    simulation = TypedSimulation(3, n=400, d=6, method="means", control_draws=1, further=0)
    answer = classify(Rows(simulation.x, simulation.folds.of), simulation.labels, simulation.folds, classes=2, method="means")[0]
    rng = np.random.default_rng(0)
    types, shifted = rng.integers(0, 49, 200_000), rng.integers(0, 2, 200_000)
    x = rng.standard_normal((200_000, 6)) + simulation.places[types]
    x[:, 0] += simulation.shift * (2 * shifted - 1)
    of_type = np.zeros(49, int)
    of_type[simulation.types] = simulation.controls[0]
    for control, labels in ((None, shifted), (simulation.controls[0], of_type[types])):
        logits = x @ answer.fold_directions[:, 0].T + answer.fold_intercepts[:, 0]
        auroc = np.mean([roc_auc_score(labels, fold) for fold in logits.T])
        assert simulation._expected(answer, "auroc", control) == pytest.approx(auroc, abs=0.004)
        assert simulation._expected(answer, "accuracy", control) == pytest.approx(((logits > 0) == labels[:, None]).mean(), abs=0.004)


@pytest.fixture(scope="module")
def boxed(tmp_path_factory) -> tuple[ActivationStore, ActivationStore]:
    """A store with a position in the subject's box, and its blank images."""
    folder = tmp_path_factory.mktemp("boxed")
    options = {"layers": 2, "onset": 2, "boxes": True, "positions": ("final", "subject_box")}
    paths = (planted_store(folder / "a.zarr", **options), planted_store(folder / "blank.zarr", condition="blank", **options))
    return ActivationStore.open(paths[0]), ActivationStore.open(paths[1])


@pytest.mark.slow
def test_a_position_in_a_box_is_compared_with_the_geometry_of_the_box(boxed):
    """The same folds, labels and models as scikit-learn on the coordinates of the box; no embeddings in the image."""
    store = boxed[0]
    study = plan_study(store, ("truth", "truth:shuffled", "relation"), ("subject_box",), layers=(0, 1, 2), strengths=(1.0,), draws=200)
    curves, geometry = study.run(scheduler="synchronous"), study.geometry_baseline("subject_box")
    assert [curve.task for curve in geometry] == ["truth:box geometry", "relation:box geometry"]
    table = store.examples.iloc[:-1]  # the last one lacks the position
    box = np.stack([table[f"subject_{side}"] / 56 for side in ("x0", "y0", "x1", "y1")], axis=1)
    np.testing.assert_allclose(geometry_features(store, "subject_box")[:-1], box)
    folds = geometry[0].examples["fold"].to_numpy()
    expected = np.zeros(len(box))
    for fold in range(5):
        scaler = StandardScaler().fit(box[folds != fold])
        labels = table["label"].to_numpy()[folds != fold]
        probe = LogisticRegression(C=1.0, tol=1e-9, max_iter=2000).fit(scaler.transform(box[folds != fold]), labels)
        expected[folds == fold] = probe.decision_function(scaler.transform(box[folds == fold]))
    np.testing.assert_allclose(geometry[0].logits[:, 0], np.tile(expected, (3, 1)), atol=1e-3)
    over = CurveSet([*curves, *geometry]).advantages_of(curves[0])
    assert list(over) == ["chance", "shuffled", "box geometry", "all"]
    assert "embeddings" in CurveSet(layer_curves_at_final(store)).advantages_of(layer_curves_at_final(store)[0])
    both = geometry_features(store, "subject_box+object_box")
    np.testing.assert_allclose(both[:, 8:], both[:, :4] - both[:, 4:8])
    with pytest.raises(InvalidInputError, match="expected a position of a box"):
        geometry_features(store, "final")


def layer_curves_at_final(store: ActivationStore) -> list[LayerCurve]:
    return probe_study(store, ("truth",), ("final",), strengths=(1e-2,), draws=200)


def test_the_geometry_of_a_mirrored_image_is_mirrored(boxed, tmp_path):
    options = {"layers": 2, "onset": 2, "boxes": True, "positions": ("final", "subject_box")}
    mirrored = ActivationStore.open(planted_store(tmp_path / "m.zarr", condition="mirror", **options))
    given, found = (geometry_features(one, "subject_box") for one in (boxed[0], mirrored))
    np.testing.assert_allclose(found, np.stack([1 - given[:, 2], given[:, 1], 1 - given[:, 0], given[:, 3]], axis=1))


@pytest.mark.slow
def test_the_command_says_that_blank_images_are_no_text_at_a_box(boxed, tmp_path):
    command = ["probe", boxed[0].name, "--tasks", "truth", "--positions", "subject_box", "--baseline", f"blank={boxed[1].name}"]
    result = CliRunner().invoke(main, [*command, "--strengths", "1e-2", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "above box geometry" in result.stdout or "box geometry, blank" in result.stdout
    assert "exceed box geometry, because blank is no text-only baseline here" in result.stdout
    assert (tmp_path / "advantage-truth-subject_box-over-box-geometry.zarr.zip").exists()
    assert LayerCurve.load(tmp_path / "probe-truth-box-geometry-subject_box.zarr.zip").value(0) < 0.65


def test_boxes_that_are_unknown_are_named(boxed, tmp_path):
    store = ActivationStore.open(planted_store(tmp_path / "n.zarr", layers=2, positions=("final", "subject_box")))
    study = plan_study(store, ("truth",), ("subject_box",), layers=0)
    with pytest.raises(NotRecordedError, match=r"extract with `boxes` \(COCO instances\)"):
        study.geometry_baseline("subject_box")
