"""Confidence intervals: percentile and simultaneous (max-t) from bootstrap draws, Wilson's for shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from stratascope.stats.bootstrap import Bootstrap

Floats = NDArray[Any]
POWER = 0.8
"""Power at which a minimum detectable effect is given."""
INTERVALS = ("low", "high", "low_simultaneous", "high_simultaneous")
INTERVAL = " ".join(INTERVALS)
"""Columns of a table with intervals, as a schema names them."""
NO_SPREAD = 1e-12
"""Standard error below which a value counts as constant over draws."""


@dataclass(frozen=True, eq=False)
class Band:
    """Intervals by layer."""

    low: Floats
    high: Floats
    """(layer,) pointwise interval."""
    low_simultaneous: Floats
    high_simultaneous: Floats
    """(layer,) simultaneous band over all layers."""
    critical: float
    """Standard errors on each side of the simultaneous interval."""

    @property
    def ends(self) -> dict[str, Floats]:
        """Ends of the intervals by the names in `INTERVALS`."""
        return {name: getattr(self, name) for name in INTERVALS}

    def within(self, limits: tuple[float, float]) -> Band:
        """The band without the values that are impossible: those outside the lowest and the highest possible one."""
        return self.with_ends({name: np.clip(end, *limits) for name, end in self.ends.items()})

    def with_ends(self, ends: Mapping[str, Floats]) -> Band:
        """The band with other ends of the intervals, by name."""
        return Band(ends["low"], ends["high"], ends["low_simultaneous"], ends["high_simultaneous"], self.critical)


def interval_text(low: float, high: float, form: str = ".2f", absent: str = "(too few images)") -> str:
    """An interval as text: an end that is not given is unknown, and `absent` stands for an interval without ends.

    Examples
    --------
    >>> interval_text(0.1, 0.25), interval_text(0.1, float("nan")), interval_text(float("nan"), float("nan"))
    ('[0.10, 0.25]', '[0.10, unknown]', '(too few images)')
    """
    ends = [format(end, form) if np.isfinite(end) else "unknown" for end in (low, high)]
    return f"[{', '.join(ends)}]" if np.isfinite([low, high]).any() else absent


def wilson(share: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval (1927) of a share among n independent trials; it has width at 0 and 1, where the bootstrap has none.

    Examples
    --------
    >>> [round(end, 3) for end in wilson(1.0, 50)]
    [0.929, 1.0]
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(max(share * (1 - share), 0) / n + z * z / (4 * n * n))
    return float(max(centre - half, 0)), float(min(centre + half, 1))


def clustered_wilson(values: Floats, groups: NDArray[Any], level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a mean of values between 0 and 1 in groups, on the effective sample size.

    The variance has one residual a group. The effective sample size is that of independent trials with the same variance; without any
    spread it is the number of groups, so that a mean of 0 or 1 does not look certain. NaN for fewer than two groups.

    Parameters
    ----------
    values
        (example,) between 0 and 1, such as right or wrong.
    groups
        (example,) names or numbers of groups, such as images.
    level
        Of the interval.
    """
    codes = np.unique(groups, return_inverse=True)[1]
    count, mean = int(codes.max()) + 1, float(values.mean())
    if count < 2:
        return float("nan"), float("nan")
    residual = np.bincount(codes, values - mean) / len(values)
    variance = count / (count - 1) * float(np.square(residual).sum())
    return wilson(mean, mean * (1 - mean) / variance if variance > 1e-12 else float(count), level)


