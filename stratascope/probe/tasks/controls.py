"""Control labels: shuffled labels, and the control task of Hewitt & Liang (2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.probe.validation.folds import Folds
from stratascope.stats.bootstrap import random_order

TYPES = ("relation", "subject", "object")
"""Columns that make the type of an example in a control task."""
CONTROL_DRAWS = 20
"""Draws of the labels of a control; its score is their mean."""

MINIMUM_RECURRING = 0.5
"""Share of examples whose type has to occur in another fold, or the control task cannot be learned at all."""
MOST_READABLE = 0.5
"""Share of the way from the base rate to accuracy 1 that the words of a type may reach without any activation. Above it, even a perfect
probe keeps less than half of the possible selectivity, whatever it memorises."""


def shuffled_labels(codes: NDArray[np.intp], folds: Folds, *, draws: int = 1, seed: int = 0) -> NDArray[np.intp]:
    """Shuffle labels within each fold, group by group: (draw, example).

    The labels of a fold, concatenated group by group in random order, are assigned to its groups in another random order. Each fold
    keeps its class frequencies; otherwise a probe that predicts the majority class would score below chance. Labels within an image
    stay as similar as they were.
    """
    return np.stack([_shuffled(codes, folds, rng) for rng in _generators(seed, draws)])


def _shuffled(codes: NDArray[np.intp], folds: Folds, rng: np.random.Generator) -> NDArray[np.intp]:
    result = codes.copy()
    for fold in range(folds.count):
        index = np.flatnonzero(folds.of == fold)
        result[random_order(index, folds.groups, rng)] = codes[random_order(index, folds.groups, rng)]
    return result


def _generators(seed: int, draws: int) -> list[np.random.Generator]:
    """A generator for each draw; the first does not depend on their number."""
    return [np.random.default_rng(seed if draw == 0 else [seed, draw]) for draw in range(draws)]


def control_labels(
    codes: NDArray[np.intp],
    examples: pd.DataFrame,
    folds: Folds,
    *,
    types: Sequence[str] = TYPES,
    draws: int = 1,
    seed: int = 0,
) -> NDArray[np.intp]:
    """Labels of the control task (Hewitt & Liang 2019), one random label per type: (draw, example).

    A probe can learn it only by memorising types. Accuracy minus control accuracy is the selectivity. Types are assigned to classes such
    that each class is as frequent over the examples as in the task.

    Parameters
    ----------
    codes
        (example,) class codes, -1 for excluded examples.
    types
        Columns of `examples` that make the type.

    Raises
    ------
    InvalidInputError
        Most types occur in one fold only: their labels could not be learned. Or the labels are a linear function of the values of the
        types' columns (see `type_accuracy`), such as one label for each relation: a probe then needs to read the relation only, which
        the caption states, and selectivity says nothing about memorising.
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
            f"{', '.join(types)}; selectivity would mean nothing. Give coarser types, such as `types` relation,subject"
        )
    counts = np.bincount(codes[used])
    sizes = np.bincount(number[used], minlength=int(number.max()) + 1)
    # whether the caption predicts them is judged by enough draws even where few are wanted
    drawn = [_matched_classes(sizes, counts / counts.sum(), rng)[number] for rng in _generators(seed, max(draws, CONTROL_DRAWS))]
    labels = np.where(used, np.stack(drawn), -1)
    found, base = type_accuracy(labels, examples[list(types)], folds)
    if found - base > MOST_READABLE * (1 - base):
        finer = [column for column in TYPES if column in examples.columns and column not in types]
        instead = f"give finer types, such as `types` {','.join([*types, *finer[:1]])}, or shuffled" if finer else "use shuffled"
        raise InvalidInputError(
            f"control task: expected labels that the words of the caption do not predict, found that the values of "
            f"{', '.join(types)} alone predict them with accuracy {found:.2f} (base rate {base:.2f}) without any activation: the control "
            f"would measure whether the caption is encoded, and selectivity would mean nothing; {instead} labels as the control"
        )
    return labels[:draws]


def _matched_classes(sizes: NDArray[np.intp], shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.intp]:
    """(type,) random classes, whose frequencies over examples are as near as possible to `shares`.

    Types are assigned from the largest to the smallest, each with probabilities proportional to the examples that the classes still
    lack: for types of one size this is a random assignment with fixed numbers of types.
    """
    lacking = shares * sizes.sum()
    found = np.zeros(len(sizes), dtype=np.intp)
    order = rng.permutation(len(sizes))
    for kind in order[np.argsort(-sizes[order], kind="stable")]:
        room = np.where(lacking >= sizes[kind], np.maximum(lacking, 0), 0)
        if room.sum() > 0:
            found[kind] = min(int(np.searchsorted(np.cumsum(room), rng.random() * room.sum(), side="right")), len(room) - 1)
        else:
            found[kind] = int(np.argmax(lacking))
        lacking[found[kind]] -= sizes[kind]
    return found


def type_accuracy(labels: NDArray[np.intp], columns: pd.DataFrame, folds: Folds) -> tuple[float, float]:
    """Out-of-fold accuracy of a linear classifier of the values of columns, and the base rate; means over draws.

    The classifier is least squares on one indicator for each value of each column, with a ridge of 1: what a linear probe would achieve
    in vectors that encode the words of a type and nothing else. A single column predicts every labelling of its values; of several
    columns, the classifier adds up their values, and cannot memorise combinations.

    Parameters
    ----------
    labels
        (draw, example) class codes, -1 for excluded examples.
    columns
        (example, column) values.
    folds
        Of the task.
    """
    used = labels[0] >= 0
    values = [pd.factorize(columns.loc[used, name], use_na_sentinel=False)[0] for name in columns.columns]
    x = np.concatenate([np.eye(int(codes.max()) + 1, dtype=np.float32)[codes] for codes in values], axis=1)
    classes = int(labels.max()) + 1
    wanted, of = labels[:, used], folds.of[used]
    y = np.eye(classes, dtype=np.float32)[wanted].transpose(1, 0, 2).reshape(len(x), -1)  # (example, draw x class)
    right = []
    for fold in range(folds.count) if folds.test is None else [folds.test]:
        train, test = of != fold, of == fold
        mean = y[train].mean(axis=0)
        gram: NDArray[Any] = x[train].T @ x[train] + np.eye(x.shape[1], dtype=np.float32)
        predicted = x[test] @ np.linalg.solve(gram, x[train].T @ (y[train] - mean)) + mean
        right.append(wanted[:, test] == predicted.reshape(int(test.sum()), -1, classes).argmax(axis=2).T)
    base = np.mean([np.bincount(row, minlength=classes).max() for row in wanted]) / len(x)
    return float(np.concatenate(right, axis=1).mean()), float(base)


def recurring_share(types: NDArray[np.integer], folds: NDArray[np.integer]) -> float:
    """Share of examples whose type occurs in a fold other than their own."""
    table = pd.crosstab(types, folds).to_numpy()
    several = (table > 0).sum(axis=1) > 1
    return float(table[several].sum() / table.sum())
