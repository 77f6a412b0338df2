"""Residual stream of the blocks of a vision tower over image cells, in raster order.

The blocks of Qwen2.5-VL process patches in window order, which is undone here. Tokens that are no patch, such as the class token of CLIP,
are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.vision_utils import get_vision_window_index

from stratascope.errors import CaptureError
from stratascope.extract.families.model_families import Tower
from stratascope.extract.run.capture import visiting_residuals

_TOWERS = ("visual", "vision_tower", "vision_model")
_BLOCKS = ("blocks", "layers", "layer")
_CLASS_TOKENS = ("class_embedding", "cls_token")


@dataclass
class VisionCapture:
    """Activations of one pass through the vision tower."""

    index: torch.Tensor
    """(total,) patches of all segments, concatenated, in the order of the blocks."""
    lengths: torch.Tensor
    """(segment,) patches of each segment; a segment is one position of one example, absent ones are left out."""
    view: tuple[int, int, int] | None = None
    """View that is the whole image, its first patch and their number; None: the blocks hold one list of patches."""
    residual: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> (segment, vision hidden) float32: mean over the patches of the segment after that many blocks."""

    def pool(self, layer: int, hidden: torch.Tensor) -> None:
        """Keep the means of `hidden`, (patch, vision hidden) or (view, token, vision hidden).

        Raises
        ------
        CaptureError
            If a view has tokens besides its patches and a class token.
        """
        if self.view is not None:
            view, first, count = self.view
            if hidden.ndim != 3 or hidden.shape[1] != first + count:
                raise CaptureError(
                    f"expected {first + count} tokens of each view in the vision tower, found shape {tuple(hidden.shape)}; leave "
                    "vision_residual out of `record`"
                )
            hidden = hidden[view, first:]
        elif hidden.ndim == 3 and len(hidden) == 1:  # MiniMax M3
            hidden = hidden[0]
        self.residual[layer] = torch.segment_reduce(hidden[self.index].float(), "mean", lengths=self.lengths, axis=0)


@dataclass(frozen=True)
class CellRequest:
    """Image cells over which the residual stream of a vision tower is averaged."""

    cells: Sequence[np.ndarray]
    """Raster indices of the cells of each segment."""
    grid: tuple[int, int]
    """(rows, columns) of cells."""
    tower: Tower

    def capture(self, model: Any, image: Mapping[str, torch.Tensor]) -> VisionCapture:
        """Prepare the capture of one image, from its inputs; CaptureError if the tower does not fit."""
        if self.tower == "merged":
            return vision_capture(find_tower(model), image["image_grid_thw"], [(0, each) for each in self.cells])
        return view_capture(find_tower(model), image["pixel_values"], self)


def find_tower(model: Any) -> Any:
    """The vision tower of a model.

    Raises
    ------
    CaptureError
        If it has none of a known name.
    """
    for owner in (getattr(model, "model", None), model):
        for name in _TOWERS:
            if isinstance(found := getattr(owner, name, None), nn.Module):
                return found
    raise CaptureError(f"expected a vision tower in {type(model).__name__}, found none; leave vision_residual out of `record`")


def tower_blocks(tower: nn.Module) -> nn.ModuleList:
    """The equal blocks of a vision tower.

    Raises
    ------
    CaptureError
        If there is no single list of as many blocks of one class as its configuration names.
    """
    config: Any = getattr(tower, "config", None)
    depth = getattr(config, "depth", None) or getattr(config, "num_hidden_layers", None)
    lists = [each for name, each in tower.named_modules() if isinstance(each, nn.ModuleList) and name.split(".")[-1] in _BLOCKS]
    found = [each for each in lists if len(each) == depth]
    if len(found) != 1 or len({type(block) for block in found[0]}) != 1:
        raise CaptureError(
            f"expected one list of {depth} equal blocks in the vision tower {type(tower).__name__}, found {len(found)}; leave "
            "vision_residual out of `record`"
        )
    return found[0]


