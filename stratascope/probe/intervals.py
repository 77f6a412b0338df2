"""Intervals from bootstrap draws: percentile, simultaneous over layers, and Wilson's where the bootstrap collapses."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]


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


def wilson(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share among n independent trials (Wilson 1927); of use at 0 and 1, where the bootstrap has no spread."""
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return float(max(centre - half, 0)), float(min(centre + half, 1))


def band(value: Floats, draws: Floats, *, level: float = 0.95, groups: int | None = None) -> Band:
    """Percentile intervals and a simultaneous band (max-t over layers).

    Parameters
    ----------
    value
        (layer,) the score.
    draws
        (draw, layer) its bootstrap draws, the same groups in a row for all layers.
    groups
        Number of groups; where given, a score of exactly 0 or 1 without spread gets Wilson's interval.
    """
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    error = draws.std(axis=0)
    spread = error > 1e-12
    deviation = np.abs(draws - draws.mean(axis=0))[:, spread] / error[spread]
    critical = float(np.quantile(deviation.max(axis=1), level)) if spread.any() else 0.0
    low_all, high_all = value - critical * error, value + critical * error
    if groups:
        for layer in np.flatnonzero(~spread & ((value == 0) | (value == 1))):
            low[layer], high[layer] = wilson(float(value[layer]), groups, level)
            # Bonferroni over layers, as there is no spread to take a maximum over
            low_all[layer], high_all[layer] = wilson(float(value[layer]), groups, 1 - (1 - level) / len(value))
    return Band(low=low, high=high, low_simultaneous=low_all, high_simultaneous=high_all, critical=critical)
