"""Which patches of the vision tower each image token is made of, from the image size alone. No torch.

A tower attends within views: the whole image, or tiles of it. A projector makes each image token of one patch or of a square of patches
of one view. A family whose image tokens are made otherwise is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.datasets.boxes import Box
from stratascope.errors import InvalidInputError
from stratascope.extract.families.config_defaults import vision_config
from stratascope.extract.families.general_family import PATCHED, ProcessorRule
from stratascope.extract.families.image_tokens import (
    AnyResolution,
    CanvasTiles,
    CroppedSquare,
    ImageRule,
    PatchGrid,
    SplitTiles,
    StretchedSquare,
)
from stratascope.extract.families.model_families import ModelShape
from stratascope.extract.model_files import ModelSource

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class View:
    """One input of the tower: the whole image, or a tile of it."""

    grid: tuple[int, int]
    """(rows, columns) of patches."""
    box: Box
    """x0, y0, x1, y1 of the patches, as shares of the width and height of what the image cells cover."""
    tokens: NDArray[np.int64]
    """(patch,) in raster order: number of the image token that a patch is part of, counted over all image tokens; -1: of none."""


class TowerViews:
    """Views and projector of a model's vision tower.

    Parameters
    ----------
    source
        The model.
    rule
        How its processor tiles images.
    shape
        The model's sizes.

    Raises
    ------
    InvalidInputError
        If it is unknown which patches an image token is made of, with the reason.
    """

    def __init__(self, source: ModelSource, rule: ImageRule, shape: ModelShape) -> None:
        self._source, self._rule, depth = source, rule, shape.vision_layers or shape.vision_depth
        self.of = lru_cache(maxsize=4096)(self._of)
        """(width, height) of an image in pixels -> its views."""
        name = str(source.config["model_type"])
        known = PatchGrid | CroppedSquare | AnyResolution | SplitTiles | CanvasTiles | StretchedSquare
        if not depth or not (isinstance(rule, known) or name in PATCHED):
            raise self._unknown("the patches of its image tokens are not known, or enter several decoder blocks (deepstack)")
        self._vision = vision_config(source.config, name)
        if name == "qwen3_vl" and self._vision.get("deepstack_visual_indexes", True):
            raise self._unknown("features of several blocks of its vision tower enter several decoder blocks (deepstack)")
        chosen = source.config.get("vision_feature_layer")
        if chosen is None:
            chosen = -2 if isinstance(rule, CroppedSquare | AnyResolution) else -1
        if not isinstance(chosen, int):
            raise self._unknown(f"its image tokens are made of several blocks of the vision tower, vision_feature_layer {chosen}")
        self.blocks = chosen if chosen >= 0 else depth + 1 + chosen
        """Blocks of the tower before the features are taken."""
        self._windowed = sum(block not in shape.vision_whole for block in range(self.blocks)) if shape.vision_layers else 0
        if not 1 <= self.blocks <= depth:
            raise self._unknown(f"its image tokens are taken before the first block, vision_feature_layer {chosen}")
        self.class_tokens = int(self._vision["model_type"] in ("clip_vision_model", "internvl_vision", "internvl"))
        """Tokens of a view before its patches."""
        kept = source.config.get("vision_feature_select_strategy") or "default"
        if isinstance(rule, CroppedSquare | AnyResolution | CanvasTiles) and (kept == "default") != bool(self.class_tokens):
            raise self._unknown(f"vision_feature_select_strategy {kept!r} does not leave out the class token alone")

    def sizes(self, images: Iterable[tuple[int, int]]) -> dict[str, Any]:
        """Fields of a store's layout, from (width, height) of all images with maps."""
        views = [self.of(*size) for size in set(images)]
        return {
            "vision_blocks": self.blocks,
            "vision_views": max(map(len, views)),
            "vision_tokens": self.class_tokens + max(math.prod(view.grid) for each in views for view in each),
            "vision_class_tokens": self.class_tokens,
        }

    def weights(self, sizes: Iterable[tuple[int, int]], held: Sequence[bool] | NDArray[np.bool_]) -> NDArray[np.int64]:
        """(image,) attention weights of images with these sizes that are not zero: within windows, where there are any; 0 if not held."""
        return np.array([self._weights(*size) if kept else 0 for size, kept in zip(sizes, held, strict=True)])

    def parents(self, ids: NDArray[np.integer], image_id: int, size: tuple[int, int]) -> NDArray[np.int32]:
        """(view, token) prompt token that each token of the tower is part of; -1: none.

        Parameters
        ----------
        ids
            (token,) of the prompt.
        image_id
            Id of the image token.
        size
            (width, height) of the image in pixels.
        """
        own, first = np.append(np.flatnonzero(ids == image_id), -1), np.full(self.class_tokens, -1)
        return np.stack([np.concatenate([first, own[view.tokens]]) for view in self.of(*size)]).astype(np.int32)

    def _weights(self, width: int, height: int) -> int:
        window = (int(self._vision.get("window_size", 112)) // int(self._vision.get("patch_size", 14))) ** 2 if self._windowed else 0
        tokens = [self.class_tokens + math.prod(view.grid) for view in self.of(width, height)]
        return sum(n * ((self.blocks - self._windowed) * n + self._windowed * min(n, window)) for n in tokens)

    def _of(self, width: int, height: int) -> tuple[View, ...]:
        rule = self._rule
        if isinstance(rule, AnyResolution):
            return self._any_resolution(rule, width, height)
        image = rule.tokens(width, height)
        if isinstance(rule, SplitTiles | CanvasTiles):
            rows, columns = rule.tiles(width, height)
            tiles, side = sum(image.runs) // rule.cells**2 - 1, self._side
            boxes = [(c / columns, r / rows, (c + 1) / columns, (r + 1) / rows) for r in range(rows) for c in range(columns)][:tiles]
            return tuple(
                View((side, side), box, k * rule.cells**2 + _merged((side, side), (rule.cells, rule.cells)))
                for k, box in enumerate([*boxes, WHOLE])
            )
        if isinstance(rule, ProcessorRule):
            grid, count = image.patches or (0, 0), sum(image.runs)
            merge = math.isqrt(math.prod(grid) // count)
            cells = grid[0] // max(merge, 1), grid[1] // max(merge, 1)
            if not merge or math.prod(cells) != count or (cells[0] * merge, cells[1] * merge) != grid:
                raise self._unknown(f"its processor makes {count} image tokens of {grid[0]} x {grid[1]} patches")
            return (View(grid, WHOLE, _merged(grid, cells)),)
        merge = rule.merge if isinstance(rule, PatchGrid) else self._side // image.grid[0]
        grid = image.grid[0] * merge, image.grid[1] * merge
        return (View(grid, WHOLE, _merged(grid, image.grid)),)

    @property
    def _side(self) -> int:
        """Patches along the side of a square view."""
        patch = self._vision["patch_size"]
        return int(getattr(self._rule, "side", 0)) // int(patch if isinstance(patch, int) else patch[0])

    def _any_resolution(self, rule: AnyResolution, width: int, height: int) -> tuple[View, ...]:
        """The square, then the tiles of the padded image; the padding's patches are part of no token, and a token follows each row."""
        side = rule.side // rule.patch
        tall, wide = rule.canvas(width, height)
        rows, columns = tall // rule.side * side, wide // rule.side * side
        kept_rows, kept_columns = rule.tiled(width, height)
        top, left = (rows - kept_rows) // 2, (columns - kept_columns) // 2
        tokens = np.full((rows, columns), -1, np.int64)
        places = np.arange(kept_rows)[:, None] * (kept_columns + 1) + np.arange(kept_columns)
        tokens[top : top + kept_rows, left : left + kept_columns] = side * side + places
        scale = min(wide / width, tall / height)
        x, y = (wide - width * scale) / 2, (tall - height * scale) / 2
        views = [View((side, side), WHOLE, _merged((side, side), (side, side)))]
        for r in range(0, rows, side):
            for c in range(0, columns, side):
                corners = [((k + d) * rule.patch - at) / scale for k, d, at in ((c, 0, x), (r, 0, y), (c, side, x), (r, side, y))]
                box = (corners[0] / width, corners[1] / height, corners[2] / width, corners[3] / height)
                views.append(View((side, side), box, tokens[r : r + side, c : c + side].ravel()))
        return tuple(views)

    def _unknown(self, reason: str) -> InvalidInputError:
        kind = self._source.config.get("model_type")
        return InvalidInputError(
            f"{self._source.name}: expected a model whose image tokens are each made of known patches of the vision tower for vision_maps, "
            f"found model_type {kind!r}: {reason}; leave vision_maps out of `record`"
        )


def _merged(patches: tuple[int, int], cells: tuple[int, int]) -> NDArray[np.int64]:
    """(patch,) number of the cell of each patch, both in raster order.

    Examples
    --------
    >>> _merged((2, 4), (1, 2)).tolist()
    [0, 0, 1, 1, 0, 0, 1, 1]
    """
    rows, columns = (np.arange(n) // (n // m) for n, m in zip(patches, cells, strict=True))
    return np.asarray((rows[:, None] * cells[1] + columns).ravel(), np.int64)
