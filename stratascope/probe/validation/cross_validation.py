"""Nested cross-validation of many labellings of one layer together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.probe.solver.convergence import Report
from stratascope.probe.solver.logistic import BatchSolver
from stratascope.probe.solver.ridge import RidgeSolver
from stratascope.probe.solver.standardised_rows import Eigenbasis, Rows
from stratascope.probe.validation.fold_design import Design, Outer, design_for, design_for_fold
from stratascope.probe.validation.folds import Folds
from stratascope.probe.validation.mean_difference import MeansSolver
from stratascope.probe.validation.out_of_fold import OutOfFold, decision_share, noise_share

Floats = NDArray[Any]
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
"""Held-out accuracy of standardised activations was best at 1e-3 .. 1e-2; the path stops soon after its optimum."""
BEYOND = (1e3,)
"""Strengths tried only if the loss still falls at the end of the default grid; weak regularisation costs the most."""
RIDGE_STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
_FALLS = 0.02
"""Share of the total decrease of the loss that the last strength must contribute for the optimum to lie beyond the grid."""
_CERTAIN = 0.02
"""Inner loss in nats per example (or share of the variance) below which no larger strength is tried."""
_OVERFITTED = 0.1
"""Increase of the inner loss above the best, in nats per example or share of the variance, at which the path stops. A small increase says
little: where most variance lies in few uninformative directions, those are fitted first, and informative ones later."""
METHODS = ("logistic", "means")

TOLERANCE = 1e-8
"""Relative to F, and divided by C above 1. Held-out probabilities need more than F does: a gap of 2e-7 leaves F exact to 1e-6 at every
strength, but probabilities of many classes, or of more columns than rows, up to 3e-3 off; this keeps them within 1e-3."""
INNER_TOLERANCE = 1e-5
"""Tolerance of the models that only select a strength; far below the differences between strengths."""


class Fitter(Protocol):
    """Problems on shared rows: P = labellings x models of a design, in this order."""

    report: Report
    absent: NDArray[np.bool_]

    def solve(self, strength: float, problems: NDArray[np.intp]) -> Report: ...

    def logits(self, problems: NDArray[np.intp], block: int) -> Floats:
        """(problem, output, row of the block)"""

    def held_out(self, problems: NDArray[np.intp], block: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Loss (problem, row of the block), and whether the model has training examples of the row's class."""

    def directions(self, problems: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Weights (problem, output, column) and intercepts (problem, output) in units of the activations."""


def _falls(curve: Floats) -> Any:
    """Whether losses (strength, ...) are lowest at the last strength and clearly higher before it."""
    won = curve.max(axis=0) - curve[-1]
    return (curve.min(axis=0) == curve[-1]) & (curve[-2] - curve[-1] > _FALLS * won)


def classify(
    rows: Rows,
    labels: NDArray[np.integer],
    folds: Folds,
    *,
    classes: int,
    strengths: Sequence[float] | None = None,
    basis: Eigenbasis | None = None,
    tolerance: float = TOLERANCE,
    method: str = "logistic",
    fold: int | None = None,
) -> list[OutOfFold]:
    """Solve all folds, strengths and labellings of one layer together.

    Parameters
    ----------
    rows
        Built with `folds.of` as blocks.
    labels
        (labelling, example) class codes.
    strengths
        Inverse regularisation C; a single one is used as it is, several are all there is. By default 1e-5 .. 100, and on to 1e3 where
        the loss still falls.
    method
        Logistic, or means (difference in means, which has no strength).
    fold
        The only fold that is tested; all by default.

    Raises
    ------
    TooFewExamplesError
        A training set has one class only.
    InvalidInputError
        There is no such method.
    """
    labels = np.atleast_2d(labels)
    path = (1.0,) if method == "means" else tuple(sorted(strengths or STRENGTHS))
    design = design_for(folds, len(path)) if fold is None else design_for_fold(folds, fold, len(path))
    training = np.tile(design.training, (len(labels), 1))
    which = np.repeat(np.arange(len(labels)), len(design.training))
    allowed = np.where(np.arange(len(design.training)) < design.inner, max(INNER_TOLERANCE, tolerance), tolerance)
    fitter: Fitter
    if method == "logistic":
        fitter = BatchSolver(
            rows, labels, training, classes=classes, which=which, basis=basis, tolerance=np.tile(allowed, len(labels))
        )  # fmt: skip
    elif method == "means":
        fitter = MeansSolver(rows, labels, training, classes=classes, which=which)
    else:
        raise InvalidInputError(f"expected a method of {', '.join(METHODS)}, found {method!r}")
    return _follow(fitter, design, rows, labels.shape, path, beyond=() if strengths or method == "means" else BEYOND)


def regress(
    rows: Rows, values: Floats, folds: Folds, *, strengths: Sequence[float] | None = None, fold: int | None = None
) -> list[OutOfFold]:
    """Ridge regression of values (labelling, example, target), as `classify`; logits are the predicted targets.

    Each target is given its own strength: one that cannot be read would drag the others' down with it.
    """
    labellings, examples, targets = values.shape
    path = tuple(sorted(strengths or RIDGE_STRENGTHS))
    design = design_for(folds, len(path)) if fold is None else design_for_fold(folds, fold, len(path))
    single = values.transpose(0, 2, 1).reshape(labellings * targets, examples, 1)
    training = np.tile(design.training, (len(single), 1))
    which = np.repeat(np.arange(len(single)), len(design.training))
    found = _follow(RidgeSolver(rows, single, training, which=which), design, rows, single.shape[:2], path)
    return [_together(found[k : k + targets]) for k in range(0, len(found), targets)]


def by_fold(
    x: Floats,
    blocks: NDArray[np.integer],
    folds: Folds,
    features: Callable[[NDArray[np.bool_]], Callable[[Floats], Floats]],
    solve: Callable[[Rows, int], list[OutOfFold]],
    *,
    dtype: Any = None,
) -> list[OutOfFold]:
    """Solve each fold on features that its training examples alone determine, such as principal components.

    Parameters
    ----------
    x
        (example, column).
    blocks
        (example,) folds of the examples, -1 for examples left out.
    folds
        Of the same examples.
    features
        Mask of training examples -> function of rows (example, column) that returns their features (example, feature).
    solve
        Rows and the number of a fold -> the answers of all labellings in this fold: `classify` or `regress`.
    dtype
        Of `Rows`.

    Returns
    -------
    list of OutOfFold
        By labelling. A fold's features are its own, so there are no weights on x: directions are empty, and intercepts NaN.
    """
    tested = range(folds.count) if folds.test is None else (folds.test,)
    found = [
        solve(Rows(features((blocks >= 0) & (blocks != fold))(x), blocks, dtype=dtype), fold)  # rows are freed before the next fold
        for fold in tested
    ]
    return [_over_folds(parts) for parts in zip(*found, strict=True)]


def _over_folds(parts: tuple[OutOfFold, ...]) -> OutOfFold:
    """The answers of single folds as one; by target first, then by fold, as of `regress`."""
    logits = np.stack([part.logits for part in parts])
    outputs, single = logits.shape[1], parts[0].direction_strength

    def stacked(name: str) -> Any:
        values = np.stack([getattr(part, name) for part in parts], axis=-1)
        return values.reshape(*values.shape[:-2], -1)

    by_fold_names = ("strength", "inner_loss", "gap", "certificate", "iterations", "noise_share", "decision_share", "at_edge")
    return OutOfFold(
        # an example is tested in one fold
        logits=np.where(np.isnan(logits).all(axis=0), np.nan, np.nansum(logits, axis=0)).astype(np.float32),
        absent=np.concatenate([part.absent for part in parts]),
        **without_directions(outputs, len(parts) * len(single), len(single)),
        **{name: stacked(name) for name in by_fold_names},
    )


def without_directions(outputs: int, models: int, strengths: int) -> dict[str, Any]:
    """Fields of `OutOfFold` of a probe without weights on x: no columns, and NaN for intercepts and strengths."""
    return {
        "fold_directions": np.zeros((models, outputs, 0), np.float32),
        "fold_intercepts": np.full((models, outputs), np.nan),
        "direction": np.zeros((outputs, 0)),
        "intercept": np.full(outputs, np.nan),
        "direction_strength": np.full(strengths, np.nan),
    }


_BY_OUTPUT = {"logits": 0, "fold_directions": 1, "fold_intercepts": 1, "direction": 0, "intercept": 0, "direction_strength": 0}
"""Along which axis targets lie; everything else is kept by fold, along its last axis (`absent` first)."""


def _together(targets: list[OutOfFold]) -> OutOfFold:
    """The answers of all targets of a labelling as one."""
    joined = {}
    for field in fields(OutOfFold):
        axis = _BY_OUTPUT.get(field.name, 0 if field.name == "absent" else -1)
        joined[field.name] = np.concatenate([getattr(target, field.name) for target in targets], axis=axis)
    return OutOfFold(**joined)


def _follow(
    fitter: Fitter, design: Design, rows: Rows, shape: tuple[int, ...], path: tuple[float, ...], beyond: tuple[float, ...] = ()
) -> list[OutOfFold]:
    """All models along ascending strengths, with warm starts; a labelling leaves when it has settled."""
    labellings, examples = shape
    models = len(design.training)
    tracks = [_Track(fitter, design, rows, number * models, examples) for number in range(labellings)]
    going = list(tracks)
    for strength in (*path, *beyond):
        if strength in beyond:
            going = [track for track in going if track.falling()]
            if not going:
                break
        fitter.solve(strength, np.concatenate([np.arange(track.first, track.first + models) for track in going]))
        for track in going:
            track.visit(strength, choose=len(path) > 1)
        going = [track for track in going if not track.settled()]
        if not going:
            break
    return [track.result((*path, *beyond)) for track in tracks]


class _Track:
    """The best solution so far of each outer model, and of all examples, of one labelling."""

    def __init__(self, fitter: Fitter, design: Design, rows: Rows, first: int, examples: int) -> None:
        self.fitter, self.design, self.rows, self.first = fitter, design, rows, first
        count = len(design.outer)
        outputs = fitter.logits(np.array([first]), design.outer[0].block).shape[1]
        self.logits = np.full((outputs, examples), np.nan, np.float32)
        self.strength, self.loss = np.full(count, np.nan), np.full(count, np.inf)
        self.gap, self.certificate, self.noise, self.turned = (np.full(count, np.nan) for _ in range(4))
        self.iterations = np.zeros(count, np.intp)
        self.weights, self.biases = np.zeros((count, outputs, rows.d), np.float32), np.zeros((count, outputs))
        self.direction, self.intercept = np.zeros((outputs, rows.d)), np.zeros(outputs)
        self.direction_strength, self.direction_loss = np.nan, np.inf
        self.curve: list[Floats] = []

    def settled(self) -> bool:
        """Whether the mean inner loss has risen twice in a row, far above its minimum, or is close to 0."""
        mean = [float(np.mean(loss)) for loss in self.curve]
        rising = len(mean) > 2 and mean[-3] < mean[-2] < mean[-1]
        return mean[-1] < _CERTAIN or (rising and mean[-1] > min(mean) + _OVERFITTED)

    def falling(self) -> bool:
        """Whether the inner loss of any fold still falls at the last strength."""
        return bool(_falls(np.array(self.curve)).any())

    def _at_edge(self, possible: int) -> NDArray[np.bool_]:
        if possible < 2 or self.settled() or len(self.curve) < 2:
            return np.zeros(len(self.strength), dtype=bool)
        return np.asarray(_falls(np.array(self.curve)))

    def visit(self, strength: float, *, choose: bool) -> None:
        """Take note of the solutions at a strength."""
        loss = self._inner_loss() if choose else np.zeros(len(self.design.outer))
        self.curve.append(loss)
        for number, outer in enumerate(self.design.outer):
            if loss[number] < self.loss[number]:
                self.loss[number], self.strength[number] = loss[number], strength
                self._keep(number, outer)
        if loss.mean() < self.direction_loss:
            self.direction_loss, self.direction_strength = float(loss.mean()), strength
            weight, bias = self.fitter.directions(np.array([self.first + self.design.everything]))
            self.direction, self.intercept = weight[0], bias[0]

    def _keep(self, number: int, outer: Outer) -> None:
        model = self.first + outer.model
        index = self.rows.order[self.rows.part(outer.block)]
        self.logits[:, index] = self.fitter.logits(np.array([model]), outer.block)[0]
        report = self.fitter.report
        self.gap[number] = report.gap[model] / max(report.objective[model], 1e-300)
        self.certificate[number], self.iterations[number] = report.certificate[model], report.iterations[model]
        weight, bias = self.fitter.directions(np.array([model]))
        self.weights[number], self.biases[number] = weight[0], bias[0]
        if outer.smaller:
            others = self.fitter.logits(self.first + np.array(outer.smaller), outer.block)
            self.noise[number], self.turned[number] = (
                measure(self.logits[:, index], others, outer.smaller_correlation) for measure in (noise_share, decision_share)
            )

    def _inner_loss(self) -> Floats:
        """(outer,) mean held-out loss; examples of classes that the model never saw do not count."""
        asked = sorted({pair for outer in self.design.outer for pair in outer.inner})
        found: dict[tuple[int, int], tuple[float, int]] = {}
        for block in sorted({block for _, block in asked}):
            models = [model for model, b in asked if b == block]
            loss, known = self.fitter.held_out(self.first + np.array(models), block)
            for model, row, seen in zip(models, loss, known, strict=True):
                found[model, block] = (float(row[seen].sum()), int(seen.sum()))
        sums = [np.sum([found[pair] for pair in outer.inner], axis=0) for outer in self.design.outer]
        return np.array([total / max(count, 1) for total, count in sums])

    def result(self, path: tuple[float, ...]) -> OutOfFold:
        """What was kept; path: the strengths that could be tried."""
        inner = np.full((len(path), len(self.strength)), np.nan)
        if len(path) > 1:
            inner[: len(self.curve)] = self.curve
        return OutOfFold(
            logits=self.logits,
            strength=self.strength,
            inner_loss=inner,
            gap=self.gap,
            certificate=self.certificate,
            iterations=self.iterations,
            noise_share=self.noise,
            decision_share=self.turned,
            absent=self.fitter.absent[[self.first + outer.model for outer in self.design.outer]],
            fold_directions=self.weights,
            fold_intercepts=self.biases,
            direction=self.direction,
            intercept=self.intercept,
            direction_strength=np.array([self.direction_strength]),
            at_edge=self._at_edge(len(path)),
        )
