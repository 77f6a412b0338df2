"""A capture that also keeps maps as floats."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from stratascope.extract.run.attention_function import BlockAttention, fused_chunks
from stratascope.extract.run.capture import Capture


def fused_map(seen: BlockAttention, fusion: str = "mean") -> torch.Tensor:
    """The attention map of a block aggregated over heads, (batch, query, key) float32, see `fused_chunks`."""
    tokens = seen.query.shape[2]
    return torch.cat([torch.nn.functional.pad(chunk, (0, tokens - chunk.shape[2])) for _, chunk in fused_chunks(seen, fusion)], 1)


@dataclass
class Unpacked(Capture):
    """Block -> (batch, query, key) float32, aggregated over heads, in `fused`."""

    fused: dict[int, torch.Tensor] = field(default_factory=dict)

    def on_attention(self, seen: BlockAttention) -> None:
        super().on_attention(seen)
        if "maps" in self.want:
            self.fused[seen.block] = fused_map(seen, self.fusion)