def vision_capture(tower: nn.Module, grid: torch.Tensor, segments: Sequence[tuple[int, np.ndarray]]) -> VisionCapture:
    """Prepare the capture of a batch in a tower over one list of merged patches.

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
        If the tower does not merge patches.
    """
    config: Any = getattr(tower, "config", None)
    if not hasattr(config, "spatial_merge_size"):
        raise CaptureError(
            f"expected a vision tower over merged patches, found {type(tower).__name__}; leave vision_residual out of `record`"
        )
    unit = config.spatial_merge_size**2
    cells = (grid.prod(-1) // unit).cpu()
    offsets = torch.cat([torch.zeros(1, dtype=cells.dtype), cells.cumsum(0)])
    place = _cell_places(config, grid, int(offsets[-1]))
    chosen = [place[offsets[image] + torch.from_numpy(np.asarray(which, np.int64))] for image, which in segments]
    index = torch.cat([(units[:, None] * unit + torch.arange(unit)).flatten() for units in chosen])
    lengths = torch.tensor([len(units) * unit for units in chosen])
    return VisionCapture(index.to(grid.device), lengths.to(grid.device))


def _cell_places(config: Any, grid: torch.Tensor, cells: int) -> torch.Tensor:
    """(cell,) place of each merged cell among those of the blocks: they are in window order where there are windows."""
    if not getattr(config, "window_size", None):
        return torch.arange(cells)
    order, _ = get_vision_window_index(
        grid.cpu(), spatial_merge_size=config.spatial_merge_size, window_size=config.window_size, patch_size=config.patch_size
    )
    return torch.argsort(order)


def patch_places(tower: Any, grid: torch.Tensor) -> torch.Tensor:
    """(patch,) place of each patch of one image, in raster order, among those of the blocks of a tower over merged patches.

    Parameters
    ----------
    tower
        The vision model.
    grid
        (1, 3): frames, rows and columns of patches.
    """
    merge = int(tower.config.spatial_merge_size)
    rows, columns = int(grid[0, 1]), int(grid[0, 2])
    row, column = torch.arange(rows)[:, None], torch.arange(columns)
    cell = (row // merge) * (columns // merge) + column // merge
    place = _cell_places(tower.config, grid, rows * columns // merge**2)
    return (place[cell] * merge**2 + row % merge * merge + column % merge).flatten()


def view_capture(tower: Any, pixels: torch.Tensor, request: CellRequest) -> VisionCapture:
    """Prepare the capture of one image in a tower over views of one size.

    Parameters
    ----------
    tower
        The vision model, whose blocks hold (view, token, hidden): the patches of each view in raster order, after a class token if it has
        one.
    pixels
        (..., height, width) pixels of the views.
    request
        Cells of the whole image.

    Raises
    ------
    CaptureError
        If the patches of a view are not the same number for every cell.
    """
    patch = tower.config.patch_size
    height, width = (patch, patch) if isinstance(patch, int) else patch
    rows, columns = pixels.shape[-2] // height, pixels.shape[-1] // width
    down, right = rows // request.grid[0], columns // request.grid[1]
    if (down * request.grid[0], right * request.grid[1]) != (rows, columns):
        raise CaptureError(
            f"expected patches that are the same number for each of {request.grid[0]} x {request.grid[1]} cells, found {rows} x {columns} "
            f"in {type(tower).__name__}; leave vision_residual out of `record`"
        )
    place = np.arange(rows * columns).reshape(request.grid[0], down, request.grid[1], right).swapaxes(1, 2).reshape(-1, down * right)
    chosen = [place[np.asarray(cells, np.int64)].ravel() for cells in request.cells]
    first = sum(any(name.endswith(kind) for kind in _CLASS_TOKENS) for name, _ in tower.named_parameters())
    view = 0 if request.tower == "first" else -1
    lengths = torch.tensor([len(each) for each in chosen])
    index = torch.from_numpy(np.concatenate(chosen))
    return VisionCapture(index.to(pixels.device), lengths.to(pixels.device), (view, first, rows * columns))


@contextmanager
def capturing_vision(tower: nn.Module, capture: VisionCapture) -> Iterator[VisionCapture]:
    """While open, a pass through the tower fills `capture`: layer k is the input of block k, the last layer the output."""
    with visiting_residuals(tower_blocks(tower), capture.pool):
        yield capture
