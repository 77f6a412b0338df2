"""Attention rollout (Abnar & Zuidema 2020) of the final token, as a vector chain over fused attention maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import Window, check_layer, checked_window, discard_weakest, shaped_maps
from stratascope.errors import InvalidInputError

if TYPE_CHECKING:
    pass

Floats = NDArray[np.float64]
Form = Literal["raw", "dropped", "conditional"]
FORMS: tuple[Form, ...] = ("raw", "dropped", "conditional")
"""`raw`: as defined. `dropped`: the rollout without the sinks, scaled to sum to 1. `conditional`: maps without attention to the sinks,
rows scaled to sum to 1."""

Step = Callable[[Floats, int], Floats]
"""(..., token) above block `layer`, layer -> (..., token) below it."""


def rollout(
    maps: NDArray[Any], *, window: Window | None = None, form: Form = "raw", sinks: Sequence[int] = (0,), discard: float = 0.0
) -> Floats:
    """Rollout of the final token onto the tokens of every layer below.

    Abnar & Zuidema 2020, equation 1, for one row: the final row of A~[L-1] ... A~[0] with A~ = rownorm(A + I), as vector-matrix products
    from the top down, O(layers x tokens^2) instead of O(layers x tokens^3).

    Parameters
    ----------
    maps
        (layer, query, key), fused over heads; rows sum to 1.
    window
        (first, last) half-open range of layers to roll through; all by default.
    form
        One of `FORMS`: how sinks are treated.
    sinks
        Token numbers; the first token by default. The raw form ignores them.
    discard
        Share of each map's weights, the smallest, that is set to zero first; see `discard_weakest`.

    Returns
    -------
    numpy.ndarray
        (layers in the window + 1, token) float64. Row 0 is the rollout onto the inputs of the window's first layer, the last
        row the final token itself; every row sums to 1.

    Raises
    ------
    InvalidInputError
        If the shape is not (layer, token, token), a row within the window does not sum to 1, the window is empty or outside, the
        form is unknown, or the final token is among the sinks.
    """
    maps = shaped_maps(maps)
    first, last = checked_window(window, len(maps))
    return _from_the_top(_step(maps, form, sinks, discard), first, last, maps.shape[-1], form, sinks)


def rollout_stops(
    maps: NDArray[Any], *, window: Window | None = None, form: Form = "raw", sinks: Sequence[int] = (0,), discard: float = 0.0
) -> Floats:
    """Rollout onto the inputs for every depth at which the model could stop.

    One pass from the top down computes all depths.

    Parameters and errors are those of `rollout`.

    Returns
    -------
    numpy.ndarray
        (layers in the window + 1, token) float64. Row k is row 0 of `rollout` through the window's first k blocks; row 0 is the
        final token itself.
    """
    maps = shaped_maps(maps)
    first, last = checked_window(window, len(maps))
    step = _step(maps, form, sinks, discard)
    rows = np.zeros((last - first + 1, maps.shape[-1]))
    rows[:, -1] = 1.0
    for layer in range(last - 1, first - 1, -1):
        # a model that stops below this block skips it
        rows[layer - first + 1 :] = step(rows[layer - first + 1 :], layer)
    return _without(rows, sinks) if form == "dropped" else rows


def rollout_packed(packed: NDArray[np.uint8], *, window: Window | None = None, form: Form = "raw", sinks: Sequence[int] = (0,)) -> Floats:
    """Rollout of one example from packed maps; decodes one layer at a time.

    Parameters
    ----------
    packed
        (layer, query, key) uint8, cut to the prompt's own tokens: round(255 * sqrt(weight / row maximum)).
    window, form, sinks
        As of `rollout`.

    Returns
    -------
    numpy.ndarray
        (layers in the window + 1, token) float64, as of `rollout`.

    Raises
    ------
    InvalidInputError
        As `rollout`, or if a map is empty.
    """
    first, last = checked_window(window, len(packed))
    _check_sinks(form, sinks, packed.shape[-1])
    if not packed.any(-1).all():
        raise InvalidInputError("expected a packed map, found an empty row: this example has no map")

    def step(above: Floats, layer: int) -> Floats:
        weights = np.square(packed[layer], dtype=np.float64)
        if form == "conditional":
            weights[:, list(sinks)] = 0
        return _mixed(above, weights)

    return _from_the_top(step, first, last, packed.shape[-1], form, sinks)


def gradient_rollout_packed(packed: NDArray[np.uint8], scale: NDArray[np.floating], *, window: Window | None = None) -> Floats:
    """Gradient rollout of one example (Chefer et al. 2021) from packed maps; decodes one block at a time.

    Parameters
    ----------
    packed
        (layer, query, key) uint8, cut to the prompt's own tokens: round(255 * sqrt(value / row maximum)) of the weighted maps.
    scale
        (layer, query) row maxima.
    window
        As of `rollout`.

    Returns
    -------
    numpy.ndarray
        (layers in the window + 1, token) float64, as of `rollout`; rows sum to 1 plus the relevance of all tokens.

    Raises
    ------
    InvalidInputError
        If the window is empty or outside.
    """
    first, last = checked_window(window, len(packed))
    out = np.zeros((last - first + 1, packed.shape[-1]))
    out[-1, -1] = 1.0
    for layer in range(last - 1, first - 1, -1):
        above = out[layer - first + 1]
        out[layer - first] = above + (above * scale[layer]) @ np.square(packed[layer] / 255)
    return out


def _from_the_top(step: Step, first: int, last: int, tokens: int, form: Form, sinks: Sequence[int]) -> Floats:
    out = np.zeros((last - first + 1, tokens))
    out[-1, -1] = 1.0
    for layer in range(last - 1, first - 1, -1):
        out[layer - first] = step(out[layer - first + 1], layer)
    return _without(out, sinks) if form == "dropped" else out


def _step(maps: Floats, form: Form, sinks: Sequence[int], discard: float) -> Step:
    _check_sinks(form, sinks, maps.shape[-1])
    if not 0 <= discard < 1:
        raise InvalidInputError(f"expected a discard ratio of at least 0 and below 1, found {discard:g}")

    def plain(above: Floats, layer: int) -> Floats:
        check_layer(maps, layer)
        return np.asarray(0.5 * (above @ maps[layer] + above))

    def discarding(above: Floats, layer: int) -> Floats:
        check_layer(maps, layer)
        weights = discard_weakest(maps[layer], discard)
        # A + I with the discarded weights missing: its rows are normalised, never its columns
        shares = above / (1 + weights.sum(-1))
        return np.asarray(shares @ weights + shares)

    def conditional(above: Floats, layer: int) -> Floats:
        check_layer(maps, layer)
        weights = discard_weakest(maps[layer], discard) if discard else maps[layer].copy()
        weights[:, list(sinks)] = 0
        return _mixed(above, weights)

    return conditional if form == "conditional" else discarding if discard else plain


def _mixed(above: Floats, weights: Floats) -> Floats:
    """above @ (rownorm(weights) + I) / 2; a token without attention keeps its rollout."""
    totals = weights.sum(-1)
    empty = totals == 0
    if not empty.any():
        return np.asarray(0.5 * ((above / totals) @ weights + above))
    moved = np.where(empty, 0, above / np.where(empty, 1, totals))
    return np.asarray(0.5 * (moved @ weights + above + np.where(empty, above, 0)))


def _without(rows: Floats, sinks: Sequence[int]) -> Floats:
    rows = rows.copy()
    rows[:, list(sinks)] = 0
    return np.asarray(rows / rows.sum(-1, keepdims=True))


def _check_sinks(form: Form, sinks: Sequence[int], tokens: int) -> None:
    if form not in FORMS:
        raise InvalidInputError(f"expected a form of {', '.join(FORMS)}, found {form!r}")
    outside = [k for k in sinks if not 0 <= k < tokens - 1]
    if form != "raw" and outside:
        raise InvalidInputError(f"expected sinks among tokens 0..{tokens - 2} (the final token is never a sink), found {outside}")
