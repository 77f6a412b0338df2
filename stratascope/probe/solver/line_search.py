"""Step lengths for a batch of convex problems, on stored logits: they move linearly along a step, so no matrix product is needed."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stratascope.probe.solver.losses import Loss

Floats = NDArray[Any]
_SLOPE = 0.4
"""Curvature condition: a step is long enough when the slope has fallen to this share of its start."""
_TRIALS = 14
_NOISE = 1e-6
"""Growth of F, relative to the loss, within the rounding error of float32 logits."""
_ENOUGH = 3
"""Number of trials after which a decrease or a flat slope suffices."""


class Evaluates(Protocol):
    """A batch of problems whose loss can be evaluated on logits."""

    loss: Loss

    def evaluate(
        self, active: NDArray[np.intp], logits: list[Floats], blocks: list[NDArray[np.intp]]
    ) -> tuple[Floats, list[Floats], Floats]:
        """Summed loss, residuals and curvature of some of the problems."""


def line_search(
    solver: Evaluates,
    active: NDArray[np.intp],
    blocks: list[NDArray[np.intp]],
    logits: list[Floats],
    along: list[Floats],
    loss: Floats,
    slope: Floats,
    linear: Floats,
    square: Floats,
) -> tuple[Floats, Floats, list[Floats], Floats, NDArray[np.bool_], list[Floats]]:
    """Bracketed secant search.

    Parameters
    ----------
    logits, along
        By block, (problem, output, row) logits and their change for a whole step.
    loss, slope
        (problem,) summed loss, and the derivative of F along the step, at the start.
    linear, square
        (problem,) w.step / C and step.step / C, the penalty's share of the derivative.

    Returns
    -------
    tuple
        Length (problem,), summed loss, residuals, curvature at the point found, whether no decrease was found (problem,), and the
        logits there (those given may be overwritten).
    """
    n = len(active)
    length, low, high = np.ones(n), np.zeros(n), np.full(n, np.inf)
    slope_low, slope_high = slope.copy(), np.full(n, np.nan)
    value, curvature = np.zeros(n), np.zeros((n, solver.loss.outputs, solver.loss.outputs))
    residual: list[Floats] = []
    todo = np.ones(n, dtype=bool)
    for trial in range(_TRIALS):
        last = trial == _TRIALS - 1
        index = np.flatnonzero(todo)
        # all of a block as a view where nothing is left out: the first trial mostly suffices
        chosen = [slice(None) if trial == 0 else todo[member] for member in blocks]
        position = np.cumsum(todo) - 1
        inside = [position[member[pick]] for member, pick in zip(blocks, chosen, strict=True)]
        moved = [
            part[pick] + (change[pick] if trial == 0 else length[member[pick]][:, None, None].astype(part.dtype) * change[pick])
            for part, change, member, pick in zip(logits, along, blocks, chosen, strict=True)
        ]
        value_at, residual_at, curvature_at = solver.evaluate(active[index], moved, inside)
        value[index], curvature[index] = value_at, curvature_at
        t = length[index]
        derivative = linear[index] + t * square[index]
        for block, member in enumerate(inside):
            derivative[member] += (residual_at[block] * along[block][chosen[block]]).sum(axis=(1, 2), dtype=np.float64)
            if trial:
                residual[block][chosen[block]] = residual_at[block]
        if trial == 0:
            residual = residual_at
        growth = value_at - loss[index] + t * linear[index] + 0.5 * t**2 * square[index]
        ok = (np.abs(derivative) <= _SLOPE * np.abs(slope[index])) & (growth <= _NOISE * loss[index])
        if trial >= _ENOUGH:
            # near the limit of precision, one of the two is rounding error
            ok |= (growth <= 0) | (np.abs(derivative) <= _SLOPE * np.abs(slope[index]))
        if last:
            ok[:] = True
        rising = derivative > 0
        low[index] = np.where(rising, low[index], t)
        slope_low[index] = np.where(rising, slope_low[index], derivative)
        high[index] = np.where(rising, t, high[index])
        slope_high[index] = np.where(rising, derivative, slope_high[index])
        todo[index[ok]] = False
        if not todo.any():
            if trial == 0:
                return length, value, residual, curvature, length == 0, moved
            break
        length[todo] = _next(low[todo], high[todo], slope[todo], slope_low[todo], slope_high[todo])
        if trial >= _TRIALS - 2:
            # convexity makes every point with a falling slope a decrease
            length[todo] = low[todo]
    for part, change, member in zip(logits, along, blocks, strict=True):
        part += length[member][:, None, None].astype(part.dtype) * change
    return length, value, residual, curvature, length == 0, logits


def _next(low: Floats, high: Floats, slope: Floats, slope_low: Floats, slope_high: Floats) -> Floats:
    """Where the secant of the slope crosses zero: inside the bracket where there is one, further out where there is none."""
    bounded = np.isfinite(high)
    width = np.where(bounded, high - low, 0)
    share = np.where(bounded, -slope_low / np.maximum(np.where(bounded, slope_high, 1) - slope_low, 1e-300), 0)
    within = low + np.clip(share, 0.05, 0.95) * width
    flattening = slope / np.where(slope - slope_low < 0, slope - slope_low, -1e-300)
    return np.where(bounded, within, low * np.clip(flattening, 1.5, 4))
