"""Log-losses of batches of classifiers on stored logits: value, residual and curvature."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]


class Loss(Protocol):
    """A loss over (problem, output, row) logits and (problem, row) labels."""

    outputs: int

    def __call__(self, logits: Floats, labels: Floats, norms: Floats) -> tuple[Floats, Floats, Floats]:
        """Loss (problem,) in float64, residual (problem, output, row), curvature (problem, output, output) weighted by norms (row,)."""

    def each(self, logits: Floats, labels: Floats) -> Floats:
        """(problem, row) loss of every row, in float64."""


class BinaryLoss(Loss):
    """log(1 + exp(z)) - y z, for one logit z of class 1."""

    outputs = 1

    def __call__(self, logits: Floats, labels: Floats, norms: Floats) -> tuple[Floats, Floats, Floats]:
        z = logits[:, 0]
        side = 2 * labels - 1
        margin = side * z
        decay = np.exp(-np.abs(z))
        upper = 1 / (1 + decay)
        # nothing is taken from 1 or from z: where classes are separated, all of the loss would be rounding
        value = (np.maximum(-margin, 0) + np.log1p(decay)).sum(axis=1, dtype=np.float64)
        decay *= upper
        wrong = np.where(margin >= 0, decay, upper)
        curvature = (upper * decay) @ norms
        return value, (-side * wrong)[:, None], curvature.astype(np.float64)[:, None, None]

    def each(self, logits: Floats, labels: Floats) -> Floats:
        z = logits[:, 0].astype(np.float64)
        return np.logaddexp(0, z) - labels * z


class SoftmaxLoss(Loss):
    """log sum_k exp(z_k) - z_y, for one logit a class."""

    def __init__(self, classes: int) -> None:
        self.outputs = classes

    def __call__(self, logits: Floats, labels: Floats, norms: Floats) -> tuple[Floats, Floats, Floats]:
        top = logits.max(axis=1, keepdims=True)
        probability = np.exp(logits - top)
        problem, row, codes = np.arange(len(labels))[:, None], np.arange(labels.shape[1]), labels.astype(np.intp)
        own = probability[problem, codes, row]
        probability[problem, codes, row] = 0
        others = probability.sum(axis=1)
        total = others + own
        # nothing is taken from 1 where a row's own class is on top: all of a small loss would be rounding
        lost = np.where(own == 1, np.log1p(others), np.log(total) + (top[:, 0] - logits[problem, codes, row]))
        value = lost.sum(axis=1, dtype=np.float64)
        probability /= total[:, None]
        probability[problem, codes, row] = own / total
        weighted = probability * norms
        curvature = -np.matmul(weighted, probability.transpose(0, 2, 1)).astype(np.float64)
        diagonal = np.arange(self.outputs)
        curvature[:, diagonal, diagonal] += weighted.sum(axis=2)
        probability[problem, codes, row] = -others / total
        return value, probability, curvature

    def each(self, logits: Floats, labels: Floats) -> Floats:
        z = logits.astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        chosen = np.take_along_axis(z, labels[:, None].astype(np.intp), axis=1)[:, 0]
        return np.asarray(np.log(np.exp(z).sum(axis=1)) - chosen)


def loss_for(classes: int) -> Loss:
    """The loss for a number of classes; two classes share one logit, as in scikit-learn."""
    return BinaryLoss() if classes == 2 else SoftmaxLoss(classes)


def probabilities(logits: Floats) -> Floats:
    """(..., output, row) logits to (..., row, class) probabilities in float64."""
    z = np.moveaxis(logits.astype(np.float64), -2, -1)
    if z.shape[-1] == 1:
        z = np.concatenate([np.zeros_like(z), z], axis=-1)
    z = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.asarray(z / z.sum(axis=-1, keepdims=True))
