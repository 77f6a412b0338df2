"""Data sets with known expectations for the intervals that are printed, and how often these hold them.

A simulated data set gives, for each interval, the shares of its rows that have an interval and that have one which misses the expectation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import Band
from stratascope.stats.mean_ratio import mean_ratio

Floats = NDArray[Any]
Outcome = tuple[float, float]
"""Share of a data set's rows with an interval, and with one that misses."""
DRAWS = 1000
ALIKE = 0.6
"""Correlation of neighbouring rows."""
SHAPES: dict[str, tuple[Callable[[Floats, np.random.Generator], Floats], float]] = {
    "normal": (lambda z, _: z, 0.0),
    "exponential": (lambda z, _: -norm.logsf(z), 1.0),
    "Student's t, 3": (lambda z, _: t.ppf(norm.cdf(z), 3), 0.0),
    "log-normal, .5": (lambda z, _: np.exp(0.5 * z), np.exp(0.125)),
    "log-normal, 1": (lambda z, _: np.exp(z), np.exp(0.5)),
    "5 less log-normal, 1": (lambda z, _: 5 - np.exp(z), 5 - np.exp(0.5)),
    "log-normal, 1.5": (lambda z, _: np.exp(1.5 * z), np.exp(1.125)),
    "log-normal, 1.5, random signs": (lambda z, rng: np.exp(1.5 * z) * rng.choice([-1, 1], z.shape), 0.0),
    "log-normal, 2": (lambda z, _: np.exp(2 * z), np.exp(2.0)),
    **{
        f"in {share:g} of the images": (lambda z, rng, share=share: _rare(z, rng, share), share * np.exp(0.08))
        for share in (0.5, 0.2, 0.1, 0.05)
    },
}
"""Name -> values of standard normal numbers, and their expectation."""


def _rare(z: Floats, rng: np.random.Generator, share: float) -> Floats:
    """Large values where z is among the lowest `share`, and nearly none elsewhere."""
    large, none = np.exp(0.4 * rng.standard_normal(z.shape)), 0.03 * rng.standard_normal(z.shape)
    return np.where(z < norm.ppf(share), large, none)


def rows_of(shape: str, rng: np.random.Generator, rows: int, images: int) -> tuple[Floats, float]:
    """(row, image) values of a shape, correlated between neighbouring rows, and their expectation."""
    z = rng.standard_normal((rows, images))
    for row in range(1, rows):
        z[row] = ALIKE * z[row - 1] + np.sqrt(1 - ALIKE**2) * z[row]
    values, expected = SHAPES[shape]
    return values(z, rng), expected


def outcomes(bands: Band, expected: Floats | float) -> dict[str, Outcome]:
    """Outcomes of the rows' own intervals, and of the simultaneous ones, which miss where one of them does."""
    given = np.isfinite(bands.low)
    own = (bands.low > expected) | (bands.high < expected)
    together = (bands.low_simultaneous > expected) | (bands.high_simultaneous < expected)
    return {"pointwise": (float(given.mean()), float(own.mean())), "simultaneous": (float(given.any()), float(together.any()))}


@dataclass(frozen=True)
class Coverage:
    """How often an interval is not given, holds where it is given, and is given and misses."""

    refused: float
    covered: float
    missed: float

    @classmethod
    def of(cls, found: list[Outcome]) -> Coverage:
        """Of the outcomes of many data sets."""
        given, missed = np.mean(found, axis=0)
        return cls(1 - given, 1 - missed / given if given else np.nan, missed)


def coverage(simulated: Callable[..., dict[str, Outcome]], repeats: int, **options: Any) -> dict[str, Coverage]:
    """Name of an interval -> its coverage in `repeats` data sets."""
    found = [simulated(seed, **options) for seed in range(repeats)]
    return {name: Coverage.of([one[name] for one in found]) for name in found[0]}


def means(seed: int, images: int, shape: str, rows: int = 6, bounded: bool = False) -> dict[str, Outcome]:
    """Intervals of the means of a family of rows, as of one reader and target of `knockouts`."""
    values, expected = rows_of(shape, np.random.default_rng([seed, images, 9]), rows, images)
    bootstrap = Bootstrap(np.arange(images), draws=DRAWS, seed=0)
    return outcomes(mean_ratio(values, np.ones_like(values), bootstrap, bounded=bounded)[2], expected)
