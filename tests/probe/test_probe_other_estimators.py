"""Any scikit-learn estimator as a probe: the same folds, controls and statistics."""

from __future__ import annotations

import numpy as np
import pytest
from planted import planted_store
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from stratascope.errors import InvalidInputError
from stratascope.probe import LayerCurve, layer_curve, plan_study, probe_study, transfer_matrix
from stratascope.probe.validation.cross_validation import METHODS
from stratascope.probe.validation.estimators import is_nonlinear, method_text
from stratascope.report.probe_reproduction import python_settings
from stratascope.results.registry import load_result
from stratascope.results.stored_result import StoredResult
from stratascope.store import ActivationStore

QUICK = {"draws": 200, "scheduler": "synchronous", "layers": 1}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    return ActivationStore.open(planted_store(tmp_path_factory.mktemp("any") / "a.zarr", layers=1, onset=1, examples=300, boxes=True))


def folds_of(curve: LayerCurve) -> list[tuple[np.ndarray, np.ndarray]]:
    fold = curve.examples["fold"].to_numpy()
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in np.unique(fold)]


ESTIMATORS = {
    "probabilities": RandomForestClassifier(20, random_state=3),
    "decision function": make_pipeline(StandardScaler(), SVC(gamma=0.05)),
    "search": GridSearchCV(make_pipeline(StandardScaler(), LogisticRegression()), {"logisticregression__C": [1e-3, 1.0]}, cv=3),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_predictions_are_those_of_scikit_learn_in_the_same_folds(store, name):
    curve = layer_curve(store, "truth", method=ESTIMATORS[name], **QUICK)
    x = store.read("residual", layer=1, position="final", examples=curve.examples["example"].to_numpy())
    y, logits = curve.examples["label"].to_numpy(), curve.logits[0, 0]
    if name == "decision function":
        expected = cross_val_predict(ESTIMATORS[name], x, y, cv=folds_of(curve), method="decision_function")
        np.testing.assert_allclose(logits, expected, atol=1e-5)
    else:
        expected = cross_val_predict(ESTIMATORS[name], x, y, cv=folds_of(curve), method="predict_proba")
        np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected[:, 1], atol=1e-5)
    assert curve.directions.shape == (1, 1, 0)
    assert curve.folds["noise_share"].between(0, 1).all(), "the noise of training widens the intervals, as of any probe"
    assert curve.value(1) > 0.8


def test_several_classes_and_their_control(store):
    forest = RandomForestClassifier(30, random_state=0)
    curve, shuffled = probe_study(store, ("relation", "relation:shuffled"), ("relation",), method=forest, control_draws=2, **QUICK)
    x = store.read("residual", layer=1, position="relation", examples=curve.examples["example"].to_numpy())
    y = curve.examples["label"].to_numpy()
    expected = cross_val_predict(forest, x, y, cv=folds_of(curve))
    assert (curve.logits[0].argmax(axis=0) == expected).mean() > 0.99, "ties of votes alone differ"
    assert curve.value(1) > 0.9
    assert shuffled.rows()["low"].item() < 0.25


def test_values_are_predicted_by_a_regressor(store):
    curve = layer_curve(store, "geometry", method=LinearRegression(), **{**QUICK, "layers": (1,)})
    used = curve.examples["example"].to_numpy()
    x, y = store.read("residual", layer=1, position="final", examples=used), curve.examples[list(curve.targets)].to_numpy()
    np.testing.assert_allclose(curve.logits[0].T, cross_val_predict(LinearRegression(), x, y, cv=folds_of(curve)), atol=1e-5)
    assert len(curve.folds) == 5 * len(curve.targets)
    with pytest.raises(InvalidInputError, match="task 'geometry': expected a regressor for values, found SVC"):
        probe_study(store, ("truth", "geometry"), ("final",), method=SVC(), **QUICK)
    with pytest.raises(InvalidInputError, match="task 'truth': expected a classifier for classes, found LinearRegression"):
        layer_curve(store, "truth", method=LinearRegression(), **QUICK)


