"""Model inputs by family: pixels from its own processor, positions, token types and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from qwen_vl_utils import fetch_image

from stratascope.extract.families.patch_grid import ImageRule, PatchGrid
from stratascope.extract.families.tiling import CanvasTiles, SplitTiles

_KEPT = ("pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask")
"""Outputs of image processors that models accept."""


@dataclass(frozen=True)
class PreparedImages:
    """Images as model inputs."""

    tensors: dict[str, torch.Tensor]
    """Keyword of the model's forward -> tensor."""
    cuts: tuple[tuple[int, ...], ...]
    """Tiling or size of each image, to compare with `cut` of the plan."""


def prepare_image(processor: Any, rule: ImageRule, image: Image.Image) -> PreparedImages:
    """Process one image with the family's processor; images for Qwen are resized by qwen_vl_utils first."""
    if isinstance(rule, PatchGrid):
        width, height = rule.resize(*image.size)
        size = {"resized_width": width, "resized_height": height}
        resized = fetch_image({"image": image, **size}, image_patch_size=rule.patch)
        made = processor(images=[resized], return_tensors="pt", do_resize=False)
        cut = made["image_grid_thw"][0, 1:]
    elif isinstance(rule, SplitTiles):
        made = processor(images=[[image]], return_tensors="pt", return_row_col_info=True)
        cut = [made["rows"][0][0], made["cols"][0][0]]
    else:
        made = processor(images=[image], return_tensors="pt", **rule.options)
        if "image_sizes" in made:
            cut = made["image_sizes"][0]
        else:
            cut = made["num_patches"] if isinstance(rule, CanvasTiles) else made["pixel_values"].shape[-2:]
    return PreparedImages({name: made[name] for name in _KEPT if name in made}, (tuple(int(n) for n in cut),))


def joined(prepared: Sequence[PreparedImages]) -> PreparedImages:
    """Concatenate images; missing tiles are padded with empty ones, which the models ignore."""
    tensors = {}
    for name in prepared[0].tensors:
        parts = [images.tensors[name] for images in prepared]
        if name in ("pixel_values", "pixel_attention_mask") and parts[0].ndim >= 4 and len({part.shape[1] for part in parts}) > 1:
            most = max(part.shape[1] for part in parts)
            parts = [torch.cat([part, part.new_zeros(part.shape[0], most - part.shape[1], *part.shape[2:])], 1) for part in parts]
        tensors[name] = torch.cat(parts)
    return PreparedImages(tensors, tuple(cut for images in prepared for cut in images.cuts))


def forward_inputs(model: Any, ids: torch.Tensor, lengths: torch.Tensor, images: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keywords of a forward pass over right-padded prompts with one image each.

    With causal attention, padding on the right needs no mask; the bidirectional prompts of PaliGemma are masked.

    Parameters
    ----------
    model
        A model of a known family.
    ids, lengths
        (batch, token) and (batch,).
    images
        As `PreparedImages.tensors`.
    """
    family = model.config.model_type
    kinds = (ids == model.config.image_token_id).int()
    real = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
    made = {"input_ids": ids, **images}
    if family.startswith("qwen"):
        made["position_ids"], _ = model.model.get_rope_index(
            ids, mm_token_type_ids=kinds, image_grid_thw=images["image_grid_thw"], attention_mask=real
        )
        made["mm_token_type_ids"] = kinds
    elif family == "gemma3":  # bidirectional attention among image tokens
        made["token_type_ids"] = kinds.long()
    elif family == "paligemma":
        made |= {"token_type_ids": torch.zeros_like(ids), "attention_mask": real}
    return made
