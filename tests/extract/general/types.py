"""How the tiny model of each type differs from what `tests.extract.general.tiny` makes of its configuration class."""

from __future__ import annotations

from tests.extract.general.tiny import Tiny

_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_GLM = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
_SQUARE = {"height": 56, "width": 56}

TYPES: dict[str, Tiny] = {
    "qwen2_vl": Tiny({"text_config.rope_parameters": _ROPE}),
    "qwen2_5_vl": Tiny({"text_config.rope_parameters": _ROPE}),
    "paddleocr_vl": Tiny({"text_config.rope_parameters": _ROPE}),
    "qwen3_vl": Tiny({"vision_config.deepstack_visual_indexes": [0, 1]}),
    "qwen3_vl_moe": Tiny({"vision_config.deepstack_visual_indexes": [0, 1]}, processor="Qwen2VLImageProcessor"),
    "cosmos3_omni": Tiny({"vision_config.deepstack_visual_indexes": [0, 1]}),
    "glm46v": Tiny({"text_config.rope_parameters": _GLM}),
    "glmga": Tiny({"text_config.rope_parameters": _GLM}),
    "glm4v": Tiny({"text_config.rope_parameters": _GLM}),
    "glm4v_moe": Tiny({"text_config.rope_parameters": _GLM}, processor="Glm4vImageProcessor"),
    "glm_ocr": Tiny({"text_config.rope_parameters": _GLM}, processor="Glm46VImageProcessor"),
    "gemma3": Tiny({"mm_tokens_per_image": 4}),
    "shieldgemma2": Tiny({"mm_tokens_per_image": 4}),
    "idefics3": Tiny(images={"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}}),
    "smolvlm": Tiny(images={"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}}),
    "internvl": Tiny({"vision_config.image_size": [56, 56]}, images={"size": _SQUARE}),
    "qianfan_ocr": Tiny({"vision_config.image_size": [56, 56]}, images={"size": _SQUARE}),
    "paligemma": Tiny({"projection_dim": 64, "vision_config.projection_dim": 64}),
    "qwen2_5_omni_thinker": Tiny({"text_config.rope_parameters": _ROPE}, processor="Qwen2VLImageProcessor"),
    "qwen3_omni_moe_thinker": Tiny(
        {"text_config.rope_parameters": _ROPE, "vision_config.deepstack_visual_indexes": [0, 1]}, processor="Qwen2VLImageProcessor"
    ),
    "aria": Tiny({"vision_config.image_size": 490, "vision_config.patch_size": 14}, images={"max_image_size": 490}),
    "llava_onevision": Tiny({"vision_config.image_size": 56, "vision_config.patch_size": 14}),
    "vipllava": Tiny({"vision_feature_layers": [-1, -2]}),
    "molmo2": Tiny(),
    "step3p7": Tiny({"text_config.sliding_window": 12}),
}
