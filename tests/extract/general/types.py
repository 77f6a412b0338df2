"""How the tiny model of each type differs from what `tests.extract.general.tiny` makes of its configuration class."""

from __future__ import annotations

from tests.extract.general.tiny import Tiny

_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
_GLM = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2], "partial_rotary_factor": 0.5}
_PINPOINTS = [[56, 56], [56, 112], [112, 56]]
_IDEFICS = {"vision_config.patch_size": 14, "vision_config.image_size": 56}
_VISION_TOKENS = {"vision_start_token_id": 9, "vision_end_token_id": 10}
_MINI = {"image_token_id": 5}
_GEMMA4 = {"hidden_size_per_layer_input": 0, "num_hidden_layers": 4, "head_dim": 16, "global_head_dim": 32}
_SQUARE = {"height": 56, "width": 56}

TYPES: dict[str, Tiny] = {
    "aria": Tiny({"vision_config.image_size": 490, "vision_config.patch_size": 14}, images={"max_image_size": 490}),
    "aya_vision": Tiny(),
    "cohere2_vision": Tiny(),
    "cohere_compass": Tiny(
        {
            "vision_config.deepstack_visual_indexes": [0, 1],
            "text_config.rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _ROPE),
        }
    ),
    "cosmos3_edge": Tiny(),
    "cosmos3_omni": Tiny({"vision_config.deepstack_visual_indexes": [0, 1]}),
    "deepseek_vl": Tiny(),
    "deepseek_vl_hybrid": Tiny(images={"high_res_size": {"height": 64, "width": 64}}),
    "ernie4_5_vl_moe": Tiny({"text_config.rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}}),
    "exaone4_5": Tiny(),
    "gemma3": Tiny({"mm_tokens_per_image": 4}),
    "gemma4": Tiny(create={"vision_config": {}, "text_config": _GEMMA4}),
    "gemma4_unified": Tiny(create={"vision_config": {}, "text_config": _GEMMA4}),
    "glm46v": Tiny({"text_config.rope_parameters": _GLM}),
    "glm4v": Tiny({"text_config.rope_parameters": _GLM}),
    "glm4v_moe": Tiny({"text_config.rope_parameters": _GLM}, processor="Glm4vImageProcessor"),
    "glm_ocr": Tiny({"text_config.rope_parameters": _GLM}, processor="Glm46VImageProcessor"),
    "glmga": Tiny({"text_config.rope_parameters": _GLM}),
    "got_ocr2": Tiny(),
    "granite_docling": Tiny(),
    "hyperclovax_vision_v2": Tiny(),
    "idefics2": Tiny(),
    "idefics3": Tiny(_IDEFICS, images={"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}}),
    "internvl": Tiny({"vision_config.image_size": [56, 56]}, images={"size": _SQUARE}),
    "janus": Tiny(),
    "kimi_k25": Tiny(),
    "lfm2_vl": Tiny(),
    "lfm3_vl": Tiny(),
    "lighton_ocr": Tiny(),
    "llava": Tiny(),
    "llava_next": Tiny(),
    "llava_next_video": Tiny(),
    "llava_onevision": Tiny(
        {"vision_config.image_size": 56, "vision_config.patch_size": 14, "image_grid_pinpoints": _PINPOINTS},
        images={"size": _SQUARE, "image_grid_pinpoints": _PINPOINTS},
    ),
    "minicpm_ocr": Tiny(_MINI),
    "minicpmv4_6": Tiny(_MINI),
    "minicpmv4_7": Tiny(_MINI),
    "minimax_m3_vl": Tiny({"merged_hidden_size": 256}),
    "mistral3": Tiny(),
    "molmo2": Tiny({"adapter_config.vision_feature_layer": [-1, -2]}),
    "muse_glimmer": Tiny({"vision_config.out_hidden_size": 256, "out_hidden_size": 256}),
    "muse_spark": Tiny({"text_config.qk_scale_factor": 0.5, "vision_config.out_hidden_size": 256, "out_hidden_size": 256}),
    "ovis2": Tiny(),
    "paddleocr_vl": Tiny({"text_config.rope_parameters": _ROPE}),
    "paligemma": Tiny(),
    "pp_chart2table": Tiny(),
    "qianfan_ocr": Tiny({"vision_config.image_size": [56, 56]}, images={"size": _SQUARE}),
    "qwen2_5_omni_thinker": Tiny({"text_config.rope_parameters": _ROPE, **_VISION_TOKENS}, processor="Qwen2VLImageProcessor"),
    "qwen2_5_vl": Tiny({"text_config.rope_parameters": _ROPE}),
    "qwen2_vl": Tiny({"text_config.rope_parameters": _ROPE}),
    "qwen3_5": Tiny(),
    "qwen3_5_moe": Tiny(),
    "qwen3_omni_moe_thinker": Tiny(
        {"text_config.rope_parameters": _ROPE, "vision_config.deepstack_visual_indexes": [0, 1], **_VISION_TOKENS},
        processor="Qwen2VLImageProcessor",
    ),
    "qwen3_vl": Tiny({"vision_config.deepstack_visual_indexes": [0, 1]}),
    "qwen3_vl_moe": Tiny({"vision_config.deepstack_visual_indexes": [0, 1]}, processor="Qwen2VLImageProcessor"),
    "shieldgemma2": Tiny({"mm_tokens_per_image": 4}),
    "smolvlm": Tiny(_IDEFICS, images={"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}}),
    "step3p7": Tiny({"text_config.sliding_window": 12}),
    "video_llama_3": Tiny(),
    "video_llava": Tiny(),
    "vipllava": Tiny({"vision_feature_layers": [-1, -2]}),
}
"""Types whose residual stream, attention rows, answers and padding are proved."""

RESIDUALS: dict[str, Tiny] = {"mistral_large4": Tiny()}
"""Types whose residual stream and answers are proved, and whose attention is another than a softmax over all tokens."""

UNPROVED: dict[str, str] = {
    "apertus1p5": "images become tokens of the vocabulary",
    "blip-2": "its configuration does not name the image token",
    "chameleon": "images become tokens of the vocabulary",
    "deepseek_ocr2": "not checked: its configuration class has no defaults to build a small model from",
    "dots3_note": "not checked: attention over an index of tokens",
    "emu3": "images become tokens of the vocabulary",
    "fast_vlm": "not checked: it needs the package timm",
    "fuyu": "image patches enter without an image token",
    "granite4_vision": "not checked: its image features enter at several blocks",
    "hunyuan_vl": "a batch differs from single examples",
    "inkling2": "not checked: no registered attention function",
    "inkling2_loop": "not checked: no registered attention function",
    "inkling_mm_model": "not checked: no registered attention function",
    "instructblip": "its image features depend on the prompt",
    "kosmos-2": "its configuration does not name the image token",
    "kosmos-2.5": "its configuration does not name the image token",
    "llama4": "its forward pass with images fails in transformers 5.24",
    "nemotron_h_omni": "not checked: blocks of one kind each, most without attention",
    "perception_lm": "not checked: it needs the package timm",
    "qwen4_exp": "not checked: attention over an index of tokens",
    "unlimited_ocr": "not checked: its vision tower cannot be made small",
}
"""Types that are tried like any other, and why no proof is in the table."""