def test_a_network_finds_a_product_and_says_that_it_is_not_linear(tmp_path):
    store = ActivationStore.open(planted_store(tmp_path / "a.zarr", layers=1, onset=1, strength=2.0, pair=True, examples=600))
    curve = layer_curve(store, "truth", "final+relation", method="mlp", **QUICK)
    assert curve.rows()["low_simultaneous"].item() > 0.8
    shuffled = layer_curve(store, "truth:shuffled", "final+relation", method="mlp", control_draws=1, **QUICK)
    assert shuffled.rows()["low_simultaneous"].item() < 0.5
    assert "a nonlinear probe (mlp) finds more than can be read linearly" in curve.summary()
    assert np.array_equal(layer_curve(store, "truth", "final+relation", method="mlp", **QUICK).logits, curve.logits)
    assert not np.array_equal(layer_curve(store, "truth", "final+relation", method="mlp", seed=1, **QUICK).logits, curve.logits)


def test_a_search_divides_no_image(store):
    """Without folds of its own, a search gets the study's; an estimator that keeps what it was given shows them."""
    seen = []

    class Recorded(GridSearchCV):
        def fit(self, X, y=None, **params):
            seen.append(self.cv)
            return super().fit(X, y, **params)

    plan = plan_study(store, ("truth",), ("final",))
    groups, of = (getattr(plan.plans["final"][0].folds, name) for name in ("groups", "of"))
    layer_curve(store, "truth", method=Recorded(LogisticRegression(), {"C": [1e-2, 1.0]}), **QUICK)
    (splits,) = [splits for splits in seen if len(splits) == 4][:1]
    rows = np.flatnonzero(of != of.min())
    assert all(not set(groups[rows[train]]) & set(groups[rows[test]]) for train, test in splits)


def test_a_cache_tells_estimators_apart_by_their_parameters(store, tmp_path):
    def scores(estimator):
        return layer_curve(store, "truth", method=estimator, output=tmp_path, **QUICK).logits

    first = scores(RandomForestClassifier(5, max_depth=2))
    assert np.array_equal(scores(RandomForestClassifier(5, max_depth=2)), first)
    assert len(list(tmp_path.glob("layer-*.zip"))) == 1
    assert not np.array_equal(scores(RandomForestClassifier(5, max_depth=3)), first)
    assert len(list(tmp_path.glob("layer-*.zip"))) == 2


def test_files_and_reports_name_the_estimator(store, tmp_path):
    curve = layer_curve(store, "truth", method=RidgeClassifier(alpha=7.0), **QUICK)
    curve.save(tmp_path / "probe.zarr.zip")
    named = LayerCurve.load(tmp_path / "probe.zarr.zip").attributes["method"]
    assert named.startswith("sklearn.linear_model._ridge.RidgeClassifier(alpha=7.0, ")
    found = StoredResult(tmp_path / "probe.zarr.zip", load_result(tmp_path / "probe.zarr.zip"))
    assert python_settings(found, frozenset({"method", "draws"}))["method"] == named


def test_linear_estimators_are_told_from_others():
    linear = (*METHODS, RidgeClassifier(), make_pipeline(StandardScaler(), LogisticRegression()))
    nonlinear = ("mlp", SVC(), make_pipeline(SVC(), LogisticRegression()), make_pipeline(StandardScaler(), MLPClassifier()))
    assert [is_nonlinear(method) for method in (*linear, *nonlinear)] == [False] * len(linear) + [True] * len(nonlinear)


def test_what_is_no_estimator_is_refused(store):
    for method in ("svm", SVC, 3):
        with pytest.raises(InvalidInputError, match="expected a method of logistic, means, mlp"):
            layer_curve(store, method=method)
    with pytest.raises(InvalidInputError, match="expected parameters whose repr shows their content, found kernel = <function"):
        layer_curve(store, method=SVC(kernel=lambda a, b: a @ b.T))
    with pytest.raises(InvalidInputError, match="found a generator, whose state changes"):
        layer_curve(store, method=RandomForestClassifier(random_state=np.random.RandomState(0)))
    with pytest.raises(InvalidInputError, match="`strengths` with method logistic or means alone"):
        layer_curve(store, method="mlp", strengths=(1.0,))
    with pytest.raises(InvalidInputError, match="expected a linear probe, whose weights"):
        transfer_matrix(store, method="mlp", layers=1)
    with pytest.raises(InvalidInputError, match="found that GridSearchCV fails"):
        layer_curve(store, method=GridSearchCV(LogisticRegression(), {"C": [-1.0]}), **QUICK)
    assert method_text(SVC(class_weight={0: 1.0})) != method_text(SVC(class_weight={0: 2.0}))
