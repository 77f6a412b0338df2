"""The inverse Hessian that the solver starts from: Kronecker product of the classes' curvature and the rows' Gram matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.probe.solver.standardised_rows import Eigenbasis

Floats = NDArray[Any]
_DAMPING = 0.02
"""Share of the null model's curvature that is added, so that a saturated classifier keeps a finite step."""


class Preconditioner:
    """Applies (S x Gram + 1/C)^-1 to gradients, with S the mean curvature between outputs.

    The Hessian of a problem is sum_i S_i x z_i z_i' + 1/C. With S_i replaced by its mean it is diagonal in the product of the
    eigenvectors of S, of which every problem has its own, and those of z'z, which all problems share.
    """

    def __init__(self, basis: Eigenbasis | None, mean_norm: float, rows: int) -> None:
        """mean_norm: trace of z'z / columns, used for every direction where there is no basis."""
        self.basis = basis
        self.mean_norm = mean_norm
        self.rows = rows

    def apply(
        self, gradient: Floats, bias_gradient: Floats, curvature: Floats, null_curvature: Floats, strength: Floats, count: Floats
    ) -> tuple[Floats, Floats]:
        """Gradients (problem, output, column) and (problem, output) to steps of the same shapes; curvature (problem, output, output)."""
        mean = curvature + _DAMPING * null_curvature
        outputs = gradient.shape[1]
        if outputs > 1:
            sigma, vectors = np.linalg.eigh((mean + mean.transpose(0, 2, 1)) / 2)
            sigma = np.maximum(sigma, 0)
            turned = np.matmul(vectors.transpose(0, 2, 1).astype(gradient.dtype), gradient)
            bias = np.einsum("pkj,pk->pj", vectors, bias_gradient)
        else:
            sigma, turned, bias = np.maximum(mean[:, :, 0], 1e-12), gradient, bias_gradient
        # the softmax does not change along the all-ones direction: its eigenvalue is 0 and its gradient only rounding
        bias = np.where(sigma > 1e-7 * sigma[:, -1:], bias / np.maximum(sigma * count[:, None], 1e-6), 0)
        step = self._divide(turned, sigma * (count / self.rows)[:, None], 1 / strength)
        if outputs > 1:
            step = np.matmul(vectors.astype(gradient.dtype), step)
            bias = np.einsum("pkj,pj->pk", vectors, bias)
        return step, bias

    def _divide(self, gradient: Floats, curvature: Floats, decay: Floats) -> Floats:
        """Solve (curvature[p, k] z'z + decay[p]) step = gradient."""
        dtype = gradient.dtype
        curvature = curvature.reshape(-1, 1)
        shift = np.repeat(decay, gradient.shape[1])[:, None]
        flat = gradient.reshape(len(shift), -1)
        if self.basis is None:
            return (flat / (shift + curvature * self.mean_norm)).astype(dtype).reshape(gradient.shape)
        rest = (1 / (shift + curvature * self.basis.rest)).astype(dtype)
        weight = (1 / (shift + curvature * self.basis.values)).astype(dtype)
        coordinate = flat @ self.basis.vectors
        if self.basis.vectors.shape[1] == flat.shape[1]:
            step = (coordinate * weight) @ self.basis.vectors.T
        else:
            step = (coordinate * (weight - rest)) @ self.basis.vectors.T + rest * flat
        return np.asarray(step).reshape(gradient.shape)
