"""Network of attention flow through decoder and vision tower, node by node."""

from __future__ import annotations

import networkx
import numpy as np

from stratascope.analysis.flow import UNIT

HALF = 2**49


def network(maps: np.ndarray, tower: np.ndarray, parents: np.ndarray) -> networkx.DiGraph:
    """Abnar & Zuidema's network over decoder and tower in whole numbers, with nodes ("decoder", level, token) and ("tower", level, view,
    token)."""
    graph, (blocks, views, tokens, _) = networkx.DiGraph(), tower.shape
    for layer, upper, lower in zip(*np.nonzero(maps + np.eye(maps.shape[1])), strict=True):
        capacity = int(np.rint(maps[layer, upper, lower] * HALF)) + HALF * (upper == lower)
        graph.add_edge(("decoder", layer + 1, upper), ("decoder", layer, lower), capacity=int(capacity))
    for view in range(views):
        for token in range(tokens):
            if parents[view, token] >= 0:
                share = int(np.rint(UNIT / (parents == parents[view, token]).sum()))
                graph.add_edge(("decoder", 0, parents[view, token]), ("tower", blocks, view, token), capacity=share)
        for block in range(blocks):
            own = tower[block, view]
            for upper, lower in zip(*np.nonzero(own + np.diag(own.any(-1))), strict=True):
                capacity = int(np.rint(own[upper, lower] * HALF)) + HALF * (upper == lower)
                graph.add_edge(("tower", block + 1, view, upper), ("tower", block, view, lower), capacity=int(capacity))
    return graph
