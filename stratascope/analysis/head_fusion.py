"""Fusing heads into one map and discarding weak weights, as rollout's users know it from vit-explain, with its faults corrected."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError

Fusion = Literal["mean", "max", "min"]


def fuse_heads(attention: NDArray[Any], fusion: Fusion = "mean") -> NDArray[np.float64]:
    """One map a layer from its heads' maps.

    Only the mean keeps rollout's meaning (it is linear: rollout over it is the mean over all paths through heads). Rows of max and
    min do not sum to 1 and are scaled to.

    Parameters
    ----------
    attention
        (..., head, query, key).
    fusion
        `mean`, `max` or `min` over heads.

    Returns
    -------
    numpy.ndarray
        (..., query, key) float64, rows sum to 1; a row where every key is ignored by some head attends to itself under `min`.

    Raises
    ------
    InvalidInputError
        If the fusion is unknown.
    """
    if fusion not in ("mean", "max", "min"):
        raise InvalidInputError(f"expected a fusion of mean, max, min, found {fusion!r}")
    fused = np.asarray(getattr(np, fusion)(np.asarray(attention, np.float64), axis=-3))
    totals = fused.sum(-1, keepdims=True)
    alone = np.eye(fused.shape[-1])
    return np.where(totals > 0, fused / np.where(totals > 0, totals, 1), alone)


def discard_weakest(weights: NDArray[Any], ratio: float) -> NDArray[np.float64]:
    """A map with the smallest `ratio` of its weights set to zero; the first token's column is always kept.

    As vit-explain's discard ratio, but: all of the first token's column is protected, where its code protects one entry; and on a
    causal map the ratio counts the weights that can be anything but zero, where its code lets the empty upper triangle absorb it.

    Parameters
    ----------
    weights
        (query, key).
    ratio
        Of the entries that a query may see (the lower triangle where the upper one is empty, else all).

    Returns
    -------
    numpy.ndarray
        (query, key) float64; rows are not rescaled. Ties at the threshold are broken by position, first ones first, so that exactly
        floor(ratio * entries) are discarded, less those that are protected.
    """
    kept = np.array(weights, np.float64)
    seen = np.tri(len(kept), dtype=bool) if not np.triu(kept, 1).any() else np.ones_like(kept, bool)
    places = np.flatnonzero(seen)
    weakest = places[np.argsort(kept.ravel()[places], kind="stable")[: int(ratio * len(places))]]
    kept.ravel()[weakest[weakest % len(kept) != 0]] = 0
    return kept
