"""What the intervals of interventions hold on simulated effects whose expectation is known exactly.

    python benchmarks/intervention_simulation.py --repeats 400      # about five minutes on one core

Effects of single examples are drawn by image, correlated within an image and from layer to layer, and given to the code that makes the
tables of `intervene`. Flipped answers are rare or frequent, sizes of changes are skewed (log-normal), and pairs restore a share of their
difference that varies from pair to pair. Intervals should cover the expectation in 95 % of data sets: pointwise at a layer, and
simultaneous at all layers together. `--faithfulness`: where no method ranks better than another, the table of `faithfulness` should call
some method lower than the highest in at most 5 % of data sets. `--ratios`: the ratios of `pointing`. `--knockouts`: means of effects,
simultaneous over as many rows as the table of `knockouts` has, without and with the limit of `LONGEST` standard errors. `--others`: the
intervals of answers, of overlap (AUROC), of the agreement of heads, of codelengths and of places, given the predictions.
"""

from __future__ import annotations

import argparse
import os
from itertools import product
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from stratascope.analysis.faithfulness_table import with_intervals
from stratascope.causal.effects import effect_table
from stratascope.causal.use import use_table
from stratascope.stats import mean_ratio as means
from stratascope.stats.auroc import Auroc
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import band, clustered_wilson
from stratascope.stats.rank_correlation import rank_correlation, rank_correlations, spearman_interval

Floats = NDArray[Any]
LAYERS = 6
CONTROLS = 20
ALIKE = 0.8
"""Correlation of neighbouring layers."""
WITHIN = 0.5
"""Correlation of the examples of an image."""
WIDTH, DIFFERENCE = 0.3, 0.6
"""Of the logarithm: what changes share with the size of the difference, and the size of the difference."""
DRAWS = 2000
"""As of `intervene`."""


