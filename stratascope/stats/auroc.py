"""AUROC of many scores at once, with intervals that respect images shared by examples, and paired differences.

Each AUROC is a mean over pairs, so each example has an influence on it (DeLong 1988): how far its own share of won pairs is from the
mean. Sums of influences over images give the variance without drawing anything (Obuchowski 1997).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import TooFewExamplesError

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Auroc:
    """AUROC of several scores on the same examples."""

    value: Floats
    """(score,)"""
    influence: Floats
    """(group, score) what each group of examples adds; columns sum to 0."""

    @property
    def error(self) -> Floats:
        """(score,) standard error, by groups."""
        groups = len(self.influence)
        return np.asarray(np.sqrt(groups / (groups - 1) * np.square(self.influence).sum(0)))

    def minus(self, other: Auroc) -> Auroc:
        """Paired differences: `other` holds as many scores of the same examples, or one."""
        return Auroc(self.value - other.value, self.influence - other.influence)

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """(score,) lower and upper end of each score's own normal interval."""
        half = NormalDist().inv_cdf(0.5 + level / 2) * self.error
        return self.value - half, self.value + half

    def simultaneous(self, level: float = 0.95, *, draws: int = 1000, seed: int = 0) -> tuple[Floats, Floats]:
        """(score,) ends of a band that holds all scores together: what to quote for the best of many heads.

        The largest deviation over scores is drawn with Gaussian multipliers on the groups (Giné & Zinn 1990).
        """
        error = self.error
        spread = error > 0
        scaled = self.influence[:, spread] / error[spread]
        drawn = np.random.default_rng(seed).standard_normal((draws, len(scaled))) @ scaled
        critical = float(np.quantile(np.abs(drawn).max(1), level)) if spread.any() else 0.0
        return self.value - critical * error, self.value + critical * error


def auroc(scores: NDArray[Any], positive: NDArray[np.bool_], groups: NDArray[Any]) -> Auroc:
    """AUROC of every column: the share of (positive, negative) pairs that the score orders rightly; ties count one half.

    Parameters
    ----------
    scores
        (example, score), finite.
    positive
        (example,) bool.
    groups
        (example,) what may not be taken for independent: the image.

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
    # an example's pairs won: its rank among all, less its rank among its own kind
    won = np.empty_like(ranks)
    won[positive] = (ranks[positive] - rankdata(scores[positive], axis=0)) / few
    won[~positive] = 1 - (ranks[~positive] - rankdata(scores[~positive], axis=0)) / many
    value = won[positive].mean(0)
    each = (won - value) / np.where(positive, many, few)[:, None]
    influence = np.zeros((count, scores.shape[1]))
    np.add.at(influence, codes, each)
    return Auroc(value, influence)
