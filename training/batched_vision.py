"""Forward pass of the vision tower for a batch of images of one size; shares the weights of the stock tower.

The stock forward packs all patches into one sequence and loops over windows, which is slow on a CPU. `train.py` checks that
both agree before it saves a model.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import rotate_half
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from stratascope.datasets.scenes import SIZE

PATCHES = SIZE // 14
"""Patches along one side of a scene."""
CELLS = PATCHES // 2
"""Merged cells along one side of a scene."""
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def patchify(images: np.ndarray) -> np.ndarray:
    """(batch, 168, 168, 3) uint8 -> (batch, 144, 588) uint8, in the order in which Qwen's processor lists patches."""
    x = images.reshape(-1, CELLS, 2, 14, CELLS, 2, 14, 3)
    return np.ascontiguousarray(x.transpose(0, 1, 4, 2, 5, 7, 3, 6)).reshape(len(x), PATCHES**2, 588)


class BatchedVision:
    """Callable (batch, 144, 588) uint8 -> (batch, 36, hidden) merged features in raster order."""

    def __init__(self, visual: nn.Module) -> None:
        self.visual = visual
        grid = torch.tensor([[1, PATCHES, PATCHES]])
        index, bounds = get_vision_window_index(grid, spatial_merge_size=2, window_size=visual.config.window_size, patch_size=14)
        lengths = set((bounds[1:] - bounds[:-1]).tolist())
        assert len(lengths) == 1, "scenes are cut into equal windows"
        self.window = lengths.pop()
        self.order = (index[:, None] * 4 + torch.arange(4)).reshape(-1)
        self.raster = torch.argsort(index)
        cos, sin = visual.rotary_pos_emb(torch.zeros(1), get_vision_position_ids(grid, 2))
        self.cos, self.sin = cos[self.order][:, None], sin[self.order][:, None]
        self.mean = torch.tensor(_MEAN).repeat_interleave(196) * 255
        self.scale = 1 / (torch.tensor(_STD).repeat_interleave(196) * 255)

    def __call__(self, patches: torch.Tensor) -> torch.Tensor:
        visual = self.visual
        x = ((patches.float() - self.mean) * self.scale)[:, self.order]
        batch, count, _ = x.shape
        weight = visual.patch_embed.proj.weight.sum(2).reshape(visual.patch_embed.embed_dim, -1)  # both frames are the same image
        hidden = functional.linear(x, weight)
        for k, block in enumerate(visual.blocks):
            attention = block.attn
            length = count if k in visual.fullatt_block_indexes else self.window
            query, key, value = attention.qkv(block.norm1(hidden)).reshape(batch, count, 3, attention.num_heads, -1).unbind(2)
            query = query * self.cos + rotate_half(query) * self.sin
            key = key * self.cos + rotate_half(key) * self.sin
            shape = (batch * count // length, length, attention.num_heads, attention.head_dim)
            query, key, value = (t.reshape(shape).transpose(1, 2) for t in (query, key, value))
            mixed = functional.scaled_dot_product_attention(query, key, value, scale=attention.scaling)
            hidden = hidden + attention.proj(mixed.transpose(1, 2).reshape(batch, count, -1))
            hidden = hidden + block.mlp(block.norm2(hidden))
        merged = visual.merger(hidden.reshape(batch * count, -1)).reshape(batch, count // 4, -1)
        return merged[:, self.raster]
