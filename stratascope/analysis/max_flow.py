"""Exact maximum flow through a layered attention network: Dinic's algorithm (1970) on dense integer matrices, compiled by numba.

The capacity matrices are the edges; no edge list is built. Three shortcuts: on an empty network the distance of a node from the target is
at least its level, so the first phase needs no search; where all layers are causal, every column before the target is excluded; flow
equal to a known upper bound needs no last search to prove it maximal.

A node is a level and a column. An edge with flow is listed at both of its ends, so that flow can be pushed back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile a function with numba; cached on disk where a cache folder is writable."""
    try:
        return cast("Function", numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:
        return cast("Function", numba.njit(nogil=True, error_model="numpy")(function))


NONE = -1


class Network(NamedTuple):
    """Capacities, residual capacities, and edges with flow."""

    capacity: NDArray[np.int64]
    """(layer, upper, lower)"""
    left: NDArray[np.int64]
    """(layer, upper, lower) residual capacity: capacity minus flow."""
    used_upper: NDArray[np.int32]
    used_lower: NDArray[np.int32]
    """Columns of the ends of each edge that has or had flow."""
    listed: NDArray[np.bool_]
    """(layer, upper, lower) whether an edge is in the list of used edges."""
    same_upper: NDArray[np.int32]
    same_lower: NDArray[np.int32]
    """Index of the next used edge with the same upper or lower end."""
    from_upper: NDArray[np.int32]
    from_lower: NDArray[np.int32]
    """(level, column) index of the first used edge downwards from the node, or into it from above."""
    used_count: NDArray[np.int64]
    """(1,) number of used edges."""
    causal: NDArray[np.bool_]
    """(layer,) whether no edge leads to a later column; the first target may be later than column 0 only if this holds in all layers."""


class Workspace(NamedTuple):
    """Temporary arrays of a search."""

    distance: NDArray[np.int32]
    """(level, column) edges to the target; NONE if the target is unreachable."""
    queue_level: NDArray[np.int32]
    queue_column: NDArray[np.int32]
    unseen: NDArray[np.int32]
    """(level, index) columns that the search has not reached, `unseen_count` of them."""
    unseen_count: NDArray[np.int32]
    next_lower: NDArray[np.int32]
    """(level, column) the next column to try downwards."""
    next_back: NDArray[np.int32]
    """(level, column) the next used edge to push back."""
    path_level: NDArray[np.int32]
    path_column: NDArray[np.int32]
    """Nodes from the source to the current node."""
    wanted: NDArray[np.int64]
    sent: NDArray[np.int64]
    """For each node of the path: flow to send, and flow sent."""


def empty_network(capacities: NDArray[np.int64], causal: Sequence[bool] | None = None) -> tuple[Network, Workspace]:
    """A network without flow and its workspace; capacities are (layer, upper, lower), all layers causal by default."""
    layers, tokens, _ = capacities.shape
    causal = [True] * layers if causal is None else causal
    shape, nodes = (layers + 1, tokens), (layers + 1) * tokens
    edges = sum(tokens * (tokens + 1) // 2 if each else tokens**2 for each in causal)
    network = Network(
        capacity=np.ascontiguousarray(capacities),
        left=np.array(capacities, order="C"),
        used_upper=np.empty(edges, np.int32),
        used_lower=np.empty(edges, np.int32),
        listed=np.zeros(capacities.shape, np.bool_),
        same_upper=np.empty(edges, np.int32),
        same_lower=np.empty(edges, np.int32),
        from_upper=np.full(shape, NONE, np.int32),
        from_lower=np.full(shape, NONE, np.int32),
        used_count=np.zeros(1, np.int64),
        causal=np.array(causal, np.bool_),
    )
    workspace = Workspace(
        distance=np.full(shape, NONE, np.int32),
        queue_level=np.empty(nodes + 1, np.int32),
        queue_column=np.empty(nodes + 1, np.int32),
        unseen=np.empty(shape, np.int32),
        unseen_count=np.empty(layers + 1, np.int32),
        next_lower=np.empty(shape, np.int32),
        next_back=np.empty(shape, np.int32),
        path_level=np.empty(nodes + 1, np.int32),
        path_column=np.empty(nodes + 1, np.int32),
        wanted=np.empty(nodes + 1, np.int64),
        sent=np.empty(nodes + 1, np.int64),
    )
    return network, workspace


@compiled
def distances(network: Network, workspace: Workspace, targets: NDArray[np.bool_], first: int) -> bool:
    """Breadth-first search upwards from the targets along edges with something left; whether it reaches the source.

    Where it does not, `workspace.distance` is NONE for exactly the nodes from which there is no way to a target.
    """
    layers, tokens = network.capacity.shape[0], network.capacity.shape[1]
    distance, unseen, unseen_count = workspace.distance, workspace.unseen, workspace.unseen_count
    queue_level, queue_column = workspace.queue_level, workspace.queue_column
    head, tail = 0, 0
    for level in range(layers + 1):
        waiting = 0
        for column in range(first, tokens):
            distance[level, column] = NONE
            if level == 0 and targets[column]:
                distance[level, column] = 0
                queue_level[tail], queue_column[tail] = level, column
                tail += 1
            else:
                unseen[level, waiting] = column
                waiting += 1
        unseen_count[level] = waiting
    while head < tail:
        level, column = queue_level[head], queue_column[head]
        head += 1
        further = distance[level, column] + 1
        if 0 <= distance[layers, tokens - 1] < further:
            break
        if level < layers:
            still, free = 0, not network.causal[level]
            for place in range(unseen_count[level + 1]):
                upper = unseen[level + 1, place]
                if distance[level + 1, upper] != NONE:
                    continue
                if (free or upper >= column) and network.left[level, upper, column] > 0:
                    distance[level + 1, upper] = further
                    queue_level[tail], queue_column[tail] = level + 1, upper
                    tail += 1
                else:
                    unseen[level + 1, still] = upper
                    still += 1
            unseen_count[level + 1] = still
        # flow that leaves this node downwards can be pushed back: a way from its lower end up to this node
        edge = network.from_upper[level, column]
        while edge != NONE:
            lower = network.used_lower[edge]
            if distance[level - 1, lower] == NONE and network.left[level - 1, column, lower] < network.capacity[level - 1, column, lower]:
                distance[level - 1, lower] = further
                queue_level[tail], queue_column[tail] = level - 1, lower
                tail += 1
            edge = network.same_upper[edge]
    return bool(distance[layers, tokens - 1] != NONE)


@compiled
def _block(network: Network, workspace: Workspace, targets: NDArray[np.bool_], first: int, most: int) -> int:
    """Push what goes along edges that lead nearer to the target, up to `most`.

    A depth-first search in which a node passes on all it can before it answers the node above it.
    """
    # one function, on plain arrays: handing the tuples on for every edge would cost more than the search
    capacity, left = network.capacity, network.left
    distance, next_lower, next_back = workspace.distance, workspace.next_lower, workspace.next_back
    used_upper, same_lower = network.used_upper, network.same_lower
    path_level, path_column, wanted, sent = workspace.path_level, workspace.path_column, workspace.wanted, workspace.sent
    layers, tokens = capacity.shape[0], capacity.shape[1]
    for level in range(layers + 1):
        for column in range(first, tokens):
            # the token's own column first: the residual stream is its widest way down
            next_lower[level, column] = column if level == 0 or network.causal[level - 1] else tokens - 1
            next_back[level, column] = network.from_lower[level, column]
    depth = 0
    path_level[0], path_column[0] = layers, tokens - 1
    wanted[0], sent[0] = most, 0
    # a step back leaves a node without a way, an edge full, or the node above content, which then steps back itself: so many at most
    steps = ((layers + 1) * tokens + 2 * capacity.size) * (distance[layers, tokens - 1] + 1)
    while True:
        level, column = path_level[depth], path_column[depth]
        if level == 0 and targets[column]:
            sent[depth] = wanted[depth]
        if sent[depth] < wanted[depth]:
            nearer = distance[level, column] - 1
            ahead, beside, room = NONE, NONE, np.int64(0)
            if level > 0 and nearer >= 0:
                lower = next_lower[level, column]
                while lower >= first and (distance[level - 1, lower] != nearer or left[level - 1, column, lower] == 0):
                    lower -= 1
                next_lower[level, column] = lower
                if lower >= first:
                    ahead, beside, room = level - 1, lower, left[level - 1, column, lower]
            if ahead == NONE and nearer >= 0:
                edge = next_back[level, column]
                while edge != NONE:
                    upper = used_upper[edge]
                    if distance[level + 1, upper] == nearer and left[level, upper, column] < capacity[level, upper, column]:
                        ahead, beside = level + 1, upper
                        room = capacity[level, upper, column] - left[level, upper, column]
                        break
                    edge = same_lower[edge]
                next_back[level, column] = edge
            if ahead != NONE:
                wanted[depth + 1], sent[depth + 1] = min(wanted[depth] - sent[depth], room), 0
                depth += 1
                path_level[depth], path_column[depth] = ahead, beside
                continue
            distance[level, column] = NONE
        if depth == 0:
            return sent[0]  # type: ignore[no-any-return]  # a cast would not compile
        steps -= 1
        assert steps > 0
        amount = sent[depth]
        depth -= 1
        if amount > 0:
            sent[depth] += amount
            if level > path_level[depth]:
                left[level - 1, column, path_column[depth]] += amount
            else:
                upper = path_column[depth]
                left[level, upper, column] -= amount
                if not network.listed[level, upper, column]:
                    _list(network, level, upper, column)


@compiled
def _list(network: Network, layer: int, upper: int, lower: int) -> None:
    """Note at both ends of an edge that it carries flow."""
    place = network.used_count[0]
    network.used_count[0] = place + 1
    network.listed[layer, upper, lower] = True
    network.used_upper[place], network.used_lower[place] = upper, lower
    network.same_upper[place] = network.from_upper[layer + 1, upper]
    network.from_upper[layer + 1, upper] = place
    network.same_lower[place] = network.from_lower[layer, lower]
    network.from_lower[layer, lower] = place


@compiled
def maximum_flow(network: Network, workspace: Workspace, targets: NDArray[np.bool_], first: int, bound: int) -> int:
    """Largest flow from the final token at the top to any of `targets` at the bottom.

    Parameters
    ----------
    network
        Without flow; it holds a maximum flow afterwards, until `take_back`.
    targets
        (token,) bool.
    first
        The earliest target.
    bound
        A number that the flow is known not to exceed.
    """
    layers, tokens = network.capacity.shape[0], network.capacity.shape[1]
    for level in range(layers + 1):
        for column in range(first, tokens):
            workspace.distance[level, column] = level if level > 0 or targets[column] else NONE
    total, length = _block(network, workspace, targets, first, bound), layers
    while total < bound and distances(network, workspace, targets, first):
        # Dinic's theorem: the shortest way grows with every phase. Without it this would not end
        assert workspace.distance[layers, tokens - 1] > length
        length = workspace.distance[layers, tokens - 1]
        total += _block(network, workspace, targets, first, bound - total)
    return total


@compiled
def take_back(network: Network) -> None:
    """Make the network empty again, at the cost of the edges in use alone."""
    levels, tokens = network.from_upper.shape
    for level in range(levels):
        for column in range(tokens):
            edge = network.from_upper[level, column]
            while edge != NONE:
                lower = network.used_lower[edge]
                network.left[level - 1, column, lower] = network.capacity[level - 1, column, lower]
                network.listed[level - 1, column, lower] = False
                edge = network.same_upper[edge]
            network.from_upper[level, column] = NONE
            network.from_lower[level, column] = NONE
    network.used_count[0] = 0
