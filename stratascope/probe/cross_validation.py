"""Out-of-fold answers with the strength chosen inside the training folds, for many labellings of one layer together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.probe.folds import Folds
from stratascope.probe.rows import Eigenbasis, Rows
from stratascope.probe.solver import BatchSolver

Floats = NDArray[Any]
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Held-out accuracy of standardised activations was best at 1e-3 .. 1e-2; the path stops soon after its optimum."""

INNER_TOLERANCE = 1e-5
"""Of the models that only choose a strength: relative to F, far below the differences between strengths."""


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """The answers of one labelling: every example's from models that saw neither it nor another example of its group."""

    logits: Floats
    """(output, example) float32, NaN for examples that take no part; one output for two classes (the logit of the second)."""
    strength: Floats
    """(fold,) the chosen C."""
    inner_loss: Floats
    """(strength, fold) mean log-loss within the training folds, nats; NaN where the path had stopped, or nothing was chosen."""
    gap: Floats
    """(fold,) estimate of (F - F*) / F of the chosen model."""
    certificate: Floats
    """(fold,) bound on the distance to the exact weights, in standardised coordinates."""
    iterations: NDArray[np.intp]
    """(fold,) of the chosen model."""
    noise_share: Floats
    """(fold,) share of the variance of the logits that the choice of training examples makes, 0..1; NaN where not measured."""
    absent: NDArray[np.bool_]
    """(fold, class) classes without a training example: their probability is 0 there."""
    direction: Floats
    """(output, column) weights on x as recorded, fitted on all examples at the strength best on average."""
    intercept: Floats
    """(output,)"""
    direction_strength: float


class _Best:
    """The solution of each outer fold, and of all examples, at the best strength seen so far."""

    def __init__(self, outputs: int, examples: int, folds: int, classes: int, columns: int) -> None:
        self.logits = np.full((outputs, examples), np.nan, np.float32)
        self.strength, self.loss = np.full(folds, np.nan), np.full(folds, np.inf)
        self.gap, self.certificate = np.full(folds, np.nan), np.full(folds, np.nan)
        self.iterations = np.zeros(folds, np.intp)
        self.noise_share = np.full(folds, np.nan)
        self.absent = np.zeros((folds, classes), bool)
        self.direction, self.intercept = np.zeros((outputs, columns)), np.zeros(outputs)
        self.direction_strength, self.direction_loss = np.nan, np.inf
        self.curve: list[Floats] = []

    def rising(self) -> bool:
        """Whether the mean inner loss has risen twice in a row."""
        mean = [float(np.mean(loss)) for loss in self.curve[-3:]]
        return len(mean) == 3 and mean[0] < mean[1] < mean[2]


def cross_validate(
    rows: Rows,
    labels: NDArray[np.integer],
    folds: Folds,
    *,
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
    basis: Eigenbasis | None = None,
    tolerance: float = 1e-6,
) -> list[OutOfFold]:
    """Solve all folds, strengths and labellings of one layer together.

    With several strengths, the models that leave out a pair of folds choose: for outer fold f, the mean over the other folds g
    of the log-loss on g of the model trained without f and g. A model without {f, g} serves both, so 5 folds need 10 inner and
    5 outer models. All follow the ascending strengths with warm starts; a labelling leaves the path when its mean inner loss
    has risen twice.

    Parameters
    ----------
    rows : built with `folds.of` as blocks
    labels : (labelling, example) class codes
    strengths : inverse regularisation C; a single one is used as it is

    Raises
    ------
    InvalidInputError
        A choice of strength is asked for with fewer than 3 folds.
    """
    labels = np.atleast_2d(labels)
    path = sorted(float(c) for c in strengths)
    nested = len(path) > 1
    if not path:
        raise InvalidInputError("expected at least one strength, found none; give strengths=(1e-3, 1e-2, 1e-1)")
    if nested and folds.count < 3:
        raise InvalidInputError(
            f"expected at least 3 folds to choose among {len(path)} strengths inside the training folds, found {folds.count}; "
            "give folds=3 or more, or a single strength"
        )
    pairs = folds.pairs() if folds.count > 2 else []
    outer, everything = len(pairs), len(pairs) + folds.count
    models = np.concatenate([_without(folds.count, pairs), folds.training(), np.ones((1, folds.count), bool)])
    solver = BatchSolver(
        rows,
        labels,
        np.tile(models, (len(labels), 1)),
        classes=classes,
        which=np.repeat(np.arange(len(labels)), len(models)),
        basis=basis,
        tolerance=np.tile(np.where(np.arange(len(models)) < outer, max(INNER_TOLERANCE, tolerance), tolerance), len(labels)),
    )
    if len(pairs):
        _refuse_constant(solver, len(models), outer)
    best = [_Best(solver.loss.outputs, labels.shape[1], folds.count, classes, rows.d) for _ in labels]
    going = list(range(len(labels)))
    for strength in path:
        problems = np.concatenate([np.arange(j * len(models), (j + 1) * len(models)) for j in going])
        solver.solve(strength, problems)
        for j in going:
            first = j * len(models)
            loss = _inner_loss(solver, first, pairs, folds.count) if nested else np.zeros(folds.count)
            best[j].curve.append(loss)
            _keep_best(best[j], solver, first, pairs, first + everything, loss, strength)
        going = [j for j in going if not best[j].rising()]
        if not going:
            break
    return [_result(b, len(path), nested) for b in best]


