"""Attention maps: checks of their values and windows, fusion over heads, the discard ratio; arrays that hold them."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store import ActivationStore
from stratascope.store.io.selection import listing

Window = tuple[int, int]
"""Half-open range (first, last) of blocks."""

Fusion = Literal["mean", "max", "min"]

TOLERANCE = 1e-3


def checked_maps(maps: NDArray[Any], *, causal: bool = False) -> NDArray[np.float64]:
    """Check maps (layer, query, key): rows sum to 1.

    Parameters
    ----------
    causal
        Whether a query may not attend to a later key.

    Raises
    ------
    InvalidInputError
        If the shape is not (layer, token, token), a weight is negative or not finite, a row does not sum to 1 within 0.001, or
        `causal` maps attend to a later key.
    """
    maps = shaped_maps(maps)
    for layer in range(len(maps)):
        check_layer(maps, layer, causal=causal)
    return maps


def shaped_maps(maps: NDArray[Any]) -> NDArray[np.float64]:
    """Maps as float64; InvalidInputError if the shape is not (layer, token, token)."""
    maps = np.asarray(maps, np.float64)
    if maps.ndim != 3 or maps.shape[1] != maps.shape[2] or not maps.size:
        raise InvalidInputError(f"expected maps of shape (layer, token, token), found {maps.shape}")
    return maps


def check_layer(maps: NDArray[np.float64], layer: int, *, causal: bool = False) -> None:
    """Check one layer as `checked_maps` checks all; right before its use, while it is in the cache.

    Raises
    ------
    InvalidInputError
        As `checked_maps`.
    """
    weights = maps[layer]
    off = np.abs(weights @ np.ones(len(weights)) - 1)
    # this form refuses NaN, too
    if not off.max() <= TOLERANCE:
        row = int(np.where(np.isnan(off), np.inf, off).argmax())
        raise InvalidInputError(f"expected rows that sum to 1, found {weights[row].sum():.4f} in layer {layer}, query {row}")
    if weights.min() < 0:
        raise InvalidInputError(f"expected weights of at least 0, found {weights.min():.3g} in layer {layer}; pass post-softmax attention")
    if causal and np.triu(weights, 1).any():
        raise InvalidInputError(
            f"expected causal maps, found a query that attends to a later key in layer {layer}; flow needs a causal decoder"
        )


def parse_window(name: str, layers: int) -> Window:
    """Half-open range of blocks from the text "first-last"; InvalidInputError for another text or a block outside."""
    first, _, last = name.partition("-")
    if not first.isdecimal() or not last.isdecimal() or not int(first) <= int(last) < layers:
        raise InvalidInputError(f"expected a window of blocks such as 0-{layers - 1}, found {name!r}")
    return int(first), int(last) + 1


def checked_window(window: Window | None, layers: int) -> Window:
    """Window of blocks, all where None; InvalidInputError if it is empty or outside."""
    first, last = (0, layers) if window is None else window
    if not 0 <= first < last <= layers:
        raise InvalidInputError(
            f"expected a window of blocks within 0-{layers - 1}, found {first}-{last - 1}",
            in_python=f"window={window} is half-open",
        )
    return int(first), int(last)


def require_maps(store: ActivationStore, method: str) -> None:
    """Raise where a store lacks the maps for `method` (rollout, flow).

    Raises
    ------
    NotRecordedError
        If the store lacks the maps of a block.
    """
    layout = store.layout
    if "attention_maps" not in layout.record:
        raise NotRecordedError(
            f"expected attention maps in the store, found none: {method} needs the attention of every token, final-token rows are not "
            "enough; extract again with attention_maps in `record`"
        )
    if layout.softmax_layers:
        raise NotRecordedError(
            f"expected softmax attention in all {layout.layers} blocks, found it in {listing(layout.softmax_layers)}: {method} through the "
            "others is undefined"
        )
    if layout.attention_layers != tuple(range(layout.layers)):
        raise NotRecordedError(
            f"expected the maps of all {layout.layers} blocks, found those of {listing(layout.attention_layers)}: {method} needs every "
            "block; copy the store again with all layers"
        )


def fuse_heads(attention: NDArray[Any], fusion: Fusion = "mean") -> NDArray[np.float64]:
    """Aggregate attention over heads: one map per layer.

    Rollout over the mean is the mean over all paths through heads. Rows of max and min are scaled to sum to 1.

    Parameters
    ----------
    attention
        (..., head, query, key).
    fusion
        `mean`, `max` or `min` over heads.

    Returns
    -------
    numpy.ndarray
        (..., query, key) float64, rows sum to 1; a row that is 0 under `min` attends to itself.

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
    """Set the smallest `ratio` of a map's weights to zero, except the first token's column.

    As the discard ratio of vit-explain, with two corrections: it keeps the whole column of the first token (vit-explain: one entry), and
    on a causal map the ratio counts the lower triangle alone (vit-explain: the whole square).

    Parameters
    ----------
    weights
        (query, key).
    ratio
        Share of the entries: of the lower triangle where the upper one is empty, else of all.

    Returns
    -------
    numpy.ndarray
        (query, key) float64; rows are not rescaled. Of equal weights the first go first, so that exactly floor(ratio * entries) are
        discarded, less those in the first column.
    """
    kept = np.array(weights, np.float64)
    seen = np.tri(len(kept), dtype=bool) if not np.triu(kept, 1).any() else np.ones_like(kept, bool)
    places = np.flatnonzero(seen)
    weakest = places[np.argsort(kept.ravel()[places], kind="stable")[: int(ratio * len(places))]]
    kept.ravel()[weakest[weakest % len(kept) != 0]] = 0
    return kept


def gradient_array(store: ActivationStore, window: Window | None = None) -> str:
    """Array from which a gradient rollout is taken: the rollout itself where it ends with the last block, else the packed maps.

    Raises
    ------
    NotRecordedError
        If the store has neither.
    InvalidInputError
        If the window ends before the last block, and the store has no maps.
    """
    layout = store.layout
    last = checked_window(window, layout.layers)[1]
    if (
        "gradient_maps" in layout.record
        and "gradient_scale" in layout.record
        and not ("gradient_rollout" in layout.record and last == layout.layers)
    ):
        return "gradient_maps"
    if "gradient_rollout" not in layout.record:
        raise NotRecordedError(
            "expected gradient_rollout or gradient_maps in the store for the rollout of maps weighted by gradients, found none; extract "
            "again with gradient_rollout in `record`, in addition to the present arrays"
        )
    if last != layout.layers:
        raise InvalidInputError(
            f"expected a `window` that ends with the last block, {layout.layers - 1}, for a gradient rollout without gradient_maps in the "
            f"store, found one that ends with {last - 1}: record gradient_maps for other windows"
        )
    return "gradient_rollout"
