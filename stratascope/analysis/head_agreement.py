"""Agreement of head scores: Spearman correlation with its interval, and the best heads in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError

AGREEMENT = {"first": str, "second": str, "spearman": float, "low": float, "high": float, "heads": int, "shared_tenth": float}
"""Columns of the table of agreement."""


def head_agreement(scores: Mapping[str, NDArray[Any]], *, level: float = 0.95) -> pd.DataFrame:
    """Agreement of each pair of scores over heads.

    Parameters
    ----------
    scores
        Name -> (layer, head).
    level
        Level of the intervals.

    Returns
    -------
    pandas.DataFrame
        first, second, spearman, low, high (interval of Bonett & Wright 2000, heads as independent), heads (number with both scores),
        shared_tenth (share of the best tenth of heads that both scores have in common; about 0.1 by chance).

    Raises
    ------
    InvalidInputError
        If there are fewer than two scores, or their shapes differ.
    """
    checked_scores(scores)
    if len(scores) < 2:
        raise InvalidInputError(f"expected at least two scores to compare, found {', '.join(scores)}")
    rows = []
    names = list(scores)
    for k, first in enumerate(names):
        for second in names[k + 1 :]:
            pair = pd.DataFrame({"a": np.ravel(scores[first]), "b": np.ravel(scores[second])}).astype(float).dropna()
            top = max(1, len(pair) // 10)
            best = [set(pair[c].nlargest(top).index) for c in "ab"]
            shared = len(best[0] & best[1]) / top if len(pair) else float("nan")
            ranks = pair.rank()
            varied = len(pair) > 2 and (ranks.std() > 0).all()
            found = float(ranks["a"].corr(ranks["b"])) if varied else float("nan")
            rows.append((first, second, found, *spearman_interval(found, len(pair), level), len(pair), shared))
    return pd.DataFrame(rows, columns=list(AGREEMENT))


def spearman_interval(correlation: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a Spearman correlation of `count` pairs: Fisher's z with variance (1 + r^2 / 2) / (n - 3) (Bonett & Wright 2000).

    NaN for fewer than four pairs.
    """
    from statistics import NormalDist

    if count < 4 or not np.isfinite(correlation):
        return float("nan"), float("nan")
    half = NormalDist().inv_cdf(0.5 + level / 2) * np.sqrt((1 + correlation**2 / 2) / (count - 3))
    middle = np.arctanh(np.clip(correlation, -1 + 1e-12, 1 - 1e-12))
    return float(np.tanh(middle - half)), float(np.tanh(middle + half))


def checked_scores(scores: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    """Shape (layer, head) that all scores have; InvalidInputError where they differ."""
    shapes = {np.shape(value) for value in scores.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise InvalidInputError(f"expected scores of one shape (layer, head), found {sorted(map(str, shapes)) or 'none'}")
    layers, heads = next(iter(shapes))
    return int(layers), int(heads)