def _without(folds: int, pairs: list[tuple[int, int]]) -> NDArray[np.bool_]:
    masks = np.ones((len(pairs), folds), dtype=bool)
    for row, pair in enumerate(pairs):
        masks[row, list(pair)] = False
    return masks


def _refuse_constant(solver: BatchSolver, models: int, outer: int) -> None:
    inner = np.arange(solver.count) % models < outer
    if ((~solver.absent[inner]).sum(axis=1) < 2).any():
        raise TooFewExamplesError(
            "expected two classes within the training folds, found a constant label; give fewer folds or more examples"
        )


def _inner_loss(solver: BatchSolver, first: int, pairs: list[tuple[int, int]], folds: int) -> Floats:
    """(fold,) mean log-loss of held-out inner folds; examples of classes that the model never saw do not count."""
    total, count = np.zeros(folds), np.zeros(folds)
    for block in range(folds):
        models = np.array([i for i, pair in enumerate(pairs) if block in pair])
        labels = solver.labels[solver.which[first], solver.rows.part(block)]
        loss = solver.loss.each(solver.logits(first + models, block), np.broadcast_to(labels, (len(models), len(labels))))
        known = ~solver.absent[first + models][:, labels.astype(np.intp)]
        for model, row, seen in zip(models, loss, known, strict=True):
            f, g = pairs[model]
            held = g if block == f else f  # the model without f and g, tested on f, speaks for outer fold g
            total[held] += row[seen].sum()
            count[held] += seen.sum()
    return total / np.maximum(count, 1)


def _keep_best(
    best: _Best, solver: BatchSolver, first: int, pairs: list[tuple[int, int]], everything: int, loss: Floats, strength: float
) -> None:
    for fold in np.flatnonzero(loss < best.loss):
        model = first + len(pairs) + int(fold)
        best.loss[fold], best.strength[fold] = loss[fold], strength
        rows = solver.rows.order[solver.rows.part(int(fold))]
        best.logits[:, rows] = solver.logits(np.array([model]), int(fold))[0]
        smaller = np.array([first + i for i, pair in enumerate(pairs) if fold in pair], dtype=np.intp)
        if len(smaller):
            best.noise_share[fold] = noise_share(best.logits[:, rows], solver.logits(smaller, int(fold)), len(best.strength))
        best.gap[fold] = solver.report.gap[model] / solver.report.objective[model]
        best.certificate[fold], best.iterations[fold] = solver.report.certificate[model], solver.report.iterations[model]
        best.absent[fold] = solver.absent[model]
    if loss.mean() < best.direction_loss:
        best.direction_loss, best.direction_strength = float(loss.mean()), strength
        direction, intercept = solver.directions(np.array([everything]))
        best.direction, best.intercept = direction[0], intercept[0]


def noise_share(logits: Floats, smaller: Floats, folds: int) -> float:
    """How much of the logits' variance comes from the training examples that happened to be drawn.

    Logits (output, row) of a model of folds - 1 folds are compared with those (model, output, row) of models that lack one of
    them. Without any signal the logits are sums of independent contributions of the training folds, and correlate by
    sqrt((folds - 2) / (folds - 1)); with nothing but signal they are the same.
    """
    centred = logits - logits.mean(axis=1, keepdims=True)
    others = smaller - smaller.mean(axis=2, keepdims=True)
    size = np.sqrt((centred**2).sum() * (others**2).sum(axis=(1, 2)))
    if not (size > 0).all():
        return 1.0
    correlation = float(((others * centred).sum(axis=(1, 2)) / size).mean())
    return float(np.clip((1 - correlation) / (1 - np.sqrt((folds - 2) / (folds - 1))), 0, 1))


def _result(best: _Best, strengths: int, nested: bool) -> OutOfFold:
    inner = np.full((strengths, len(best.strength)), np.nan)
    if nested:
        inner[: len(best.curve)] = best.curve
    return OutOfFold(
        logits=best.logits,
        strength=best.strength,
        inner_loss=inner,
        gap=best.gap,
        certificate=best.certificate,
        iterations=best.iterations,
        noise_share=best.noise_share,
        absent=best.absent,
        direction=best.direction,
        intercept=best.intercept,
        direction_strength=best.direction_strength,
    )
