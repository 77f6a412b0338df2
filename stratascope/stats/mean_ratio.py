"""Means, and ratios of means, with studentised bootstrap intervals."""

from __future__ import annotations

from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import NO_SPREAD, Band, zero_count_bound

Floats = NDArray[Any]
FEWEST_GROUPS = 32
"""Groups, such as images, below which a mean has no interval: fewer do not show whether a few large values decide it."""
FEWEST_RATIO = 24
"""The same of ratios of positive means, on a log scale."""
FEWEST_BOUNDED = 8
"""The same of values with limits, such as correlations."""
FEWEST_DECIDING = 5
"""Groups that must decide the means of a family of rows (`deciding_groups`); with fewer they have no intervals."""
FURTHEST = 1.5
"""How far a simultaneous band reaches at most, in distances of the row's own most extreme resample."""
LONGEST = 12.0
"""How far an interval reaches at most, in standard errors."""
LONGEST_LOG = 6.0
"""The same of a pointwise interval of the logarithm of a ratio."""
_LARGE, _LARGEST, _NOTABLE = 0.95, 0.99, 0.1
"""Quantiles of the deviations in a family, and the share of the largest that a deciding group exceeds."""
_FULL, _FALL = 64, 0.4
"""Groups up to which intervals are widened in full, and the power with which this falls beyond."""
_JOINT = 0.5
"""Share of the widening, on a log scale, that the simultaneous band has."""
_SHARES = ((0.5, 0.9), (0.75, 0.95))
_EQUAL, _EQUAL_LOG, _STEEPNESS, _MOST = 0.6, 0.3, 2.5, 1.6
"""Spread of the logarithm of sizes (`log_spread`) from which, on a log scale the second, and up to which intervals are widened, and how
fast."""
_OPEN, _OPEN_SKEWNESS = 1.4, 0.45
"""Spread of the logarithm and skewness, in square roots of groups, above which a family of fewer than `_FULL` groups has an open end."""


