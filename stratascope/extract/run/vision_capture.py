"""Capture of the vision tower's residual stream, pooled over image cells in raster order.

Qwen2.5-VL's blocks see the patches in window order; without undoing it a patch seems to change cells across the whole width.
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
    """What one pass through the vision tower left behind."""

    index: torch.Tensor
    """(total,) patches of all segments after one another, as the blocks see them."""
    lengths: torch.Tensor
    """(segment,) patches of each; a segment is one position of one example, absent ones are left out."""
    residual: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> (segment, vision hidden) float32: mean over the segment's patches after so many blocks."""

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
        If the tower is not built of `.blocks` over merged patches.
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
    """While open, a pass through the tower fills `capture`: layer k where it enters block k, the last where it leaves."""
    with reading_residuals(tower.blocks, capture.pool):
        yield capture
