"""Attention flow (Abnar & Zuidema 2020): maximum flow from the final token at the top to an input token at the bottom.

The network has integer capacities. Node (l, i) is token i at level l: level 0 holds the inputs, level L the output, whose only node is
the final token t, the source. An edge leads from (l + 1, i) to (l, j) for every key j of query i in block l. A *column cut* separates the
nodes of one token on k levels: the source column {(L, t), ..., (L - k, t)}, or the target column {(0, j), ..., (k, j)}. The smallest
column cut is an upper bound of the flow; on deep decoders it nearly always equals the flow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import Window, checked_maps, checked_window
from stratascope.errors import InvalidInputError, MissingExtraError
from stratascope.stats.rank_correlation import rank_correlation

if TYPE_CHECKING:
    from stratascope.analysis.max_flow import Network, Workspace

Counts = NDArray[np.int64]

UNIT = 2**50
"""Integer for a capacity of 1: rounding stays below 1e-12 over a thousand tokens, sums fit 64 bits."""
ENOUGH = 2**52
"""Above the outflow of the source; terms of a cut are clipped here, so that sums over layers do not overflow."""
CUTS = ("unproven", "source", "target", "other")
"""Kind of the minimum cut: `source`, around the column of the final token; `target`, around the column of the target; `other`; `unproven`
where the flow was not computed."""
SATURATED = 0.9
"""Share of tokens with a cut at the source, or rank correlation with position, above which flow is uninformative."""


@dataclass(frozen=True)
class Flow:
    """Flow from the final token to every input token, as shares of the outflow of the final token."""

    value: NDArray[np.float64]
    """(token,) maximum flow; the bound where it was not computed."""
    bound: NDArray[np.float64]
    """(token,) upper bound in closed form: smallest column cut."""
    exact: NDArray[np.bool_]
    """(token,) whether the value is the maximum flow, exact in units of 2**-50."""
    cut: NDArray[Any]
    """(token,) kind of the minimum cut, one of `CUTS`."""

    @property
    def certified(self) -> NDArray[np.bool_]:
        """(token,) whether the flow equals the bound: a sum over one column cut proves it."""
        return np.asarray(self.exact & (self.value == self.bound))

    @property
    def position_correlation(self) -> float:
        """Spearman correlation of flow and position, without the final token; 0 for fewer than three tokens or constant flow."""
        values = self.value[:-1]
        return rank_correlation(values, np.arange(len(values), dtype=np.float64)) if len(values) >= 3 else 0.0

    @property
    def warning(self) -> str | None:
        """Why the flow is uninformative, or None."""
        at_source = float((self.cut[:-1] == "source").mean()) if len(self.cut) > 1 else 0.0
        reasons = []
        if abs(self.position_correlation) > SATURATED:
            reasons.append(f"it follows token position (rank correlation {self.position_correlation:.2f})")
        if at_source > SATURATED:
            reasons.append(f"the minimum cut of {at_source:.0%} of the tokens is at the final token, not at the token")
        return f"flow is uninformative for these tokens: {' and '.join(reasons)}; use a window of fewer blocks" if reasons else None


def flow(maps: NDArray[Any], *, window: Window | None = None, tokens: Sequence[int] | None = None) -> Flow:
    """Maximum flow from the final token to every input token (Abnar & Zuidema 2020, section 3), capacities (A + I) / 2.

    Parameters
    ----------
    maps
        (layer, query, key), fused over heads, causal; rows sum to 1.
    window
        (first, last) half-open range of blocks; all by default. The inputs are those of its first block.
    tokens
        Tokens with exact flow; all by default. The others get the bound, and `exact` False. With none, one pass over the maps is enough
        and numba is not needed.

    Raises
    ------
    InvalidInputError
        If maps are not causal with rows that sum to 1, the window is empty or outside, or a token is outside.
    MissingExtraError
        If exact flow is asked for without numba.
    """
    capacities = _capacities(maps, window)
    count = capacities.shape[-1]
    chosen = list(range(count) if tokens is None else tokens)
    outside = [k for k in chosen if not 0 <= k < count]
    if outside:
        raise InvalidInputError(f"expected tokens within 0..{count - 1}, found {outside}")
    source, target = token_bounds(capacities)
    bound = np.minimum(source, target)
    found, exact = bound.copy(), np.zeros(count, np.bool_)
    if chosen:
        solver = FlowSolver(capacities)
        for token in chosen:
            found[token] = solver.into(np.arange(count) == token, int(bound[token]))
        exact[chosen] = True
    return Flow(found / UNIT, bound / UNIT, exact, _cuts(found, source, target, exact))


def span_flow(maps: NDArray[Any], spans: Mapping[str, Sequence[int]], *, window: Window | None = None) -> pd.DataFrame:
    """Maximum flow from the final token into spans of input tokens, each span as one target.

    The flow into a span is not the sum of the flows into its tokens.

    Parameters
    ----------
    maps, window
        As of `flow`.
    spans
        Name -> token numbers, such as range(15, 51).

    Returns
    -------
    pandas.DataFrame
        span, tokens (number), value, bound, cut, saturated (whether the whole outflow of the final token reaches the span, so that the
        value is uninformative).

    Raises
    ------
    InvalidInputError
        As `flow`, or for an empty span.
    """
    capacities = _capacities(maps, window)
    sent = int(capacities[-1, -1].sum())
    solver = FlowSolver(capacities) if spans else None
    rows = []
    for name, span in spans.items():
        assert solver is not None
        targets = _members(name, span, capacities.shape[-1])
        source, target = group_bounds(capacities, targets)
        found = solver.into(targets, min(source, target))
        cut = _cuts(*(np.array([n]) for n in (found, source, target, True)))[0]
        rows.append((name, int(targets.sum()), found / UNIT, min(source, target) / UNIT, str(cut), bool(found >= 0.999 * sent)))
    return pd.DataFrame(rows, columns=["span", "tokens", "value", "bound", "cut", "saturated"])


@dataclass(frozen=True)
class MinimumCut:
    """Minimum cut of a flow; flow and capacity are equal integers, which proves both."""

    flow: int
    capacity: int
    """Capacity of the cut edges, in units of 2**-50."""
    below: NDArray[np.bool_]
    """(level, token) target side: nodes from which the target is reachable in the residual network."""
    by_layer: NDArray[np.float64]
    """(layer,) cut capacity by layer, as shares of the outflow of the final token."""


def minimum_cut(maps: NDArray[Any], span: Sequence[int] | int, *, window: Window | None = None) -> MinimumCut:
    """Minimum cut of the flow into a token or span (Ford & Fulkerson 1956).

    Parameters
    ----------
    maps, window
        As of `flow`: (layer, query, key), fused over heads.
    span
        Token number or numbers.

    Raises
    ------
    InvalidInputError
        As `span_flow`.
    MissingExtraError
        If numba is not installed.
    """
    capacities = _capacities(maps, window)
    count = capacities.shape[-1]
    targets = _members("asked for", [span] if isinstance(span, int) else span, count)
    solver = FlowSolver(capacities)
    found = solver.into(targets, int(capacities[-1, -1].sum()), keep=True)
    below = solver.side_of(targets)
    crossing = capacities * (~below[1:, :, None] & below[:-1, None, :])
    crossing[-1, :-1] = 0
    by_layer = crossing.sum((1, 2))
    return MinimumCut(found, int(by_layer.sum()), below, by_layer / UNIT)


class FlowSolver:
    """Maximum flow solver: one network, many targets.

    Parameters
    ----------
    capacities
        (layer, upper, lower) int64.
    causal
        Whether an upper node of a layer has no edges to later columns; None: in all layers.

    Raises
    ------
    MissingExtraError
        If numba is not installed.
    """

    def __init__(self, capacities: NDArray[np.int64], causal: Sequence[bool] | None = None) -> None:
        try:
            from stratascope.analysis import max_flow
        except ImportError as error:
            raise MissingExtraError("expected the package numba for exact flow, found it missing; run `pip install numba`") from error
        self._code = max_flow
        self._network: Network
        self._workspace: Workspace
        self._network, self._workspace = max_flow.empty_network(capacities, causal)
        self.columns, self._causal = capacities.shape[-1], bool(self._network.causal.all())

    def into(self, targets: NDArray[np.bool_], bound: int, *, keep: bool = False) -> int:
        """Maximum flow into `targets`, at most `bound`; the network is empty afterwards unless `keep`."""
        first = int(targets.argmax()) if self._causal else 0
        found = int(self._code.maximum_flow(self._network, self._workspace, targets, first, bound))
        assert found <= bound
        if not keep:
            self._code.take_back(self._network)
        return found

    def side_of(self, targets: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(level, token) nodes that reach the targets in the residual network of a kept maximum flow."""
        first = int(targets.argmax())
        reached = self._code.distances(self._network, self._workspace, targets, first)
        assert not reached
        side = self._workspace.distance != self._code.NONE
        side[:, :first] = False
        return np.asarray(side)


