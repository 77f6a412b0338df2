"""Defaults of transformers' configuration classes that published files omit. No torch.

`tests/extract/test_config_defaults.py` compares every value with the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT_FIELDS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim", "max_position_embeddings")
TEXT_DEFAULTS: dict[str, tuple[int, int, int, int | None, int]] = {
    "llama": (32, 4096, 32, None, 2048),
    "mistral": (32, 4096, 32, None, 131072),
    "gemma": (28, 3072, 16, 256, 8192),
    "gemma2": (26, 2304, 8, 256, 8192),
    "gemma3_text": (26, 2304, 8, 256, 131072),
    "qwen2": (32, 4096, 32, None, 32768),
    "qwen3": (32, 4096, 32, 128, 32768),
    "qwen2_vl_text": (80, 8192, 64, None, 32768),
    "qwen2_5_vl_text": (80, 8192, 64, None, 32768),
    "qwen3_vl_text": (32, 4096, 32, 128, 128000),
}
"""`model_type` of the text model -> `TEXT_FIELDS`."""

VISION_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen2_vl": {"depth": 32, "embed_dim": 1280},
    "qwen2_5_vl": {"depth": 32, "hidden_size": 3584, "fullatt_block_indexes": (7, 15, 23, 31)},
    "qwen3_vl": {"depth": 27, "hidden_size": 1152},
    "clip_vision_model": {"image_size": 224, "patch_size": 32, "num_hidden_layers": 12, "hidden_size": 768},
    "siglip_vision_model": {"image_size": 224, "patch_size": 16, "num_hidden_layers": 12, "hidden_size": 768},
    "gemma3": {"num_hidden_layers": 12, "hidden_size": 768},
    "idefics3": {"num_hidden_layers": 12, "hidden_size": 1152},
    "smolvlm": {"num_hidden_layers": 12, "hidden_size": 1152},
    "internvl": {"num_hidden_layers": 24, "hidden_size": 1024},
}
"""`model_type` of the vision tower -> the fields that planning reads."""

_LLAVA = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "num_hidden_layers": 24, "hidden_size": 1024}
TOWERS: dict[str, dict[str, Any]] = {
    "llava": _LLAVA,
    "llava_next": _LLAVA,
    "paligemma": {"model_type": "siglip_vision_model", "image_size": 224, "patch_size": 14, "num_hidden_layers": 27, "hidden_size": 1152},
}
"""Family -> vision tower of a config.json without `vision_config`."""

_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
MODEL_DEFAULTS: dict[str, dict[str, Any]] = {
    "llava_next": {"image_grid_pinpoints": _PINPOINTS},
    "gemma3": {"mm_tokens_per_image": 256, "boi_token_index": 255999, "eoi_token_index": 256000},
}
"""Family -> further fields of config.json that planning reads."""

_SQUARE = {"height": 224, "width": 224}
_CROPPED = {"size": {"shortest_edge": 224}, "crop_size": _SQUARE, "do_center_crop": True}
_SPLIT = {"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}, "do_resize": True, "do_image_splitting": True}
IMAGE_PROCESSOR_DEFAULTS: dict[str, dict[str, Any]] = {
    "Qwen2VLImageProcessor": {"patch_size": 14, "merge_size": 2, "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}},
    "CLIPImageProcessor": {**_CROPPED},
    "LlavaImageProcessor": {**_CROPPED, "do_pad": False},
    "LlavaNextImageProcessor": {**_CROPPED, "image_grid_pinpoints": _PINPOINTS},
    "SiglipImageProcessor": {"size": _SQUARE},
    "Idefics3ImageProcessor": _SPLIT,
    "SmolVLMImageProcessor": _SPLIT,
    "Gemma3ImageProcessor": {"size": _SQUARE},
    "GotOcr2ImageProcessor": {"size": {"height": 384, "width": 384}, "min_patches": 1, "max_patches": 12},
}
"""Class of the image processor -> settings that planning reads."""

IMAGE_PROCESSORS = {
    "qwen2_vl": "Qwen2VLImageProcessor",
    "qwen2_5_vl": "Qwen2VLImageProcessor",
    "qwen3_vl": "Qwen2VLImageProcessor",
    "llava": "LlavaImageProcessor",
    "llava_next": "LlavaNextImageProcessor",
    "idefics3": "Idefics3ImageProcessor",
    "smolvlm": "SmolVLMImageProcessor",
    "gemma3": "Gemma3ImageProcessor",
    "internvl": "GotOcr2ImageProcessor",
    "paligemma": "SiglipImageProcessor",
}
"""Family -> class of its image processor, if the settings omit it."""


def text_config(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Sizes of the text model, with the defaults of its class.

    Parameters
    ----------
    config
        Its part of config.json.
    kind
        Its `model_type`.
    """
    usual = TEXT_DEFAULTS.get(kind)
    return {**(dict(zip(TEXT_FIELDS, usual, strict=True)) if usual else {}), **config}


def vision_config(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """`vision_config` of a config.json, with the defaults of its class."""
    given = config.get("vision_config")
    given = TOWERS.get(family, {}) if given is None else given
    usual_kind = TOWERS.get(family, {}).get("model_type", family)
    kind = given.get("model_type") or usual_kind
    return {"model_type": kind, **VISION_DEFAULTS.get(kind if kind in VISION_DEFAULTS else usual_kind, {}), **given}


def model_config(config: Mapping[str, Any], family: str) -> dict[str, Any]:
    """config.json with the defaults of the family's class."""
    return {**MODEL_DEFAULTS.get(family, {}), **config}


def image_processor_config(settings: Mapping[str, Any], family: str) -> dict[str, Any]:
    """Settings of the image processor with the defaults of its class; `null` means the default, as in transformers."""
    named = str(settings.get("image_processor_type") or "").removesuffix("Fast").removesuffix("Pil")
    kind = named if named in IMAGE_PROCESSOR_DEFAULTS else IMAGE_PROCESSORS[family]
    return {**IMAGE_PROCESSOR_DEFAULTS[kind], **{name: value for name, value in settings.items() if value is not None}}
