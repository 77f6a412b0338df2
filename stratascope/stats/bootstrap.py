"""Cluster bootstrap: groups of examples (images) are resampled with replacement; models are not refitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.stats.auroc import sorted_strata, weighted_pairs

Floats = NDArray[Any]
_CHUNK = 250


class Bootstrap:
    """Resamples of groups with replacement; they depend on the groups and the seed alone.

    The same resamples serve every layer, labelling and store that holds the same groups, so that differences are paired.

    Attributes
    ----------
    weights
        (draw, group) how often a group was drawn.
    groups
        (example,) group number 0..G-1.
    count
        Number of groups, G.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.array(["a", "a", "b", "c"])
    >>> Bootstrap(images, draws=500).mean(np.array([[1.0], [1.0], [0.0], [0.0]])).shape
    (500, 1)
    """

    def __init__(self, groups: NDArray[Any], *, draws: int = 2000, seed: int = 0) -> None:
        self.groups = np.unique(groups, return_inverse=True)[1]
        self.count = int(self.groups.max()) + 1
        rng = np.random.default_rng(seed)
        self.weights = rng.multinomial(self.count, np.full(self.count, 1 / self.count), size=draws).astype(np.float32)

    def mean(self, values: Floats, among: NDArray[np.bool_] | None = None) -> Floats:
        """(draw, column) means of values (example, column) over the examples drawn, all or those `among` (example,)."""
        kept = np.ones(len(values), bool) if among is None else among
        sums = np.zeros((self.count, values.shape[1]))
        np.add.at(sums, self.groups[kept], values[kept])
        sizes = np.bincount(self.groups[kept], minlength=self.count)
        total = self.weights @ sizes.astype(np.float32)
        return (self.weights @ sums.astype(np.float32)) / np.maximum(total, 1)[:, None]

    def mean_of_known(self, values: Floats) -> Floats:
        """(row, draw) means over the examples drawn of (row, example) values that are not NaN; NaN for a draw without any."""
        member = (self.groups[:, None] == np.arange(self.count)).astype(np.float64)
        known = np.isfinite(values)
        sums, counts = np.where(known, values, 0) @ member, known.astype(np.float64) @ member
        taken = self.weights.astype(np.float64).T
        drawn = counts @ taken
        return np.asarray(np.where(drawn > 0, sums @ taken / np.where(drawn > 0, drawn, 1), np.nan))

    def auroc(self, score: Floats, positive: NDArray[np.bool_], strata: NDArray[np.integer] | None = None) -> Floats:
        """(draw,) AUROC of each resample; parameters as of `auroc.auroc`."""
        ordered, pairs = np.zeros(len(self.weights)), np.zeros(len(self.weights))
        for index, starts in sorted_strata(score, strata):
            for a in range(0, len(self.weights), _CHUNK):
                weight = self.weights[a : a + _CHUNK][:, self.groups[index]]
                won, possible = weighted_pairs(weight, positive[index], starts)
                ordered[a : a + _CHUNK] += won
                pairs[a : a + _CHUNK] += possible
        return ordered / np.maximum(pairs, 1)


def repetition_weights(count: int, resamples: int, seed: int | Sequence[int]) -> Floats:
    """(resample, repetition) weights that resample `count` repetitions, such as draws of random labels, around their mean.

    Weighted sums of the repetitions' scores have their variance over their number: added to the resamples of a mean, they account for its
    repetitions. 0 for a single one, whose variance is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> scores = np.arange(20.0)
    >>> sums = repetition_weights(20, 10_000, 0) @ scores
    >>> bool(abs(sums.var() / (scores.var(ddof=1) / 20) - 1) < 0.05)
    True
    """
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count - 1 / count
    return np.asarray(weights * np.sqrt(count / max(count - 1, 1)))  # resampling gives (count - 1) / count of the variance


def random_order(index: NDArray[np.intp], groups: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.intp]:
    """The examples `index` with their groups, of (example,) numbers, in random order, and in random order within a group."""
    rank = rng.permutation(int(groups.max()) + 1)
    return index[np.lexsort([rng.random(len(index)), rank[groups[index]]])]
