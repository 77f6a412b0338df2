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


def spearman_interval(correlation: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence interval of a Spearman correlation of `count` independent pairs; NaN for fewer than four.

    Fisher's z with the variance (1 + r^2 / 2) / (n - 3) of Bonett & Wright 2000.
    """
    if count < 4 or not np.isfinite(correlation):
        return float("nan"), float("nan")
    half = NormalDist().inv_cdf(0.5 + level / 2) * np.sqrt((1 + correlation**2 / 2) / (count - 3))
    middle = np.arctanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))
