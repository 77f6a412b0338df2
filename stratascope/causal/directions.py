"""Directions of a concept in activations, and random directions to compare them with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.causal.erasure import Whitening, one_hot, orthonormal
from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.stats.bootstrap import random_order

Floats = NDArray[np.float64]

CONTROLS = ("covariance", "shuffled", "isotropic", "orthogonal")
"""Random directions: drawn from the covariance within classes; of shuffled labels, within classes; isotropic; drawn from the covariance in
the orthogonal complement of the concept."""
DEFAULT_CONTROLS = ("covariance", "shuffled", "orthogonal")
"""Those that are run by default."""
MATCHED = ("covariance", "shuffled")
"""Controls that vary as the activations do, without the concept; isotropic directions hardly touch what varies."""


def class_mean_difference(x: NDArray[Any], labels: NDArray[np.integer]) -> Floats:
    """(d,) mean of the rows of the second class minus that of the first.

    Parameters
    ----------
    x
        (n, d) rows.
    labels
        (n,) codes of two classes.

    Raises
    ------
    TooFewExamplesError
        If the labels do not hold two classes.

    Examples
    --------
    >>> import numpy as np
    >>> class_mean_difference(np.array([[0.0, 1.0], [2.0, 1.0], [4.0, 5.0]]), np.array([0, 0, 1]))
    array([3., 4.])
    """
    found = np.unique(labels)
    if len(found) != 2:
        raise TooFewExamplesError(f"expected two classes, found {len(found)}; steer and reflect need a task of two classes")
    low, high = (np.asarray(x[labels == code], np.float64).mean(0) for code in found)
    return np.asarray(high - low)


def logistic_direction(x: NDArray[Any], labels: NDArray[np.integer], *, strength: float = 1.0) -> Floats:
    """(d,) weights of an L2-regularised logistic regression: what separates the classes best, not what encodes them.

    Projecting it out, or steering along it, changes a model less than the difference of the class means does: a contrast, not a method.

    Parameters
    ----------
    x
        (n, d) rows, standardised before the fit.
    labels
        (n,) codes of two classes.
    strength
        Inverse regularisation C.
    """
    from sklearn.linear_model import LogisticRegression

    scale = np.maximum(np.asarray(x.std(0), np.float64), 1e-12)
    fitted = LogisticRegression(C=strength, max_iter=1000).fit((x - x.mean(0)) / scale, labels)
    return np.asarray(fitted.coef_[0] / scale, np.float64)


def haufe_pattern(x: NDArray[Any], weights: NDArray[Any]) -> Floats:
    """(d,) pattern Cov(x) w of a linear model: how the activations change with its output (Haufe et al. 2014, equation 7).

    Parameters
    ----------
    x
        (n, d) rows.
    weights
        (d,) weights w.
    """
    centred = np.asarray(x, np.float64) - x.mean(0)
    return np.asarray(centred.T @ (centred @ weights) / len(x))


def shuffled(z: Floats, folds: NDArray[np.integer], groups: NDArray[np.integer], rng: np.random.Generator) -> Floats:
    """(n, c) values exchanged within each fold, group by group: groups keep their examples together as far as their sizes allow."""
    result = z.copy()
    for fold in np.unique(folds):
        index = np.flatnonzero(folds == fold)
        places = random_order(index, groups, rng)
        result[places] = z[random_order(index, groups, rng)]
    return result


class RandomConcepts:
    """Random values for every example, the same at all layers, so that draws can be compared over layers.

    Parameters
    ----------
    z
        (n, c) values of the concept: indicators of classes, or numbers.
    folds, groups
        (n,) fold and group of each example; labels are shuffled within folds.
    draws
        How many.
    seed
        Of the draws.

    Raises
    ------
    InvalidInputError
        If `draws` is below 0.
    """

    def __init__(self, z: Floats, folds: NDArray[np.integer], groups: NDArray[np.integer], *, draws: int, seed: int) -> None:
        if draws < 0:
            raise InvalidInputError(f"expected `controls` of 0 or more, found {draws}")
        rng = np.random.default_rng([seed, 1])
        rank = max(1, int(np.linalg.matrix_rank(z - z.mean(0))))
        self.gaussian = rng.normal(size=(draws, len(z), rank))
        """(draw, n, rank)"""
        self.shuffled = [shuffled(z, folds, groups, rng) for _ in range(draws)]
        self.z, self.seed, self.rank, self.draws = z, seed, rank, draws

    def covariances(self, kind: str, whitening: Whitening, training: NDArray[np.bool_], concept: Floats, layer: int) -> list[Floats]:
        """(d, c) covariance with the rows of each draw; of rank `rank`.

        Parameters
        ----------
        kind
            One of `CONTROLS`.
        whitening
            Of the training rows.
        training
            (n,) which examples they are.
        concept
            (d, c) covariance of the concept itself, for `orthogonal`.
        layer
            Its number; isotropic directions are drawn for each layer.
        """
        if kind == "isotropic":
            rng = np.random.default_rng([self.seed, 2, layer])
            size = float(np.linalg.norm(concept)) / np.sqrt(max(1, self.rank))
            drawn = rng.normal(size=(self.draws, len(whitening.centre), self.rank))
            return [size * v / np.linalg.norm(v, axis=0) for v in drawn]
        if kind == "shuffled":
            return [whitening.covariance_with(self._within(z, training)) for z in self.shuffled]
        if kind == "covariance":
            return [whitening.covariance_with(self._within(g, training)) for g in self.gaussian]
        made = [whitening.covariance_with(g[training]) for g in self.gaussian]
        if kind == "orthogonal":
            basis = orthonormal(concept)
            made = [v - basis @ (basis.T @ v) for v in made]
        return made

    def _within(self, values: Floats, training: NDArray[np.bool_]) -> Floats:
        """Values of the training examples without what the concept explains: their covariance with the rows is that within classes."""
        z = self.z[training] - self.z[training].mean(0)
        own = values[training] - values[training].mean(0)
        return np.asarray(own - z @ np.linalg.lstsq(z, own, rcond=None)[0])


def concept_values(labels: NDArray[Any], numeric: bool) -> Floats:
    """(n, c) values of a concept: indicators of classes, or standardised numbers."""
    if not numeric:
        return one_hot(labels)
    values = np.asarray(labels, np.float64)
    return np.asarray((values - values.mean(0)) / np.maximum(values.std(0), 1e-12))