def zero_count_bound(n: int, level: float = 0.95) -> float:
    """Upper confidence bound of a share with zero events in n independent trials: z^2 / (n + z^2).

    It is the upper end of Wilson's interval (1927) for a share of 0. It is also the half-width of Tango's interval (1998) for the
    difference of two shares of the same trials that agree in every trial.
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    return z * z / (n + z * z)


def band(
    value: Floats,
    draws: Floats,
    *,
    level: float = 0.95,
    groups: int | None = None,
    counted: bool = False,
    certain: NDArray[np.bool_] | None = None,
    critical: float = 0.0,
    comparisons: int | None = None,
) -> Band:
    """Percentile intervals and a simultaneous band (max-t over layers, or over a family of curves).

    Parameters
    ----------
    value
        (layer,) the score, or the paired difference of two.
    draws
        (draw, layer) its bootstrap draws; a row holds the same resample for all layers.
    groups
        Number of groups; where given, the interval of a value without spread over draws has half-width `zero_count_bound(groups)`.
    counted
        Whether the value is a share of examples, as accuracies are; then no interval is narrower than that.
    certain
        (layer,) values that no resample can change, such as scores of constant logits: their intervals have no width.
    critical
        Standard errors on each side that a family of curves needs, from `largest_deviation`; the band has at least that width.
    comparisons
        Number of values of that family, for the values without spread; the layers alone by default.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    error = draws.std(axis=0)
    spread = error > NO_SPREAD
    critical = max(critical, float(np.quantile(largest_deviation(draws), level)) if spread.any() else 0.0)
    low_all, high_all = value - critical * error, value + critical * error
    if groups:
        narrow = (~spread | counted) & ~(np.zeros(len(value), bool) if certain is None else certain)
        # Bonferroni over layers, as there may be no spread to take a maximum over
        alone, together = zero_count_bound(groups, level), zero_count_bound(groups, 1 - (1 - level) / (comparisons or len(value)))
        low, high = _at_least(alone, value, low, high, narrow)
        low_all, high_all = _at_least(together, value, low_all, high_all, narrow)
    return Band(low=low, high=high, low_simultaneous=low_all, high_simultaneous=high_all, critical=critical)


def share_band(values: Floats, bootstrap: Bootstrap, *, level: float = 0.95) -> Band:
    """Wilson's intervals of shares, on the effective sample size, pointwise and simultaneous over rows.

    The simultaneous ones have the critical value of `band`, as a quantile of Student's t: standard errors are estimated from few groups.

    Parameters
    ----------
    values
        (row, example) between 0 and 1, such as right or wrong.
    bootstrap
        Resamples of the examples' groups.
    level
        Of the intervals.

    Examples
    --------
    >>> import numpy as np
    >>> from stratascope.stats.bootstrap import Bootstrap
    >>> right = np.arange(100)[None] < [[60], [97]]
    >>> share_band(right.astype(float), Bootstrap(np.arange(100))).high.round(3)
    array([0.691, 0.99 ])
    """
    value = values.mean(axis=1)
    bands = band(value, bootstrap.mean(values.T), level=level)
    joint = 2 * NormalDist().cdf(_student(bands.critical, bootstrap.count)) - 1
    if (bands.low == bands.high).any():  # rows without spread are not in the largest deviation
        joint = max(joint, 1 - (1 - level) / len(value))
    ends = [np.array([clustered_wilson(row, bootstrap.groups, one) for row in values]).T for one in (level, max(level, joint))]
    return bands.with_ends(dict(zip(INTERVALS, np.concatenate(ends), strict=True)))


def _student(critical: float, groups: int) -> float:
    """Quantile of Student's t that is exceeded as rarely as a normal one; at most 7."""
    from scipy.special import ndtr, stdtrit

    return float(min(-stdtrit(max(groups - 1, 1), ndtr(-critical)), 7.0))


