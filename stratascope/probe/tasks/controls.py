"""Control labels: shuffled labels, and the control task of Hewitt & Liang (2019)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.probe.validation.folds import Folds

TYPES = ("relation", "subject", "object")
"""Columns that make the type of an example in a control task."""

MINIMUM_RECURRING = 0.5
"""Share of examples whose type has to occur in another fold, or the control task cannot be learned at all."""


def shuffled_labels(codes: NDArray[np.intp], folds: Folds, *, seed: int = 0) -> NDArray[np.intp]:
    """Shuffle labels within each fold, group by group.

    The labels of a fold, concatenated group by group in random order, are assigned to its groups in another random order. Each fold
    keeps its class frequencies; otherwise a probe that predicts the majority class would score below chance. Labels within an image
    stay as similar as they were.
    """
    rng = np.random.default_rng(seed)
    result = codes.copy()
    for fold in range(folds.count):
        index = np.flatnonzero(folds.of == fold)
        result[_by_group(index, folds, rng)] = codes[_by_group(index, folds, rng)]
    return result


def _by_group(index: NDArray[np.intp], folds: Folds, rng: np.random.Generator) -> NDArray[np.intp]:
    """The examples, groups in random order and random order within a group."""
    rank = rng.permutation(int(folds.groups.max()) + 1)
    return index[np.lexsort([rng.random(len(index)), rank[folds.groups[index]]])]


def control_labels(
    codes: NDArray[np.intp], examples: pd.DataFrame, folds: Folds, *, types: Sequence[str] = TYPES, seed: int = 0
) -> NDArray[np.intp]:
    """Labels of the control task (Hewitt & Liang 2019): one random label per type, with the class frequencies of the task.

    A probe can learn it only by memorising types. Accuracy minus control accuracy is the selectivity.

    Parameters
    ----------
    codes
        (example,) class codes, -1 for excluded examples.
    types
        Columns of `examples` that make the type.

    Raises
    ------
    InvalidInputError
        Most types occur in one fold only: their labels could not be learned, and selectivity would mean nothing.
    """
    unknown = [t for t in types if t not in examples.columns]
    if unknown or not types:
        raise InvalidInputError(
            f"control task: expected types among the columns {', '.join(map(str, examples.columns))}, found "
            f"{', '.join(unknown) or 'none'}; give some of them (`types`)"
        )
    number = examples.groupby(list(types), sort=True, dropna=False).ngroup().to_numpy()
    used = codes >= 0
    share = recurring_share(number[used], folds.of[used])
    if share < MINIMUM_RECURRING:
        raise InvalidInputError(
            f"control task: expected types that recur in other folds, found that for {share:.0%} of examples with types "
            f"{', '.join(types)}; selectivity would mean nothing. Give coarser types, such as `types` relation"
        )
    rng = np.random.default_rng(seed)
    counts = np.bincount(codes[used])
    drawn = rng.choice(len(counts), size=int(number.max()) + 1, p=counts / counts.sum())
    return np.where(used, drawn[number], -1)


def recurring_share(types: NDArray[np.integer], folds: NDArray[np.integer]) -> float:
    """Share of examples whose type occurs in a fold other than their own."""
    table = pd.crosstab(types, folds).to_numpy()
    several = (table > 0).sum(axis=1) > 1
    return float(table[several].sum() / table.sum())
