"""Spearman's rank correlation: of two lists of numbers, example by example, and what it is where one of them ranks nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FEWEST_TARGETS = 4
"""Below it a rank correlation within one example says nothing."""


def rank_correlation(scores: Floats, truth: Floats) -> float:
    """Spearman's correlation of as many scores as truths.

    0 where the scores are all alike: they rank nothing. NaN where the truths are, since there is nothing to rank, and for fewer than two.
    """
    from scipy.stats import rankdata

    if len(truth) < 2 or np.ptp(truth) == 0:
        return float("nan")
    return 0.0 if np.ptp(scores) == 0 else float(np.corrcoef(rankdata(scores), rankdata(truth))[0, 1])


def rank_correlations(scores: Floats, effects: Floats) -> Floats:
    """(example,) Spearman's correlation of (example, target) scores with effects over the targets where both are known.

    0 for scores that are all alike: they rank nothing. NaN for effects that are all alike, and for fewer than four targets.
    """
    out = np.full(len(scores), np.nan)
    for k, (score, effect) in enumerate(zip(scores, effects, strict=True)):
        both = np.isfinite(score) & np.isfinite(effect)
        if both.sum() >= FEWEST_TARGETS:
            out[k] = rank_correlation(score[both], effect[both])
    return out
