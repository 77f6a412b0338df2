"""Flow through a vision tower against networkx over the nodes of decoder and tower, as whole numbers."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
from analysis_stores import random_maps
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stratascope.analysis.flow import CUTS, UNIT
from stratascope.analysis.tower_flow import tower_flow
from stratascope.errors import InvalidInputError
from tests.tower_network import network


def random_tower(blocks: int, views: int, tokens: int, seed: int, shape: float) -> np.ndarray:
    """(block, view, token, token) attention of every token to all tokens of its view."""
    return np.random.default_rng(seed).dirichlet(np.full(tokens, shape), (blocks, views, tokens))


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    layers=st.integers(1, 3),
    blocks=st.integers(1, 3),
    views=st.integers(1, 2),
    tokens=st.integers(1, 5),
    prompt=st.integers(2, 6),
    shape=st.sampled_from([0.05, 0.5, 3.0]),
    seed=st.integers(0, 10_000),
)
def test_flow_to_every_patch_is_that_of_networkx(
    layers: int, blocks: int, views: int, tokens: int, prompt: int, shape: float, seed: int
) -> None:
    maps, tower = random_maps(layers, prompt, seed, shape), random_tower(blocks, views, tokens, seed, shape)
    parents = np.random.default_rng(seed).integers(-1, prompt, (views, tokens))
    padding = ((0, 0), (0, 1), (0, 2), (0, 2))
    found = tower_flow(maps, np.pad(tower, padding), np.pad(parents, padding[1:3], constant_values=-1))
    graph = network(maps, tower, parents)
    for view, token in np.ndindex(views, tokens):
        start, end = ("decoder", layers, prompt - 1), ("tower", 0, view, token)
        expected = networkx.maximum_flow_value(graph, start, end) if end in graph else 0
        assert round(found.value[view, token] * UNIT) == expected <= round(found.bound[view, token] * UNIT)
        assert found.cut[view, token] in (CUTS.index("source"), CUTS.index("target"), CUTS.index("other"))
    assert np.isnan(found.value[views:]).all()
    assert np.isnan(found.value[:, tokens:]).all()
    assert (found.cut[:, tokens:] == -1).all()


def test_class_tokens_are_left_out_and_other_shapes_refused() -> None:
    maps, tower = random_maps(2, 5, 0), random_tower(2, 1, 4, 0, 0.5)
    parents = np.array([[-1, 1, 1, 2]])
    whole, part = tower_flow(maps, tower, parents), tower_flow(maps, tower, parents, skip=1)
    assert np.isnan(part.value[0, 0])
    np.testing.assert_array_equal(part.value[:, 1:], whole.value[:, 1:])
    with pytest.raises(InvalidInputError, match=r"expected maps of the tower by block, view, token and token as \(1, 3\)"):
        tower_flow(maps, tower, parents[:, :3])
