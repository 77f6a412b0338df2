"""A capture that also keeps maps as floats."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from stratascope.extract.run.attention_function import BlockAttention, fused_map
from stratascope.extract.run.capture import Capture


@dataclass
class Unpacked(Capture):
    """Block -> (batch, query, key) float32, aggregated over heads, in `fused`."""

    fused: dict[int, torch.Tensor] = field(default_factory=dict)

    def on_attention(self, seen: BlockAttention) -> None:
        super().on_attention(seen)
        if "maps" in self.want:
            self.fused[seen.block] = fused_map(seen, self.fusion)
