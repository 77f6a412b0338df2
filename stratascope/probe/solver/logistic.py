"""L2-regularised logistic regression for many problems at once on one set of rows.

Problem p trains on a union of blocks with its own labels and strength C and minimises

    F_p(w, b) = sum_i loss(y_i, w . (x_i - m_p) / s_p + b) + |w|^2 / (2 C)

which is scikit-learn's objective after StandardScaler, divided by C. m_p and s_p are the moments of p's own training rows; they
rescale w and shift b, the rows are shared. All problems advance together: one iteration is two matrix products, whatever
their number. Quasi-Newton (L-BFGS) per problem, preconditioned in the shared eigenbasis of the Gram matrix.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.probe.solver.convergence import Report, Work
from stratascope.probe.solver.line_search import line_search
from stratascope.probe.solver.losses import loss_for
from stratascope.probe.solver.preconditioner import Preconditioner
from stratascope.probe.solver.quasi_newton import History, Metric, PathStep, dot, exact_dot, memory_for
from stratascope.probe.solver.standardised_rows import Eigenbasis, Rows

Floats = NDArray[Any]
_ABSENT = -60.0
"""Intercept of a class without training examples: exp(-60) of the others, where the exact solution has minus infinity."""
_PATIENCE = 10
"""Iterations in which the objective must fall by a part of the tolerance; otherwise it is at the limit of floating-point precision."""


class BatchSolver:
    """Problems on shared rows, solved in place: `coef` and `intercept` are the start of the next `solve`.

    Attributes
    ----------
    coef
        (problem, output, column) weights of standardised columns (of each problem's own training moments).
    intercept
        (problem, output).
    absent
        (problem, class) classes without an example in the training set; their probability is 0.
    """

    def __init__(
        self,
        rows: Rows,
        labels: NDArray[np.integer],
        training: NDArray[np.bool_],
        *,
        classes: int,
        which: NDArray[np.integer] | None = None,
        basis: Eigenbasis | None = None,
        tolerance: float | Floats = 1e-7,
        max_iterations: int = 500,
        memory: int | None = None,
    ) -> None:
        """
        Parameters
        ----------
        labels
            (labelling, example) class codes 0..classes-1, in the order of the x that made `rows`; left-out examples any.
        training
            (problem, block).
        which
            (problem,) the labelling of each problem; problem p has labelling p by default.
        tolerance
            Of the gap, relative to F; one, or one a problem. Divided by C above C = 1: the less weights are regularised, the further
            from the optimum the same gap lets them lie (by up to sqrt(2 C gap)), and the probabilities with them.
        memory
            Steps that L-BFGS remembers; 20 for two classes, 10 for more.
        """
        self.rows = rows
        self.loss = loss_for(classes)
        self.training = np.asarray(training, dtype=bool)
        self.count = len(self.training)
        self.which = np.arange(self.count) if which is None else np.asarray(which)
        labels = np.atleast_2d(labels)[:, rows.order]
        if labels.min() < 0 or labels.max() >= classes:
            raise InvalidInputError(f"expected class codes 0..{classes - 1}, found {labels.min()}..{labels.max()}")
        self.labels = labels.astype(rows.dtype if classes == 2 else np.int32)
        self.moments = rows.moments(self.training)
        self.tolerance = np.broadcast_to(np.asarray(tolerance, dtype=np.float64), (self.count,))
        self.max_iterations, self.memory = max_iterations, memory or memory_for(self.loss.outputs)
        self.coef = np.zeros((self.count, self.loss.outputs, rows.d), rows.dtype)
        self.work = Work()
        self._start_from_frequencies(classes)
        self._last_move = PathStep(self.coef, self.intercept)
        self._precondition = Preconditioner(basis, float(rows.norms.mean() * rows.n / max(rows.d, 1)), rows.n)
        self.report = Report(
            objective=np.full(self.count, np.nan),
            gap=np.full(self.count, np.nan),
            certificate=np.full(self.count, np.nan),
            iterations=np.zeros(self.count, np.intp),
            converged=np.zeros(self.count, bool),
        )

    def _start_from_frequencies(self, classes: int) -> None:
        by_block = np.zeros((len(self.labels), self.rows.blocks, classes))
        for block in range(self.rows.blocks):
            for labelling, codes in enumerate(self.labels[:, self.rows.part(block)]):
                by_block[labelling, block] = np.bincount(codes.astype(np.intp), minlength=classes)
        counts = np.einsum("pb,pbc->pc", self.training.astype(float), by_block[self.which])
        self.absent = counts == 0
        if ((~self.absent).sum(axis=1) < 2).any():
            raise TooFewExamplesError(
                "expected at least two classes in every training set, found a constant label; give fewer folds, or choose a task "
                "whose classes occur on more images"
            )
        share = counts / counts.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            log = np.log(share)
        if classes == 2:
            self.intercept = log[:, 1:] - log[:, :1]
            self._null_curvature = (share[:, 1] * share[:, 0])[:, None, None]
            self._frozen = np.zeros((self.count, 1), dtype=bool)
        else:
            self.intercept = np.where(self.absent, _ABSENT, log)
            self._null_curvature = np.einsum("pk,kj->pkj", share, np.eye(classes)) - share[:, :, None] * share[:, None]
            self._frozen = self.absent

    def forward(self, active: NDArray[np.intp], coef: Floats, intercept: Floats, blocks: list[NDArray[np.intp]]) -> list[Floats]:
        """Logits of problems on blocks: blocks[b] lists positions within `active`; (len(blocks[b]), output, row of b) each."""
        weight = coef / self.moments.scale[active][:, None]
        bias = (intercept - np.einsum("pkd,pd->pk", weight, self.moments.mean[active])).astype(weight.dtype)
        logits = []
        for block, members in enumerate(blocks):
            z = self.rows.z[self.rows.part(block)]
            part = weight if len(members) == len(active) else weight[members]
            started = time.perf_counter()
            # rows first: a quarter faster for few columns
            product = np.ascontiguousarray((z @ part.reshape(-1, self.rows.d).T).T).reshape(len(members), self.loss.outputs, len(z))
            self.work.rows_seconds += time.perf_counter() - started
            product += bias[members][:, :, None]
            self.work.flops += 2.0 * product.size * self.rows.d
            logits.append(product)
        return logits

    def backward(self, active: NDArray[np.intp], residual: list[Floats], blocks: list[NDArray[np.intp]]) -> tuple[Floats, Floats]:
        """Gradients of the summed loss: (problem, output, column) and (problem, output)."""
        gradient = np.zeros((len(active), self.loss.outputs, self.rows.d), self.rows.dtype)
        bias = np.zeros((len(active), self.loss.outputs))
        for block, members in enumerate(blocks):
            if len(members):
                z = self.rows.z[self.rows.part(block)]
                started = time.perf_counter()
                product = residual[block].reshape(-1, len(z)) @ z
                self.work.rows_seconds += time.perf_counter() - started
                gradient[members] += product.reshape(len(members), self.loss.outputs, self.rows.d)
                bias[members] += residual[block].sum(axis=2, dtype=np.float64)
                self.work.flops += 2.0 * residual[block].size * self.rows.d
        gradient -= bias.astype(gradient.dtype)[:, :, None] * self.moments.mean[active][:, None]
        gradient /= self.moments.scale[active][:, None]
        frozen = self._frozen[active]
        gradient[frozen], bias[frozen] = 0, 0
        return gradient, bias

    def evaluate(
        self, active: NDArray[np.intp], logits: list[Floats], blocks: list[NDArray[np.intp]]
    ) -> tuple[Floats, list[Floats], Floats]:
        """Summed loss (problem,), residuals by block, mean curvature (problem, output, output)."""
        value = np.zeros(len(active))
        curvature = np.zeros((len(active), self.loss.outputs, self.loss.outputs))
        norm = np.zeros(len(active))
        residuals = []
        for block, members in enumerate(blocks):
            part = self.rows.part(block)
            labels = self.labels[self.which[active[members]], part]
            loss, residual, curve = self.loss(logits[block], labels, self.rows.norms[part])
            value[members] += loss
            curvature[members] += curve
            norm[members] += self.rows.norms[part].sum(dtype=np.float64)
            residuals.append(residual)
        return value, residuals, curvature / np.maximum(norm, 1e-30)[:, None, None]

    def members(self, active: NDArray[np.intp]) -> list[NDArray[np.intp]]:
        """Positions within `active` of the problems trained on each block."""
        return [np.flatnonzero(self.training[active, block]) for block in range(self.rows.blocks)]

    def solve(self, strength: float | Floats, problems: NDArray[np.intp] | None = None) -> Report:
        """Minimise the problems (all by default) at their strengths, from the current `coef` and `intercept`; ascending is cheapest.

        Raises
        ------
        InvalidInputError
            A strength is not above 0.
        """
        chosen = active = np.arange(self.count) if problems is None else np.asarray(problems)
        strengths = np.broadcast_to(np.asarray(strength, dtype=np.float64), (self.count,))
        if (strengths <= 0).any() or not np.isfinite(strengths).all():
            raise InvalidInputError(f"expected strengths C > 0, found {strengths.min()}; smaller C regularises more")
        coef, intercept = start, bias_start = self.coef[active], self.intercept[active]
        blocks = self.members(active)
        logits = self.forward(active, coef, intercept, blocks)
        value, residual, curvature = self.evaluate(active, logits, blocks)
        gradient, bias = self.backward(active, residual, blocks)
        history = History(self.memory)
        past: list[Floats] = []
        stalled = np.zeros(len(active), dtype=bool)
        for iteration in range(self.max_iterations + 1):
            decay = 1 / strengths[active]
            total = gradient + (coef * decay[:, None, None]).astype(coef.dtype)
            objective = value + 0.5 * exact_dot(coef, coef) * decay
            history.complete(total, bias)
            step, bias_step = history.direction(total, bias, self._metric(active, curvature, strengths[active]))
            slope = exact_dot(step, total) + (bias_step * bias).sum(axis=1)
            gap = np.maximum(-0.5 * slope, 0)
            certificate = strengths[active] * np.sqrt(dot(total, total))
            allowed = self.tolerance[active] / np.maximum(strengths[active], 1) * objective
            reached = gap <= allowed
            floor = np.zeros(len(active), dtype=bool)
            past.append(objective)
            if len(past) > _PATIENCE:
                floor = past.pop(0) - objective <= 0.3 * allowed
                # the decrement looks through few directions and promises too much where progress is slow
                reached &= past[-4] - objective <= 2 * allowed
            done = reached | floor | stalled | (iteration == self.max_iterations)
            if done.any():
                index = active[done]
                self.coef[index], self.intercept[index] = coef[done], intercept[done]
                self.report.objective[index], self.report.gap[index] = objective[done], gap[done]
                self.report.certificate[index], self.report.iterations[index] = certificate[done], iteration
                self.report.converged[index] = gap[done] <= 100 * allowed[done]
                keep = ~done
                if not keep.any():
                    break
                logits = [part[keep[member]] for part, member in zip(logits, blocks, strict=True)]
                active, coef, intercept, total, bias = active[keep], coef[keep], intercept[keep], total[keep], bias[keep]
                step, bias_step, slope, value = step[keep], bias_step[keep], slope[keep], value[keep]
                past, decay = [values[keep] for values in past], decay[keep]
                history.keep(keep)
                blocks = self.members(active)
            if iteration == 0:
                last = self.report.iterations[active]
                step, bias_step, slope = self._last_move.better_than(active, last, (total, bias), (step, bias_step, slope))
            # logits are linear in the weights: the same map gives their change
            along = self.forward(active, step, bias_step, blocks)
            found = line_search(
                self, active, blocks, logits, along, value, slope, exact_dot(coef, step) * decay, exact_dot(step, step) * decay
            )
            length, value, residual, curvature, stalled, logits = found
            step *= length[:, None, None].astype(step.dtype)
            bias_step *= length[:, None]
            coef = coef + step
            intercept = intercept + bias_step
            history.begin(step, bias_step, total, bias)
            gradient, bias = self.backward(active, residual, blocks)
        self._last_move.store(chosen, self.coef[chosen] - start, self.intercept[chosen] - bias_start)
        return self.report

    def logits(self, problems: NDArray[np.intp], block: int) -> Floats:
        """(problem, output, row of the block) of the current solutions."""
        problems = np.asarray(problems)
        blocks = [np.arange(len(problems)) if b == block else np.arange(0) for b in range(self.rows.blocks)]
        return self.forward(problems, self.coef[problems], self.intercept[problems], blocks)[block]

    def _metric(self, active: NDArray[np.intp], curvature: Floats, strength: Floats) -> Metric:
        """The initial inverse Hessian of problems at their present curvature."""

        def apply(gradient: Floats, bias: Floats) -> tuple[Floats, Floats]:
            started = time.perf_counter()
            step = self._precondition.apply(gradient, bias, curvature, self._null_curvature[active], strength, self.moments.count[active])
            self.work.basis_seconds += time.perf_counter() - started
            return step

        return apply

    def held_out(self, problems: NDArray[np.intp], block: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Log-loss (problem, row of the block), and whether the model has training examples of the row's class."""
        labels = self.labels[self.which[problems], self.rows.part(block)]
        known = ~np.take_along_axis(self.absent[problems], labels.astype(np.intp), axis=1)
        return self.loss.each(self.logits(problems, block), labels), known

    def directions(self, problems: NDArray[np.intp] | None = None) -> tuple[Floats, Floats]:
        """Weights and intercepts in units of x: (problem, output, column) and (problem, output), float64."""
        chosen = np.arange(self.count) if problems is None else problems
        return self.rows.unscaled(self.coef[chosen], self.intercept[chosen], self.moments, chosen)
