"""The batched solver finds scikit-learn's solution, on kind and nasty data."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.probe import grouped_folds
from stratascope.probe.solver.logistic import BatchSolver
from stratascope.probe.solver.losses import loss_for, probabilities
from stratascope.probe.solver.ridge import RidgeSolver
from stratascope.probe.solver.standardised_rows import Rows, suited_dtype
from stratascope.probe.validation.cross_validation import STRENGTHS, TOLERANCE


def nasty(n: int, d: int, classes: int, *, separable: bool = False, seed: int = 0):
    """Outlier channels with a mean or a deviation of 1e4, a constant column, an empty column."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * np.linspace(0.1, 3, d)
    score = x @ rng.standard_normal((d, classes)) * (5 if separable else 0.2)
    y = (score + (0 if separable else 1) * rng.gumbel(size=(n, classes))).argmax(axis=1)
    x[:, 3] += 1e4
    x[:, 5] *= 1e4
    x[:, 7] = 4.2
    x[:, 8] = 0
    return x, y


def objective(x, y, weight, bias, strength):
    z = x @ weight.T + bias
    z = np.concatenate([np.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z
    top = z.max(axis=1, keepdims=True)
    loss = (np.log(np.exp(z - top).sum(axis=1)) + top[:, 0] - z[np.arange(len(y)), y]).sum()
    return loss + 0.5 * (weight**2).sum() / strength


def sklearn_fit(x, y, strength):
    scaler = StandardScaler().fit(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=strength, tol=1e-11, max_iter=20000).fit(scaler.transform(x), y)
    return scaler, model


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("n", "d", "classes"), [(400, 30, 2), (400, 30, 4), (150, 300, 2), (150, 300, 3)])
def test_equal_to_scikit_learn(n, d, classes, separable):
    x, y = nasty(n, d, classes, separable=separable)
    folds = grouped_folds(np.arange(n) // 2, y)
    rows = Rows(x, folds.of)
    training = ~np.eye(5, dtype=bool)
    solver = BatchSolver(rows, y[None], training, classes=classes, which=np.zeros(5, int), basis=rows.eigenbasis(), tolerance=1e-10)
    for strength in (1e-4, 1e-2, 1.0):
        report = solver.solve(strength)
        assert report.converged.all()
        weight, bias = solver.directions()
        for fold in (0, 3):
            train = folds.of != fold
            scaler, model = sklearn_fit(x[train], y[train], strength)
            theirs = objective(scaler.transform(x[train]), y[train], model.coef_, model.intercept_, strength)
            ours = objective(
                scaler.transform(x[train]), y[train], weight[fold] * scaler.scale_, bias[fold] + weight[fold] @ scaler.mean_, strength
            )
            assert ours == pytest.approx(theirs, rel=1e-6)
            held = probabilities(solver.logits(np.array([fold]), fold)[0])
            np.testing.assert_allclose(held, model.predict_proba(scaler.transform(x[rows.order[rows.part(fold)]])), atol=1e-3)


@pytest.mark.parametrize(("classes", "tolerance"), [(2, 1e-3), (3, 1e-3)])
def test_float32_with_a_tight_tolerance_is_as_good(classes, tolerance):
    x, y = nasty(600, 80, classes, seed=4)
    x = x.astype(np.float32)
    folds = grouped_folds(np.arange(600), y)
    rows = Rows(x, folds.of)
    assert rows.z.dtype == np.float32
    training = ~np.eye(5, dtype=bool)
    solver = BatchSolver(rows, y[None], training, classes=classes, which=np.zeros(5, int), basis=rows.eigenbasis(), tolerance=3e-8)
    for strength in (1e-3, 1e-1):
        solver.solve(strength)
        weight, bias = solver.directions()
        train = folds.of != 1
        wide = x.astype(np.float64)
        scaler, model = sklearn_fit(wide[train], y[train], strength)
        z = scaler.transform(wide[train])
        theirs = objective(z, y[train], model.coef_, model.intercept_, strength)
        ours = objective(z, y[train], weight[1] * scaler.scale_, bias[1] + weight[1] @ scaler.mean_, strength)
        assert ours == pytest.approx(theirs, rel=1e-6)
        held = probabilities(solver.logits(np.array([1]), 1)[0])
        np.testing.assert_allclose(held, model.predict_proba(scaler.transform(wide[rows.order[rows.part(1)]])), atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(
    ("n", "d", "classes"),
    [(500, 60, 2), (500, 60, 7), (500, 40, 20), (150, 300, 3), (300, 1000, 2), (1500, 400, 7), (1500, 60, 66), (2200, 1000, 2)],
)
def test_a_study_ends_at_scikit_learns_optimum_at_every_strength(n, d, classes, separable):
    """With the tolerance and precision that studies use, along the whole path: the objective to 1e-6, held-out probabilities to 1e-3."""
    x, y = nasty(n, d, classes, separable=separable, seed=7)
    x = x.astype(np.float32)
    rows = Rows(x, np.arange(n) % 5, dtype=suited_dtype(x))
    training = np.arange(5)[None] != 0
    solver = BatchSolver(rows, y[None], training, classes=classes, basis=rows.eigenbasis(), tolerance=TOLERANCE)
    train = np.arange(n) % 5 != 0
    scaler = StandardScaler().fit(x[train].astype(np.float64))
    z, held_out = scaler.transform(x[train].astype(np.float64)), scaler.transform(x[rows.order[rows.part(0)]].astype(np.float64))
    model = LogisticRegression(tol=1e-9, max_iter=20000, warm_start=True, solver="newton-cg")
    for strength in STRENGTHS[2:]:
        solver.solve(strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.set_params(C=strength).fit(z, y[train])
        weight, bias = (found[0] for found in solver.directions())
        theirs = objective(z, y[train], model.coef_, model.intercept_, strength)
        ours = objective(z, y[train], weight * scaler.scale_, bias + weight @ scaler.mean_, strength)
        assert (ours - theirs) / theirs < 1e-6, strength
        held = probabilities(solver.logits(np.array([0]), 0)[0])
        assert theirs < ours * (1 + 1e-9), "else theirs is not the optimum"
        np.testing.assert_allclose(held, model.predict_proba(held_out), atol=1e-3, err_msg=str(strength))


@pytest.mark.parametrize("classes", [2, 5])
def test_losses_of_separated_classes_are_exact_in_float32(classes):
    """Where every row is right, all of the loss is what lies beyond 1: float32 has to keep it."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, (1, 200))
    logits = rng.normal(size=(1, classes, 200))
    logits[0, labels[0], np.arange(200)] += rng.uniform(12, 30, 200)
    if classes == 2:
        logits = logits[:, 1:] - logits[:, :1]
    logits = logits.astype(np.float32)
    loss = loss_for(classes)
    norms = np.ones(200)
    value, residual, curvature = loss(logits, labels.astype(np.float32 if classes == 2 else np.int32), norms.astype(np.float32))
    z = logits[0].astype(np.longdouble)
    z = np.concatenate([0 * z, z]) if classes == 2 else z
    beyond = np.exp(z - z[labels[0], np.arange(200)])
    beyond[labels[0], np.arange(200)] = 0
    assert value[0] == pytest.approx(float(np.log1p(beyond.sum(axis=0)).sum()), rel=1e-6)
    wanted = beyond / (1 + beyond.sum(axis=0))
    wanted[labels[0], np.arange(200)] = -beyond.sum(axis=0) / (1 + beyond.sum(axis=0))
    np.testing.assert_allclose(residual[0], wanted[1:] if classes == 2 else wanted, rtol=2e-6)
    assert np.isfinite(curvature).all()


def test_certificate_bounds_the_distance():
    x, y = nasty(300, 40, 2, seed=1)
    rows = Rows(x, np.zeros(300, int))
    ones = np.ones((1, 1), bool)
    rough = BatchSolver(rows, y[None], ones, classes=2, basis=rows.eigenbasis(), tolerance=1e-4)
    exact = BatchSolver(rows, y[None], ones, classes=2, basis=rows.eigenbasis(), tolerance=1e-14)
    report = rough.solve(0.1)
    exact.solve(0.1)
    assert np.linalg.norm(rough.coef - exact.coef) <= report.certificate[0] * (1 + 1e-6)


def test_problems_do_not_disturb_each_other():
    x, y = nasty(300, 40, 2, seed=2)
    rng = np.random.default_rng(0)
    labels = np.stack([y, rng.permutation(y), 1 - y])
    rows = Rows(x, np.arange(300) % 3)
    training = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1]], bool)
    together = BatchSolver(rows, labels, training, classes=2, tolerance=1e-12)
    together.solve(np.array([0.01, 0.1, 1.0]))
    for p, strength in enumerate((0.01, 0.1, 1.0)):
        alone = BatchSolver(rows, labels[p : p + 1], training[p : p + 1], classes=2, tolerance=1e-12)
        alone.solve(strength)
        np.testing.assert_allclose(alone.coef[0], together.coef[p], atol=1e-5)


def test_a_class_missing_from_training_is_left_out_as_by_scikit_learn():
    x, y = nasty(300, 20, 3, seed=3)
    blocks = np.arange(300) % 3
    blocks[y == 2] = 0
    rows = Rows(x, blocks)
    solver = BatchSolver(rows, y[None], np.array([[False, True, True]]), classes=3, basis=rows.eigenbasis(), tolerance=1e-12)
    solver.solve(0.1)
    assert solver.absent.tolist() == [[False, False, True]]
    train = blocks != 0
    scaler, model = sklearn_fit(x[train], y[train], 0.1)
    held = probabilities(solver.logits(np.array([0]), 0)[0])
    # two classes are left: scikit-learn has one weight vector w, here they are w/2 and -w/2 with half the penalty
    twice = sklearn_fit(x[train], y[train], 0.2)[1]
    del model
    expected = twice.predict_proba(scaler.transform(x[rows.order[rows.part(0)]]))
    np.testing.assert_allclose(held[:, :2], expected, atol=1e-3)
    assert (held[:, 2] < 1e-12).all()


def test_scaling_of_columns_changes_nothing():
    x, y = nasty(200, 25, 2, seed=5)
    scaled = x * np.geomspace(1e-4, 1e4, 25) + np.linspace(-50, 50, 25)
    found = []
    for z in (x, scaled):
        rows = Rows(z, np.arange(200) % 2)
        solver = BatchSolver(rows, y[None], np.array([[True, False]]), classes=2, tolerance=1e-12)
        solver.solve(0.1)
        found.append(solver.logits(np.array([0]), 1))
    np.testing.assert_allclose(*found, atol=1e-5)


def test_ridge_is_scikit_learns_with_rows_and_columns_in_excess():
    for n, d in ((200, 30), (60, 90)):
        x, _ = nasty(n, d, 2)
        values = np.random.default_rng(0).standard_normal((1, n, 3)) + x[:, :3] / 4
        blocks = np.arange(n) % 4
        rows = Rows(x, blocks)
        solver = RidgeSolver(rows, values, ~np.eye(4, dtype=bool), which=np.zeros(4, int))
        solver.solve(0.05, np.arange(4))
        train = blocks != 2
        scaler = StandardScaler().fit(x[train])
        model = Ridge(alpha=20).fit(scaler.transform(x[train]), values[0, train])
        expected = model.predict(scaler.transform(x[rows.order[rows.part(2)]])).T
        np.testing.assert_allclose(solver.logits(np.array([2]), 2)[0], expected, rtol=1e-6, atol=1e-6)


def test_refusals_say_what_to_change():
    x, y = nasty(60, 10, 2)
    rows = Rows(x, np.arange(60) % 2)
    with pytest.raises(TooFewExamplesError, match=r"constant label.*fewer folds"):
        BatchSolver(rows, np.zeros((1, 60), int), np.ones((1, 2), bool), classes=2)
    with pytest.raises(InvalidInputError, match="C > 0"):
        BatchSolver(rows, y[None], np.ones((1, 2), bool), classes=2).solve(0.0)
    x[3, 4] = np.nan
    with pytest.raises(InvalidInputError, match=r"finite.*store\.available"):
        Rows(x, np.arange(60) % 2)