def skewed_band(bands: Band, value: Floats, error: Floats, scale: str, groups: int, level: float = 0.95) -> Band:
    """The intervals of a score on the scale on which its errors are symmetric.

    Near its limit the errors of a score are skewed, and symmetric intervals cover too rarely: simultaneous ones of an AUROC of .97 in 70 %
    of data sets of 40 images. Values without spread keep their intervals.

    Parameters
    ----------
    bands
        From `band`; its critical value is that of the simultaneous interval.
    value, error
        (layer,) the score and its standard error.
    scale
        `auroc`: the logit, where pointwise intervals also hold the percentiles; `r2`: the logarithm of 1 - R2.
    groups
        Number of groups, for quantiles of Student's t.
    level
        Of the pointwise interval.

    Examples
    --------
    >>> import numpy as np
    >>> value, draws = np.array([0.97]), np.random.default_rng(0).normal(0.97, 0.01, (2000, 1))
    >>> skewed_band(band(value, draws), value, draws.std(0), "auroc", 100).low_simultaneous.round(2)
    array([0.94])
    """
    from scipy.special import expit, logit

    critical = [_student(c, groups) for c in (NormalDist().inv_cdf(0.5 + level / 2), bands.critical)]
    spread = error > NO_SPREAD
    if scale == "auroc":
        spread &= (value > 0) & (value < 1)
        middle = np.where(spread, value, 0.5)
        reach = error / (middle * (1 - middle))
        ends = [expit(logit(middle) + sign * c * reach) for c in critical for sign in (-1, 1)]
        ends[:2] = np.fmin(ends[0], bands.low), np.fmax(ends[1], bands.high)
    else:
        rest = np.where(spread, 1 - value, 1)
        ends = [1 - rest * np.exp(-sign * c * error / rest) for c in critical for sign in (-1, 1)]
    return bands.with_ends({name: np.where(spread, own, bands.ends[name]) for name, own in zip(INTERVALS, ends, strict=True)})


def largest_deviation(draws: Floats) -> Floats:
    """(draw,) largest deviation of a draw from its mean over all columns, in standard errors.

    Its quantile is the critical value of a simultaneous band. The element-wise maximum over several curves with the same resamples
    gives that of a family of curves.

    Parameters
    ----------
    draws
        (draw, column) bootstrap draws; columns without spread are left out.
    """
    error = draws.std(axis=0)
    spread = error > NO_SPREAD
    if not spread.any():
        return np.zeros(len(draws))
    kept = draws[:, spread]
    return np.asarray((np.abs(kept - kept.mean(axis=0)) / error[spread]).max(axis=1))


def auroc_spread(value: Floats) -> Floats:
    """Standard error of an AUROC relative to that at .5, for classes of equal, large size (Hanley & McNeil 1982).

    Examples
    --------
    >>> import numpy as np
    >>> auroc_spread(np.array([0.5, 0.9])).round(2)
    array([1.  , 0.5...])
    """
    above = np.maximum(value, 1 - np.asarray(value))
    variance = above / (2 - above) + 2 * above**2 / (1 + above) - 2 * above**2
    return np.asarray(np.sqrt(np.maximum(variance, 0) * 6))


def minimum_detectable_effect(half_width: Floats, error: Floats, *, power: float = POWER) -> Floats:
    """(layer,) smallest effect whose lower bound lies above 0 with the given power: half-width + z_power * standard error.

    Parameters
    ----------
    half_width
        (layer,) distance from the value to the lower bound.
    error
        (layer,) standard error.
    power
        Probability of detection.
    """
    return np.asarray(half_width + NormalDist().inv_cdf(power) * error)


def standard_error(low: ArrayLike, high: ArrayLike, level: float) -> Floats:
    """(...,) standard error for which a normal distribution has the pointwise interval `low`..`high`.

    >>> standard_error([0.4], [0.6], 0.95).round(3)
    array([0.051])
    """
    return np.asarray((np.asarray(high) - np.asarray(low)) / (2 * NormalDist().inv_cdf(0.5 + level / 2)))


def _at_least(reach: float, value: Floats, low: Floats, high: Floats, narrow: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Widen the `narrow` intervals to at least `reach` on each side."""
    return np.where(narrow, np.minimum(low, value - reach), low), np.where(narrow, np.maximum(high, value + reach), high)


def constant_within_folds(logits: Floats, folds: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(layer,) whether the logits (layer, output, example) are constant within each fold: no resample changes their scores."""
    parts = [logits[..., folds == fold] for fold in np.unique(folds)]
    return np.asarray(np.all([(part == part[..., :1]).all(axis=(1, 2)) for part in parts], axis=0))
