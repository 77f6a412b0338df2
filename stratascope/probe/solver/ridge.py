"""Ridge regression of several targets at once, such as box centres."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.probe.solver.convergence import Report
from stratascope.probe.solver.standardised_rows import Rows

Floats = NDArray[Any]


class RidgeSolver:
    """Minimises sum |y - W z - b|^2 / 2 + |W|^2 / (2 C) on standardised training rows, exactly.

    One Cholesky factor per training set and strength serves all targets and labellings; with fewer rows than columns it is that
    of the kernel matrix.
    """

    def __init__(self, rows: Rows, values: Floats, training: NDArray[np.bool_], *, which: NDArray[np.integer]) -> None:
        """values (labelling, example, target), training (problem, block), which (problem,) the labelling of each problem."""
        self.rows, self.which = rows, np.asarray(which)
        self.values = np.asarray(values, dtype=np.float64)[:, rows.order]
        self.training = np.asarray(training, dtype=bool)
        self.moments = rows.moments(self.training)
        count, targets = len(self.training), self.values.shape[2]
        self.coef = np.zeros((count, targets, rows.d))
        self.intercept = np.zeros((count, targets))
        self.absent = np.zeros((count, 0), dtype=bool)
        nan = np.full(count, np.nan)
        self.report = Report(nan.copy(), np.zeros(count), np.zeros(count), np.zeros(count, np.intp), np.ones(count, bool))
        self._masks, mask_of = np.unique(self.training, axis=0, return_inverse=True)
        self._mask_of = mask_of.ravel()  # numpy 2.0 gives it a second axis
        self._grams: list[Floats] | None = None
        self._kernels: dict[int, Floats] = {}

    def _gram(self, block: int) -> Floats:
        if self._grams is None:
            parts = [self.rows.z[self.rows.part(b)] for b in range(self.rows.blocks)]
            self._grams = [part.T @ part for part in parts]
        return self._grams[block]

    def solve(self, strength: float, problems: NDArray[np.intp]) -> Report:
        """Solve problems at a strength."""
        for mask in np.unique(self._mask_of[problems]):
            self._solve_mask(problems[self._mask_of[problems] == mask], strength)
        return self.report

    def _solve_mask(self, problems: NDArray[np.intp], strength: float) -> None:
        from scipy.linalg import cho_factor, cho_solve

        p = int(problems[0])
        mask = self.training[p]
        index = self.rows.rows_of(mask)
        mean, scale = self.moments.mean[p].astype(np.float64), self.moments.scale[p].astype(np.float64)
        y = np.concatenate([self.values[self.which[q], index] for q in problems], axis=1)
        centre = y.mean(axis=0)
        y = y - centre
        # both matrices are symmetric: transposed, they are in LAPACK's order and are factored in place
        if len(index) < self.rows.d:
            z = (self.rows.z[index] - mean) / scale
            if (number := int(self._mask_of[p])) not in self._kernels:
                self._kernels[number] = z @ z.T
            kernel = self._kernels[number].copy()
            kernel[np.diag_indices_from(kernel)] += 1 / strength
            dual = cho_solve(cho_factor(kernel.T, overwrite_a=True, check_finite=False), y)
            weight = dual.T @ z
        else:
            gram = len(index) * np.outer(mean, -mean)
            # y is centred, so that the mean of z drops out of z'y
            cross, start = np.zeros((self.rows.d, y.shape[1])), 0
            for block in np.flatnonzero(mask):
                gram += self._gram(int(block))
                part = self.rows.z[self.rows.part(int(block))]
                cross += part.T.astype(np.float64) @ y[start : start + len(part)]
                start += len(part)
            gram /= scale
            gram /= scale[:, None]
            gram[np.diag_indices_from(gram)] += 1 / strength
            cross /= scale[:, None]
            weight = cho_solve(cho_factor(gram.T, overwrite_a=True, check_finite=False), cross).T
        targets = self.values.shape[2]
        for number, q in enumerate(problems):
            mine = slice(number * targets, (number + 1) * targets)
            self.coef[q], self.intercept[q] = weight[mine], centre[mine]

    def logits(self, problems: NDArray[np.intp], block: int) -> Floats:
        """(problem, target, row of the block) predictions."""
        weight = self.coef[problems] / self.moments.scale[problems][:, None]
        bias = self.intercept[problems] - np.einsum("pkd,pd->pk", weight, self.moments.mean[problems])
        # one product of all problems: numpy would multiply each problem's few targets by themselves, many times slower
        found = weight.reshape(-1, self.rows.d) @ self.rows.z[self.rows.part(block)].T.astype(np.float64)
        return np.asarray(found.reshape(*bias.shape, -1) + bias[:, :, None])

    def held_out(self, problems: NDArray[np.intp], block: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Squared error (problem, row of the block), each target in units of its variance."""
        truth = self.values[self.which[problems], self.rows.part(block)].transpose(0, 2, 1)
        spread = np.maximum(self.values.var(axis=1), 1e-300)[self.which[problems]]
        error = ((self.logits(problems, block) - truth) ** 2 / spread[:, :, None]).mean(axis=1)
        return error, np.ones(error.shape, dtype=bool)

    def directions(self, problems: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Weights and intercepts in units of the activations."""
        return self.rows.unscaled(self.coef[problems], self.intercept[problems], self.moments, problems)
