"""Weighting of the final token's attention: plain, norm-based (Kobayashi et al. 2020), or token attribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store import ActivationStore

WEIGHINGS: dict[str, tuple[str, ...]] = {
    "attention": ("attention_rows",),
    "norm": ("attention_rows", "value_norms"),
    "attribution": ("attention_rows", "value_logits"),
}
"""Weighting -> arrays that it needs. `attention`: post-softmax weights. `norm`: weight times the norm of the transformed value vector
(Kobayashi et al. 2020), rows sum to 1. `attribution`: contribution through that key to the first choice's logit minus the second's, signed;
rows sum to the head's attribution."""


def require_recorded(store: ActivationStore, arrays: Sequence[str], what: str) -> None:
    """Raise NotRecordedError with the arrays to record where the store lacks one."""
    held = {spec.name for spec in store.layout.arrays()}
    missing = [name for name in arrays if name not in held]
    if missing:
        raise NotRecordedError(
            f"expected {' and '.join(missing)} in the store for {what}, found none; extract again with {','.join(missing)} in "
            "`record`, in addition to the present arrays"
        )


def checked_weighing(name: str) -> str:
    """Name of a weighting; InvalidInputError for an unknown one."""
    if name not in WEIGHINGS:
        raise InvalidInputError(f"expected a weighting of {', '.join(WEIGHINGS)}, found {name!r}")
    return name


def weighted_rows(store: ActivationStore, examples: NDArray[np.int64], weighing: str = "attention") -> NDArray[np.float32]:
    """Weighted attention row of the final token, by layer and head.

    Parameters
    ----------
    examples
        (example,) numbers of examples.
    weighing
        One of `WEIGHINGS`.

    Returns
    -------
    numpy.ndarray
        (example, layer, head, token) float32; 0 after the prompt.

    Raises
    ------
    NotRecordedError
        If the store lacks an array of the weighting, or an example.
    """
    require_recorded(store, WEIGHINGS[checked_weighing(weighing)], f"the weighting {weighing!r}")
    rows = np.moveaxis(store.read("attention_rows", examples=examples), 0, 1)
    if weighing == "attention":
        rows = np.nan_to_num(rows, copy=False)
        # half precision loses the sum of 1
        rows /= rows.sum(-1, keepdims=True)
        return np.asarray(rows)
    values = np.moveaxis(store.read(WEIGHINGS[weighing][1], examples=examples), 0, 1)
    weighted: NDArray[Any] = norm_attention(rows, values) if weighing == "norm" else token_attribution(rows, values)
    return np.asarray(np.nan_to_num(weighted, copy=False), np.float32)


def norm_attention(rows: NDArray[Any], value_norms: NDArray[Any], *, normalised: bool = True) -> NDArray[np.float64]:
    """Norm-based attention of each head: weight times the norm of the transformed value vector.

    Kobayashi et al. 2020, section 3: ||alpha_j f(x_j)|| = alpha_j ||f(x_j)||, f_h(x_j) = W_O^h v_j.

    Parameters
    ----------
    rows
        (..., token) attention weights; NaN after the prompt.
    value_norms
        (..., token) norms of f(x_j), of the same shape; with grouped queries, too, one per head.
    normalised
        Whether to scale each row to sum to 1; a zero row stays zero.

    Returns
    -------
    numpy.ndarray
        (..., token) float64; NaN where `rows` is NaN.

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
    """Contribution of each token, through each head, to the logit difference: alpha_j <f_h(x_j), u>.

    The sum over tokens is exactly the head's attribution.

    Parameters
    ----------
    rows
        (..., token) attention weights; NaN after the prompt.
    value_logits
        (..., token) <f_h(x_j), u> with u = gamma * (W_U[first] - W_U[second]) / scale of the final norm.

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
        raise InvalidInputError(f"expected {what} for every weight, found NaN")
    return first, second
