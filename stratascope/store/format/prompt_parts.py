"""Named parts of the prompt and groups of image cells, for attention shares, attributions and knockouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stratascope.store.format.layout import StoreLayout

PARTS = ("system", "image", "subject", "relation", "object", "caption_rest", "template")
"""A partition of the tokens: `image` takes in `image_tiles`, the caption without its three parts is `caption_rest`, what is in no span is
`template`."""

MOST_GROUPS = 6
"""Most rows, and most columns, of groups of image cells."""


def token_parts(spans: Mapping[str, NDArray[Any]], n_tokens: NDArray[Any], longest: int) -> NDArray[np.int8]:
    """Assign each token to one of `PARTS`.

    Parameters
    ----------
    spans
        Name -> (example, 2) half-open intervals, -1 where absent.
    n_tokens
        (example,).
    longest
        Length of the padded token axis.

    Returns
    -------
    numpy.ndarray
        (example, token) int8 index into `PARTS`, -1 beyond an example's own tokens.
    """
    token = np.arange(longest)[None]
    parts = np.full((len(n_tokens), longest), PARTS.index("template"), np.int8)
    for part, span in (
        ("system", "system"),
        ("image", "image"),
        ("image", "image_tiles"),
        ("caption_rest", "caption"),
        *((p, p) for p in ("subject", "relation", "object")),
    ):
        if span in spans:
            inside = (token >= spans[span][:, :1]) & (token < spans[span][:, 1:])
            parts[inside] = PARTS.index(part)
    parts[token >= n_tokens[:, None]] = -1
    return parts


class Prompts(Protocol):
    """The prompts of a store: what `parts_of` needs of an `ActivationStore`."""

    @property
    def layout(self) -> StoreLayout: ...

    @property
    def spans(self) -> Mapping[str, NDArray[np.int32]]: ...

    @property
    def n_tokens(self) -> NDArray[np.int32]: ...


def parts_of(store: Prompts, examples: NDArray[np.int64]) -> NDArray[np.int8]:
    """(example, token) index into `PARTS` of each prompt token of some examples; -1 beyond the prompt."""
    spans = {name: span[examples] for name, span in store.spans.items()}
    return token_parts(spans, store.n_tokens[examples], store.layout.tokens)


def grouped_cells(rows: int, columns: int) -> dict[str, NDArray[np.intp]]:
    """`cell_ROW_COLUMN` -> raster indices of the cells of each group, row by row.

    Row r of an image of R rows belongs to group r * groups // R, groups being the smaller of R and `MOST_GROUPS`; columns likewise.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    down, across = min(rows, MOST_GROUPS), min(columns, MOST_GROUPS)
    group = row * down // rows * across + column * across // columns
    return {f"cell_{k // across}_{k % across}": np.flatnonzero(group == k) for k in range(down * across)}
