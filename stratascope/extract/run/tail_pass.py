"""Passes of many variants over the tail of a prompt.

Variants follow each other as copies of the tail: one sequence, in which a copy attends to the cached keys and values of the earlier tokens,
and to itself. Variants of all layers go through the blocks together: each joins at its own layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stratascope.extract.run.attention_function import KeysValuesMask, overriding_attention
from stratascope.extract.run.knockout import Trace, residual_of, tail_arguments


@dataclass(frozen=True)
class Segment:
    """Neighbouring slots of one window in a pass; an unedited row precedes them."""

    window: int
    first: int
    last: int
    slots: slice
    row: int
    """Row of the unedited rerun."""

    @property
    def edited(self) -> slice:
        """Rows of the slots."""
        return slice(self.row + 1, self.row + 1 + self.slots.stop - self.slots.start)


Edit = Callable[[torch.Tensor, Segment, int], torch.Tensor]
"""(row, token, d) residual stream of a segment's slots, the segment and the layer -> the edited rows."""


def segments(windows: Sequence[tuple[int, int, int]], slots: int, rows: int) -> Iterator[list[Segment]]:
    """The variants of a position in passes of at most `rows` rows, in the order of their first layers.

    `windows` are (number, first layer, last layer).
    """
    made: list[Segment] = []
    used = 0
    for window, first, last in windows:
        begin = 0
        while begin < slots:
            if used + 2 > rows and made:
                yield made
                made, used = [], 0
            count = min(slots - begin, max(1, rows - used - 1))
            made.append(Segment(window, first, last, slice(begin, begin + count), used))
            begin, used = begin + count, used + count + 1
    if made:
        yield made


@dataclass
class TailPass:
    """One pass of variants over the tail of a prompt.

    Parameters
    ----------
    blocks, trace
        The decoder blocks, and the unedited pass.
    start
        First token of the tail.
    """

    blocks: Any
    trace: Trace
    start: int

    def run(self, made: Sequence[Segment], edit: Edit, kept: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """Output of the last block at the last tokens, and which rows were changed at all.

        Parameters
        ----------
        made
            Segments, by first layer.
        edit
            (rows, tail token, d), segment and layer -> the edited rows.
        kept
            Number of last tokens.

        Returns
        -------
        tuple
            (row, kept, d) in the model's precision, and (row,) bool.
        """
        trace, start = self.trace, self.start
        rows = made[-1].edited.stop
        like = trace.inputs[0]
        hidden = like.new_empty(0, like.shape[1] - start, like.shape[2])
        changed = torch.zeros(rows, dtype=torch.bool, device=like.device)
        for layer in range(made[0].first, len(self.blocks) + 1):
            entering = [segment for segment in made if segment.first == layer]
            if entering:
                count = entering[-1].edited.stop - entering[0].row
                hidden = torch.cat([hidden, trace.inputs[layer][:, start:].expand(count, -1, -1)])
            for segment in made:
                if segment.first <= layer <= segment.last:
                    before = hidden[segment.edited]
                    after = edit(before, segment, layer)
                    changed[segment.edited] |= (after != before).flatten(1).any(1)
                    hidden[segment.edited] = after
            if layer < len(self.blocks):
                hidden = self._block(layer, hidden)
        return hidden[:, -kept:], changed

    def _block(self, block: int, hidden: torch.Tensor) -> torch.Tensor:
        trace, start = self.trace, self.start
        rows, tail, width = hidden.shape
        arguments = tail_arguments(trace.arguments[block], start, trace.length, rows)

        def with_prefix(index: int, key: torch.Tensor, value: torch.Tensor) -> KeysValuesMask:
            before = [kept[index][:, :, :start] for kept in (trace.keys, trace.values)]
            mask = copies_mask(trace.visible[index], start, rows)
            return torch.cat([before[0], key], 2), torch.cat([before[1], value], 2), mask[None, None]

        with overriding_attention(with_prefix):
            made = residual_of(self.blocks[block](hidden.reshape(1, rows * tail, width), **arguments)).view(rows, tail, width)
        return made + trace.added[block + 1][:, start:] if block + 1 in trace.added else made


def copies_mask(visible: torch.Tensor, start: int, copies: int) -> torch.Tensor:
    """(copy x tail token, start + copy x tail token) bool: each copy of the tail sees the tokens before it, and itself."""
    before, own = visible[start:, :start], visible[start:, start:]
    same = torch.eye(copies, dtype=torch.bool, device=visible.device)[:, None, :, None] & own[None, :, None, :]
    return torch.cat([before.repeat(copies, 1), same.reshape(copies * len(own), -1)], 1)
