"""What an attention map must be before anything is computed from it, and which stores can give one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store import ActivationStore
from stratascope.store.io.selection import listing

Window = tuple[int, int]
"""Half-open range (first, last) of blocks."""

TOLERANCE = 1e-3


def checked_maps(maps: NDArray[Any], *, causal: bool = False) -> NDArray[np.float64]:
    """Maps as (layer, query, key) float64 whose rows sum to 1.

    Parameters
    ----------
    causal
        Whether a key after its query is refused.

    Raises
    ------
    InvalidInputError
        If the shape is not (layer, token, token), a weight is negative or not finite, a row does not sum to 1 within 0.001, or a
        query sees a later key where it must not.
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
    """Refuse one layer for what `checked_maps` says of all: apart from it, because a layer that is used at once is still in the cache.

    Raises
    ------
    InvalidInputError
        As `checked_maps`, of this layer.
    """
    weights = maps[layer]
    off = np.abs(weights @ np.ones(len(weights)) - 1)
    # written so that NaN counts as wrong
    if not off.max() <= TOLERANCE:
        row = int(np.where(np.isnan(off), np.inf, off).argmax())
        raise InvalidInputError(f"expected rows that sum to 1, found {weights[row].sum():.4f} in layer {layer}, query {row}")
    if weights.min() < 0:
        raise InvalidInputError(f"expected weights of at least 0, found {weights.min():.3g} in layer {layer}; pass post-softmax attention")
    if causal and np.triu(weights, 1).any():
        raise InvalidInputError(f"expected causal maps, found a query that sees a later key in layer {layer}; flow is for decoders alone")


def parse_window(name: str, layers: int) -> Window:
    """Half-open range of blocks from "first-last"; InvalidInputError where it is no such text, or reaches beyond the last block."""
    first, _, last = name.partition("-")
    if not first.isdecimal() or not last.isdecimal() or not int(first) <= int(last) < layers:
        raise InvalidInputError(f"expected a window of blocks such as 0-{layers - 1}, found {name!r}")
    return int(first), int(last) + 1


def checked_window(window: Window | None, layers: int) -> Window:
    """The window, all layers where it is None; InvalidInputError if it is empty or reaches outside."""
    first, last = (0, layers) if window is None else window
    if not 0 <= first < last <= layers:
        raise InvalidInputError(
            f"expected a window of blocks within 0-{layers - 1}, found {first}-{last - 1}; give another (--window)",
            in_python=f"window={window} is half-open",
        )
    return int(first), int(last)


def require_maps(store: ActivationStore, method: str, tower: str = "decoder") -> None:
    """Refuse a store from which `method` (rollout, flow) cannot be computed, and say why.

    Raises
    ------
    NotRecordedError
        If the store holds no maps, or not those of every block, or the vision tower is asked for: no store holds its maps.
    InvalidInputError
        If the tower is neither `decoder` nor `vision`.
    """
    if tower == "vision":
        raise NotRecordedError(
            f"expected the vision tower's attention maps, found none: no store holds them (its blocks attend within windows, over four "
            f"patches a cell and without a final token), so {method} through the vision tower cannot be computed; probe its residual "
            "stream instead (--record vision_residual)"
        )
    if tower != "decoder":
        raise InvalidInputError(f"expected the tower decoder or vision, found {tower!r}")
    layout = store.layout
    if "attention_maps" not in layout.record:
        raise NotRecordedError(
            f"expected attention maps in the store, found none: {method} needs every token's attention, and final-token rows cannot stand "
            "in for it; extract again with --record attention_maps"
        )
    if layout.attention_layers != tuple(range(layout.layers)):
        raise NotRecordedError(
            f"expected the maps of all {layout.layers} blocks, found those of {listing(layout.attention_layers)}: a {method} "
            "through a gap would be wrong; copy the store again with all layers"
        )
