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

from stratascope.probe.curve.metrics import score_band, score_layers
from stratascope.probe.curve.value_metrics import score_values
from stratascope.probe.study.codelength_study import compression_ends
from stratascope.probe.vision_tower import r2_interval
from stratascope.stats.auroc import Auroc, effective_groups
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import Band, clustered_wilson, share_band
from stratascope.stats.mean_ratio import mean_ratio
from stratascope.stats.rank_correlation import rank_correlation, spearman_interval

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
    given = np.isfinite(bands.low) | np.isfinite(bands.high)
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


def ratios(seed: int, images: int, skew: float, beside: float) -> dict[str, Outcome]:
    """Ratio of two log-normal means, correlated by .5, as of `pointing`."""
    shared, own, other = np.random.default_rng([seed, images, 3]).standard_normal((3, 1, images)) * np.sqrt(0.5)
    top, bottom = np.exp(skew * (shared + own)), np.exp(beside * (shared + other))
    bands = mean_ratio(top, bottom, Bootstrap(np.arange(images), draws=DRAWS, seed=0), positive=True)[2]
    return {"pointwise": outcomes(bands, np.exp((skew**2 - beside**2) / 2))["pointwise"]}


class Clustered:
    """Normal values of examples in images, correlated by .5 within an image, and between neighbouring rows."""

    def __init__(self, seed: int, images: int, each: int = 2) -> None:
        self.rng = np.random.default_rng([seed, images, each, 31])
        self.images, self.groups = images, np.repeat(np.arange(images), each)
        self.bootstrap = Bootstrap(self.groups, draws=DRAWS, seed=0)

    def normal(self, rows: int = 1) -> Floats:
        """(row, example)"""
        shared, own = self.rng.standard_normal((rows, self.images))[:, self.groups], self.rng.standard_normal((rows, len(self.groups)))
        made = np.sqrt(0.5) * (shared + own)
        for row in range(1, rows):
            made[row] = ALIKE * made[row - 1] + np.sqrt(1 - ALIKE**2) * made[row]
        return np.asarray(made)


def _single(low: float, expected: float, high: float) -> Outcome:
    return float(np.isfinite(low)), float(low > expected or high < expected)


def shares(seed: int, images: int, share: float) -> dict[str, Outcome]:
    """Shares of right answers at six layers (`lens`), and of all answers (`answers`)."""
    right = (Clustered(seed, images).normal(6) < norm.ppf(share)).astype(float)
    groups = np.repeat(np.arange(images), 2)
    found = outcomes(share_band(right, Bootstrap(groups, draws=DRAWS, seed=0)), share)
    low, high = clustered_wilson(right[0], groups)
    return found | {"answers": _single(low, share, high)}


def heads(seed: int, images: int, auroc: float) -> dict[str, Outcome]:
    """AUROC of 36 heads for a right answer, given by .7 of the examples, and its advantage over a baseline of AUROC .7 (`overlap`)."""
    made = Clustered(seed, images)
    right = made.rng.random(len(made.groups)) < 0.7
    scores = made.normal(36).T + np.sqrt(2) * norm.ppf(auroc) * right[:, None]
    base = made.normal().T + np.sqrt(2) * norm.ppf(0.7) * right[:, None]
    area, other = (Auroc.of(each, right, made.groups) for each in (scores, base))
    found = {}
    for name, one, expected in (("", area, auroc), ("advantage, ", area.minus(other), auroc - 0.7)):
        (low, high), (low_all, high_all) = one.interval(), one.simultaneous()
        found |= {name + which: each for which, each in outcomes(Band(low, high, low_all, high_all, 0.0), expected).items()}
    return found


def scores(seed: int, images: int, auroc: float, each: int = 2, cells: bool = False) -> dict[str, Outcome]:
    """AUROC and balanced accuracy at six layers, given the predictions (`probe --test-on`, `patches`), and R2 of about the same signal.

    The AUROC is that within five folds, of a multiple of five images; pairs of an image share half of their variance.
    """
    made = Clustered(seed, images, each)
    shift = np.sqrt(2) * norm.ppf(auroc)
    labels = made.rng.random(len(made.groups)) < 0.5
    logits = made.normal(6) + shift * (labels - 0.5)
    values, draws = score_layers(logits[:, None], labels.astype(int), made.groups % 5, 2, made.bootstrap)
    of_image = (each - 1) / (images // 5 * each - 1)
    expected = {"auroc": (1 - of_image) * auroc + of_image * norm.cdf(shift), "balanced_accuracy": norm.cdf(shift / 2)}
    y, rest = made.normal()[0], 1 / (1 + shift**2 / 2)
    predicted = y + np.sqrt(rest) * made.normal(6)
    more, further = score_values(predicted[:, None], y[:, None], ("y",), made.bootstrap, np.zeros((6, 1)))
    expected["r2"] = 1 - rest
    found = {}
    for metric, wanted in expected.items():
        given, drawn = (values, draws) if metric in values else (more, further)
        groups = images
        if cells and metric == "auroc":
            groups = effective_groups(logits, labels, made.groups % 5, made.groups)
        bands = score_band(given[metric], drawn[metric], metric, groups, 0.95)
        found |= {f"{metric}, {which}": outcome for which, outcome in outcomes(bands, wanted).items()}
    return found


def cells(seed: int, images: int, auroc: float, each: int = 24) -> dict[str, Outcome]:
    """The same of cells of images, with effective groups for the AUROC (`patches`)."""
    return scores(seed, images, auroc, each, cells=True)


def others(seed: int, images: int) -> dict[str, Outcome]:
    """Compression (`--measures mdl`), R2 of a place (`entanglement`), and the rank correlation of heads (`heads`)."""
    made = Clustered(seed, images)
    codes = np.log2(1 + np.exp(-1.5 * made.normal() - 1.5))
    grid = np.linspace(-8, 8, 20_001)
    expected = np.average(np.log2(1 + np.exp(-1.5 * grid - 1.5)), weights=norm.pdf(grid))
    low, high = compression_ends(codes, codes.mean(1, keepdims=True), 2, made.bootstrap, 0.95)
    found = {"compression": _single(low[0], 1 / expected, high[0])}
    for r2 in (0.1, 0.6, 0.9):
        place = made.normal(2)
        predicted = (place + np.sqrt(1 - r2) * made.normal(2))[None]
        _, low, high = r2_interval(place, predicted, made.bootstrap, 0.95, np.zeros(1))
        found[f"R2 {r2} of a place"] = _single(low[0], r2, high[0])
    first, second = made.rng.standard_normal((2, images))
    second = 0.7 * first + np.sqrt(1 - 0.49) * second
    ends = spearman_interval(rank_correlation(first, second), images)
    return found | {"rank correlation of heads": _single(ends[0], 6 / np.pi * np.arcsin(0.35), ends[1])}