def _capacities(maps: NDArray[Any], window: Window | None) -> NDArray[np.int64]:
    maps = checked_maps(maps, causal=True)
    first, last = checked_window(window, len(maps))
    return flow_capacities(maps[first:last])


def _members(name: str, span: Sequence[int], count: int) -> NDArray[np.bool_]:
    if not len(span) or min(span) < 0 or max(span) >= count:
        raise InvalidInputError(f"span {name!r}: expected tokens within 0..{count - 1}, found {list(span)}")
    return np.isin(np.arange(count), list(span))


def _cuts(found: NDArray[Any], source: NDArray[Any], target: NDArray[Any], exact: NDArray[Any]) -> NDArray[Any]:
    limits = np.where(found == target, CUTS.index("target"), np.where(found == source, CUTS.index("source"), CUTS.index("other")))
    return np.array(CUTS)[np.where(exact, limits, CUTS.index("unproven"))]


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
    source = smallest_cut(aside[::-1], along[::-1])

    columns = np.stack([np.minimum(layer.sum(0), ENOUGH) for layer in capacities])
    target = smallest_cut(np.minimum(columns - own, ENOUGH), own)
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
    source = smallest_cut(aside[::-1, None], along[::-1, None])

    into = capacities[:, :, targets]
    inside = np.minimum(into[:, targets].sum((1, 2)), ENOUGH)
    outside = np.minimum(into[:, ~targets].sum((1, 2)), ENOUGH)
    target = smallest_cut(outside[:, None], inside[:, None])
    return int(source[0]), int(target[0])


def smallest_cut(aside: Counts, along: Counts) -> Counts:
    """Minimum over k of: flow out of the column in its first k + 1 steps, plus flow along it in step k."""
    return np.asarray((np.cumsum(aside, axis=0) + along).min(0))
