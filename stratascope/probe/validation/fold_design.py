"""Which models are fitted for a choice of folds: who tests whom, who chooses strengths, who measures the noise of training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.probe.validation.folds import Folds


@dataclass(frozen=True)
class Outer:
    """One test set and the models that serve it, by their row in `Design.training`."""

    model: int
    block: int
    """The block that is tested."""
    inner: tuple[tuple[int, int], ...]
    """(model, block) pairs whose log-loss chooses the strength; no model has seen its block or the outer one."""
    smaller: tuple[int, ...]
    """Models that lack one more block than `model`: how much their answers on `block` differ is the noise of training."""
    smaller_correlation: float
    """Correlation of their logits with those of `model` if there is no signal at all."""


@dataclass(frozen=True, eq=False)
class Design:
    """Models of one labelling."""

    training: NDArray[np.bool_]
    """(model, block)"""
    outer: tuple[Outer, ...]
    everything: int
    """The model of all training examples, whose weights are kept."""
    inner: int
    """The first models, as many, only choose."""


def design_for(folds: Folds, strengths: int) -> Design:
    """Nested cross-validation, or a fixed test set whose strength is chosen by cross-validation in the others.

    In cross-validation a model that lacks folds {f, g} serves both: tested on g it chooses for outer fold f, tested on f it
    chooses for g. So 5 folds need 10 inner and 5 outer models.

    Raises
    ------
    InvalidInputError
        A choice among several strengths is asked for with too few folds.
    """
    count = folds.count
    _refuse_too_few(count, strengths)
    everyone = np.ones((1, count), dtype=bool)
    if folds.test is not None:
        everyone[0, folds.test] = False
        learned = [b for b in range(count) if b != folds.test]
        inner = np.repeat(everyone, len(learned), axis=0)
        inner[np.arange(len(learned)), learned] = False
        outer = Outer(len(learned), folds.test, tuple(enumerate(learned)), (), 1.0)
        return Design(np.concatenate([inner, everyone]), (outer,), len(learned), len(learned))
    pairs = folds.pairs() if count > 2 else []
    lacking = np.ones((len(pairs), count), dtype=bool)
    for row, pair in enumerate(pairs):
        lacking[row, list(pair)] = False
    correlation = float(np.sqrt((count - 2) / (count - 1)))
    outers = []
    for f in range(count):
        mine = [(row, pair[0] if pair[1] == f else pair[1]) for row, pair in enumerate(pairs) if f in pair]
        outers.append(Outer(len(pairs) + f, f, tuple(mine), tuple(row for row, _ in mine), correlation))
    training = np.concatenate([lacking, ~np.eye(count, dtype=bool), everyone])
    return Design(training, tuple(outers), len(training) - 1, len(pairs))


def design_for_fold(folds: Folds, fold: int, strengths: int) -> Design:
    """The models of `design_for` that serve the test of one fold, where each fold has rows of its own.

    Raises
    ------
    InvalidInputError
        As of `design_for`.
    """
    count = folds.count
    _refuse_too_few(count, strengths)
    learned = [b for b in range(count) if b != fold]
    pairs = learned if len(learned) > 1 else []
    training = np.ones((len(pairs) + 1, count), dtype=bool)
    training[:, fold] = False
    training[np.arange(len(pairs)), pairs] = False
    fixed = folds.test is not None
    smaller = () if fixed else tuple(range(len(pairs)))
    correlation = 1.0 if fixed else float(np.sqrt((count - 2) / (count - 1)))
    outer = Outer(len(pairs), fold, tuple(enumerate(pairs)), smaller, correlation)
    return Design(training, (outer,), len(pairs), len(pairs))


def _refuse_too_few(count: int, strengths: int) -> None:
    if strengths > 1 and count < 3:
        raise InvalidInputError(
            f"expected at least 3 folds to choose among {strengths} strengths inside the training folds, found {count}; "
            "give 3 folds or more, or a single strength"
        )
