"""Spearman's rank correlation of two lists of numbers, and what it is where one of them ranks nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rank_correlation(scores: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Spearman's correlation of as many scores as truths.

    0 where the scores are all alike: they rank nothing. NaN where the truths are, since there is nothing to rank, and for fewer than two.
    """
    from scipy.stats import rankdata

    if len(truth) < 2 or np.ptp(truth) == 0:
        return float("nan")
    return 0.0 if np.ptp(scores) == 0 else float(np.corrcoef(rankdata(scores), rankdata(truth))[0, 1])
