"""Out-of-fold logits of one labelling of one layer, selected strengths, and the noise of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[Any]
_LARGE_GAP = 1e-4
"""Relative gap of an objective that is reported."""


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Out-of-fold answers of one labelling; the model of an example was trained on no example of its group."""

    logits: Floats
    """(output, example) float32, NaN for examples not tested; one output for two classes (the logit of the second)."""
    strength: Floats
    """(fold,) selected C; (target x fold,) in a task of values, as for every field by fold except the weights."""
    inner_loss: Floats
    """(strength, fold) mean loss of the inner folds; NaN where the path stopped early, or nothing was selected."""
    gap: Floats
    """(fold,) estimate of (F - F*) / F of the selected model."""
    certificate: Floats
    """(fold,) bound on the distance to the exact weights, in standardised coordinates."""
    iterations: NDArray[np.intp]
    """(fold,) iterations of the selected model."""
    noise_share: Floats
    """(fold,) share of the variance of the logits due to the training sample, 0..1; NaN where not measured."""
    decision_share: Floats
    """(fold,) the same share for the decisions, if smaller; meaningless in a task of values."""
    absent: NDArray[np.bool_]
    """(fold, class) classes without a training example: their probability is 0 there."""
    fold_directions: Floats
    """(fold, output, column) float32 weights on x as recorded."""
    fold_intercepts: Floats
    """(fold, output)"""
    direction: Floats
    """(output, column) of a model of all training examples, at the strength best on average."""
    intercept: Floats
    """(output,)"""
    direction_strength: Floats
    """(1,), or (target,) in a task of values."""
    at_edge: NDArray[np.bool_]
    """(fold,) whether the loss still fell at the largest strength, so that the optimum lies beyond the grid."""
    control_values: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """(metric, draw) scores of every draw of a control's labels, whose first the other fields describe; empty for a single labelling."""
    control_influence: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    """(metric, example) influence of each example on the mean score over draws."""

    def shares(self, targets: int, *, unknown: float) -> tuple[Floats, Floats]:
        """(target,) shares of noise and of decisions, means over folds; `unknown` where a fold did not measure them."""
        noise, turned = (
            np.nan_to_num(by_fold, nan=unknown).reshape(max(targets, 1), -1).mean(1) for by_fold in (self.noise_share, self.decision_share)
        )
        return noise, turned


def noise_share(logits: Floats, smaller: Floats, without_signal: float) -> float:
    """Share of the variance of the logits that is due to the training sample.

    Logits (output, row) are compared with those (model, output, row) of models trained on one fold less. Without signal, logits are sums
    of independent contributions of the training folds, and their correlation is `without_signal` = sqrt((folds - 2) / (folds - 1)).
    With signal alone, the correlation is 1.
    """
    centred = logits - logits.mean(axis=1, keepdims=True)
    others = smaller - smaller.mean(axis=2, keepdims=True)
    size = np.sqrt((centred**2).sum() * (others**2).sum(axis=(1, 2)))
    if not (size > 0).all():
        return 1.0
    correlation = float(((others * centred).sum(axis=(1, 2)) / size).mean())
    return float(np.clip((1 - correlation) / (1 - without_signal), 0, 1))


def decision_share(logits: Floats, smaller: Floats, without_signal: float) -> float:
    """`noise_share` of the decisions (one column per class), or of the logits if that is smaller.

    Without signal, logits depend on the training sample, but a probe that nearly always predicts one class hardly changes its decisions.
    With signal, decisions near the boundary change often, and the share of the logits is smaller and correct.
    """
    of_logits = noise_share(logits, smaller, without_signal)
    decided, others = (_columns(found) for found in (logits, smaller))
    if not (decided.var(axis=1).any() and others.var(axis=2).any()):
        return 0.0
    return min(of_logits, noise_share(decided, others, without_signal))


def _columns(logits: Floats) -> Floats:
    """(..., class, row) one-hot decisions of (..., output, row) logits; a single output is the logit of the second class."""
    if logits.shape[-2] == 1:
        return np.asarray(logits > 0, np.float64)
    return np.asarray(logits.argmax(axis=-2)[..., None, :] == np.arange(logits.shape[-2])[:, None], np.float64)


def fit_warnings(folds: pd.DataFrame) -> list[str]:
    """Warnings from a table of folds: C at the edge of the grid, classes without training examples, models not converged."""
    found = []
    top = folds[folds["at_edge"]]
    if len(top):
        found.append(
            f"at {_listed(top['layer'])} the best inverse regularisation is the largest tried, C = {top['strength'].max():g}, and "
            "the loss still fell there: a larger one may score better; give larger strengths"
        )
    absent = folds[folds["absent_classes"] != ""]
    if len(absent):
        names = sorted({name for cell in absent["absent_classes"] for name in cell.split(", ")})
        found.append(f"classes {', '.join(names)} are missing from a training fold and never predicted there; raise `minimum`")
    rough = folds[folds["gap"] > _LARGE_GAP]
    if len(rough):
        found.append(f"at {_listed(rough['layer'])} the objective is up to {rough['gap'].max():.0e} above its minimum (relative)")
    return found


def _listed(layers: pd.Series) -> str:
    held = sorted(set(layers))
    return f"layer{'s' if len(held) > 1 else ''} {', '.join(map(str, held))}"
