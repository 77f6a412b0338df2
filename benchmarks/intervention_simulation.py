"""What the intervals of interventions hold on simulated effects whose expectation is known exactly.

    python benchmarks/intervention_simulation.py --repeats 400      # about five minutes on one core

Effects of single examples are drawn by image, correlated within an image and from layer to layer, and given to the code that makes the
tables of `intervene`. Flipped answers are rare or frequent, sizes of changes are skewed (log-normal), and pairs restore a share of their
difference that varies from pair to pair. Intervals should cover the expectation in 95 % of data sets: pointwise at a layer, and
simultaneous at all layers together. `--faithfulness`: where no method ranks better than another, the table of `faithfulness` should call
some method lower than the highest in at most 5 % of data sets. The intervals of other commands: interval_simulation.py.
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
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.rank_correlation import rank_correlations

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

    def covered(self) -> dict[str, float]:
        """Name of an interval -> whether it holds the expectation, NaN where none is given; of simultaneous ones, at all layers.

        An upper end that is not given misses nothing; how often it is given is counted, too.
        """
        effects, use = self.tables()
        kinds = {"flipped": "erase", "effect": "erase", "restored": "patch"}
        found: dict[str, float] = {}
        for name, truth in self.truth.items():
            rows = use[use["kind"] == "erase"] if name == "excess" else effects[effects["kind"] == kinds[name]]
            rows = rows if name == "excess" else rows[rows["control"] == ""]
            low, high = rows[f"{name}_low"].to_numpy(), rows[f"{name}_high"].to_numpy()
            found[name] = np.nan if np.isnan(low[2]) else float(low[2] <= truth and not high[2] < truth)
            if name in ("effect", "excess"):
                found[f"{name} with an upper end"] = np.mean(np.isfinite(high))
            low, high = rows[f"{name}_low_simultaneous"].to_numpy(), rows[f"{name}_high_simultaneous"].to_numpy()
            found[f"{name} simultaneous"] = np.nan if np.isnan(low).any() else float(((low <= truth) & ~(high < truth)).all())
        return found


def coverage(repeats: int, **options: Any) -> dict[str, float]:
    """Share of the given intervals that hold the expectation, and share of data sets whose intervals of the effect are refused."""
    found = pd.DataFrame([SimulatedEffects(seed, **options).covered() for seed in range(repeats)])
    return {str(name): float(share) for name, share in found.mean().items()} | {"refused": float(found["effect"].isna().mean())}


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


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--faithfulness", action="store_true", help="only the comparison of methods with equal faithfulness")
    given = parser.parse_args()
    repeats = given.repeats
    if given.faithfulness:
        for methods, images in ((8, 60), (12, 30)):
            print(f"{methods} methods, {images} images:", equal_methods(repeats, methods=methods, images=images), flush=True)
        return
    for images, each in ((32, 1), (64, 1), (64, 3), (256, 1)):
        for flips, skew in ((0.01, 0.5), (0.05, 1.0), (0.3, 1.5), (0.5, 2.0)):
            found = coverage(repeats, images=images, each=each, flips=flips, skew=skew)
            said = ", ".join(f"{name} {100 * share:.1f}" for name, share in found.items())
            print(f"{images} images of {each}, flips {flips}, skew {skew}: {said}", flush=True)


if __name__ == "__main__":
    main()
