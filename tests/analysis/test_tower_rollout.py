"""Rollout through a vision tower against products of whole matrices, and pictures of patches against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
from analysis_stores import random_maps
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stratascope.analysis.rollout import rollout
from stratascope.analysis.tower_rollout import patch_picture, tower_rollout
from stratascope.errors import InvalidInputError
from stratascope.store import decode_maps, encode_maps


def tower(blocks: int, views: int, tokens: int, seed: int) -> np.ndarray:
    """(block, view, token, token) packed maps of which every token sees all others."""
    weights = np.random.default_rng(seed).dirichlet(np.full(tokens, 0.5), (blocks, views, tokens))
    return encode_maps(weights.reshape(blocks * views, tokens, tokens), causal=False).reshape(weights.shape)


@hypothesis_settings(max_examples=50, deadline=None)
@given(blocks=st.integers(1, 4), views=st.integers(1, 3), tokens=st.integers(1, 6), seed=st.integers(0, 10_000))
def test_it_is_the_product_of_all_matrices_over_decoder_and_tower(blocks: int, views: int, tokens: int, seed: int) -> None:
    prompt, draw = 7, np.random.default_rng(seed)
    maps, packed = random_maps(3, prompt, seed), tower(blocks, views, tokens, seed)
    parents = draw.integers(-1, prompt, (views, tokens))
    # one matrix a step over all nodes: a row of each prompt token, then of each token of the tower
    step = np.zeros((prompt, views * tokens))
    for token, parent in enumerate(parents.ravel()):
        if parent >= 0:
            step[parent, token] = 1 / (parents == parent).sum()
    row = np.eye(prompt)[-1]
    for weights in maps[::-1]:
        row = row @ (weights + np.eye(prompt)) / 2
    row = row @ step
    for block in packed[::-1]:
        whole = np.zeros((views * tokens,) * 2)
        for view in range(views):
            own = slice(view * tokens, (view + 1) * tokens)
            whole[own, own] = (decode_maps(block[view][None])[0] + np.eye(tokens)) / 2
        row = row @ whole
    padded = np.pad(packed, ((0, 0), (0, 1), (0, 2), (0, 2)))
    found = tower_rollout(rollout(maps)[0], padded[::-1], np.pad(parents, ((0, 1), (0, 2)), constant_values=-1))
    np.testing.assert_allclose(found[:views, :tokens].ravel(), row, atol=1e-12)
    assert not found[views:].any()
    assert not found[:, tokens:].any()


def test_an_example_without_a_map_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="found an empty row of a token that others attend to"):
        tower_rollout(np.ones(3), [np.zeros((1, 2, 2), np.uint8)], np.array([[1, 2]]))
    with pytest.raises(InvalidInputError, match=r"expected a map of 1 views of 2 tokens, found shape \(1, 3, 3\)"):
        tower_rollout(np.ones(3), [np.ones((1, 3, 3), np.uint8)], np.array([[1, 2]]))


def test_views_add_up_over_the_image_and_padding_is_left_out() -> None:
    """A whole image of 1 x 2 patches; a tile of 2 x 1 patches over its right half, whose lower patch is padding."""
    values = np.array([[0.4, 0.2, np.nan], [0.3, 0.1, np.nan], [np.nan] * 3])
    grids = np.array([[1, 2], [2, 1], [-1, -1]])
    boxes = np.array([[0, 0, 1, 1], [0.5, 0, 1, 2], [np.nan] * 4])
    np.testing.assert_allclose(patch_picture(values, grids, boxes), [[0.4, 0.5]])
    # tiles that cut the image in thirds share a coarse patch between cells
    thirds = np.array([[0, 0, 1 / 3, 1], [0, 0, 1, 1]])
    np.testing.assert_allclose(patch_picture(np.array([[1.0], [6.0]]), np.array([[1, 1], [1, 1]]), thirds), [[3.0, 2.0, 2.0]])
