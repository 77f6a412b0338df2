"""What a family's model is given: pixels as its own processor makes them, positions, token types and masks."""

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
"""What the models take of what image processors give."""


@dataclass(frozen=True)
class PreparedImages:
    """Images as a model is given them."""

    tensors: dict[str, torch.Tensor]
    """Keyword of the model's forward -> tensor."""
    cuts: tuple[tuple[int, ...], ...]
    """How the processor cut each image, to be compared with the plan's `cut`."""


def prepare_image(processor: Any, rule: ImageRule, image: Image.Image) -> PreparedImages:
    """One image through its family's processor; Qwen's are resized by qwen_vl_utils, so that the processor need not resize again."""
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
    """Images after one another; where they have different numbers of tiles, empty ones are added, which the models leave out."""
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

    Causal attention never sees the padding, so that no mask is needed; PaliGemma's prompts see each other's every token, and are masked.

    Parameters
    ----------
    model
        Of one of the families.
    ids, lengths
        (batch, token) and (batch,).
    images
        As of `PreparedImages.tensors`.
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
    elif family == "gemma3":  # image tokens see each other
        made["token_type_ids"] = kinds.long()
    elif family == "paligemma":
        made |= {"token_type_ids": torch.zeros_like(ids), "attention_mask": real}
    return made
