"""Tiny random models of any image-text-to-text type, from its configuration class, and inputs from its image processor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

VOCABULARY = 1024
SMALL = {
    "num_hidden_layers": 4,
    "num_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "depth": 2,
    "embed_dim": 32,
    "num_heads": 2,
    "head_dim": 16,
    "out_hidden_size": 64,
    "image_size": 56,
    "projector_hidden_size": 64,
    "n_group": 1,
    "topk_group": 1,
    "text_hidden_size": 64,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "projection_hidden_size": 64,
    "projection_dim": 64,
    "sliding_window": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Sizes of every part of a configuration that has the field."""
FIRST_ID = 5
"""Ids from here on are the special tokens of a configuration, such as the image token."""


@dataclass(frozen=True)
class Tiny:
    """How the tiny model of a type differs from what the rules of this module make of its configuration class."""

    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration, of parts by dots."""
    create: dict[str, Any] = field(default_factory=dict)
    """Arguments of the configuration class."""
    images: dict[str, Any] = field(default_factory=dict)
    """Settings of the image processor."""
    processor: str = ""
    """Class of the image processor, where transformers names none."""
    features: int | None = None
    """Image tokens of an image; None: those that the vision tower returns."""


def config_of(name: str, tiny: Tiny) -> Any:
    """The configuration of a tiny model."""
    made = hf.CONFIG_MAPPING[name](**tiny.create)
    _shrink(made, {})
    for path, value in tiny.config.items():
        part, *rest = path.split(".")
        owner = made
        for following in rest:
            owner, part = getattr(owner, part), following
        setattr(owner, part, value)
    return made


def _shrink(config: Any, ids: dict[str, int]) -> None:
    parts = [part for part in vars(config).values() if isinstance(part, hf.PretrainedConfig)]
    for part in parts:
        _shrink(part, ids)
    for name, value in SMALL.items():
        if isinstance(_plain(config, name), int):
            setattr(config, name, value)
    if isinstance(_plain(config, "qk_rope_head_dim"), int):  # multi-head latent attention
        config.head_dim, config.num_key_value_heads = 8, SMALL["num_attention_heads"]
    for name in dir(config):
        if name.endswith(("_token_id", "_token_index", "_patch_id")) and name not in SMALL and isinstance(_plain(config, name), int):
            setattr(config, name, ids.setdefault(name.replace("_index", "_id"), FIRST_ID + len(ids)))
    if isinstance(_plain(config, "image_size"), int) and isinstance(patch := _plain(config, "patch_size"), int):
        config.image_size = 4 * patch
    rope = _plain(config, "rope_parameters")
    if isinstance(rope, dict) and "mrope_section" in rope:
        config.rope_parameters = {**rope, "mrope_section": [1, 1, 2] if rope.get("partial_rotary_factor", 1) < 1 else [2, 3, 3]}
    layers = _plain(config, "num_hidden_layers")
    for name in ("layer_types", "mlp_layer_types"):
        if isinstance(found := _plain(config, name), list):
            setattr(config, name, found[:layers])


def _plain(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # fields that differ by layer
        return None


def build(name: str, tiny: Tiny, attention: str = "eager") -> Any:
    """A model with random weights, large enough that attention is far from uniform."""
    torch.manual_seed(0)
    model = hf.AutoModelForImageTextToText.from_config(config_of(name, tiny), attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim >= 2:
                weight.copy_(drawn if "embed_tokens" in path else drawn * 1.2 / weight[0].numel() ** 0.5)
            elif path.endswith("bias"):
                weight.copy_(0.1 * drawn)
            elif path.endswith(("q_norm.weight", "k_norm.weight")):
                weight.sub_(0.5)  # scores of hundreds would round the weights of two kernels apart by more than 1e-5
            elif path.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
                weight.add_(0.3 * drawn.abs())
    return model


def image_processor(name: str, tiny: Tiny) -> Any:
    """The type's image processor, for images of the tiny vision tower's size."""
    known = IMAGE_PROCESSOR_MAPPING_NAMES.get(name)
    known = next(iter(known.values())) if isinstance(known, dict) else known
    kind = (tiny.processor or str(known)).removesuffix("Pil")
    made = getattr(hf, kind)(**tiny.images)
    vision = next((part for part in vars(config_of(name, tiny)).values() if hasattr(part, "patch_size")), None)
    side, patch, size = _plain(vision, "image_size"), _plain(vision, "patch_size"), dict(_plain(made, "size") or {})
    settings: dict[str, Any] = {}
    if isinstance(side, int) and size.get("height"):
        settings["size"] = {"height": side, "width": side}
    if isinstance(side, int) and size.get("shortest_edge") and _plain(made, "crop_size"):
        settings |= {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    if isinstance(patch, int) and isinstance(_plain(made, "patch_size"), int):
        settings["patch_size"] = patch
    return getattr(hf, kind)(**{**settings, **tiny.images})


def photo(seed: int, width: int = 120, height: int = 80) -> Image.Image:
    """An image of coarse noise."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


def words(count: int, seed: int) -> list[int]:
    """Ids of random words."""
    return [int(k) for k in np.random.default_rng(seed).integers(200, VOCABULARY, count)]
