"""Cluster bootstrap of scores from out-of-fold predictions: groups (images) are drawn, not examples, and models are not refitted.

The same draws serve every layer, labelling and store that holds the same groups, so that differences are paired.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
_CHUNK = 250


class Bootstrap:
    """Draws of groups with replacement.

    Attributes
    ----------
    weights
        (draw, group) how often a group was drawn.
    groups
        (example,) group number 0..G-1.
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

    def auroc(self, score: Floats, positive: NDArray[np.bool_], strata: NDArray[np.integer]) -> Floats:
        """(draw,) AUROC over pairs of examples within a stratum (a fold: scores of different models are not compared)."""
        above, pairs = np.zeros(len(self.weights)), np.zeros(len(self.weights))
        for stratum in np.unique(strata):
            index = np.flatnonzero(strata == stratum)
            index = index[np.argsort(score[index], kind="stable")]
            starts = _tie_starts(score[index])
            for a in range(0, len(self.weights), _CHUNK):
                weight = self.weights[a : a + _CHUNK][:, self.groups[index]]
                more, possible = _pairs(weight, positive[index], starts)
                above[a : a + _CHUNK] += more
                pairs[a : a + _CHUNK] += possible
        return above / np.maximum(pairs, 1)


def auroc(score: Floats, positive: NDArray[np.bool_], strata: NDArray[np.integer]) -> float:
    """Share of (positive, negative) pairs within a stratum that the score orders rightly; ties count one half."""
    above = pairs = 0.0
    for stratum in np.unique(strata):
        index = np.flatnonzero(strata == stratum)
        index = index[np.argsort(score[index], kind="stable")]
        more, possible = _pairs(np.ones((1, len(index)), np.float32), positive[index], _tie_starts(score[index]))
        above, pairs = above + float(more[0]), pairs + float(possible[0])
    return above / max(pairs, 1)


def _tie_starts(ordered: Floats) -> NDArray[np.intp] | None:
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    return None if len(starts) == len(ordered) else starts


def _pairs(weight: Floats, positive: NDArray[np.bool_], starts: NDArray[np.intp] | None) -> tuple[Floats, Floats]:
    """Weighted pairs in right order and all pairs, for weights (draw, example) sorted by score."""
    up, down = weight * positive, weight * ~positive
    if starts is not None:
        up, down = np.add.reduceat(up, starts, axis=1), np.add.reduceat(down, starts, axis=1)
    below = np.cumsum(down, axis=1, dtype=np.float64) - 0.5 * down
    return (up * below).sum(axis=1), up.sum(axis=1, dtype=np.float64) * down.sum(axis=1, dtype=np.float64)
