"""Attention weighed by what it carries: pure functions of attention rows and of what each key would write."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError


def norm_attention(rows: NDArray[Any], value_norms: NDArray[Any], *, normalised: bool = True) -> NDArray[np.float64]:
    """Norm-based attention of each head: weight times the norm of what the head would write for that key alone.

    Kobayashi et al. 2020, section 3: ||alpha_j f(x_j)|| = alpha_j ||f(x_j)||, f_h(x_j) = W_O^h v_j.

    Parameters
    ----------
    rows
        (..., token) attention weights; NaN beyond the prompt.
    value_norms
        (..., token) norms of f(x_j), of the same shape; under grouped queries each head has its own.
    normalised
        Whether to scale each row to sum to 1; a row that carries nothing at all stays zero.

    Returns
    -------
    numpy.ndarray
        (..., token) float64; NaN where the rows are.

    Raises
    ------
    InvalidInputError
        If the shapes differ, a norm is negative, or a norm is missing where there is a weight.
    """
    weights, norms = _alike(rows, value_norms, "norms")
    if (norms < 0).any():
        raise InvalidInputError("expected norms of at least 0, found negative ones")
    found = weights * norms
    if not normalised:
        return np.asarray(found)
    total = np.nansum(found, -1, keepdims=True)
    return np.asarray(found / np.where(total > 0, total, 1))


def token_attribution(rows: NDArray[Any], value_logits: NDArray[Any]) -> NDArray[np.float64]:
    """What each token adds, through each head, to the difference of the answers' logits: alpha_j <f_h(x_j), u>.

    Summed over tokens it is the head's attribution, exactly: the head's output is the weighted sum of its values.

    Parameters
    ----------
    rows
        (..., token) attention weights; NaN beyond the prompt.
    value_logits
        (..., token) of <f_h(x_j), u>, u being gamma * (W_U[first] - W_U[second]) over the final norm's scale.

    Raises
    ------
    InvalidInputError
        If the shapes differ, or a value is missing where there is a weight.
    """
    weights, logits = _alike(rows, value_logits, "logits")
    return np.asarray(weights * logits)


def _alike(rows: NDArray[Any], others: NDArray[Any], what: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(rows, np.float64), np.asarray(others, np.float64)
    if first.shape != second.shape:
        raise InvalidInputError(f"expected {what} of shape {first.shape}, one for each weight, found {second.shape}")
    if np.isnan(second[~np.isnan(first)]).any():
        raise InvalidInputError(f"expected {what} for every weight, found NaN beside a number")
    return first, second
