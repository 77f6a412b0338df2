"""Capture the residual stream of the vision tower, averaged over image cells in raster order.

The blocks of Qwen2.5-VL process patches in window order, which is undone here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.vision_utils import get_vision_window_index

from stratascope.errors import CaptureError
from stratascope.extract.run.capture import reading_residuals


@dataclass
class VisionCapture:
    """Activations of one pass through the vision tower."""

    index: torch.Tensor
    """(total,) patches of all segments, concatenated, in the order of the blocks."""
    lengths: torch.Tensor
    """(segment,) patches of each segment; a segment is one position of one example, absent ones are left out."""
    residual: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> (segment, vision hidden) float32: mean over the patches of the segment after that many blocks."""

    def pool(self, layer: int, hidden: torch.Tensor) -> None:
        """Keep the means of `hidden`, (patch, vision hidden)."""
        self.residual[layer] = torch.segment_reduce(hidden[self.index].float(), "mean", lengths=self.lengths, axis=0)


def vision_capture(tower: nn.Module, grid: torch.Tensor, segments: Sequence[tuple[int, np.ndarray]]) -> VisionCapture:
    """Prepare the capture of a batch.

    Parameters
    ----------
    tower
        Qwen's vision model.
    grid
        (image, 3): frames, rows and columns of patches.
    segments
        (image, cells): raster indices of merged cells whose patches are averaged.

    Raises
    ------
    CaptureError
        If the tower has no `.blocks` over merged patches.
    """
    config: Any = getattr(tower, "config", None)
    if not hasattr(tower, "blocks") or not hasattr(config, "spatial_merge_size"):
        raise CaptureError(f"expected Qwen's vision tower, found {type(tower).__name__}; leave vision_residual out of `record`")
    unit = config.spatial_merge_size**2
    cells = (grid.prod(-1) // unit).cpu()
    offsets = torch.cat([torch.zeros(1, dtype=cells.dtype), cells.cumsum(0)])
    place = torch.arange(int(offsets[-1]))
    if getattr(config, "window_size", None):
        order, _ = get_vision_window_index(
            grid.cpu(), spatial_merge_size=config.spatial_merge_size, window_size=config.window_size, patch_size=config.patch_size
        )
        place = torch.argsort(order)
    chosen = [place[offsets[image] + torch.from_numpy(np.asarray(which, np.int64))] for image, which in segments]
    index = torch.cat([(units[:, None] * unit + torch.arange(unit)).flatten() for units in chosen])
    lengths = torch.tensor([len(units) * unit for units in chosen])
    return VisionCapture(index.to(grid.device), lengths.to(grid.device))


@contextmanager
def capturing_vision(tower: nn.Module, capture: VisionCapture) -> Iterator[VisionCapture]:
    """While open, a pass through the tower fills `capture`: layer k is the input of block k, the last layer the output."""
    with reading_residuals(tower.blocks, capture.pool):
        yield capture