class SimulatedEffects:
    """Variants of an erasure with random directions, and of a patch, with the expectations of all that is printed.

    Parameters
    ----------
    seed
        Of the data set.
    images, each
        Number of images, and of examples an image.
    flips
        Share of answers that the erasure flips, at every layer.
    skew
        Standard deviation of the logarithm of a change's size.
    restores
        Share of the difference that the patch restores on average.
    """

    def __init__(self, seed: int, *, images: int, each: int, flips: float, skew: float, restores: float = 0.6) -> None:
        self.rng = np.random.default_rng([21, seed, images, each])
        self.images, self.each = images, each
        self.groups = np.repeat(np.arange(images), each)
        n = len(self.groups)
        shared = self.normal(1)[0]
        self.difference = np.exp(DIFFERENCE * shared) * self.rng.choice([-1, 1], n)
        own = self.rows("erase", "leace", "", [-1], self.sizes(skew, 1.0, shared), (self.normal(LAYERS) < norm.ppf(flips))[None])
        quiet = np.stack([self.sizes(skew, 0.3, shared)[0] for _ in range(CONTROLS)])
        control = self.rows("erase", "leace", "covariance", range(CONTROLS), quiet, np.zeros((CONTROLS, LAYERS, n), bool))
        gap = 2 * self.normal(1)[0]
        share = restores * self.rng.gamma(0.5, 2, (LAYERS, n))  # skewed: most pairs restore little, some much
        patch = self.rows("patch", "source", "", [-1], (share * gap + 0.3 * self.normal(LAYERS))[None], np.zeros((1, LAYERS, n), bool))
        parts = [own, control, patch]
        self.variants = pd.concat([part for part, _, _ in parts], ignore_index=True)
        self.change, self.flipped = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
        self.sources = {"source": self.difference + gap}
        size = np.exp((skew**2 + WIDTH**2 - DIFFERENCE**2) / 2)
        self.truth = {"flipped": flips, "effect": size, "excess": 0.7 * size, "restored": restores}

    def normal(self, layers: int) -> Floats:
        """(layer, example) standard normal values, correlated within images and between neighbouring layers."""
        shape = (layers, self.images)
        of_image, of_example = self.rng.standard_normal(shape), self.rng.standard_normal((layers, self.images * self.each))
        made = np.sqrt(WITHIN) * np.repeat(of_image, self.each, axis=1) + np.sqrt(1 - WITHIN) * of_example
        for layer in range(1, layers):
            made[layer] = ALIKE * made[layer - 1] + np.sqrt(1 - ALIKE**2) * made[layer]
        return np.asarray(made)

    def sizes(self, skew: float, scale: float, shared: Floats) -> Floats:
        """(1, layer, example) sizes of changes, larger where the difference is."""
        return np.asarray(scale * np.exp(skew * self.normal(LAYERS) + WIDTH * shared))[None]

    def rows(
        self, kind: str, method: str, control: str, draws: Any, change: Floats, flipped: NDArray[np.bool_]
    ) -> tuple[pd.DataFrame, Floats, Floats]:
        """Variants (draw by layer) with their changes and flips, (variant, example)."""
        made = pd.DataFrame(list(product(draws, range(LAYERS))), columns=["draw", "layer"])
        names = {"position": "final", "kind": kind, "method": method, "control": control, "factor": 0.0}
        made = made.assign(last=made["layer"], source="source" if kind == "patch" else "", **names)
        return made, change.reshape(len(made), -1), flipped.reshape(len(made), -1).astype(float)

    def tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The tables `effects` and `use` of an `Intervention`."""
        bootstrap = Bootstrap(self.groups, draws=DRAWS, seed=0)
        none = np.zeros_like(self.change)
        arrays = {"change": self.change, "flipped": self.flipped, "collateral": none, "divergence": none, "others": none}
        effects = effect_table(self.variants, arrays, self.difference, bootstrap, self.sources, level=0.95)
        given = (self.variants, self.change, effects, self.difference, bootstrap)
        return effects, use_table(*given, level=0.95, margin=0.1, control_factor=1.0)

    def covered(self) -> dict[str, bool]:
        """Name of an interval -> whether it holds the expectation; of simultaneous ones, at all layers."""
        effects, use = self.tables()
        kinds = {"flipped": "erase", "effect": "erase", "restored": "patch"}
        found = {}
        for name, truth in self.truth.items():
            rows = use[use["kind"] == "erase"] if name == "excess" else effects[effects["kind"] == kinds[name]]
            rows = rows if name == "excess" else rows[rows["control"] == ""]
            low, high = rows[f"{name}_low"].to_numpy(), rows[f"{name}_high"].to_numpy()
            found[name] = bool(low[2] <= truth <= high[2])
            low, high = rows[f"{name}_low_simultaneous"].to_numpy(), rows[f"{name}_high_simultaneous"].to_numpy()
            found[f"{name} simultaneous"] = bool(((low <= truth) & (truth <= high)).all())
        return found


def coverage(repeats: int, **options: Any) -> dict[str, float]:
    """Share of data sets in which each interval holds the expectation."""
    found = pd.DataFrame([SimulatedEffects(seed, **options).covered() for seed in range(repeats)])
    return {str(name): float(share) for name, share in found.mean().items()}


def equal_methods(repeats: int, *, methods: int, images: int, targets: int = 8, alike: float = 0.5) -> dict[str, float]:
    """Shares of data sets with a false statement about methods that rank `targets` at random, alike by `alike`; two examples an image."""
    rows = pd.DataFrame({"targets": "spans", "mode": "later", "window": "0-5", "effect": "size", "role": "method"}, index=range(methods))
    groups, lower, nonzero = np.arange(2 * images) // 2, 0, 0
    for seed in range(repeats):
        rng = np.random.default_rng([seed, methods, images])
        within = rng.standard_normal((2, methods, images, targets))[..., groups, :] * np.sqrt(WITHIN)
        effects = within[0, 0] + np.sqrt(1 - WITHIN) * rng.standard_normal((2 * images, targets))
        own, shared = rng.standard_normal((methods, 2 * images, targets)), rng.standard_normal((2 * images, targets))
        scores = within[1] + np.sqrt(1 - WITHIN) * (np.sqrt(1 - alike) * own + np.sqrt(alike) * shared)
        values = np.stack([rank_correlations(score, effects) for score in scores])
        table = with_intervals(rows.copy(), values, groups, 0.95, 1000, seed)
        lower += bool((table["behind_low"] > 0).any())
        nonzero += bool(((table["low_simultaneous"] > 0) | (table["high_simultaneous"] < 0)).any())
    return {"lower": lower / repeats, "correlation not 0": nonzero / repeats}


def ratio_coverage(repeats: int, *, images: int, skew: float, beside: float) -> dict[str, float]:
    """Shares of data sets whose interval holds the ratio of two log-normal means, by bootstrap-t and by percentiles (correlation .5)."""
    hits = []
    truth = np.exp((skew**2 - beside**2) / 2)
    bootstrap = Bootstrap(np.arange(images), draws=1000, seed=0)
    for seed in range(repeats):
        shared, own, other = np.random.default_rng([seed, images, 3]).standard_normal((3, 1, images)) * np.sqrt(0.5)
        top, bottom = np.exp(skew * (shared + own)), np.exp(beside * (shared + other))
        found = means.mean_ratio(top, bottom, bootstrap, positive=True)[2]
        drawn = (bootstrap.weights @ top[0]) / (bootstrap.weights @ bottom[0])
        ends = np.quantile(drawn, [0.025, 0.975])
        hits.append([found.low[0] <= truth <= found.high[0], ends[0] <= truth <= ends[1]])
    return dict(zip(("bootstrap-t", "percentiles"), np.mean(hits, axis=0).tolist(), strict=True))


def mean_coverage(repeats: int, *, images: int, rows: int, skew: float = 0.0, carriers: float = 0.0, cancel: bool = False) -> Floats:
    """Shares of data sets whose intervals hold the means, without and with a limit: pointwise (mean over rows), simultaneous over rows.

    Sizes are log-normal with `skew`, or large for the share `carriers` of the images and almost 0 for the others; `cancel`: with random
    signs, so that every mean is 0. Neighbouring rows are correlated by .6.
    """
    hits, limit = [], means.LONGEST
    bootstrap = Bootstrap(np.arange(images), draws=1000, seed=0)
    for seed in range(repeats):
        rng = np.random.default_rng([seed, images, 9])
        normal = rng.standard_normal((rows, images))
        for row in range(1, rows):
            normal[row] = 0.6 * normal[row - 1] + 0.8 * normal[row]
        values, truth = np.exp(skew * normal), np.exp(skew**2 / 2)
        if carriers:
            large = np.exp(0.4 * rng.standard_normal((rows, images)))
            values = np.where(normal < norm.ppf(carriers), large, 0.03 * rng.standard_normal((rows, images)))
            truth = carriers * np.exp(0.08)
        if cancel:
            values, truth = values * rng.choice([-1, 1], values.shape), 0.0
        found = []
        for means.LONGEST in (np.inf, limit):
            bands = means.mean_ratio(values, np.ones_like(values), bootstrap)[2]
            found.append(np.mean((bands.low <= truth) & (truth <= bands.high)))
            found.append(np.all((bands.low_simultaneous <= truth) & (truth <= bands.high_simultaneous)))
        hits.append(found)
    return np.asarray(100 * np.mean(hits, axis=0))


def other_intervals(seed: int, images: int) -> dict[str, bool]:
    """Name of an interval -> whether it holds the expectation, in one data set of two examples an image, correlated by .5."""
    rng = np.random.default_rng([seed, images, 31])
    groups = np.repeat(np.arange(images), 2)

    def normal(rows: int = 1) -> Floats:
        shared, own = rng.standard_normal((rows, images))[:, groups], rng.standard_normal((rows, len(groups)))
        return np.asarray(np.sqrt(WITHIN) * shared + np.sqrt(1 - WITHIN) * own)

    found: dict[str, bool] = {}
    for share in (0.6, 0.9):
        low, high = clustered_wilson((normal()[0] < norm.ppf(share)).astype(float), groups)
        found[f"accuracy {share}"] = low <= share <= high
        right = (normal(6) < norm.ppf(share)).astype(float)
        lens = band(right.mean(1), Bootstrap(groups, seed=0).mean(right.T), groups=images, counted=True).within((0, 1))
        found[f"lens {share}"] = bool(lens.low[0] <= share <= lens.high[0])
        found[f"lens {share} simultaneous"] = bool(((lens.low_simultaneous <= share) & (share <= lens.high_simultaneous)).all())
    low, high = clustered_wilson(norm.cdf(2 + 1.5 * normal()[0]), groups)  # the mean is that of a normal distribution function
    found["confidence"] = low <= norm.cdf(2 / np.sqrt(1 + 1.5**2)) <= high
    positive = rng.random(len(groups)) < 0.7
    for wanted in (0.5, 0.7, 0.9):
        scores = normal(36).T + np.sqrt(2) * norm.ppf(wanted) * positive[:, None]
        area = Auroc.of(scores, positive, groups)
        for name, (lows, highs) in (("", area.interval()), (" simultaneous", area.simultaneous())):
            inside = (lows <= wanted) & (wanted <= highs)
            found[f"AUROC {wanted}{name}"] = bool(inside.all() if name else inside[0])
    logits = normal()[0] * 1.5 + 1.5
    codes = np.log2(1 + np.exp(-logits))
    spread = 1.5 + 1.5 * np.linspace(-8, 8, 20_001)
    expected = np.average(np.log2(1 + np.exp(-spread)), weights=norm.pdf((spread - 1.5) / 1.5))
    low, high = np.quantile(1 / Bootstrap(groups, seed=0).mean(codes[:, None])[:, 0], [0.025, 0.975])
    found["compression"] = bool(low <= 1 / expected <= high)
    place, error = normal(2), normal(2) * np.sqrt(0.4)
    weights = Bootstrap(groups, seed=0).weights[:, groups].astype(float)
    squares = (weights @ (place**2).T) - (weights @ place.T) ** 2 / weights.sum(1)[:, None]
    low, high = np.quantile((1 - (weights @ (error**2).T) / squares).mean(1), [0.025, 0.975])
    found["place (R2 .6)"] = bool(low <= 0.6 <= high)
    first, second = rng.standard_normal((2, images))
    second = 0.7 * first + np.sqrt(1 - 0.49) * second
    low, high = spearman_interval(rank_correlation(first, second), images)
    found["agreement of heads"] = bool(low <= 6 / np.pi * np.arcsin(0.35) <= high)
    return found


def print_means(repeats: int) -> None:
    """Coverage of means over 6 rows and over 108, as `knockouts` prints on the demo."""
    for rows, images in ((6, 32), (108, 32), (108, 64)):
        for case in ({"skew": 0.5}, {"skew": 1.5}, {"carriers": 0.1}, {"carriers": 0.2}):
            for cancel in (False, True):
                shares = mean_coverage(repeats, images=images, rows=rows, cancel=cancel, **case).round(1).tolist()
                print(f"{rows} rows, {images} images, {case}, {cancel=}: without, with a limit: {shares}", flush=True)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--faithfulness", action="store_true", help="only the comparison of methods with equal faithfulness")
    parser.add_argument("--ratios", action="store_true", help="only the ratios of pointing")
    parser.add_argument("--knockouts", action="store_true", help="only means over many rows")
    parser.add_argument("--others", action="store_true", help="only intervals of other commands")
    given = parser.parse_args()
    repeats = given.repeats
    if given.knockouts:
        print_means(repeats)
        return
    if given.ratios:
        for images, (skew, beside) in product((16, 24, 40, 120), ((0.5, 0.3), (1.0, 0.3), (1.0, 1.0), (1.5, 0.3), (1.5, 1.5), (0.3, 1.5))):
            shares = ratio_coverage(repeats, images=images, skew=skew, beside=beside)
            print(f"{images} images, skew {skew} / {beside}:", shares, flush=True)
        return
    if given.others:
        for images in (20, 40, 100, 400):
            held = pd.DataFrame([other_intervals(seed, images) for seed in range(repeats)])
            print(images, held.mean().mul(100).round(1).to_dict(), flush=True)
        return
    for images, each in ((32, 1), (64, 1), (64, 3), (256, 1)):
        for flips, skew in ((0.01, 0.5), (0.05, 1.0), (0.3, 1.5), (0.5, 2.0)):
            found = coverage(repeats, images=images, each=each, flips=flips, skew=skew)
            said = ", ".join(f"{name} {100 * share:.1f}" for name, share in found.items())
            print(f"{images} images of {each}, flips {flips}, skew {skew}: {said}", flush=True)


if __name__ == "__main__":
    main()
