"""Agreement of head scores: Spearman correlation with its interval, and the best heads in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.stats.rank_correlation import rank_correlation, spearman_interval

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
            a, b = pair.to_numpy().T
            found = rank_correlation(a, b) if len(pair) > 2 and np.ptp(a) > 0 else float("nan")
            rows.append((first, second, found, *spearman_interval(found, len(pair), level), len(pair), shared))
    return pd.DataFrame(rows, columns=list(AGREEMENT))


def checked_scores(scores: Mapping[str, NDArray[Any]]) -> tuple[int, int]:
    """Shape (layer, head) that all scores have; InvalidInputError where they differ."""
    shapes = {np.shape(value) for value in scores.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise InvalidInputError(f"expected scores of one shape (layer, head), found {sorted(map(str, shapes)) or 'none'}")
    layers, heads = next(iter(shapes))
    return int(layers), int(heads)
