"""Intervals from bootstrap draws: percentile, simultaneous over layers, and Wilson's or Tango's where the bootstrap collapses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
INTERVALS = ("low", "high", "low_simultaneous", "high_simultaneous")
INTERVAL = " ".join(INTERVALS)
"""Columns of a table with intervals, as a schema names them."""
NO_SPREAD = 1e-12
"""Standard error up to which a value counts as the same in every draw."""


@dataclass(frozen=True, eq=False)
class Band:
    """Intervals by layer."""

    low: Floats
    high: Floats
    """(layer,) each layer's own interval."""
    low_simultaneous: Floats
    high_simultaneous: Floats
    """(layer,) hold for all layers together."""
    critical: float
    """Standard errors on each side of the simultaneous interval."""

    @property
    def ends(self) -> dict[str, Floats]:
        """The ends of the intervals by their names, as of `INTERVALS`."""
        return {name: getattr(self, name) for name in INTERVALS}

    def ending(self, ends: Mapping[str, Floats]) -> Band:
        """With other ends of the intervals, by their names."""
        return Band(ends["low"], ends["high"], ends["low_simultaneous"], ends["high_simultaneous"], self.critical)


def wilson(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share among n independent trials (Wilson 1927); of use at 0 and 1, where the bootstrap has no spread."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(max(centre - half, 0)), float(min(centre + half, 1))


def unseen(n: int, level: float = 0.95) -> float:
    """How large a share may be that was seen in none of n independent trials: z^2 / (n + z^2).

    It is the end of Wilson's interval (1927) of a share of 0, on the other side of a share of 1, and of Tango's (1998), to both sides, for
    the difference of two shares of the same trials none of which came out differently.
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
) -> Band:
    """Percentile intervals and a simultaneous band (max-t over layers).

    Parameters
    ----------
    value
        (layer,) the score, or the paired difference of two.
    draws
        (draw, layer) its bootstrap draws, the same groups in a row for all layers.
    groups
        Number of groups; where given, a value that is the same in every draw is known no better than `unseen` in that many groups.
    counted
        The value counts examples, as accuracies do: a few that differ tell little more than none, so that no interval is narrower.
    certain
        (layer,) values that are the same whatever is drawn, such as scores of logits that are all the same: they keep no width.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    error = draws.std(axis=0)
    spread = error > NO_SPREAD
    deviation = np.abs(draws - draws.mean(axis=0))[:, spread] / error[spread]
    critical = float(np.quantile(deviation.max(axis=1), level)) if spread.any() else 0.0
    low_all, high_all = value - critical * error, value + critical * error
    if groups:
        narrow = (~spread | counted) & ~(np.zeros(len(value), bool) if certain is None else certain)
        # Bonferroni over layers, as there may be no spread to take a maximum over
        alone, together = unseen(groups, level), unseen(groups, 1 - (1 - level) / len(value))
        low, high = _at_least(alone, value, low, high, narrow)
        low_all, high_all = _at_least(together, value, low_all, high_all, narrow)
    return Band(low=low, high=high, low_simultaneous=low_all, high_simultaneous=high_all, critical=critical)


def _at_least(reach: float, value: Floats, low: Floats, high: Floats, narrow: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Intervals that reach as far to either side, where they are `narrow`."""
    return np.where(narrow, np.minimum(low, value - reach), low), np.where(narrow, np.maximum(high, value + reach), high)


def same_whatever_is_drawn(logits: Floats, folds: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(layer,) where logits (layer, output, example) are all the same within each fold: they order nothing and tell nothing apart."""
    parts = [logits[..., folds == fold] for fold in np.unique(folds)]
    return np.asarray(np.all([(part == part[..., :1]).all(axis=(1, 2)) for part in parts], axis=0))
