"""The way along which solutions move as strengths ascend: a better first step than the gradient's, where it is long."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.probe.solver.quasi_newton import exact_dot

Floats = NDArray[Any]
_FAR = 5
"""Iterations of the last solution above which the next one begins along its course. Where training classes become separable, weights go on
growing in nearly the direction in which they grew, and the mean curvature says little; elsewhere the quasi-Newton step is better."""


class Course:
    """The last move of each problem's solution, from one strength to the next."""

    def __init__(self, coef: Floats, intercept: Floats) -> None:
        self._coef, self._intercept = np.zeros_like(coef), np.zeros_like(intercept)

    def note(self, problems: NDArray[np.intp], coef: Floats, intercept: Floats) -> None:
        """Remember moves (problem, output, column) and (problem, output)."""
        self._coef[problems], self._intercept[problems] = coef, intercept

    def onward(
        self,
        problems: NDArray[np.intp],
        iterations: NDArray[np.intp],
        gradient: tuple[Floats, Floats],
        step: tuple[Floats, Floats, Floats],
    ) -> tuple[Floats, Floats, Floats]:
        """Step of weights and of intercepts, and slope along them: the last move instead of `step` where it was far and leads down.

        Its length is no matter: a line search follows.
        """
        coef, intercept = self._coef[problems], self._intercept[problems]
        slope = exact_dot(coef, gradient[0]) + (intercept * gradient[1]).sum(axis=1)
        use = (iterations > _FAR) & (slope < 0)
        return np.where(use[:, None, None], coef, step[0]), np.where(use[:, None], intercept, step[1]), np.where(use, slope, step[2])
