"""Convergence reports and cost of the solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]


@dataclass
class Report:
    """Convergence of the last solution of each problem."""

    objective: Floats
    """(problem,) F, in nats summed over training rows."""
    gap: Floats
    """(problem,) half the Newton decrement: an estimate of F - F*."""
    certificate: Floats
    """(problem,) bound on |w - w*| in standardised coordinates: F is 1/C-strongly convex in w, so it is at most C |grad F|."""
    iterations: NDArray[np.intp]
    converged: NDArray[np.bool_]


@dataclass
class Work:
    """Cost of the solver, to compare with the unavoidable matrix products."""

    flops: float = 0.0
    """Of the products with the rows."""
    rows_seconds: float = 0.0
    """Time of the products with the rows, which every first-order method needs."""
    basis_seconds: float = 0.0
    """Time of the preconditioner."""
