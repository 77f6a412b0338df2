"""Packed maps: rows sum to 1, weights come back, nothing else is taken for a map."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import softmax_maps

from stratascope.errors import InvalidInputError
from stratascope.store import decode_maps, encode_maps


@given(seed=st.integers(0, 10**6), layers=st.integers(1, 4), tokens=st.integers(1, 40), dtype=st.sampled_from(["f4", "f8"]))
@settings(max_examples=60, deadline=None)
def test_round_trip(seed, layers, tokens, dtype):
    maps = softmax_maps(np.random.default_rng(seed), layers, tokens).astype(dtype)
    packed = encode_maps(maps)
    back = decode_maps(packed)
    np.testing.assert_allclose(back.sum(-1), 1, atol=1e-12)
    assert not np.triu(back, 1).any()
    # a step of 1/255 in the root is at most (2 root + step) * step of the row's maximum in the weight
    top = maps.max(-1, keepdims=True)
    root = np.sqrt(maps / top)
    np.testing.assert_array_less(np.abs(np.square(packed / 255) - maps / top), (2 * root + 0.5 / 255) * 0.5 / 255 + 1e-6)


def test_real_maps_lose_nothing_that_matters(shared_maps):
    back = decode_maps(encode_maps(shared_maps), 200)
    assert 0.5 * np.abs(back - shared_maps).sum(-1).max() < 0.02


def test_padding_is_cut_off():
    maps = softmax_maps(np.random.default_rng(0), 2, 5)
    padded = np.zeros((2, 8, 8), np.uint8)
    padded[:, :5, :5] = encode_maps(maps)
    np.testing.assert_array_equal(decode_maps(padded, 5), decode_maps(encode_maps(maps)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m[0], "shape"),
        (lambda m: m[:, :2], "shape"),
        (lambda m: (m * 255).astype(np.uint8), "uint8"),
        (lambda m: m * 1.01, "sum to 1"),
        (lambda m: np.where(m == m[1, 3, 2], np.nan, m), "row 3 of layer index 1"),
        (lambda m: m.swapaxes(1, 2) / m.swapaxes(1, 2).sum(-1, keepdims=True), "causal"),
        (lambda m: m - np.eye(4) * 2 * m + np.eye(4)[::-1] * 0, "sum to 1"),
    ],
)
def test_what_is_no_map_is_refused(change, words):
    with pytest.raises(InvalidInputError, match=words):
        encode_maps(change(softmax_maps(np.random.default_rng(0), 2, 4)))


def test_no_map_is_not_decoded():
    with pytest.raises(InvalidInputError, match="no map"):
        decode_maps(np.zeros((2, 3, 3), np.uint8))
