"""Intervals of means over examples: images are drawn with replacement, so that examples of an image stay together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def bootstrap_means(values: Floats, groups: NDArray[Any], draws: int, seed: int) -> Floats:
    """(row, draw) means over examples of (row, example) values that are not NaN, groups drawn with replacement, the same for all rows."""
    codes = np.unique(groups, return_inverse=True)[1]
    number = int(codes.max()) + 1
    member = (codes[:, None] == np.arange(number)).astype(np.float64)
    known = np.isfinite(values)
    sums, counts = np.where(known, values, 0) @ member, known.astype(np.float64) @ member
    taken = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), draws).astype(np.float64).T
    drawn = counts @ taken
    return np.asarray(np.where(drawn > 0, sums @ taken / np.where(drawn > 0, drawn, 1), np.nan))


def ends(drawn: Floats, level: float) -> tuple[Floats, Floats]:
    """(row,) lower and upper percentiles of (row, draw) values that are not NaN; NaN for a row without."""
    lost = np.asarray(np.isnan(drawn).all(1))
    ends = np.nanquantile(np.where(lost[:, None], 0, drawn), [0.5 - level / 2, 0.5 + level / 2], axis=1)
    low, high = np.where(lost, np.nan, ends)
    return low, high
