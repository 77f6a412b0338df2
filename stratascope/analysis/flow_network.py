"""Network of attention flow with integer capacities, and its column cuts in closed form.

Node (l, i) is token i at level l: level 0 holds the inputs, level L the output, whose only node is the final token t, the source. An edge
leads from (l + 1, i) to (l, j) for every key j of query i in block l. A *column cut* separates the nodes of one token on k levels: the
source column {(L, t), ..., (L - k, t)}, or the target column {(0, j), ..., (k, j)}. The smallest column cut is an upper bound of the flow;
on deep decoders it nearly always equals the flow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

UNIT = 2**50
"""Integer for a capacity of 1: rounding stays below 1e-12 over a thousand tokens, sums fit 64 bits."""
_ENOUGH = 2**52
"""Above the outflow of the source; terms of a cut are clipped here, so that sums over layers do not overflow."""


def flow_capacities(maps: NDArray[np.float64]) -> Counts:
    """Capacities of (A + I) / 2 in units of 1 / `UNIT`.

    Parameters
    ----------
    maps
        (layer, query, key), causal, rows sum to 1.

    Returns
    -------
    numpy.ndarray
        (layer, upper, lower) int64; in the last layer only the row of the final token is not zero.
    """
    own = np.arange(maps.shape[-1])
    capacities = np.zeros(maps.shape, np.int64)
    for layer, weights in enumerate(maps[:-1]):
        np.rint(weights * (UNIT // 2), out=capacities[layer], casting="unsafe")
    np.rint(maps[-1, -1] * (UNIT // 2), out=capacities[-1, -1], casting="unsafe")
    capacities[:-1, own, own] += UNIT // 2
    capacities[-1, -1, -1] += UNIT // 2
    return capacities


def token_bounds(capacities: Counts) -> tuple[Counts, Counts]:
    """Smallest source cut and target cut of the flow to every input token.

    Returns
    -------
    tuple of numpy.ndarray
        Source and target cut, (token,) int64 each; both are upper bounds.
    """
    own = np.diagonal(capacities, axis1=1, axis2=2)

    # flow from the source column to token j or later; earlier tokens do not reach j
    rows = capacities[:, -1].copy()
    rows[:, -1] = 0
    aside = np.cumsum(rows[:, ::-1], axis=1)[:, ::-1]
    aside[0] = rows[0]  # on the lowest level only j counts
    along = np.repeat(own[:, -1:], capacities.shape[-1], axis=1)
    along[0, :-1] = 0
    source = _smallest(aside[::-1], along[::-1])

    columns = np.stack([np.minimum(layer.sum(0), _ENOUGH) for layer in capacities])
    target = _smallest(np.minimum(columns - own, _ENOUGH), own)
    return source, target


def group_bounds(capacities: Counts, targets: NDArray[np.bool_]) -> tuple[int, int]:
    """Smallest source and target cut of the flow into a group of input tokens, as `token_bounds`.

    Parameters
    ----------
    targets
        (token,) bool, at least one.
    """
    first = int(np.flatnonzero(targets)[0])
    own = capacities[:, -1, -1]
    rows = capacities[:, -1, :-1]
    aside = rows[:, first:].sum(1)
    aside[0] = rows[0, targets[:-1]].sum()
    along = own.copy()
    along[0] = own[0] if targets[-1] else 0
    source = _smallest(aside[::-1, None], along[::-1, None])

    into = capacities[:, :, targets]
    inside = np.minimum(into[:, targets].sum((1, 2)), _ENOUGH)
    outside = np.minimum(into[:, ~targets].sum((1, 2)), _ENOUGH)
    target = _smallest(outside[:, None], inside[:, None])
    return int(source[0]), int(target[0])


def _smallest(aside: Counts, along: Counts) -> Counts:
    """Minimum over k of: flow out of the column in its first k + 1 steps, plus flow along it in step k."""
    return np.asarray((np.cumsum(aside, axis=0) + along).min(0))
