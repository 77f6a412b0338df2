"""Attention flow from the final token through decoder and vision tower to the image's patches.

The network of `flow` goes on below the decoder's inputs: an image token has an edge to each patch that it is made of, of capacity 1 over
their number, and the blocks of the tower have capacities (A + I) / 2 as those of the decoder. A *target cut* separates the nodes of one
patch on the lowest levels of the tower; the *source cut* is the flow into the image tokens of its view, through the decoder alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import checked_maps
from stratascope.analysis.flow import CUTS, ENOUGH, UNIT, Counts, FlowSolver, flow_capacities, group_bounds, smallest_cut
from stratascope.analysis.tower_rollout import tower_maps
from stratascope.errors import InvalidInputError
from stratascope.store import ActivationStore


@dataclass(frozen=True)
class TowerFlow:
    """Flow from the final token to every token that enters the vision tower, as shares of the outflow of the final token."""

    value: NDArray[np.float64]
    """(view, token) maximum flow, exact in units of 2**-50; NaN beyond the tokens of a view."""
    bound: NDArray[np.float64]
    """(view, token) upper bound: the smaller of source cut and target cut; NaN beyond the tokens of a view."""
    cut: NDArray[np.int8]
    """(view, token) kind of the minimum cut, an index into `flow.CUTS`; -1 beyond the tokens of a view."""


def tower_flow(maps: NDArray[Any], tower: NDArray[Any], parents: NDArray[np.integer], *, skip: int = 0) -> TowerFlow:
    """Maximum flow from the final token to every token that enters the vision tower.

    Parameters
    ----------
    maps
        (layer, query, key) of the decoder, fused over heads, causal; rows sum to 1.
    tower
        (block, view, query, key) of the tower, fused over heads; rows sum to 1, or to 0 beyond the tokens of a view.
    parents
        (view, token) prompt token that each token of the tower is part of; -1: none.
    skip
        Tokens at the start of each view whose flow is not computed, such as class tokens; it is NaN.

    Raises
    ------
    InvalidInputError
        If maps are not causal with rows that sum to 1, or the shapes do not fit.
    MissingExtraError
        If numba is not installed.
    """
    maps, tower, parents = checked_maps(maps, causal=True), np.asarray(tower, np.float64), np.asarray(parents)
    if tower.ndim != 4 or tower.shape[1:] != (*parents.shape, parents.shape[1]):
        raise InvalidInputError(f"expected maps of the tower by block, view, token and token as {parents.shape}, found {tower.shape}")
    own = tower[0].any(-1)  # (view, token)
    decoder, below = flow_capacities(maps), _tower_capacities(tower)
    shares = _shares(parents)
    targets = np.stack([_target_cuts(below[:, view], shares[view]) for view in range(len(parents))])
    source, solver = np.zeros(len(parents), np.int64), FlowSolver(decoder)
    for view in np.flatnonzero((parents >= 0).any(1)):
        into = np.isin(np.arange(maps.shape[-1]), parents[view])
        source[view] = solver.into(into, min(group_bounds(decoder, into)))
    bound = np.minimum(targets, source[:, None])
    solver = FlowSolver(*_composed(decoder, below, parents, shares, own))
    value, cut = np.full(own.shape, np.nan), np.full(own.shape, -1, np.int8)
    number = np.cumsum(own).reshape(own.shape) - 1
    for view, token in np.argwhere(own & (np.arange(own.shape[1]) >= skip)):
        found = solver.into(np.arange(solver.columns) == number[view, token], int(bound[view, token]))
        value[view, token] = found / UNIT
        kind = "target" if found == targets[view, token] else "source" if found == source[view] else "other"
        cut[view, token] = CUTS.index(kind)
    return TowerFlow(value, np.where(cut >= 0, bound / UNIT, np.nan), cut)


def stored_tower_flow(store: ActivationStore, example: int) -> TowerFlow:
    """Flow of an example of a store onto its patches, (view, patch)."""
    first, parents = store.layout.vision_class_tokens, store.read("vision_parent", examples=example)
    found = tower_flow(store.maps(example), tower_maps(store, example), parents, skip=first)
    return TowerFlow(found.value[:, first:], found.bound[:, first:], found.cut[:, first:])


def _tower_capacities(tower: NDArray[np.float64]) -> Counts:
    """(block, view, upper, lower) int64 capacities of (A + I) / 2; none beyond the tokens of a view."""
    capacities = np.rint(tower * (UNIT // 2)).astype(np.int64)
    own = np.arange(tower.shape[-1])
    capacities[..., own, own] += np.where(tower.any(-1), UNIT // 2, 0)
    return capacities


def _shares(parents: NDArray[np.integer]) -> Counts:
    """(view, token) capacity of the edge from a token's parent."""
    counts = np.bincount(parents[parents >= 0], minlength=int(parents.max(initial=0)) + 1)
    return np.where(parents >= 0, np.rint(UNIT / np.maximum(counts, 1)).astype(np.int64)[parents.clip(0)], 0)


def _target_cuts(capacities: Counts, shares: Counts) -> Counts:
    """(token,) smallest target cut of a view, from (block, upper, lower) capacities and (token,) those of the edges from parents."""
    along = np.diagonal(capacities, axis1=1, axis2=2)
    into = np.stack([np.minimum(layer.sum(0), ENOUGH) for layer in capacities])
    return smallest_cut(np.vstack([np.minimum(into - along, ENOUGH), shares]), np.vstack([along, np.zeros_like(shares)]))


def _composed(
    decoder: Counts, below: Counts, parents: NDArray[np.integer], shares: Counts, own: NDArray[np.bool_]
) -> tuple[Counts, Sequence[bool]]:
    """(layer, upper, lower) capacities of tower, projector and decoder, and which layers are causal.

    The tokens of all views come first in the levels of the tower, those of the prompt last in the levels of the decoder.
    """
    blocks, views = below.shape[:2]
    layers, prompt = decoder.shape[:2]
    columns = max(prompt, int(own.sum()))
    capacities, shift = np.zeros((blocks + 1 + layers, columns, columns), np.int64), columns - prompt
    capacities[blocks + 1 :, shift:, shift:] = decoder
    start = 0
    for view in range(views):
        tokens = int(own[view].sum())
        place = slice(start, start + tokens)
        capacities[:blocks, place, place] = below[:, view, :tokens, :tokens]
        fed = np.flatnonzero(parents[view, :tokens] >= 0)
        capacities[blocks, shift + parents[view, fed], start + fed] = shares[view, fed]
        start += tokens
    return capacities, [*[False] * (blocks + 1), *[True] * layers]
