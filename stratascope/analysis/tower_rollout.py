"""Rollout from the decoder's inputs through the vision tower to the image's patches, and maps of patches.

An image token passes its rollout in equal shares to the patches that it is made of; the blocks of the tower pass it on as those of the
decoder do. Views of the tower do not attend to each other.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stratascope.analysis.rollout import Floats
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store import ActivationStore

TOWER_ARRAYS = ("vision_maps", "vision_parent", "vision_grid", "vision_box")
"""Arrays of a store from which rollout and flow through the vision tower are computed."""


def has_tower(store: ActivationStore) -> bool:
    """Whether a store holds what rollout and flow through the vision tower need."""
    return set(TOWER_ARRAYS) <= store.layout.record


def require_tower(store: ActivationStore, method: str) -> None:
    """Raise where a store lacks maps of the vision tower for `method` (rollout, flow).

    Raises
    ------
    NotRecordedError
        If it lacks an array of `TOWER_ARRAYS`.
    """
    if not has_tower(store):
        lacking = [name for name in TOWER_ARRAYS if name not in store.layout.record]
        raise NotRecordedError(
            f"expected attention maps of the vision tower in the store for {method} through it, found no {', '.join(lacking)}; extract "
            "again with vision_maps in `record`"
        )


def entering_tower(onto: NDArray[np.floating], parents: NDArray[np.integer]) -> Floats:
    """(view, token) what each token that leaves the tower receives of a value of prompt tokens, in equal shares of each prompt token.

    Parameters
    ----------
    onto
        (token,) of the prompt.
    parents
        (view, token) prompt token that each token of the tower is part of; -1: none.

    Examples
    --------
    >>> import numpy as np
    >>> entering_tower(np.array([0.2, 0.6, 0.2]), np.array([[-1, 1, 1]])).tolist()
    [[0.0, 0.3, 0.3]]
    """
    counts = np.bincount(parents[parents >= 0], minlength=len(onto))
    return np.where(parents >= 0, np.asarray(onto, np.float64)[parents] / np.maximum(counts, 1)[parents], 0.0)


def tower_rollout(onto: NDArray[np.floating], packed: Iterable[NDArray[np.uint8]], parents: NDArray[np.integer]) -> Floats:
    """Rollout onto the tokens that enter the vision tower (Abnar & Zuidema 2020, equation 1, with the maps of the tower).

    Parameters
    ----------
    onto
        (token,) rollout of the final token onto the decoder's inputs, such as row 0 of `rollout`.
    packed
        (view, query, key) uint8 of each block of the tower, the last block first: packed as of `encode_maps`, zeros beyond a view's tokens.
    parents
        (view, token) prompt token that each token of the tower is part of; -1: none.

    Returns
    -------
    numpy.ndarray
        (view, token) float64. It sums to the rollout onto the prompt tokens that are made of patches.

    Raises
    ------
    InvalidInputError
        If the last axis of a map is not that of `parents`, or a token with rollout has no attention.
    """
    shares = entering_tower(onto, np.asarray(parents))
    for maps in packed:
        if maps.shape != (*shares.shape, shares.shape[1]):
            raise InvalidInputError(f"expected a map of {shares.shape[0]} views of {shares.shape[1]} tokens, found shape {maps.shape}")
        below = np.empty_like(shares)
        for view, own in enumerate(shares):
            weights = np.square(maps[view], dtype=np.float64)
            totals = weights.sum(-1)
            if own[totals == 0].any():
                raise InvalidInputError(f"expected a packed map of view {view}, found an empty row of a token that others attend to")
            below[view] = 0.5 * (own / np.where(totals > 0, totals, 1) @ weights + own)
        shares = below
    return shares


def stored_tower_rollout(store: ActivationStore, example: int, onto: NDArray[np.floating]) -> Floats:
    """(view, patch) rollout of an example onto its patches, NaN beyond those of a view; reads one block of the tower at a time.

    Parameters
    ----------
    store
        With `TOWER_ARRAYS`.
    example
        Its number.
    onto
        (token,) rollout onto the decoder's inputs.
    """
    first = store.layout.vision_class_tokens
    parents, counts = store.read("vision_parent", examples=example), store.read("vision_grid", examples=example).clip(0).prod(-1)
    blocks = (store.read("vision_maps", layer=block, examples=example) for block in reversed(range(store.layout.vision_blocks)))
    found = tower_rollout(onto, blocks, parents)[:, first:]
    return np.where(np.arange(found.shape[1]) < counts[:, None], found, np.nan)


def tower_maps(store: ActivationStore, example: int) -> Floats:
    """(block, view, query, key) attention maps of the vision tower, decoded: rows sum to 1, or to 0 beyond the tokens of a view.

    Parameters
    ----------
    store
        With `TOWER_ARRAYS`.
    example
        Its number.
    """
    weights = np.square(store.read("vision_maps", examples=example), dtype=np.float64)
    totals = weights.sum(-1, keepdims=True)
    return np.asarray(np.divide(weights, totals, out=weights, where=totals > 0))


def patch_picture(values: NDArray[np.floating], grids: NDArray[np.integer], boxes: NDArray[np.floating]) -> Floats:
    """(row, column) sums of the values of all views over cells of the image as fine as the finest view.

    Parameters
    ----------
    values
        (view, patch) in raster order.
    grids
        (view, 2) rows and columns of patches; -1 for views that an image does not have.
    boxes
        (view, 4) left, top, right, bottom of each view as shares of the image. What lies outside the image is left out.

    Examples
    --------
    >>> import numpy as np
    >>> views = np.array([[1.0, 3.0], [4.0, 0.0]])
    >>> grids, boxes = np.array([[1, 2], [1, 1]]), np.array([[0, 0, 1, 1], [0, 0, 1, 1]])
    >>> patch_picture(views, grids, boxes).tolist()
    [[3.0, 5.0]]
    """
    views = [k for k, grid in enumerate(grids) if min(grid) > 0]
    sizes = np.array([[grids[k, 0] / (boxes[k, 3] - boxes[k, 1]), grids[k, 1] / (boxes[k, 2] - boxes[k, 0])] for k in views])
    shape = np.rint(sizes.max(0)).astype(int)
    picture = np.zeros(shape)
    for k in views:
        own = values[k, : grids[k].prod()].reshape(grids[k])
        down, across = (_overlaps(int(shape[a]), int(grids[k, a]), float(boxes[k, 1 - a]), float(boxes[k, 3 - a])) for a in (0, 1))
        picture += down @ own @ across.T
    return picture


def _overlaps(cells: int, patches: int, start: float, stop: float) -> Floats:
    """(cell, patch) share of each patch between `start` and `stop` that lies in each of the equal cells between 0 and 1."""
    edges, bounds = np.linspace(start, stop, patches + 1), np.linspace(0, 1, cells + 1)
    common = np.minimum(edges[1:], bounds[1:, None]) - np.maximum(edges[:-1], bounds[:-1, None])
    return np.asarray(common.clip(0) / np.diff(edges))
