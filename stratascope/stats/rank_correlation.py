"""Spearman's rank correlation, with its confidence interval."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]

FEWEST_TARGETS = 4
"""Targets below which the rank correlation within one example is not computed."""


def rank_correlation(scores: Floats, truth: Floats) -> float:
    """Spearman correlation of scores with a truth.

    0 where all scores are equal, since they rank nothing. NaN where all truths are equal, and for fewer than two.

    Examples
    --------
    >>> import numpy as np
    >>> rank_correlation(np.array([0.1, 0.2, 0.4]), np.array([1.0, 5.0, 30.0]))
    1.0
    """
    from scipy.stats import rankdata

    if len(truth) < 2 or np.ptp(truth) == 0:
        return float("nan")
    return 0.0 if np.ptp(scores) == 0 else float(np.corrcoef(rankdata(scores), rankdata(truth))[0, 1])


def rank_correlations(scores: Floats, effects: Floats) -> Floats:
    """(..., example) Spearman correlation of (..., example, target) scores with (example, target) effects, over finite targets.

    Leading axes of the scores, such as draws, share the targets that are finite in all of them. 0 where all scores are equal; NaN where
    all effects are equal, and for fewer than four targets.
    """
    from scipy.stats import rankdata

    out = np.full(scores.shape[:-1], np.nan)
    for k, effect in enumerate(effects):
        score = scores[..., k, :]
        both = np.isfinite(score).all(tuple(range(score.ndim - 1))) & np.isfinite(effect)
        if both.sum() < FEWEST_TARGETS or np.ptp(effect[both]) == 0:
            continue
        ranks = [rankdata(values[..., both], axis=-1) for values in (score, effect)]
        centred = [rank - (both.sum() + 1) / 2 for rank in ranks]
        size = np.sqrt(np.square(centred[0]).sum(-1) * np.square(centred[1]).sum())
        out[..., k] = np.where(size > 0, centred[0] @ centred[1] / np.where(size > 0, size, 1), 0.0)
    return out


def stratified_correlation(scores: Floats, truth: Floats, strata: NDArray[np.integer]) -> tuple[float, Floats]:
    """Spearman correlation within strata, weighted by their sizes, and the influence of each example on it.

    A stratum in which all scores, or all truths, are equal counts as 0. The correlation of examples with weights w is close to that of
    equal weights plus sum((w - 1) * influence), which spares a resampling.

    Parameters
    ----------
    scores, truth
        (example,)
    strata
        (example,) such as folds, whose scores are not comparable.

    Returns
    -------
    tuple
        The correlation, and its derivative (example,) with respect to each example's weight.

    Examples
    --------
    >>> import numpy as np
    >>> value, influence = stratified_correlation(np.array([0.1, 0.4, 0.35, 0.8]), np.array([1.0, 2.0, 3.0, 4.0]), np.zeros(4, int))
    >>> round(value, 3), bool(abs(influence.sum()) < 1e-12)
    (0.8, True)
    """
    influence, parts, n = np.zeros(len(scores)), np.zeros(len(scores)), len(scores)
    for stratum in np.unique(strata):
        index = np.flatnonzero(strata == stratum)
        parts[index], influence[index] = _correlation_influence(scores[index], truth[index])
    value = float(parts.mean())
    return value, (influence + parts - value) / n


def _correlation_influence(x: Floats, y: Floats) -> tuple[float, Floats]:
    """Spearman correlation, and its derivative with respect to the share of each example, times their number."""
    from scipy.stats import rankdata

    n = len(x)
    if n < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0, np.zeros(n)
    r, s = ((rankdata(values) - 0.5) / n for values in (x, y))  # mid-distribution functions, of mean 1/2
    both, own, other = float((r * s).mean()), float((r * r).mean()), float((s * s).mean())
    covariance, spreads = both - 0.25, (own - 0.25, other - 0.25)
    change = r * s + _mean_above(x, s) + _mean_above(y, r) - 3 * both
    changes = (r * r + 2 * _mean_above(x, r) - 3 * own, s * s + 2 * _mean_above(y, s) - 3 * other)
    value = covariance / np.sqrt(spreads[0] * spreads[1])
    return float(value), change / np.sqrt(spreads[0] * spreads[1]) - value / 2 * (changes[0] / spreads[0] + changes[1] / spreads[1])


def _mean_above(x: Floats, values: Floats) -> Floats:
    """(example,) mean over all examples of `values` where x is larger than the example's own; equal ones count one half."""
    levels, place = np.unique(x, return_inverse=True)
    total = np.bincount(place, values, len(levels))
    return np.asarray((total[::-1].cumsum()[::-1] - total / 2)[place] / len(x))


def spearman_interval(correlation: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a Spearman correlation of `count` independent pairs; NaN for fewer than four.

    Fisher's z with the variance (1 + r^2 / 2) / (n - 3) of Bonett & Wright 2000.
    """
    if count < 4 or not np.isfinite(correlation):
        return float("nan"), float("nan")
    half = NormalDist().inv_cdf(0.5 + level / 2) * np.sqrt((1 + correlation**2 / 2) / (count - 3))
    middle = np.arctanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))
