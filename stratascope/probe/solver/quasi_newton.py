"""L-BFGS for a batch of problems: history, two-loop recursion, and warm start along the regularisation path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
_MANY_ITERATIONS = 5
"""Iterations of the last solution above which the next one starts along the last move. Where training classes become separable, weights
grow in nearly a constant direction, and the mean curvature says little; elsewhere the quasi-Newton step is better."""
Metric = Callable[[Floats, Floats], tuple[Floats, Floats]]


def memory_for(outputs: int) -> int:
    """Length of the history; problems of one logit have memory for more, which saves iterations at weak regularisation."""
    return 20 if outputs == 1 else 10


def exact_dot(a: Floats, b: Floats) -> Floats:
    """As `dot`, summed in float64: for derivatives that are small differences of large terms."""
    return np.asarray((a * b).reshape(len(a), -1).sum(axis=1, dtype=np.float64))


def dot(a: Floats, b: Floats) -> Floats:
    """Inner products (problem,) of (problem, ...) arrays, in float64."""
    return np.asarray(np.einsum("ij,ij->i", a.reshape(len(a), -1), b.reshape(len(b), -1)), dtype=np.float64)


class History:
    """The last `memory` pairs of step and change of gradient, of weights and intercepts."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self._pairs: list[tuple[Floats, Floats, Floats, Floats, Floats]] = []
        self._open: tuple[Floats, Floats, Floats, Floats] | None = None

    def begin(self, step: Floats, bias_step: Floats, gradient: Floats, bias: Floats) -> None:
        """Store a step and the gradient at its start."""
        self._open = (step, bias_step, gradient, bias)

    def complete(self, gradient: Floats, bias: Floats) -> None:
        """Complete the pair of `begin` with the gradient at the end of the step."""
        if self._open is None:
            return
        step, bias_step, before, bias_before = self._open
        change, bias_change = gradient - before, bias - bias_before
        curvature = dot(step, change) + (bias_step * bias_change).sum(axis=1)
        # a pair without positive curvature is rounding error: weight 0 excludes it for that problem alone
        inverse = np.where(curvature > 0, 1 / np.where(curvature > 0, curvature, 1), 0)
        self._pairs.append((step, change, bias_step, bias_change, inverse))
        del self._pairs[: -self.memory]
        self._open = None

    def keep(self, mask: NDArray[np.bool_]) -> None:
        """Drop finished problems."""
        self._pairs = [(s[mask], y[mask], sb[mask], yb[mask], r[mask]) for s, y, sb, yb, r in self._pairs]

    def direction(self, gradient: Floats, bias: Floats, metric: Metric) -> tuple[Floats, Floats]:
        """Minus the approximate inverse Hessian times the gradient; metric applies the initial one."""
        q, qb = gradient.copy(), bias.copy()
        weights = []
        for s, y, sb, yb, inverse in reversed(self._pairs):
            alpha = inverse * (dot(s, q) + (sb * qb).sum(axis=1))
            q -= alpha[:, None, None].astype(q.dtype) * y
            qb -= alpha[:, None] * yb
            weights.append(alpha)
        z, zb = metric(q, qb)
        for (s, y, sb, yb, inverse), alpha in zip(self._pairs, reversed(weights), strict=True):
            beta = alpha - inverse * (dot(y, z) + (yb * zb).sum(axis=1))
            z += beta[:, None, None].astype(z.dtype) * s
            zb += beta[:, None] * sb
        return -z, -zb


class PathStep:
    """Warm start along the regularisation path: the last move of each problem's solution, from one strength to the next."""

    def __init__(self, coef: Floats, intercept: Floats) -> None:
        self._coef, self._intercept = np.zeros_like(coef), np.zeros_like(intercept)

    def store(self, problems: NDArray[np.intp], coef: Floats, intercept: Floats) -> None:
        """Store moves (problem, output, column) and (problem, output)."""
        self._coef[problems], self._intercept[problems] = coef, intercept

    def better_than(
        self,
        problems: NDArray[np.intp],
        iterations: NDArray[np.intp],
        gradient: tuple[Floats, Floats],
        step: tuple[Floats, Floats, Floats],
    ) -> tuple[Floats, Floats, Floats]:
        """Step of weights and intercepts, and its slope: the last move instead of `step` if it took long and is a descent direction.

        Its length does not matter, because a line search follows.
        """
        coef, intercept = self._coef[problems], self._intercept[problems]
        slope = exact_dot(coef, gradient[0]) + (intercept * gradient[1]).sum(axis=1)
        use = (iterations > _MANY_ITERATIONS) & (slope < 0)
        return np.where(use[:, None, None], coef, step[0]), np.where(use[:, None], intercept, step[1]), np.where(use, slope, step[2])
