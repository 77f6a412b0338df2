"""L-BFGS for a batch of problems: the last steps and changes of gradient, and the two-loop recursion over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Metric = Callable[[Floats, Floats], tuple[Floats, Floats]]


def memory_for(outputs: int) -> int:
    """Steps to remember: one logit a problem leaves room for many, which spare iterations where weights are hardly regularised."""
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
        """Note a step and the gradient that it started from."""
        self._open = (step, bias_step, gradient, bias)

    def complete(self, gradient: Floats, bias: Floats) -> None:
        """Close the pair that `begin` opened with the gradient where the step ended."""
        if self._open is None:
            return
        step, bias_step, before, bias_before = self._open
        change, bias_change = gradient - before, bias - bias_before
        curvature = dot(step, change) + (bias_step * bias_change).sum(axis=1)
        # a pair without positive curvature is rounding: weight 0 leaves it out for that problem alone
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
