"""Difference in means: a second opinion that has nothing to tune and cannot overfit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import TooFewExamplesError
from stratascope.probe.solver.convergence import Report
from stratascope.probe.solver.losses import loss_for
from stratascope.probe.solver.standardised_rows import Rows

Floats = NDArray[Any]


class MeansSolver:
    """Classifies standardised rows by the class means m_k of the training set, as if their scatter were v x identity.

    The logit of class k is (m_k . z - |m_k|^2 / 2) / v + log share_k, where v is the within-class variance along the span of
    the means, so that probabilities are of a sensible size. For two classes this is the difference in means (mass-mean without
    whitening, Marks & Tegmark 2023) with a threshold.
    """

    def __init__(
        self, rows: Rows, labels: NDArray[np.integer], training: NDArray[np.bool_], *, classes: int, which: NDArray[np.integer]
    ) -> None:
        self.rows, self.classes, self.which = rows, classes, which
        self.labels = np.atleast_2d(labels)[:, rows.order].astype(np.intp)
        self.loss = loss_for(classes)
        self.training = np.asarray(training, dtype=bool)
        self.moments = rows.moments(self.training)
        sums, counts = self._by_block()
        weight = self.training.astype(np.float64)
        self.counts = np.einsum("pb,pbc->pc", weight, counts[which])
        self.absent = self.counts == 0
        if ((~self.absent).sum(axis=1) < 2).any():
            raise TooFewExamplesError("expected at least two classes in every training set, found a constant label; give fewer folds")
        n = len(self.training)
        self.means = np.zeros((n, classes, rows.d))
        for p in range(n):
            total = np.tensordot(weight[p], sums[which[p]], axes=1)
            known = ~self.absent[p]
            mean = total[known] / self.counts[p][known, None]
            self.means[p, known] = (mean - self.moments.mean[p]) / self.moments.scale[p]
        self.variance = np.array([self._variance(p) for p in range(n)])
        empty = np.full(n, np.nan)
        self.report = Report(empty.copy(), empty.copy(), empty.copy(), np.zeros(n, np.intp), np.ones(n, bool))

    def _by_block(self) -> tuple[Floats, Floats]:
        """Sums (labelling, block, class, column) and counts of rows."""
        sums = np.zeros((len(self.labels), self.rows.blocks, self.classes, self.rows.d))
        counts = np.zeros(sums.shape[:3])
        for block in range(self.rows.blocks):
            part = self.rows.part(block)
            for labelling, codes in enumerate(self.labels[:, part]):
                member = np.zeros((self.classes, len(codes)), self.rows.dtype)
                member[codes, np.arange(len(codes))] = 1
                sums[labelling, block] = member @ self.rows.z[part]
                counts[labelling, block] = member.sum(axis=1)
        return sums, counts

    def _variance(self, problem: int) -> float:
        """Mean within-class variance of the training rows along the directions between class means."""
        known = np.flatnonzero(~self.absent[problem])
        means = self.means[problem, known]
        spread = means - np.average(means, axis=0, weights=self.counts[problem, known])
        basis = np.linalg.svd(spread, full_matrices=False)[2][: len(known) - 1]
        weight = (basis / self.moments.scale[problem]).astype(self.rows.dtype)
        total = count = 0.0
        for block in np.flatnonzero(self.training[problem]):
            part = self.rows.part(int(block))
            along = (self.rows.z[part] - self.moments.mean[problem]) @ weight.T
            own = self.means[problem, self.labels[self.which[problem], part]] @ basis.T
            total += float(((along - own) ** 2).sum())
            count += along.size
        return max(total / max(count, 1), 1e-12)

    def solve(self, strength: float, problems: NDArray[np.intp]) -> Report:
        """Nothing is left to solve."""
        return self.report

    def _linear(self, problems: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Weights (problem, output, column) and intercepts for standardised rows."""
        means, variance = self.means[problems], self.variance[problems][:, None]
        with np.errstate(divide="ignore"):
            share = np.log(self.counts[problems] / self.counts[problems].sum(axis=1, keepdims=True))
        weight = means / variance[:, :, None]
        bias = np.where(self.absent[problems], -60.0, share - 0.5 * (means**2).sum(axis=2) / variance)
        if self.classes == 2:
            return weight[:, 1:] - weight[:, :1], bias[:, 1:] - bias[:, :1]
        return weight, bias

    def logits(self, problems: NDArray[np.intp], block: int) -> Floats:
        """(problem, output, row of the block)"""
        weight, bias = self._linear(problems)
        weight = weight / self.moments.scale[problems][:, None]
        bias = bias - np.einsum("pkd,pd->pk", weight, self.moments.mean[problems])
        return np.asarray(weight.astype(self.rows.dtype) @ self.rows.z[self.rows.part(block)].T + bias[:, :, None])

    def held_out(self, problems: NDArray[np.intp], block: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Log-loss (problem, row of the block), and whether the model can know the row's class."""
        labels = self.labels[self.which[problems], self.rows.part(block)]
        return self.loss.each(self.logits(problems, block), labels), ~np.take_along_axis(self.absent[problems], labels, axis=1)

    def directions(self, problems: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Weights and intercepts on x as recorded."""
        weight, bias = self._linear(problems)
        return self.rows.unscaled(weight, bias, self.moments, problems)