def mean_ratio(
    top: Floats,
    bottom: Floats,
    bootstrap: Bootstrap,
    *,
    level: float = 0.95,
    bounded: bool = False,
    positive: bool = False,
    families: NDArray[np.integer] | None = None,
) -> tuple[Floats, Floats, Band]:
    """Ratio of two means over the same examples, with pointwise intervals and a simultaneous band over each family of rows.

    Bootstrap-t (Hall 1988) over groups: each resample's distance from the ratio is divided by the resample's own standard error, which is
    that of the linearised ratio with one residual a group. Both tails are taken apart, so that skewed values have skewed intervals; plain
    percentiles cover them too rarely. Rows without spread over groups have intervals without width.

    Where sizes are so unequal that a few groups decide the mean, most samples lack the largest, and bootstrap-t intervals of a nominal
    95 % cover in 85 to 90 %. There the nominal level is higher: from 95 % at a spread of the logarithm of .6 to 99.6 % at 1.6. More than
    `_FULL` groups hold enough of the largest, and the level is closer to 95 %. On a log scale the lower end is widened by the sizes of
    `bottom`, the upper end by those of `top`. Where even that does not cover, in families of fewer than `_FULL` groups whose sizes are
    very unequal and skewed, the end on the side of the large values is NaN, and the other end is given.

    The simultaneous band takes the largest distance of a resample over rows, but at most `FURTHEST` times the largest of a row's own: a row
    whose few large values make its distances extreme would else widen all others without limit. No end is farther than `LONGEST` standard
    errors from the ratio (`LONGEST_LOG` on a log scale, where values are less skewed): resamples without the few large values have tiny
    errors of their own, and their distances no limit. Nor is any end nearer than a large deviation of the family would move the ratio in
    groups that are too rare to be in the sample: a row whose sample misses them looks as if it had no effect.

    **Intervals are given only where simulation says that they cover** (docs/benchmarks.md): of `FEWEST_GROUPS` groups or more
    (`FEWEST_RATIO`, `FEWEST_BOUNDED`), in families whose means at least `FEWEST_DECIDING` groups decide (`deciding_groups`). All other
    ends are NaN.

    Parameters
    ----------
    top, bottom
        (row, example); NaN where not measured. A `bottom` of ones gives means.
    bootstrap
        Resamples of the examples' groups.
    level
        Of the intervals.
    bounded
        Whether values have limits, as correlations do: then no few groups decide the mean, the nominal level is `level`, and
        `FEWEST_BOUNDED` groups are enough.
    positive
        Whether all values are at least 0: then distances are those of the logarithm of the ratio, so that the ends are above 0, and the
        sizes of `bottom` count like those of `top`, and `FEWEST_RATIO` groups are enough, whatever number decides.
    families
        (row,) number of the family of each row, chosen before looking at the values; one family by default.

    Returns
    -------
    tuple
        (row,) ratios and their standard errors, NaN for rows without examples, and their band, whose ends are NaN for rows without an
        interval.

    Examples
    --------
    >>> import numpy as np
    >>> values = np.random.default_rng(0).lognormal(size=(1, 100))
    >>> mean, error, band = mean_ratio(values, np.ones((1, 100)), Bootstrap(np.arange(100)))
    >>> bool(mean[0] - band.low[0] < band.high[0] - mean[0])
    True
    """
    if families is not None:
        found, critical = np.full((6, len(top)), np.nan), 0.0
        for family in np.unique(families):
            rows = families == family
            *numbers, bands = mean_ratio(top[rows], bottom[rows], bootstrap, level=level, bounded=bounded, positive=positive)
            found[:, rows] = [*numbers, *bands.ends.values()]
            critical = max(critical, bands.critical)
        low, high, low_all, high_all = found[2:]
        return found[0], found[1], Band(low, high, low_all, high_all, critical)
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
        distance = drawn * np.log(drawn / value) if positive else drawn - value
        apart = np.where(errors > 0, distance / errors, np.nan)
        deviations = np.where(present, (above - value[:, None] * below) * (present.sum(1) / below.sum(1))[:, None], np.nan)
    # (end, row): samples that lack large values of `bottom` have a lower end that is too high, of `top` an upper one that is too low
    unequal = np.zeros((2, len(above)))
    if positive:
        unequal = np.stack([log_spread(below, present), log_spread(above, present)])
    elif not bounded:
        unequal[:] = np.maximum(log_spread(above, present), log_spread(deviations, present))
    ends = [np.array(value) for _ in range(4)]
    critical = 0.0
    if spread.any():
        tail = (1 - level) / 2
        apart = apart[:, spread]
        steepness = _STEEPNESS * np.minimum(1, (_FULL / present.sum(1)[spread]) ** _FALL)
        least = _EQUAL_LOG if positive else _EQUAL
        cautions = np.exp(-steepness * (np.clip(unequal[:, spread], least, _MOST) - least))
        # (row,) how far the ends reach: pointwise, and together with all rows, within a limit of the row's own
        alone, together = [], []
        for side, caution in zip((apart, -apart), cautions, strict=True):
            largest = np.fmax.reduce(side, axis=1)
            alone.append([np.nanquantile(row, 1 - share) for row, share in zip(side.T, tail * caution, strict=True)])
            together.append(np.minimum(np.nanquantile(largest, 1 - tail * caution**_JOINT), FURTHEST * np.nanmax(side, axis=0)))
        (low, high), (low_all, high_all) = (np.array(reach) * [[1], [-1]] for reach in (alone, np.maximum(alone, together)))
        limits = (LONGEST_LOG if positive else LONGEST,) * 2 + (LONGEST,) * 2
        for end, reach, limit in zip(ends, (low, high, low_all, high_all), limits, strict=True):
            far = np.clip(reach, -limit, limit) * error[spread]
            end[spread] = value[spread] * np.exp(-far / value[spread]) if positive else value[spread] - far
        critical = float(min(max(low_all.max(), -high_all.min()), LONGEST))
    count = present.sum(1)
    if not (bounded or positive) and spread.any():
        large = float(np.nanquantile(np.abs(deviations[spread]), _LARGE))
        for pair, share in ((ends[:2], level), (ends[2:], 1 - (1 - level) / len(ends[0]))):
            unseen = [large * zero_count_bound(n, share) for n in count[spread]]
            pair[0][spread], pair[1][spread] = (
                np.fmin(pair[0][spread], value[spread] - unseen),
                np.fmax(pair[1][spread], value[spread] + unseen),
            )
    few = count < (FEWEST_BOUNDED if bounded else FEWEST_RATIO if positive else FEWEST_GROUPS)
    if not (bounded or positive) and spread.any():
        few |= deciding_groups(deviations[spread]) < FEWEST_DECIDING
        long = _long_side(deviations[spread], unequal[0, spread], count[spread])
        for end, sign in zip(ends, (-1, 1, -1, 1), strict=True):
            end[spread] = np.where(long == sign, np.nan, end[spread])
    for end in ends:
        end[few] = np.nan
    return value, error, Band(ends[0], ends[1], ends[2], ends[3], critical)


