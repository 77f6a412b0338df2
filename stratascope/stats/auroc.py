"""AUROC within strata, weighted for the bootstrap, and of many scores at once with a standard error by images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import TooFewExamplesError

Floats = NDArray[Any]


def auroc(score: Floats, positive: NDArray[np.bool_], strata: NDArray[np.integer] | None = None) -> float:
    """Area under the ROC curve; ties count one half.

    Parameters
    ----------
    score
        (example,) finite.
    positive
        (example,) bool.
    strata
        (example,) only pairs within a stratum count: scores of different folds are not comparable. One stratum by default.

    Examples
    --------
    >>> import numpy as np
    >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75
    """
    ordered = pairs = 0.0
    for index, starts in sorted_strata(score, strata):
        won, possible = weighted_pairs(np.ones((1, len(index)), np.float32), positive[index], starts)
        ordered, pairs = ordered + float(won[0]), pairs + float(possible[0])
    return ordered / max(pairs, 1)


def auroc_influence(score: Floats, positive: NDArray[np.bool_], strata: NDArray[np.integer]) -> Floats:
    """(example,) derivative of `auroc` with respect to each example's weight; they sum to 0.

    The AUROC of examples with weights w is close to that of equal weights plus sum((w - 1) * influence), which spares a resampling
    (DeLong 1988).

    Examples
    --------
    >>> import numpy as np
    >>> auroc_influence(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]), np.zeros(4, int)).tolist()
    [0.125, -0.125, -0.125, 0.125]
    """
    from scipy.stats import rankdata

    won, possible = np.zeros(len(score)), np.zeros(len(score))
    for stratum in np.unique(strata):
        for own in (True, False):
            mine, others = (np.flatnonzero((strata == stratum) & (positive == side)) for side in (own, not own))
            ranks = rankdata(score[np.concatenate([mine, others])])[: len(mine)]
            below = ranks - rankdata(score[mine])  # pairs in which the other example has the lower score
            won[mine], possible[mine] = below if own else len(others) - below, len(others)
    pairs = possible[positive].sum()
    return np.asarray((won - won[positive].sum() / max(pairs, 1) * possible) / max(pairs, 1))


def effective_groups(scores: Floats, positive: NDArray[np.bool_], strata: NDArray[np.integer], groups: NDArray[np.integer]) -> int:
    """Number of groups of equal influence that would make the standard errors of AUROCs as uncertain, mean over layers; at least 3.

    Where images have many rows each, few images hold most of the wrongly ordered pairs. With s the influences of the groups it is
    sum(s²)² / sum(s⁴), plus 1 (Satterthwaite 1946).

    Parameters
    ----------
    scores
        (layer, example)
    positive, strata
        (example,) as of `auroc`.
    groups
        (example,) group number 0..G-1.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> positive, images = rng.random(2000) < 0.5, np.arange(2000) // 20
    >>> scores = positive + rng.standard_normal((1, 2000)) + 3 * rng.standard_normal(100)[images]
    >>> effective_groups(scores, positive, np.zeros(2000, int), images) < 60
    True
    """
    influences = np.stack([np.bincount(groups, auroc_influence(score, positive, strata)) for score in scores])
    squares = np.square(influences)
    spread = squares.sum(1) > 0
    if not spread.any():
        return int(groups.max()) + 1
    return max(round(float((squares[spread].sum(1) ** 2 / np.square(squares[spread]).sum(1)).mean())) + 1, 3)


def sorted_strata(score: Floats, strata: NDArray[np.integer] | None) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp] | None]]:
    """For each stratum, the numbers of its examples by ascending score and, where scores tie, where each run of ties starts."""
    for stratum in [None] if strata is None else np.unique(strata):
        index = np.arange(len(score)) if stratum is None else np.flatnonzero(strata == stratum)
        index = index[np.argsort(score[index], kind="stable")]
        ordered = score[index]
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        yield index, None if len(starts) == len(ordered) else starts


def weighted_pairs(weight: Floats, positive: NDArray[np.bool_], starts: NDArray[np.intp] | None) -> tuple[Floats, Floats]:
    """(draw,) correctly ordered pairs and all pairs, for weights (draw, example) sorted by score."""
    up, down = weight * positive, weight * ~positive
    if starts is not None:
        up, down = np.add.reduceat(up, starts, axis=1), np.add.reduceat(down, starts, axis=1)
    below = np.cumsum(down, axis=1, dtype=np.float64) - 0.5 * down
    return (up * below).sum(axis=1), up.sum(axis=1, dtype=np.float64) * down.sum(axis=1, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Auroc:
    """AUROC of several scores on the same examples, with the influence of each group of examples.

    Each AUROC is a mean over pairs; an example's influence is how far its own share of correctly ordered pairs lies from that mean
    (DeLong 1988). Sums of influences over groups give the variance without resampling (Obuchowski 1997).
    """

    value: Floats
    """(score,)"""
    influence: Floats
    """(group, score) influence of each group of examples; columns sum to 0."""
    fewest: int = 0
    """Groups with an example of the class that fewer groups hold; 0 where unknown, then intervals are normal."""
    difference: bool = False
    """Whether values are differences of AUROCs: intervals of AUROCs are symmetric on the logit scale, those of differences on their own."""

    @classmethod
    def of(cls, scores: NDArray[Any], positive: NDArray[np.bool_], groups: NDArray[Any]) -> Auroc:
        """From scores: ties count one half.

        Parameters
        ----------
        scores
            (example, score), finite.
        positive
            (example,) bool.
        groups
            (example,) examples of one group are not independent, such as those of an image.

        Raises
        ------
        TooFewExamplesError
            With fewer than two positives, two negatives or two groups.
        """
        from scipy.stats import rankdata

        scores = np.asarray(scores, np.float64)
        many, few = int(positive.sum()), int((~positive).sum())
        codes = np.unique(groups, return_inverse=True)[1]
        count = int(codes.max(initial=-1)) + 1
        if min(many, few) < 2 or count < 2:
            raise TooFewExamplesError(
                f"AUROC: expected at least two positives and two negatives from two images, found {many} and {few} from {count}"
            )
        ranks = rankdata(scores, axis=0)
        # an example's correctly ordered pairs: its rank among all, less its rank in its own class
        won = np.empty_like(ranks)
        won[positive] = (ranks[positive] - rankdata(scores[positive], axis=0)) / few
        won[~positive] = 1 - (ranks[~positive] - rankdata(scores[~positive], axis=0)) / many
        value = won[positive].mean(0)
        each = (won - value) / np.where(positive, many, few)[:, None]
        influence = np.zeros((count, scores.shape[1]))
        np.add.at(influence, codes, each)
        return cls(value, influence, min(len(np.unique(codes[positive])), len(np.unique(codes[~positive]))))

    @property
    def error(self) -> Floats:
        """(score,) standard error, by groups."""
        groups = len(self.influence)
        return np.asarray(np.sqrt(groups / (groups - 1) * np.square(self.influence).sum(0)))

    def minus(self, other: Auroc) -> Auroc:
        """Paired differences from an `Auroc` of as many scores of the same examples, or of one."""
        return Auroc(self.value - other.value, self.influence - other.influence, self.fewest, difference=True)

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """(score,) lower and upper end of each score's own interval."""
        return self._ends(NormalDist().inv_cdf(0.5 + level / 2))

    def simultaneous(self, level: float = 0.95, *, draws: int = 1000, seed: int = 0) -> tuple[Floats, Floats]:
        """(score,) ends of a simultaneous band over all scores: quote it for the best of many heads.

        Multiplier bootstrap of the largest deviation: Gaussian multipliers on the groups (Giné & Zinn 1990). Standard errors are estimated
        too: the deviation is taken for the normal quantile that Student's t, with the groups of the rarer class, exceeds as rarely.
        """
        error = self.error
        spread = error > 0
        scaled = self.influence[:, spread] / error[spread]
        drawn = np.random.default_rng(seed).standard_normal((draws, len(scaled))) @ scaled
        critical = float(np.quantile(np.abs(drawn).max(1), level)) if spread.any() else 0.0
        return self._ends(critical)

    def _ends(self, critical: float) -> tuple[Floats, Floats]:
        """(score,) ends as many standard errors from the values as Student's t needs for a normal quantile.

        Where all pairs are in order there is no standard error: Wilson's interval of as many groups as the rarer class has.
        """
        from scipy.special import expit, logit, stdtrit

        half = (stdtrit(self.fewest - 1, NormalDist().cdf(critical)) if self.fewest > 1 else critical) * self.error
        if self.difference:
            return self.value - half, self.value + half
        inside = (self.value > 0) & (self.value < 1)
        value = np.where(inside, self.value, 0.5)
        middle, reach = logit(value), half / (value * (1 - value))
        unseen = critical**2 / (self.fewest + critical**2)
        low, high = np.where(self.value > 0.5, self.value - unseen, 0.0), np.where(self.value > 0.5, 1.0, self.value + unseen)
        return np.where(inside, expit(middle - reach), low), np.where(inside, expit(middle + reach), high)
