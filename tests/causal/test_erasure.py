"""Erasure against `concept-erasure`, and what no linear classifier may find afterwards."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import roc_auc_score

from stratascope.causal import class_mean_difference, haufe_pattern, leace, mean_projection, one_hot
from stratascope.causal.directions import CONTROLS, RandomConcepts, shuffled
from stratascope.causal.erasure import Whitening
from stratascope.causal.refitted_probe import completeness, refitted_probe
from stratascope.errors import InvalidInputError, TooFewExamplesError

CONCEPTS = ("binary", "classes", "numbers")


def drawn(concept: str, n: int, d: int, seed: int = 0, dependent: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Correlated rows, values of a concept that they hold, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2 if concept == "binary" else 5, n)
    z = rng.normal(size=(n, 3)) if concept == "numbers" else one_hot(labels)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + z @ rng.normal(size=(z.shape[1], d)) + 3
    return (np.c_[x, x[:, :3] @ rng.normal(size=(3, dependent))] if dependent else x), z, labels


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("dependent", [0, 4])
@pytest.mark.parametrize("concept", CONCEPTS)
def test_leace_equals_concept_erasure(concept: str, dependent: int) -> None:
    """With columns that depend on others too: then the covariance has no inverse, and the support decides."""
    torch = pytest.importorskip("torch")
    reference = pytest.importorskip("concept_erasure", reason="concept-erasure is not installed: LEACE is not compared with it")
    x, z, _ = drawn(concept, 2000, 12, dependent=dependent)
    fitter = reference.LeaceFitter(x.shape[1], z.shape[1], dtype=torch.float64, shrinkage=False)
    fitter.update(torch.from_numpy(x), torch.from_numpy(z))
    erasure = leace(x, z)
    assert erasure(x) == pytest.approx(fitter.eraser(torch.from_numpy(x)).numpy(), abs=1e-9)
    assert erasure.rank == {"binary": 1, "classes": 4, "numbers": 3}[concept]


@pytest.mark.parametrize("n", [30, 1000])
@pytest.mark.parametrize("concept", CONCEPTS)
def test_no_linear_model_finds_the_concept_after_erasure(concept: str, n: int) -> None:
    """Theorem 3.1: x and z are uncorrelated, so that the best linear model of z is constant; with fewer rows than dimensions, too."""
    x, z, labels = drawn(concept, n, 40)
    for erasure in (leace(x, z), mean_projection(x, z)):
        erased = erasure(x)
        assert np.abs(np.cov(erased.T, z.T)[: x.shape[1], x.shape[1] :]).max() < 1e-9 * np.abs(x).max()
        assert erasure(erased) == pytest.approx(erased, abs=1e-8), "erasing twice changes nothing more"
        assert LinearRegression().fit(x, z).score(x, z) > 0.3
    if concept == "binary":
        before = LogisticRegression(max_iter=500).fit(x, labels)
        after = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(leace(x, z)(x), labels)
        assert roc_auc_score(labels, before.decision_function(x)) > 0.8
        assert np.abs(after.coef_).max() < 1e-6


def test_a_probe_refitted_after_erasure_is_at_chance_on_other_examples() -> None:
    """Erasure fitted on one half, probe refitted and tested in folds of the other half, in which it was perfect before."""
    x, z, labels = drawn("binary", 4000, 20)
    x += 30 * np.outer(labels, np.eye(20)[0])
    erased = leace(x[:2000], z[:2000])(x[2000:])
    scores = {}
    for name, rows in (("before", x[2000:]), ("after", erased)):
        fitted = LogisticRegression(max_iter=1000).fit(rows[:1000], labels[2000:3000])
        scores[name] = roc_auc_score(labels[3000:], fitted.decision_function(rows[1000:]))
    assert scores["before"] > 0.99
    assert abs(scores["after"] - 0.5) < 3 * (1 / (12 * 250)) ** 0.5, "three standard errors of an AUROC at chance"


def test_leace_changes_less_than_any_other_erasure_in_its_norm() -> None:
    """It is the least change in the mean square among affine maps that erase; mean projection is one of them."""
    x, z, _ = drawn("binary", 3000, 15)
    moved = [np.square(erasure(x) - x).sum(1).mean() for erasure in (leace(x, z), mean_projection(x, z))]
    assert moved[0] <= moved[1] * (1 + 1e-9)


def test_directions() -> None:
    """The Haufe pattern of the least-squares weights is proportional to Cov(x, y), whatever the covariance of x."""
    x, _, labels = drawn("binary", 3000, 10)
    delta = class_mean_difference(x, labels)
    assert delta == pytest.approx(x[labels == 1].mean(0) - x[labels == 0].mean(0))
    weights = LinearRegression().fit(x, labels).coef_
    pattern = haufe_pattern(x, weights)
    assert abs(pattern @ delta) / np.linalg.norm(pattern) / np.linalg.norm(delta) == pytest.approx(1, abs=1e-9)
    assert abs(weights @ delta) / np.linalg.norm(weights) / np.linalg.norm(delta) < 0.9
    with pytest.raises(TooFewExamplesError, match="two classes"):
        class_mean_difference(x, np.zeros(len(x), int))


def test_a_constant_layer_holds_no_concept_and_is_left_alone() -> None:
    """The embedding of one and the same token, as at layer 0 of the final token."""
    x = np.tile(np.random.default_rng(0).normal(size=12), (60, 1)).astype(np.float32)
    z = one_hot(np.arange(60) % 2)
    for erasure in (leace(x, z), mean_projection(x, z)):
        assert erasure(x) == pytest.approx(x, abs=1e-7)
        assert erasure.rank == 0


def test_a_class_without_examples_changes_nothing() -> None:
    """As in training folds that lack one."""
    x, z, _ = drawn("classes", 300, 6)
    empty = np.c_[z, np.zeros(300)]
    for erase in (leace, mean_projection):
        assert erase(x, empty)(x) == pytest.approx(erase(x, z)(x), abs=1e-9)


def test_random_concepts_vary_as_the_rows_do_and_hold_nothing_of_the_concept() -> None:
    x, z, labels = drawn("binary", 400, 12)
    x[:, 0] += 100 * labels
    folds, groups = np.arange(400) % 5, np.arange(400) // 2
    concepts, whitening, training = RandomConcepts(z, folds, groups, draws=30, seed=0), Whitening(x), np.ones(400, bool)
    own = whitening.covariance_with(z)
    delta = class_mean_difference(x, labels)
    scale = np.linalg.norm(x.std(0))
    for kind in CONTROLS:
        made = concepts.covariances(kind, whitening, training, own, 3)
        assert len(made) == 30
        units = np.stack([v[:, 0] / np.linalg.norm(v[:, 0]) for v in made])
        along = np.abs(units @ delta / np.linalg.norm(delta)).mean()
        assert along < (1e-6 if kind == "orthogonal" else 0.3), kind
        spread = (np.square((x - x.mean(0)) @ units.T).mean(0) ** 0.5).mean() / scale
        assert np.isfinite(spread)
        again = RandomConcepts(z, folds, groups, draws=30, seed=0).covariances(kind, whitening, training, own, 3)
        assert np.array_equal(made, again)
    moved = shuffled(z, folds, groups, np.random.default_rng(1))
    for fold in range(5):
        assert moved[folds == fold].sum(0) == pytest.approx(z[folds == fold].sum(0))
    assert (moved != z).any()


def test_refusals() -> None:
    x, z, _ = drawn("binary", 50, 4)
    with pytest.raises(InvalidInputError, match=r"`z` of shape \(50, c\), found \(49, 2\)"):
        leace(x, z[:-1])
    with pytest.raises(InvalidInputError, match="`shrinkage` between 0 and 1, found 2"):
        leace(x, z, shrinkage=2)


def test_a_probe_refitted_by_halves_tells_whether_an_erasure_was_complete() -> None:
    """Too few examples for the dimensions leave a trace, whatever the shrinkage; in its own examples nothing is left, by either library."""
    reference = pytest.importorskip("concept_erasure", reason="concept-erasure is not installed")
    torch = pytest.importorskip("torch")
    from stratascope.stats.auroc import Auroc

    lows = {}
    for n, d in ((400, 100), (4000, 10)):
        rng = np.random.default_rng(4)
        labels, folds = rng.integers(0, 2, n), np.arange(n) % 10
        x = rng.normal(size=(n, d)) + 6 * labels[:, None] * np.eye(d)[0]
        area = Auroc.of(refitted_probe(x, labels, folds, "leace")[:, None], labels == 1, np.arange(n))
        lows[n] = area.interval()[0][0]
        own = np.asarray(reference.LeaceEraser.fit(torch.from_numpy(x), torch.from_numpy(labels))(torch.from_numpy(x)))
        for erased in (leace(x, one_hot(labels))(x), own):
            after = LogisticRegression(solver="newton-cholesky", tol=1e-10).fit(erased, labels)
            assert auroc(after.decision_function(erased).round(6), labels) == pytest.approx(0.5, abs=0.02)
    assert lows[400] > 0.5
    assert lows[4000] < 0.5
    rows = pd.DataFrame(
        {"layer": [3, 4], "refitted": [0.52, 0.7], "refitted_low_simultaneous": [0.45, 0.6], "refitted_high_simultaneous": 0.8}
    )
    assert completeness(rows) == (
        "erasure was incomplete: a probe refitted after it is above chance at layer 4 (AUROC 0.70 [0.60, 0.80] at layer 4)"
    )
    assert completeness(rows[:1]).startswith(
        "a probe refitted after the erasure is not significantly above chance (AUROC 0.52 [0.45, 0.80]"
    )
    assert completeness(rows.drop(columns="refitted")) == ""


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(roc_auc_score(labels, scores))
