"""Attention maps with one byte per weight: the square root of weight / row maximum."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError

TOLERANCE = 2e-3
"""Tolerance of a row's sum; float16 weights over a thousand tokens stay well within."""


def encode_maps(maps: NDArray[Any], *, causal: bool = True) -> NDArray[np.uint8]:
    """Pack attention maps: `round(255 * sqrt(value / row maximum))`.

    Parameters
    ----------
    maps
        (layer, query, key) weights; each row sums to 1.
    causal
        Whether to refuse weights above the diagonal; false for models whose image tokens (Gemma 3) or prompts (PaliGemma) attend to
        later tokens.

    Returns
    -------
    numpy.ndarray
        (layer, query, key) uint8.

    Raises
    ------
    InvalidInputError
        A map is not square, not causal although it must be, not finite, negative, or a row does not sum to 1; the message names layer
        and row.

    Examples
    --------
    >>> import numpy as np
    >>> maps = np.array([[[1.0, 0.0], [0.2, 0.8]]])
    >>> encode_maps(maps)[0].tolist()
    [[255, 0], [128, 255]]
    """
    values = np.asarray(maps)
    if values.ndim != 3 or values.shape[1] != values.shape[2] or not values.size or values.dtype.kind != "f":
        raise InvalidInputError(f"expected float maps of shape (layer, token, token), found {values.dtype} of shape {values.shape}")
    values = values.astype(np.float32 if values.dtype.itemsize < 8 else np.float64, copy=False)
    off = np.abs(values.sum(-1, dtype=np.float64) - 1.0)
    # written so that NaN counts as wrong
    wrong = ~(off <= TOLERANCE) | (values < 0).any(-1)
    if wrong.any():
        layer, row = np.argwhere(wrong)[0]
        found = f"row {row} of layer index {layer}, which sums to {values[layer, row].sum():.6g} (lowest {values[layer, row].min():.3g})"
        raise InvalidInputError(f"expected finite, non-negative attention rows that sum to 1, found {found}; pass post-softmax weights")
    if causal and np.triu(values, 1).any():
        layer, row, column = np.argwhere(np.triu(values, 1))[0]
        raise InvalidInputError(
            f"expected causal maps (zero where key > query), found {values[layer, row, column]:.3g} at layer index {layer}, "
            f"query {row}, key {column}; pass (layer, query, key)"
        )
    top = values.max(-1, keepdims=True)
    return np.asarray(np.rint(np.sqrt(values / top) * 255), dtype=np.uint8)


def decode_maps(packed: NDArray[np.uint8], n_tokens: int | None = None) -> NDArray[np.float64]:
    """Unpack maps: squares, each row renormalised to sum to 1.

    Parameters
    ----------
    packed
        (layer, query, key) uint8 as of `encode_maps`, possibly padded with zeros.
    n_tokens
        Length of the prompt, without padding; None for all.

    Returns
    -------
    numpy.ndarray
        (layer, n_tokens, n_tokens) float64.

    Raises
    ------
    InvalidInputError
        A row within the prompt is all zero: there is no map.

    Examples
    --------
    >>> import numpy as np
    >>> decode_maps(np.array([[[255, 0], [128, 255]]], dtype=np.uint8)).round(2)[0].tolist()
    [[1.0, 0.0], [0.2, 0.8]]
    """
    size = packed.shape[-1] if n_tokens is None else int(n_tokens)
    values = np.square(packed[..., :size, :size].astype(np.float64))
    totals = values.sum(-1, keepdims=True)
    if not totals.all():
        layer, row = np.argwhere(totals[..., 0] == 0)[0][-2:]
        raise InvalidInputError(f"expected a packed map, found an empty row {row} at layer index {layer}: no map is held here")
    return np.asarray(values / totals)
