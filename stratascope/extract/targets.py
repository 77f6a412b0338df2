"""What a knockout hides, from whom and in which blocks (Geva et al. 2023), and what measuring it takes. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratascope.errors import InvalidInputError
from stratascope.extract.layout import TILES, TokenLayout

MODES = ("final", "later")
"""Who may not see the target: the final token alone, or every token after the target that is not of it."""

SPAN_TARGETS = ("system", "image", "subject", "relation", "object", "caption_rest", "template")
"""A partition of the prompt: the caption without its three parts is `caption_rest`, what is in no span is `template`."""

MOST_GROUPS = 6
"""Image cells are hidden in at most so many groups along a side."""


@dataclass(frozen=True)
class Knockouts:
    """Which knockouts are measured; every mode, window and target of every chosen example."""

    chosen: np.ndarray
    """(example,) bool."""
    modes: tuple[str, ...]
    windows: tuple[tuple[int, int], ...]
    """First and last block of each; the first window is all blocks."""
    targets: tuple[str, ...]
    """Those that at least one chosen example has."""

    @property
    def window_names(self) -> tuple[str, ...]:
        """As "first-last"."""
        return tuple(f"{first}-{last}" for first, last in self.windows)

    def provenance(self) -> dict[str, Any]:
        """What a run that resumes must agree on."""
        return {"examples": int(self.chosen.sum()), "modes": list(self.modes), "windows": list(self.window_names)}


def layer_windows(blocks: int, width: int | None) -> tuple[tuple[int, int], ...]:
    """All blocks, then windows that slide by half their width, the last one ending with the last block.

    Parameters
    ----------
    blocks
        Of the decoder.
    width
        Blocks in a window; None: a quarter of them; 0: no windows but that of all blocks.

    Raises
    ------
    InvalidInputError
        If a window is wider than the decoder is deep.
    """
    whole = (0, blocks - 1)
    width = -(-blocks // 4) if width is None else width
    if width > blocks:
        raise InvalidInputError(f"expected --knockout-window of at most {blocks} blocks, as the model has, found {width}")
    if width in (0, blocks):
        return (whole,)
    starts = sorted({*range(0, blocks - width + 1, -(-width // 2)), blocks - width})
    return (whole, *((start, start + width - 1) for start in starts))


def hidden_tokens(layout: TokenLayout, boxes: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Target -> indices of the tokens that are hidden, ascending; targets that the prompt lacks are left out.

    The final token is never hidden: it may always see itself.

    Parameters
    ----------
    layout
        Of one example.
    boxes
        `subject_box` and `object_box` -> indices of image tokens, as far as there are boxes.
    """
    length = len(layout.ids)
    part = np.full(length, SPAN_TARGETS.index("template"))
    named = [(TILES, "image"), ("system", "system"), ("image", "image"), ("caption", "caption_rest")]
    for span, target in (*named, *((name, name) for name in ("subject", "relation", "object"))):
        if span in layout.spans:
            part[slice(*layout.spans[span])] = SPAN_TARGETS.index(target)
    targets = {name: np.flatnonzero(part == k) for k, name in enumerate(SPAN_TARGETS)}
    targets |= boxes
    start, (rows, columns) = layout.spans["image"][0], layout.grid
    down, across = min(rows, MOST_GROUPS), min(columns, MOST_GROUPS)
    group_of = (np.arange(rows) * down // rows)[:, None] * across + (np.arange(columns) * across // columns)[None]
    for group in range(down * across):
        targets[f"cell_{group // across}_{group % across}"] = start + np.flatnonzero(group_of.ravel() == group)
    within = {name: tokens[tokens != length - 1] for name, tokens in targets.items()}
    return {name: tokens for name, tokens in within.items() if len(tokens)}


def ordered_targets(found: set[str]) -> tuple[str, ...]:
    """Names of targets once each: spans, boxes, then cells row by row."""
    cells = sorted((name for name in found if name.startswith("cell_")), key=lambda name: tuple(map(int, name.split("_")[1:])))
    return (*(name for name in (*SPAN_TARGETS, "subject_box", "object_box") if name in found), *cells)


def first_changed(tokens: np.ndarray, length: int, mode: str, together: tuple[int, int] | None = None) -> int:
    """The first token whose stream may change when `tokens` are hidden.

    Parameters
    ----------
    tokens
        Hidden, ascending.
    length
        Of the prompt.
    mode
        Of `MODES`.
    together
        Tokens that see each other, later ones too: [start, stop); all others see only what is before them.
    """
    start, stop = together or (0, 0)
    changed = length - 1
    if mode == "later":
        first = start if start <= int(tokens[0]) < stop else int(tokens[0]) + 1
        changed = int(np.setdiff1d(np.arange(first, length), tokens)[0])
    return start if start <= changed < stop else changed


def computed_tokens(
    knockouts: Knockouts, blocks: int, length: int, targets: Mapping[str, np.ndarray], together: tuple[int, int] | None = None
) -> int:
    """Tokens times blocks that one example's knockouts compute, the pass that is kept among them: `length` times `blocks`."""
    total = length * blocks
    for mode in knockouts.modes:
        changed = sum(length - first_changed(tokens, length, mode, together) for tokens in targets.values())
        total += changed * sum(blocks - first for first, _ in knockouts.windows)
    return total
