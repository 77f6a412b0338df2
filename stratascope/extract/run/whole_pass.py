"""Passes of variants over whole prompts, edited by hooks: for models whose last tokens cannot run alone.

A rerun from the first changed token needs the state that earlier tokens left behind: keys and values in blocks of softmax attention. Linear
attention, convolutions and state-space blocks have another state, and some blocks take no positions of single tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from stratascope.extract.run.answer_scores import inputs_behind
from stratascope.extract.run.capture import visiting_residuals
from stratascope.extract.run.decoder import kept_logits
from stratascope.extract.run.knockout import Trace
from stratascope.extract.run.model import Batch, CaptureModel
from stratascope.extract.run.tail_pass import Edit, Segment

ALONE = 2
"""Rows of a pass, with the unedited one, of models that take one image at a time."""


@dataclass
class WholePass:
    """One pass of variants over a whole prompt: each variant is a row of a batch.

    Models that take one image at a time run a single variant in a pass; its unedited row is the unedited pass itself.

    Parameters
    ----------
    model
        The model.
    batch
        The example alone.
    behind
        Tokens behind its prompt.
    trace
        The unedited pass over both.
    """

    model: CaptureModel
    batch: Batch
    behind: tuple[int, ...]
    trace: Trace
    start: int = 0
    """First token of the pass."""

    def run(self, made: Sequence[Segment], edit: Edit, kept: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        """As `TailPass.run`."""
        rows, blocks = made[-1].edited.stop, self.model.decoder.layers
        changed = torch.zeros(rows, dtype=torch.bool, device=self.trace.inputs[0].device)
        one_image = not self.model.accepts_features
        found: list[torch.Tensor] = []

        def edited(layer: int, hidden: torch.Tensor) -> torch.Tensor:
            after = hidden
            for segment in made:
                if segment.first <= layer <= segment.last:
                    mine = slice(0, 1) if one_image else segment.edited
                    new = edit(hidden[mine], segment, layer)
                    changed[segment.edited] |= (new != hidden[mine]).flatten(1).any(1).to(changed.device)
                    after = after.clone() if after is hidden else after
                    after[mine] = new
            if layer == len(blocks):
                found.append(after[:, -kept:])
            return after

        batch = self.batch if one_image else repeated(self.batch, rows)
        with visiting_residuals(blocks, edited), torch.inference_mode():
            given = inputs_behind(self.model, batch, [self.behind] * len(batch.members))
            self.model.model(**given, use_cache=False, **kept_logits(self.model.model, 1))
        output = found[0]
        return torch.cat([self.trace.inputs[len(blocks)][:, -kept:], output]) if one_image else output, changed


def repeated(batch: Batch, rows: int) -> Batch:
    """A batch of one example as `rows` rows of it."""
    return replace(
        batch,
        members=batch.members * rows,
        input_ids=batch.input_ids.expand(rows, -1),
        lengths=batch.lengths.expand(rows),
        features=tuple(batch.features) * rows,
    )
