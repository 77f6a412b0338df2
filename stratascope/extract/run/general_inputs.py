"""Inputs of a forward pass for types without a family of their own: any outputs of the processor, and what follows from the token ids."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from stratascope.errors import InvalidInputError

BY_TOKEN = frozenset(
    {
        "input_ids",
        "attention_mask",
        "cross_attention_mask",
        "token_type_ids",
        "mm_token_type_ids",
        "labels",
        "position_ids",
        "special_tokens_mask",
    }
)
"""Outputs of processors by token, which a batch of prompts makes anew; all others belong to the images."""
_IMAGE_IDS = ("image_token_id", "image_token_index", "image_patch_id", "media_placeholder_token_id")


def image_token_id(config: Any) -> int:
    """Id of the token that the model replaces by image features.

    Raises
    ------
    InvalidInputError
        If the configuration does not name it.
    """
    for name in _IMAGE_IDS:
        found = getattr(config, name, None)
        if isinstance(found, int) and found >= 0:
            return found
    raise InvalidInputError(
        f"expected a configuration with one of {', '.join(_IMAGE_IDS)}, found {type(config).__name__} without: the place of the image in "
        "the prompt is unknown; use another model"
    )


def image_tensors(made: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Outputs of a processor for one prompt and image that belong to the image."""
    found = {}
    for name, values in made.items():
        if name in BY_TOKEN:
            continue
        if isinstance(values, list):
            try:
                values = torch.as_tensor(values)
            except (TypeError, ValueError, RuntimeError):
                continue
        if isinstance(values, torch.Tensor):
            found[name] = values
    return found


def general_inputs(model: Any, ids: torch.Tensor, lengths: torch.Tensor, images: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Keywords of a forward pass over right-padded prompts with one image each.

    Parameters
    ----------
    model
        The model.
    ids, lengths
        (batch, token) and (batch,).
    images
        Outputs of the processor that belong to the images.
    """
    known = inspect.signature(model.forward).parameters
    real = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
    kinds = (ids == image_token_id(model.config)).long()
    made = {"input_ids": ids, "attention_mask": real, **{name: values for name, values in images.items() if name in known}}
    if "cross_attention_mask" in known and "aspect_ratio_mask" in images:  # Mllama: tokens from the image token on attend to its tiles
        tiles = images["aspect_ratio_mask"].to(ids.device)
        made["cross_attention_mask"] = kinds.cummax(1).values[:, :, None, None] * tiles[:, None]
    needed = {name: None for name, each in known.items() if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD}
    return {**needed, **made, **{name: kinds for name in ("token_type_ids", "mm_token_type_ids") if name in known}}
