"""Pair probes: one probe on two positions, as concatenation, difference or a low-rank bilinear form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from planted import planted_store
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stratascope.cli import main
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.probe import BilinearFeatures, LayerCurve, codelength_by_layer, layer_curve, plan_study, probe_study, transfer_matrix
from stratascope.probe.solver.standardised_rows import Rows
from stratascope.probe.validation.cross_validation import by_fold, classify
from stratascope.probe.validation.folds import grouped_folds
from stratascope.store import ActivationStore

PAIR = "final+relation"
QUICK = {"strengths": (1e-2,), "draws": 200, "scheduler": "synchronous", "tolerance": 1e-12}


def planted_pair(path: Path, examples: int = 400) -> ActivationStore:
    """A sign at each of two positions from layer 1 on; their product is the label."""
    return ActivationStore.open(planted_store(path, examples=examples, layers=1, onset=1, strength=2.0, pair=True))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    return planted_pair(tmp_path_factory.mktemp("pair") / "a.zarr")


def vectors(store: ActivationStore, layer: int, examples: np.ndarray) -> np.ndarray:
    """In float64: of float32 scikit-learn makes a less exact fit."""
    return np.hstack([store.read("residual", layer=layer, position=name, examples=examples) for name in PAIR.split("+")]).astype(float)


@pytest.mark.parametrize("form", ["concatenation", "difference", "bilinear"])
def test_a_pair_probe_is_logistic_regression_on_both_vectors(store, form):
    curve = layer_curve(store, "truth", tuple(PAIR.split("+")), pair=form, rank=3, layers=1, **QUICK)
    assert (curve.position, curve.attributes["pair"], len(curve.examples)) == (PAIR, form, 399)
    used, y, fold = (curve.examples[name].to_numpy() for name in ("example", "label", "fold"))
    x = vectors(store, 1, used)
    before = [BilinearFeatures(rank=3)] if form == "bilinear" else []
    x = x[:, :12] - x[:, 12:] if form == "difference" else x
    expected = np.zeros(len(y))
    for f in np.unique(fold):
        model = make_pipeline(*before, StandardScaler(), LogisticRegression(C=1e-2, tol=1e-10, max_iter=5000))
        expected[fold == f] = model.fit(x[fold != f], y[fold != f]).decision_function(x[fold == f])
    np.testing.assert_allclose(curve.logits[0, 0], expected, atol=1e-4)
    assert curve.directions.shape == (1, 1, {"concatenation": 24, "difference": 12, "bilinear": 0}[form])
    if form == "concatenation":
        whole = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, tol=1e-10, max_iter=5000)).fit(x, y)
        weights = whole[-1].coef_ / whole[0].scale_
        np.testing.assert_allclose(curve.directions[0], weights, atol=1e-4 * np.abs(weights).max())


@pytest.mark.slow
def test_only_the_bilinear_form_finds_a_product(tmp_path):
    """XOR: neither position alone, nor any sum of both, tells the label."""
    store = planted_pair(tmp_path / "large.zarr", 600)
    found = {form: layer_curve(store, "truth", PAIR, pair=form, draws=500) for form in ("concatenation", "bilinear")}
    assert found["bilinear"].rows()["low_simultaneous"].to_numpy()[1] > 0.85
    assert found["bilinear"].rows()["low_simultaneous"].to_numpy()[0] < 0.5, "nothing is planted at layer 0"
    assert (found["concatenation"].rows()["low_simultaneous"] < 0.5).all()
    shuffled = layer_curve(store, "truth:shuffled", PAIR, pair="bilinear", draws=500)
    assert (shuffled.rows()["low_simultaneous"] < 0.5).all()
    assert "a bilinear probe finds more" in found["bilinear"].summary()
    assert "bilinear" not in found["concatenation"].summary()


@pytest.mark.slow
def test_a_bilinear_probe_finds_nothing_in_noise():
    """40 data sets of noise with 576 products: on average chance, within 3 standard errors of 8,000 predictions."""
    scores = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((200, 48)), rng.permutation(np.arange(200) % 2)
        folds = grouped_folds(np.arange(200), y, seed=seed)
        (answer,) = by_fold(
            x, folds.of, folds, lambda training, x=x: BilinearFeatures(24).fit(x[training]).transform,
            lambda rows, fold, y=y, folds=folds: classify(rows, y, folds, classes=2, fold=fold),
        )  # fmt: skip
        scores.append(((answer.logits[0] > 0) == y).mean())
        assert np.isfinite(answer.noise_share).all()
    assert abs(np.mean(scores) - 0.5) < 3 * 0.5 / np.sqrt(200 * 40)


def test_solving_folds_apart_changes_nothing_where_features_are_the_same():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((150, 6)), rng.integers(0, 3, 150)
    x[:, 0] += y
    folds = grouped_folds(np.arange(150) // 2, y)
    (whole,) = classify(Rows(x, folds.of), y, folds, classes=3)
    (apart,) = by_fold(x, folds.of, folds, lambda _: lambda rows: rows, lambda rows, f: classify(rows, y, folds, classes=3, fold=f))
    np.testing.assert_allclose(apart.logits, whole.logits, atol=1e-4)
    np.testing.assert_allclose(apart.noise_share, whole.noise_share, atol=1e-3)
    assert apart.strength.tolist() == whole.strength.tolist()
    assert apart.inner_loss.shape == whole.inner_loss.shape
    assert apart.fold_directions.shape == (5, 3, 0)


@pytest.mark.slow
def test_a_pair_goes_through_files_caches_and_clusters(store, tmp_path):
    options = {**QUICK, "pair": "bilinear", "output": tmp_path / "layers"}
    first, again = (layer_curve(store, "truth", PAIR, **options) for _ in range(2))
    assert np.array_equal(first.logits, again.logits)
    assert len(list((tmp_path / "layers").glob(f"layer-*-{PAIR}-*.zip"))) == 2
    assert not np.array_equal(layer_curve(store, "truth", PAIR, **{**options, "rank": 2}).logits, first.logits)
    assert layer_curve(store, "truth", PAIR, **{**options, "pair": "difference"}).directions.shape[2] == 12
    first.save(tmp_path / "curve.zarr.zip")
    back = LayerCurve.load(tmp_path / "curve.zarr.zip")
    assert back.position == PAIR
    assert back.attributes["pair"] == "bilinear"
    assert back.attributes["nonlinear"]
    processes = layer_curve(store, "truth", PAIR, **{**options, "output": None, "scheduler": "processes", "workers": 1})
    assert np.array_equal(processes.logits, first.logits)
    assert plan_study(store, ("truth",), (PAIR,)).cost().bytes_each > plan_study(store, ("truth",), ("final",)).cost().bytes_each


def test_a_direction_of_a_pair_is_transferred_to_the_pair(store):
    table = transfer_matrix(store, position=PAIR, layers=1, to_layers=1, **QUICK)
    curve = layer_curve(store, "truth", PAIR, layers=1, **QUICK)
    assert table["value"].item() == pytest.approx(curve.value(1), abs=1e-6)


def test_refusals_name_what_to_give(store, tmp_path):
    for position in ("final+", "final+relation+final", "final+final"):
        with pytest.raises(InvalidInputError, match=r"expected a position or a pair of two positions such as subject_box\+object_box"):
            layer_curve(store, "truth", position)
    with pytest.raises(NotRecordedError, match="subject_box"):
        probe_study(store, ("truth",), (("final", "subject_box"),))
    with pytest.raises(InvalidInputError, match="form of pairs"):
        layer_curve(store, "truth", PAIR, pair="product")
    with pytest.raises(InvalidInputError, match="expected a linear probe, whose weights"):
        transfer_matrix(store, position=PAIR, pair="bilinear", layers=1)
    with pytest.raises(InvalidInputError, match="expected a linear probe for a codelength"):
        codelength_by_layer(store, position=PAIR, pair="bilinear", layers=1)
    with pytest.raises(InvalidInputError, match="found 3 columns"):
        BilinearFeatures().fit(np.zeros((4, 3)))
    alone = CliRunner().invoke(main, ["probe", store.name, "--positions", "final", "--pair", "difference", "--out", str(tmp_path)])
    assert alone.exit_code == 2
    assert "expected a pair among --positions for --pair, such as subject_box+object_box, found final" in alone.stderr


@pytest.mark.slow
def test_the_command_probes_a_pair(store, tmp_path):
    words = ["--tasks", "truth", "--positions", f"final,{PAIR}", "--pair", "bilinear", "--rank", "4", "--controls", "shuffled"]
    done = CliRunner().invoke(main, ["probe", store.name, *words, "--control-draws", "3", "--strengths", "0.01", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert f"truth at {PAIR}: " in done.stdout
    assert "a bilinear probe finds more than can be read linearly" in done.stdout
    curve = LayerCurve.load(tmp_path / "probe-truth-final-relation.zarr.zip")
    assert (curve.attributes["pair"], curve.attributes["rank"]) == ("bilinear", 4)
