"""Scores of predicted values: R2 and Spearman's rank correlation, with bootstrap draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.rank_correlation import stratified_correlation

Floats = NDArray[Any]
METRICS = ("r2", "spearman")
"""Scores of a task of values; for several targets their means, and each one's own as METRIC_TARGET."""


def value_metrics(targets: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the scores of a task with these targets."""
    return (*METRICS, *(f"{metric}_{target}" for metric in METRICS for target in targets if len(targets) > 1))


def score_values(
    predicted: Floats,
    values: Floats,
    targets: tuple[str, ...],
    bootstrap: Bootstrap,
    noise_share: Floats,
    folds: NDArray[np.integer] | None = None,
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """R2 and Spearman correlation of predicted values, and their means over targets.

    The correlation is the mean over folds of that within a fold: predictions of different folds are not comparable, since the mean of a
    training set is the lower, the higher that of its test set.

    Parameters
    ----------
    predicted
        (layer, target, example).
    values
        (example, target).
    noise_share
        (layer, target); draws are widened as in `score_layers`.
    folds
        (example,); one by default.

    Returns
    -------
    tuple of dict
        Metric -> values (layer,), and metric -> draws (draw, layer).
    """
    strata = np.zeros(len(values), np.intp) if folds is None else folds
    width = np.sqrt(1 + noise_share)
    scores: list[dict[str, Floats]] = []
    draws: list[dict[str, Floats]] = []
    for number in range(len(targets)):
        y, found = values[:, number], predicted[:, number].astype(np.float64)
        size = max(float(y.std()), 1e-150)
        squared, centred = ((found - y).T / size) ** 2, (y - y.mean()) / size
        spread = bootstrap.mean(np.stack([centred**2, centred], axis=1))
        variance = np.maximum(spread[:, :1] - spread[:, 1:] ** 2, 1e-300)
        score = 1 - squared.mean(axis=0) / max(float((centred**2).mean()), 1e-300)
        ranks = [stratified_correlation(layer, y, strata) for layer in found]
        ranked = np.array([value for value, _ in ranks])
        scores.append({"r2": score, "spearman": ranked})
        draws.append(
            {
                "r2": score + (1 - bootstrap.mean(squared) / variance - score) * width[:, number],
                "spearman": ranked + _resampled(bootstrap, np.stack([influence for _, influence in ranks], axis=1)) * width[:, number],
            }
        )
    return _by_target(targets, scores), _by_target(targets, draws)


def value_influences(
    predicted: Floats, values: Floats, targets: tuple[str, ...], noise_share: Floats, folds: NDArray[np.integer] | None = None
) -> dict[str, tuple[float, Floats]]:
    """Metric -> its value, and the influence (example,) of each example on it, as `metrics.score_influences` of classes.

    Parameters
    ----------
    predicted
        (target, example).
    values
        (example, target).
    noise_share
        (target,).
    folds
        (example,); one by default.
    """
    strata = np.zeros(len(values), np.intp) if folds is None else folds
    scores: list[dict[str, Floats]] = []
    influences: list[dict[str, Floats]] = []
    for number in range(len(targets)):
        squared = (predicted[number] - values[:, number]).astype(np.float64) ** 2
        deviation = (values[:, number] - values[:, number].mean()) ** 2
        variance = max(float(deviation.mean()), 1e-300)
        error = float(squared.mean())
        influence = (error / variance * (deviation - deviation.mean()) - (squared - error)) / variance / len(values)
        ranked, of_ranks = stratified_correlation(predicted[number], values[:, number], strata)
        width = np.sqrt(1 + noise_share[number])
        scores.append({"r2": np.asarray(1 - error / variance), "spearman": np.asarray(ranked)})
        influences.append({"r2": influence * width, "spearman": of_ranks * width})
    spread = _by_target(targets, influences)
    return {metric: (float(value), spread[metric]) for metric, value in _by_target(targets, scores).items()}


def _resampled(bootstrap: Bootstrap, influence: Floats) -> Floats:
    """(draw, layer) change of a score in each resample, to first order in the influences (example, layer)."""
    by_group = np.zeros((bootstrap.count, influence.shape[1]))
    np.add.at(by_group, bootstrap.groups, influence)
    return np.asarray((bootstrap.weights.astype(np.float64) - 1) @ by_group)


def _by_target(targets: tuple[str, ...], scores: list[dict[str, Floats]]) -> dict[str, Floats]:
    """The mean of each score over targets, then each target's own where there are several."""
    own: Mapping[str, Floats] = {
        f"{metric}_{target}": one[metric] for metric in METRICS for target, one in zip(targets, scores, strict=True) if len(targets) > 1
    }
    return {metric: np.mean([one[metric] for one in scores], axis=0) for metric in METRICS} | dict(own)
