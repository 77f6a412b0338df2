"""Attention flow (Abnar & Zuidema 2020): the most that can flow from the final token at the top to an input at the bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import Window, checked_maps, checked_window
from stratascope.analysis.flow_network import UNIT, flow_capacities, group_bounds, token_bounds
from stratascope.errors import InvalidInputError, MissingExtraError
from stratascope.stats.rank_correlation import rank_correlation

if TYPE_CHECKING:
    from stratascope.analysis.max_flow import Network, Workspace

CUTS = ("unproven", "source", "target", "other")
"""What limits a flow: `source`, what leaves the final token's own column; `target`, what enters the target's column; `other`, a cut
that is neither; `unproven` where the flow was not computed."""
SATURATED = 0.9
"""Share of tokens limited at the source, or of rank correlation with position, from which on flow says little of the tokens."""


@dataclass(frozen=True)
class Flow:
    """Flow from the final token to every input token, in shares of what the final token sends."""

    value: NDArray[np.float64]
    """(token,) the maximum flow; the bound where it was not computed."""
    bound: NDArray[np.float64]
    """(token,) upper bound in closed form: the smallest column cut."""
    exact: NDArray[np.bool_]
    """(token,) whether the value is the maximum flow; computed flows always are, to the last unit of 2**-50."""
    cut: NDArray[Any]
    """(token,) which of `CUTS` limits it."""

    @property
    def certified(self) -> NDArray[np.bool_]:
        """(token,) where a flow was found that equals the bound: anyone can check it by adding up one column cut."""
        return np.asarray(self.exact & (self.value == self.bound))

    @property
    def position_correlation(self) -> float:
        """Spearman's correlation of value and position, over all tokens but the final one; 0 for fewer than three or equal values."""
        values = self.value[:-1]
        return rank_correlation(values, np.arange(len(values), dtype=np.float64)) if len(values) >= 3 else 0.0

    @property
    def warning(self) -> str | None:
        """Why the values say little of the tokens, or None."""
        at_source = float((self.cut[:-1] == "source").mean()) if len(self.cut) > 1 else 0.0
        reasons = []
        if abs(self.position_correlation) > SATURATED:
            reasons.append(f"it follows the token's position (rank correlation {self.position_correlation:.2f})")
        if at_source > SATURATED:
            reasons.append(f"{at_source:.0%} of the tokens are limited by what leaves the final token's own column, not by their own")
        return f"flow says little of these tokens: {' and '.join(reasons)}; use a window of fewer layers" if reasons else None


def flow(maps: NDArray[Any], *, window: Window | None = None, tokens: Sequence[int] | None = None) -> Flow:
    """Maximum flow from the final token to every input token (Abnar & Zuidema 2020, section 3), capacities (A + I) / 2.

    Parameters
    ----------
    maps
        (layer, query, key), fused over heads, causal; rows sum to 1.
    window
        (first, last) half-open range of layers to flow through; all by default. The inputs are then those of its first layer.
    tokens
        Which to compute exactly; all by default. The others get the bound, and `exact` False. With none, nothing is compiled and all
        takes one pass over the maps.

    Raises
    ------
    InvalidInputError
        If the maps are not causal maps whose rows sum to 1, the window is empty or outside, or a token is.
    MissingExtraError
        If numba is not installed and a flow is to be computed.
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
        solver = _Solver(capacities)
        for token in chosen:
            found[token] = solver.into(np.arange(count) == token, int(bound[token]))
        exact[chosen] = True
    return Flow(found / UNIT, bound / UNIT, exact, _cuts(found, source, target, exact))


def span_flow(maps: NDArray[Any], spans: Mapping[str, Sequence[int]], *, window: Window | None = None) -> pd.DataFrame:
    """Maximum flow from the final token into spans of input tokens, each span as one target: no sum of its tokens' flows.

    Parameters
    ----------
    maps, window
        As of `flow`.
    spans
        Name -> token numbers, such as range(15, 51).

    Returns
    -------
    pandas.DataFrame
        span, tokens (how many), value, bound, cut, saturated: whether all that the final token sends can reach the span, so that
        the value says nothing of it.

    Raises
    ------
    InvalidInputError
        As `flow`, or for a span without tokens.
    """
    capacities = _capacities(maps, window)
    sent = int(capacities[-1, -1].sum())
    solver = _Solver(capacities) if spans else None
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
    """The cut that limits a flow: flow and cut are equal as whole numbers, which proves both."""

    flow: int
    capacity: int
    """Of the edges cut, in units of 2**-50."""
    below: NDArray[np.bool_]
    """(level, token) the target's side: nodes from which the target can still be reached."""
    by_layer: NDArray[np.float64]
    """(layer,) capacity cut in each layer, in shares of what the final token sends."""


def minimum_cut(maps: NDArray[Any], span: Sequence[int] | int, *, window: Window | None = None) -> MinimumCut:
    """Where the flow into a token, or a span of token numbers, is limited (Ford & Fulkerson 1956).

    Parameters
    ----------
    maps, window
        As of `flow`: (layer, query, key), fused over heads.
    span
        Token numbers, or one.

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
    solver = _Solver(capacities)
    found = solver.into(targets, int(capacities[-1, -1].sum()), keep=True)
    below = solver.side_of(targets)
    crossing = capacities * (~below[1:, :, None] & below[:-1, None, :])
    crossing[-1, :-1] = 0
    by_layer = crossing.sum((1, 2))
    return MinimumCut(found, int(by_layer.sum()), below, by_layer / UNIT)


class _Solver:
    """One network, solved for one target after another."""

    def __init__(self, capacities: NDArray[np.int64]) -> None:
        try:
            from stratascope.analysis import max_flow
        except ImportError as error:
            raise MissingExtraError("expected the package numba for exact flow, found none; run `pip install numba`") from error
        self._code = max_flow
        self._network: Network
        self._workspace: Workspace
        self._network, self._workspace = max_flow.empty_network(capacities)

    def into(self, targets: NDArray[np.bool_], bound: int, *, keep: bool = False) -> int:
        """Maximum flow into any of `targets`, known not to exceed `bound`; the network is empty afterwards unless kept."""
        found = int(self._code.maximum_flow(self._network, self._workspace, targets, int(targets.argmax()), bound))
        assert found <= bound
        if not keep:
            self._code.take_back(self._network)
        return found

    def side_of(self, targets: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(level, token) what can still reach the targets beside a kept maximum flow."""
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
