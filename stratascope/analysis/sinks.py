"""Attention sinks: tokens with many times their fair share of attention, by their place.

A sink takes at least `times` its fair share of the final token's attention, averaged over layers and heads. The fair share of an image cell
is among the image cells, that of any other token among all tokens. The first token as a sink: Xiao et al. 2024, Gu et al. 2025; sinks in
images: Kang et al. 2025. The final token is never a sink.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.store import ActivationStore

PLACES = ("first_token", "image_edge", "image_inside", "caption", "other_text")
"""Places of sinks: `image_edge` is the outermost rows and columns of cells, `other_text` all other text."""
DROPPED = ("first_token", "image_edge")
"""Places of the sinks to leave out by default; tokens inside the image or in the caption may be content."""
TIMES = 10.0


def token_places(
    n_tokens: NDArray[np.integer],
    image: NDArray[np.integer],
    grid: NDArray[np.integer],
    caption: NDArray[np.integer],
    longest: int,
    tiles: NDArray[np.integer] | None = None,
) -> NDArray[np.int8]:
    """Place of each token.

    Parameters
    ----------
    n_tokens
        (example,) tokens of the prompt.
    image
        (example, 2) span of the image tokens, -1 where absent.
    grid
        (example, 2) rows and columns of cells; 0, 0 where the place of the image tokens is unknown: all count as inside the image.
    caption
        (example, 2) span of the caption, -1 where absent.
    longest
        Length of the padded token axis.
    tiles
        (example, 2) span of image tokens outside the grid, -1 where absent; they count as inside the image.

    Returns
    -------
    numpy.ndarray
        (example, token) int8 index into `PLACES`, -1 from the final token on.
    """
    token = np.arange(longest)[None]
    places = np.full((len(n_tokens), longest), PLACES.index("other_text"), np.int8)
    places[(token >= caption[:, :1]) & (token < caption[:, 1:])] = PLACES.index("caption")
    if tiles is not None:
        places[(token >= tiles[:, :1]) & (token < tiles[:, 1:])] = PLACES.index("image_inside")
    cell = token - image[:, :1]
    row, column = np.divmod(cell, np.maximum(grid[:, 1:], 1))
    inside = (token >= image[:, :1]) & (token < image[:, 1:])
    edge = (row == 0) | (row == grid[:, :1] - 1) | (column == 0) | (column == grid[:, 1:] - 1)
    places[inside] = PLACES.index("image_inside")
    places[inside & edge & (grid[:, :1] > 0)] = PLACES.index("image_edge")
    places[:, 0] = PLACES.index("first_token")
    places[token >= n_tokens[:, None] - 1] = -1
    return places


def find_sinks(attention: NDArray[Any], places: NDArray[np.int8], *, times: float = TIMES) -> NDArray[np.bool_]:
    """Find the sinks.

    Parameters
    ----------
    attention
        (example, token) attention of the final token, mean over layers and heads; 0 or NaN after the prompt.
    places
        (example, token) as of `token_places`.
    times
        A sink takes at least this multiple of its fair share.

    Returns
    -------
    numpy.ndarray
        (example, token) bool.

    Raises
    ------
    InvalidInputError
        If `times` is not above 1.
    """
    if not times > 1:
        raise InvalidInputError(f"expected sinks with more than 1 times their fair share, found times {times}")
    attention = np.nan_to_num(np.asarray(attention, np.float64))
    cells = np.isin(places, (PLACES.index("image_edge"), PLACES.index("image_inside")))
    # + 1: the final token has no place
    everywhere = 1 / np.maximum((places >= 0).sum(1, keepdims=True) + 1, 1)
    of_image = (attention * cells).sum(1, keepdims=True) / np.maximum(cells.sum(1, keepdims=True), 1)
    share = np.where(cells, of_image, everywhere * attention.sum(1, keepdims=True))
    return np.asarray((places >= 0) & (attention > 0) & (attention >= times * share))


def places_of(store: ActivationStore, examples: NDArray[np.int64]) -> NDArray[np.int8]:
    """(example, token) places of a store's tokens."""
    absent = np.full((store.layout.examples, 2), -1, np.int32)
    image, caption, tiles = (store.spans.get(name, absent)[examples] for name in ("image", "caption", "image_tiles"))
    return token_places(store.n_tokens[examples], image, store.grid[examples], caption, store.layout.tokens, tiles)


def sinks_of_maps(
    final_rows: NDArray[Any], places: NDArray[np.int8], *, times: float = TIMES, dropped: Sequence[str] = DROPPED
) -> tuple[int, ...]:
    """Token numbers of the sinks of one example at the `dropped` places, from the final rows (layer, token) of its maps."""
    found = find_sinks(np.asarray(final_rows).mean(0)[None], places[None, : final_rows.shape[-1]], times=times)[0]
    wanted = np.isin(places[: len(found)], [PLACES.index(name) for name in checked_places(dropped)])
    return tuple(np.flatnonzero(found & wanted).tolist())


def checked_places(names: Sequence[str]) -> tuple[str, ...]:
    """Names of places; InvalidInputError for an unknown one."""
    odd = [name for name in names if name not in PLACES]
    if odd:
        raise InvalidInputError(f"expected places of sinks among {', '.join(PLACES)}, found {', '.join(odd)}")
    return tuple(names)
