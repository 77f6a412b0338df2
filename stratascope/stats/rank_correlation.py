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
    """(example,) Spearman correlation of (example, target) scores with effects, over the targets where both are finite.

    0 where all scores are equal; NaN where all effects are equal, and for fewer than four targets.
    """
    out = np.full(len(scores), np.nan)
    for k, (score, effect) in enumerate(zip(scores, effects, strict=True)):
        both = np.isfinite(score) & np.isfinite(effect)
        if both.sum() >= FEWEST_TARGETS:
            out[k] = rank_correlation(score[both], effect[both])
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
