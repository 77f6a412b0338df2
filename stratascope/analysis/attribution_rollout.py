"""Token attribution carried back: what the final token took from a word is passed on to what the word had taken before.

Direct attribution ends at the token that a head of the final token reads, in whatever block it reads it. By then that token holds what
it read itself in earlier blocks. Here each attribution is handed down block by block as rollout hands down attention (Abnar & Zuidema
2020): half stays with the token, half goes to the tokens that it attended to. Nothing is lost on the way, so that the inputs' shares
add up to the logit difference. What goes down is divided by attention averaged over heads, whatever it carried: this it assumes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import Window, check_layer, checked_window, shaped_maps
from stratascope.errors import InvalidInputError

Floats = NDArray[np.float64]


def carried_back(
    maps: NDArray[Any], tokens: NDArray[Any], blocks: NDArray[Any], embedding: float = 0.0, *, window: Window | None = None
) -> Floats:
    """Shares of the logit difference by input token, in one pass from the top block down.

    With r the shares of what leaves a block: r <- (r + blocks[l] e_t) (A[l] + I) / 2 + tokens[l], e_t being the final token, whose stream
    the rest of the block read.

    Parameters
    ----------
    maps
        (layer, query, key), fused over heads; rows sum to 1.
    tokens
        (layer, token) what the heads of each block add through each token, summed over heads: `token_attribution`.
    blocks
        (layer,) what the rest of each block adds.
    embedding
        What the final token's embedding and the output's constant add; counted where the window begins with the first block.
    window
        (first, last) half-open range of blocks whose parts are carried back, to what enters its first block; all by default.

    Returns
    -------
    numpy.ndarray
        (token,) which sum to all that was given of the window's blocks.

    Raises
    ------
    InvalidInputError
        If shapes differ, a row of a map does not sum to 1, or the window is empty or outside.
    """
    maps = shaped_maps(maps)
    tokens, blocks = np.asarray(tokens, np.float64), np.asarray(blocks, np.float64)
    if tokens.shape != maps.shape[:2] or blocks.shape != maps.shape[:1]:
        raise InvalidInputError(
            f"expected attributions of shape {maps.shape[:2]} and {maps.shape[:1]}, found {tokens.shape}, {blocks.shape}"
        )
    first, last = checked_window(window, len(maps))
    shares = np.zeros(maps.shape[-1])
    for layer in range(last - 1, first - 1, -1):
        check_layer(maps, layer)
        shares[-1] += blocks[layer]
        shares = 0.5 * (shares @ maps[layer] + shares) + tokens[layer]
    if first == 0:
        shares[-1] += embedding
    return shares
