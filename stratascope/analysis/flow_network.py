"""The network that attention flow runs through, in whole numbers, and cuts of it that can be written down in closed form.

Nodes (l, i) are tokens at level l: level 0 the inputs, level L the output, whose only node is the final token t, the source. An edge
leads from (l + 1, i) down to (l, j) for every key j that query i sees in block l. A *column cut* keeps the nodes of one token on one
side through k levels: the source's column {(L, t), ..., (L - k, t)}, or the target's {(0, j), ..., (k, j)}. Each is a cut, so the
smallest of them bounds the flow from above; on deep decoders it nearly always equals it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

UNIT = 2**50
"""Capacity of 1: fine enough that rounding stays below 1e-12 over a thousand tokens, with room for sums in 64 bits."""
_ENOUGH = 2**52
"""More than the source can send; terms of a cut are clipped here, so that sums over layers cannot overflow."""


def flow_capacities(maps: NDArray[np.float64]) -> Counts:
    """Capacities of (A + I) / 2 in units of 1 / `UNIT`.

    Parameters
    ----------
    maps
        (layer, query, key), causal, rows sum to 1.

    Returns
    -------
    numpy.ndarray
        (layer, upper, lower) int64; of the last layer only the final token's row is not zero.
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
    """Smallest column cut of each family for the flow to every input token.

    Returns
    -------
    tuple of numpy.ndarray
        At the source and at the target, (token,) int64 each; either is an upper bound.
    """
    own = np.diagonal(capacities, axis1=1, axis2=2)

    # what leaves the source's column for token j or a later one: earlier ones cannot reach j
    rows = capacities[:, -1].copy()
    rows[:, -1] = 0
    aside = np.cumsum(rows[:, ::-1], axis=1)[:, ::-1]
    aside[0] = rows[0]  # on the lowest level only j itself counts
    along = np.repeat(own[:, -1:], capacities.shape[-1], axis=1)
    along[0, :-1] = 0
    source = _smallest(aside[::-1], along[::-1])

    columns = np.stack([np.minimum(layer.sum(0), _ENOUGH) for layer in capacities])
    target = _smallest(np.minimum(columns - own, _ENOUGH), own)
    return source, target


def group_bounds(capacities: Counts, targets: NDArray[np.bool_]) -> tuple[int, int]:
    """As `token_bounds`, for the flow into a group of input tokens together (which is not the sum of their flows).

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
    """Over k, the smallest of: all that leaves the column aside in its first k + 1 steps, and what goes on along it in step k."""
    return np.asarray((np.cumsum(aside, axis=0) + along).min(0))