def _long_side(deviations: Floats, unequal: Floats, count: NDArray[np.integer]) -> Floats:
    """(row,) side, -1 or 1, of the large deviations whose size the sample does not show; 0 where it does.

    The means over the family decide: the rows whose own sample lacks the large values are those that look even.
    """
    third, second = (np.nanmean(deviations**power, axis=1) for power in (3, 2))
    skewness = third / second**1.5
    are_open = unequal.mean() > _OPEN and float(np.mean(np.abs(skewness) / np.sqrt(count))) > _OPEN_SKEWNESS
    return np.where((count < _FULL) & are_open, np.sign(skewness), 0)


def deciding_groups(deviations: Floats) -> float:
    """Number of groups that decide the means of a family of rows.

    In each row, the groups that deviate from its median by more than a tenth of the largest deviations of the family (their quantile .99);
    the mean over rows, weighted by their sums of squared deviations. Rows without such a group hardly count, so that a sample that misses
    rare effects in some rows is judged by the others.

    Parameters
    ----------
    deviations
        (row, group) from the row's mean; NaN where there are none.

    Examples
    --------
    >>> import numpy as np
    >>> deviations = np.random.default_rng(0).standard_normal((6, 100)) / 100
    >>> deviations[:, :3] += 1
    >>> round(deciding_groups(deviations), 1)
    3.0
    """
    size = np.abs(deviations - np.nanmedian(deviations, axis=1, keepdims=True))
    counts = (size > _NOTABLE * np.nanquantile(np.abs(deviations), _LARGEST)).sum(axis=1)
    return float(np.average(counts, weights=np.nansum(deviations**2, axis=1)))


def log_spread(values: Floats, present: NDArray[np.bool_]) -> Floats:
    """(row,) standard deviation of the logarithm of log-normal sizes with the same upper quantiles, mean over two pairs; at most 1.6 each.

    Parameters
    ----------
    values
        (row, group); their sizes are taken.
    present
        (row, group) which there are.

    Examples
    --------
    >>> import numpy as np
    >>> sizes = np.random.default_rng(0).lognormal(sigma=1.2, size=(1, 10_000))
    >>> float(log_spread(sizes, np.ones_like(sizes, bool))[0].round(1))
    1.2
    """
    found = np.zeros(len(values))
    normal = np.vectorize(NormalDist().inv_cdf)(_SHARES)
    for k, (row, there) in enumerate(zip(np.abs(values), present, strict=True)):
        if there.any():
            quantiles = np.maximum(np.quantile(row[there], _SHARES), np.finfo(float).tiny)
            each = np.diff(np.log(quantiles)) / np.diff(normal)
            found[k] = np.minimum(each, _MOST).mean()
    return found


def _ratio(weights: Floats, above: Floats, below: Floats, present: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """(draw, row) ratios of weighted sums over groups, and their standard errors; NaN without examples, or of one group."""
    total, size, count = weights @ above.T, weights @ below.T, weights @ present.T
    ratio = total / size
    squares = weights @ (above**2).T - 2 * ratio * (weights @ (above * below).T) + ratio**2 * (weights @ (below**2).T)
    variance = np.maximum(squares, 0) * count / (count - 1)
    return ratio, np.where(count > 1, np.sqrt(variance) / size, np.nan)
