"""What Stratascope must know of a model family: its sizes, and how an image becomes tokens. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stratascope.errors import InvalidInputError
from stratascope.extract.sources import ModelSource

FAMILIES = ("qwen2_5_vl", "qwen2_vl")
"""Values of `model_type` in config.json that can be extracted."""

_MAX_ASPECT = 200


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the decoder and the vision tower."""

    layers: int
    hidden: int
    heads: int
    head_dim: int
    context: int
    """Longest sequence in tokens."""
    vision_layers: int
    """Blocks of the vision tower."""
    vision_hidden: int
    dtype: str
    """In which the weights are stored."""


@dataclass(frozen=True)
class ImageGrid:
    """How Qwen's processor cuts an image: patches of `patch` pixels, merged `merge` x `merge` into one cell = one token."""

    patch: int
    merge: int
    min_pixels: int
    max_pixels: int

    @property
    def cell(self) -> int:
        """Pixels along a side of a cell of the resized image."""
        return self.patch * self.merge

    def resize(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) that the model sees: multiples of a cell, within the limits, the aspect ratio nearly kept.

        The rule is that of Qwen's processor, so that the number of tokens is known without running it.
        """
        if max(width, height) > _MAX_ASPECT * min(width, height):
            raise InvalidInputError(f"expected an image of aspect ratio at most {_MAX_ASPECT}, found {width} x {height}")
        cell = self.cell
        new_height, new_width = (max(cell, round(v / cell) * cell) for v in (height, width))
        if new_height * new_width > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            new_height, new_width = (max(cell, math.floor(v / shrink / cell) * cell) for v in (height, width))
        elif new_height * new_width < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            new_height, new_width = (math.ceil(v * grow / cell) * cell for v in (height, width))
        return new_width, new_height

    def cells(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of image tokens for an image file of that size."""
        new_width, new_height = self.resize(width, height)
        return new_height // self.cell, new_width // self.cell


def check_family(source: ModelSource) -> str:
    """The model's family, or a refusal that lists those that can be extracted."""
    family = str(source.config.get("model_type"))
    if family not in FAMILIES:
        raise InvalidInputError(
            f"{source.name}: expected a model of one of the families {', '.join(FAMILIES)}, found model_type {family!r}"
        )
    return family


def model_shape(source: ModelSource) -> ModelShape:
    """Read the model's sizes from config.json, whether they stand at its top (older files) or in `text_config`."""
    check_family(source)
    vision = source.config.get("vision_config") or {}
    text = {**source.config, **(source.config.get("text_config") or {})}
    try:
        return ModelShape(
            layers=int(text["num_hidden_layers"]),
            hidden=int(text["hidden_size"]),
            heads=int(text["num_attention_heads"]),
            head_dim=int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]),
            context=int(text["max_position_embeddings"]),
            vision_layers=int(vision["depth"]),
            vision_hidden=int(vision["embed_dim"] if "embed_dim" in vision else vision["hidden_size"]),
            dtype=str(source.config.get("dtype") or source.config.get("torch_dtype") or text.get("dtype") or "float32"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{source.name}: expected the sizes of decoder and vision tower in config.json, missing or wrong: {error}"
        ) from error


def image_grid(source: ModelSource, max_pixels: int | None = None) -> ImageGrid:
    """Read how images are cut from the processor's settings; `max_pixels` replaces the processor's own limit."""
    settings = source.processor_config
    size = settings.get("size") or {}
    try:
        grid = ImageGrid(
            patch=int(settings["patch_size"]),
            merge=int(settings["merge_size"]),
            min_pixels=int(settings.get("min_pixels") or size["shortest_edge"]),
            max_pixels=int(max_pixels or settings.get("max_pixels") or size["longest_edge"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{source.name}: expected patch_size, merge_size and pixel limits in the processor's settings, missing: {error}"
        ) from error
    if grid.max_pixels < grid.min_pixels:
        raise InvalidInputError(
            f"expected at least {grid.min_pixels} pixels (the processor's lower limit), found --max-pixels {grid.max_pixels}"
        )
    return grid
