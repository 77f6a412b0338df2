"""Attention knockouts: targets, reading tokens, windows of blocks (Geva et al. 2023), and their cost. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratascope.errors import InvalidInputError
from stratascope.extract.plan.token_layout import TokenLayout
from stratascope.store.format.prompt_parts import IMAGE_POSITION, JOINED, PARTS, READERS, grouped_cells, token_parts

MODES = ("final", "later")
"""Modes that are measured by default: a target is masked for the final token, or for all later tokens outside the target."""
ALL_MODES = (*MODES, *READERS)
"""All modes: also the groups of tokens for which a target is masked, without its own tokens and the final token."""


@dataclass(frozen=True)
class Knockouts:
    """The knockouts to measure: all modes, windows and targets of the chosen examples."""

    chosen: np.ndarray
    """(example,) bool."""
    modes: tuple[str, ...]
    windows: tuple[tuple[int, int], ...]
    """First and last block of each window; the first window is all blocks."""
    targets: tuple[str, ...]
    """Targets that at least one chosen example has."""

    def targets_of(self, mode: str) -> tuple[str, ...]:
        """Targets that are masked in a mode: all for `final` and `later`, parts of the prompt and boxes for a group of tokens."""
        return self.targets if mode in MODES else tuple(name for name in self.targets if not name.startswith("cell_"))

    @property
    def window_names(self) -> tuple[str, ...]:
        """As "first-last"."""
        return tuple(f"{first}-{last}" for first, last in self.windows)

    def provenance(self) -> dict[str, Any]:
        """Settings that must be the same when a run is resumed."""
        return {"examples": int(self.chosen.sum()), "modes": list(self.modes), "windows": list(self.window_names)}


def layer_windows(blocks: int, width: int | None) -> tuple[tuple[int, int], ...]:
    """All blocks, then windows that slide by half their width up to the last block.

    Parameters
    ----------
    blocks
        Number of decoder blocks.
    width
        Blocks in a window; None: a quarter of all; 0: only the window of all blocks.

    Raises
    ------
    InvalidInputError
        If a window has more blocks than the decoder.
    """
    whole = (0, blocks - 1)
    width = -(-blocks // 4) if width is None else width
    if width > blocks:
        raise InvalidInputError(f"expected `knockout_window` of at most {blocks} blocks, as the model has, found {width}")
    if width in (0, blocks):
        return (whole,)
    starts = sorted({*range(0, blocks - width + 1, -(-width // 2)), blocks - width})
    return (whole, *((start, start + width - 1) for start in starts))


def masked_tokens(layout: TokenLayout, boxes: Mapping[str, np.ndarray], *, joined: bool = False) -> dict[str, np.ndarray]:
    """Target -> ascending indices of its tokens; absent targets are left out.

    The final token is in no target.

    Parameters
    ----------
    layout
        Tokens of one example.
    boxes
        `subject_box` and `object_box` -> indices of image tokens, if there are boxes.
    joined
        Whether the whole spans of `JOINED` are targets, too.
    """
    length = len(layout.ids)
    spans = {name: np.array([span]) for name, span in layout.spans.items()}
    part = token_parts(spans, np.array([length]), length)[0]
    targets = {name: np.flatnonzero(part == k) for k, name in enumerate(PARTS)}
    if joined:
        targets |= {name: np.arange(*layout.spans[name]) for name in JOINED if name in layout.spans}
    targets |= {name: np.arange(*span) for name, span in layout.spans.items() if IMAGE_POSITION.fullmatch(name)}
    targets |= boxes
    targets |= {name: layout.spans["image"][0] + cells for name, cells in grouped_cells(*layout.grid).items()}
    within = {name: tokens[tokens != length - 1] for name, tokens in targets.items()}
    return {name: tokens for name, tokens in within.items() if len(tokens)}


def ordered_targets(found: set[str]) -> tuple[str, ...]:
    """Sort targets: parts, whole spans, single images, boxes, then cells row by row."""
    cells = sorted((name for name in found if name.startswith("cell_")), key=lambda name: tuple(map(int, name.split("_")[1:])))
    images = sorted((name for name in found if IMAGE_POSITION.fullmatch(name)), key=lambda name: int(name.removeprefix("image_")))
    return (*(name for name in (*PARTS, *JOINED, *images, "subject_box", "object_box") if name in found), *cells)


def reading_tokens(mode: str, target: np.ndarray, length: int, groups: Mapping[str, np.ndarray]) -> np.ndarray:
    """Ascending indices of the tokens for which a target is masked.

    Parameters
    ----------
    mode
        One of `ALL_MODES`.
    target
        Indices of its tokens.
    length
        Number of prompt tokens.
    groups
        Name -> indices of the tokens of a group, from `masked_tokens`.
    """
    if mode == "final":
        return np.array([length - 1])
    return np.setdiff1d(np.arange(length) if mode == "later" else groups.get(mode, np.zeros(0, int)), target)


def first_changed(tokens: np.ndarray, readers: np.ndarray, length: int, together: tuple[int, int] | None = None) -> int:
    """The first token whose residual stream may change when `tokens` are masked for `readers`; `length` if none can attend to them.

    Parameters
    ----------
    tokens
        Masked tokens, ascending.
    readers
        Tokens for which they are masked, ascending.
    length
        Number of prompt tokens.
    together
        [start, stop) of tokens with bidirectional attention; all others are causal.
    """
    start, stop = together or (0, 0)
    seeing = readers > tokens[0]
    if ((start <= tokens) & (tokens < stop)).any():
        seeing |= (start <= readers) & (readers < stop)
    if not seeing.any():
        return length
    changed = int(readers[seeing][0])
    return start if start <= changed < stop else changed


def computed_tokens(
    knockouts: Knockouts, blocks: int, length: int, targets: Mapping[str, np.ndarray], together: tuple[int, int] | None = None
) -> int:
    """Tokens times blocks that the knockouts of one example compute, including the unmasked pass."""
    total = length * blocks
    for mode in knockouts.modes:
        masked = [targets[name] for name in knockouts.targets_of(mode) if name in targets]
        readers = [reading_tokens(mode, tokens, length, targets) for tokens in masked]
        changed = sum(length - first_changed(tokens, seen, length, together) for tokens, seen in zip(masked, readers, strict=True))
        total += changed * sum(blocks - first for first, _ in knockouts.windows)
    return total
