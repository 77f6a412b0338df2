"""Means, and ratios of means, with studentised bootstrap intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import NO_SPREAD, Band

Floats = NDArray[Any]
FEWEST_GROUPS = 8
"""Groups, such as images, below which a mean has no interval."""


def mean_ratio(top: Floats, bottom: Floats, bootstrap: Bootstrap, *, level: float = 0.95) -> tuple[Floats, Floats, Band]:
    """Ratio of two means over the same examples, with pointwise intervals and a simultaneous band over rows.

    Bootstrap-t (Hall 1988) over groups: each resample's distance from the ratio is divided by the resample's own standard error, which is
    that of the linearised ratio with one residual a group. Both tails are taken apart, so that skewed values have skewed intervals; plain
    percentiles cover them too rarely. Rows without spread over groups have intervals without width.

    Parameters
    ----------
    top, bottom
        (row, example); NaN where not measured. A `bottom` of ones gives means.
    bootstrap
        Resamples of the examples' groups.
    level
        Of the intervals.

    Returns
    -------
    tuple
        (row,) ratios and their standard errors, NaN for rows without examples, and their band, whose ends are NaN for rows with fewer
        than `FEWEST_GROUPS` groups.

    Examples
    --------
    >>> import numpy as np
    >>> values = np.random.default_rng(0).lognormal(size=(1, 100))
    >>> mean, error, band = mean_ratio(values, np.ones((1, 100)), Bootstrap(np.arange(100)))
    >>> bool(mean[0] - band.low[0] < band.high[0] - mean[0])
    True
    """
    known = np.isfinite(top) & np.isfinite(bottom)
    member = (bootstrap.groups[:, None] == np.arange(bootstrap.count)).astype(np.float64)
    above, below = (np.where(known, values, 0) @ member for values in (top, bottom))
    present = known.astype(np.float64) @ member > 0
    weights = bootstrap.weights.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, error = _ratio(np.ones((1, bootstrap.count)), above, below, present)
        drawn, errors = _ratio(weights, above, below, present)
        value, error = value[0], error[0]
        spread = error > NO_SPREAD * np.maximum(np.abs(value), 1)
        # a resample of a single group has no standard error of its own
        apart = np.where(errors > 0, (drawn - value) / errors, np.nan)
    ends = [np.array(value) for _ in range(4)]
    critical = 0.0
    if spread.any():
        tail = (1 - level) / 2
        low, high = (np.nanquantile(apart[:, spread], share, axis=0) for share in (1 - tail, tail))
        largest, smallest = (reduce(apart[:, spread], axis=1) for reduce in (np.fmax.reduce, np.fmin.reduce))
        low_all, high_all = float(np.nanquantile(largest, 1 - tail)), float(np.nanquantile(smallest, tail))
        for end, reach in zip(ends, (low, high, low_all, high_all), strict=True):
            end[spread] -= reach * error[spread]
        critical = max(low_all, -high_all)
    few = present.sum(1) < FEWEST_GROUPS
    for end in ends:
        end[few] = np.nan
    return value, error, Band(ends[0], ends[1], ends[2], ends[3], critical)


def _ratio(weights: Floats, above: Floats, below: Floats, present: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(draw, row) ratios of weighted sums over groups, and their standard errors; NaN without examples, or of one group."""
    total, size, count = weights @ above.T, weights @ below.T, weights @ present.T
    ratio = total / size
    squares = weights @ (above**2).T - 2 * ratio * (weights @ (above * below).T) + ratio**2 * (weights @ (below**2).T)
    variance = np.maximum(squares, 0) * count / (count - 1)
    return ratio, np.where(count > 1, np.sqrt(variance) / size, np.nan)
