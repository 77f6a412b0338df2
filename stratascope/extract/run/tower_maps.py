"""Attention maps of a vision tower, aggregated over heads and packed, with the patches of each view in raster order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from stratascope.errors import CaptureError
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.run.attention_function import BlockAttention
from stratascope.extract.run.map_packing import packed_map
from stratascope.extract.run.vision_tower import find_tower, patch_places, tower_blocks
from stratascope.extract.run.window_attention import hearing_attention
from stratascope.store.format.packing import TOLERANCE


@dataclass(frozen=True)
class TowerMapRequest:
    """What is expected of the vision tower, and how its maps are aggregated."""

    blocks: int
    """Blocks whose attention is kept: the first ones."""
    class_tokens: int
    """Tokens of a view before its patches."""
    grids: tuple[tuple[int, int], ...]
    """(rows, columns) of patches of each view."""
    fusion: str = "mean"
    """`mean`, `max` or `min` over heads."""

    @contextmanager
    def capturing(self, model: Any, image: Mapping[str, torch.Tensor]) -> Iterator[TowerMaps]:
        """While open, a pass of one image through the tower of `model` fills the maps; `image` are its inputs.

        Raises
        ------
        CaptureError
            If a block used another attention kernel, or its tokens are not those that are expected.
        """
        tower = find_tower(model)
        order = patch_places(tower, image["image_grid_thw"]) if "image_grid_thw" in image else None
        modules = {id(module): k for k, block in enumerate(tower_blocks(tower)) for module in block.modules()}
        maps = TowerMaps(self, modules, order)
        with hearing_attention(tower, maps.hear):
            yield maps
        if absent := sorted(set(range(self.blocks)) - set(maps.packed)):
            raise CaptureError(
                f"expected the attention of {self.blocks} blocks of the vision tower {type(tower).__name__}, found another kernel in block "
                f"{absent[0]}; leave vision_maps out of `record`"
            )


class TowerMapRequests:
    """How the vision tower's maps of the images of a plan are captured.

    Parameters
    ----------
    plan
        The plan of the extraction.
    """

    def __init__(self, plan: ExtractionPlan) -> None:
        self._plan = plan
        self._mapped = {name for name, mapped in zip(plan.shown, plan.has_map, strict=True) if mapped}

    def request(self, example: int) -> TowerMapRequest | None:
        """For the image of an example; None where no example with that image needs its maps."""
        plan = self._plan
        if plan.tower is None or plan.shown[example] not in self._mapped:
            return None
        grids = tuple(view.grid for view in plan.tower.of(*plan.file_size(example)))
        return TowerMapRequest(plan.tower.blocks, plan.tower.class_tokens, grids, plan.store.fusion)


@dataclass
class TowerMaps:
    """The packed maps of one image."""

    request: TowerMapRequest
    modules: Mapping[int, int]
    """Id of a module -> its block."""
    order: torch.Tensor | None
    """(patch,) place of each patch in raster order; None: they are in raster order."""
    packed: dict[int, np.ndarray] = field(default_factory=dict)
    """Block -> (view, token, token) uint8."""

    @property
    def array(self) -> np.ndarray:
        """(block, view, token, token) uint8."""
        return np.stack([self.packed[block] for block in range(self.request.blocks)])

    def hear(
        self,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        factor: float,
        windows: list[torch.Tensor] | None,
    ) -> None:
        """Pack the attention of one block; CaptureError where its tokens are not those of the views."""
        block = self.modules.get(id(module))
        if block is None or block >= self.request.blocks:
            return
        if block in self.packed:
            raise CaptureError(f"expected one attention in block {block} of the vision tower, found two; leave vision_maps out of `record`")
        rows, columns = self.request.grids[0]
        expected = (len(self.request.grids), self.request.class_tokens + rows * columns)
        if (len(query), query.shape[2]) != expected or key.shape[2] != query.shape[2]:
            raise CaptureError(
                f"expected {expected[0]} views of {expected[1]} tokens in the vision tower, found {len(query)} of {query.shape[2]}; leave "
                "vision_maps out of `record`"
            )
        if windows is None:
            found = self._weights(block, module, query, key, mask, factor)
        else:
            found = torch.zeros(1, expected[1], expected[1], dtype=torch.uint8, device=query.device)
            for index in windows:
                q, k = (each[0][:, index].transpose(0, 1) for each in (query, key))  # (window, head, patch, width)
                found[0, index[:, :, None], index[:, None, :]] = self._weights(block, module, q, k, None, factor)
        if self.order is not None:
            order = self.order.to(found.device)
            found = found[:, order][:, :, order]
        self.packed[block] = found.cpu().numpy()

    def _weights(
        self, block: int, module: nn.Module, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, factor: float
    ) -> torch.Tensor:
        """(view or window, token, token) uint8; every token sees all others without a mask."""
        tokens = query.shape[2]
        if mask is None:
            mask = torch.ones(1, 1, 1, tokens, dtype=torch.bool, device=query.device).expand(1, 1, tokens, tokens)
        seen = BlockAttention(block, module, query, key, key, mask, factor, None, query)
        made = packed_map(seen, torch.full((len(query),), tokens, device=query.device), self.request.fusion)
        off = float(made.off.max())
        if off > TOLERANCE:
            raise CaptureError(
                f"expected attention rows of the vision tower that sum to 1, found one in block {block} that is {off:.3g} off; report this "
                "with the model's name"
            )
        return made.weights
