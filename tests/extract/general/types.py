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
_CROPPED = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}
_CODES = 16
"""Image tokens of the vocabularies of Chameleon, Emu3 and Apertus, from id 400 on."""
_CONVOLUTIONS = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "attn_resolutions": []}
_SAM = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "output_channels": 16,
    "downsample_channels": [32, 64],
    "global_attn_indexes": [1],
    "mlp_dim": 64,
}
_FASTVIT = {"layers": (1, 1, 1, 1), "embed_dims": (16, 16, 32, 64), "mlp_ratios": (1, 1, 1, 1)}
_PE = {"depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": (56, 56), "patch_size": 14, "global_pool": ""}


def _letters(number: int) -> str:
    """The number as Chameleon writes it: A for 0 to J for 9."""
    return "".join(chr(ord("A") + int(digit)) for digit in str(number))


TYPES: dict[str, Tiny] = {
    "apertus1p5": Tiny(
        create={
            "image_token_offset": 400,
            "audio_token_offset": 400 + _CODES,
            "text_config": {"vocab_size": 100_000},
            "vision_config": {**_CONVOLUTIONS, "codebook_size": _CODES},
        }
    ),
    "aria": Tiny({"vision_config.image_size": 490, "vision_config.patch_size": 14}, images={"max_image_size": 490}),
    "aya_vision": Tiny(),
    "blip-2": Tiny(
        {
            "qformer_config.encoder_hidden_size": 64,
            "num_query_tokens": 4,
            "image_token_index": 5,
            "text_config.word_embed_proj_dim": 64,
        }
    ),
    "chameleon": Tiny(
        create={
            "vocabulary_map": {"<image>": 5, **{f"IMGIMG{_letters(k)}Z": 400 + k for k in range(_CODES)}},
            "vq_config": {**_CONVOLUTIONS, "resolution": 64, "latent_channels": 32, "embed_dim": 32, "num_embeddings": _CODES},
        },
        images={"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}},
    ),
    "cohere2_vision": Tiny(),
    "cohere_compass": Tiny(
        {
            "vision_config.deepstack_visual_indexes": [0, 1],
            "text_config.rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), _ROPE),
        }
    ),
    "cosmos3_edge": Tiny(),
    "cosmos3_omni": Tiny({"vision_config.deepstack_visual_indexes": [0, 1]}),
    "deepseek_ocr2": Tiny(
        create={
            "text_config": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", *["sparse"] * 3], "num_hidden_layers": 4},
            "vision_config": {"sam_config": _SAM},
        },
        images={"size": {"height": 512, "width": 512}, "tile_size": 512},
    ),
    "deepseek_vl": Tiny(),
    "deepseek_vl_hybrid": Tiny(images={"high_res_size": {"height": 64, "width": 64}}),
    "emu3": Tiny(
        {"vq_config.hidden_size": 32},
        create={
            "vocabulary_map": {"<image>": 5, "<|extra_200|>": 8, **{f"<|visual token {k:06d}|>": 400 + k for k in range(_CODES)}},
            "vq_config": {**_CONVOLUTIONS, "codebook_size": _CODES},
        },
        images={"min_pixels": 1024, "max_pixels": 2048},
    ),
    "ernie4_5_vl_moe": Tiny({"text_config.rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]}}),
    "exaone4_5": Tiny(),
    "fast_vlm": Tiny(
        {"vision_config.hidden_size": 128},
        create={
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "fastvit_t8",
                "do_pooling": True,
                "global_pool": "avg",
                "model_args": _FASTVIT,
            }
        },
        images={"size": {"shortest_edge": 128}, "crop_size": {"height": 128, "width": 128}},
        processor="LlavaImageProcessor",
    ),
    "gemma3": Tiny({"mm_tokens_per_image": 4}),
    "gemma4": Tiny(create={"vision_config": {}, "text_config": _GEMMA4}),
    "gemma4_unified": Tiny(create={"vision_config": {}, "text_config": _GEMMA4}),
    "glm46v": Tiny({"text_config.rope_parameters": _GLM}),
    "glm4v": Tiny({"text_config.rope_parameters": _GLM}),
    "glm4v_moe": Tiny({"text_config.rope_parameters": _GLM}, processor="Glm4vImageProcessor"),
    "glm_ocr": Tiny({"text_config.rope_parameters": _GLM}, processor="Glm46VImageProcessor"),
    "glmga": Tiny({"text_config.rope_parameters": _GLM}),
    "got_ocr2": Tiny(),
    "granite4_vision": Tiny(
        {
            "text_config.attention_multiplier": 0.25,
            "qformer_config.encoder_hidden_size": 64,
            "vision_config.image_size": 64,
            "vision_config.patch_size": 16,
            "image_grid_pinpoints": [[64, 64], [64, 128], [128, 64]],
        },
        create={"downsample_rate": "1/2", "deepstack_layer_map": [(-2, 1), (-1, 2)], "spatial_target_layers": [0, 1, 2, 3]},
        images={**_CROPPED, "image_grid_pinpoints": [[64, 64], [64, 128], [128, 64]]},
    ),
    "granite_docling": Tiny(),
    "hunyuan_vl": Tiny(
        {"text_config.head_dim": 16, "text_config.rope_parameters": {**_ROPE, "mrope_section": [2, 2, 2, 2]}},
    ),
    "hyperclovax_vision_v2": Tiny(),
    "idefics2": Tiny(),
    "idefics3": Tiny(_IDEFICS, images={"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 56}}),
    "internvl": Tiny({"vision_config.image_size": [56, 56]}, images={"size": _SQUARE}),
    "janus": Tiny(),
    "kimi_k25": Tiny(),
    "lfm2_vl": Tiny(),
    "lfm3_vl": Tiny(),
    "lighton_ocr": Tiny(),
    "llama4": Tiny(
        {
            "vision_config.projector_input_dim": 64,
            "vision_config.projector_output_dim": 64,
            "vision_config.vision_output_dim": 64,
            "vision_config.intermediate_size": 256,
            "text_config.attention_chunk_size": 16,
        }
    ),
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
    "mllama": Tiny(
        {
            "text_config.cross_attention_layers": [1, 3],
            "vision_config.intermediate_layers_indices": [0, 1],
            "vision_config.num_global_layers": 2,
            "vision_config.attention_heads": 2,
            "vision_config.vision_output_dim": 192,
            "vision_config.image_size": 56,
        },
        images={"size": _SQUARE},
        features=1,
    ),
    "molmo2": Tiny({"adapter_config.vision_feature_layer": [-1, -2]}),
    "muse_glimmer": Tiny({"vision_config.out_hidden_size": 256, "out_hidden_size": 256}),
    "muse_spark": Tiny({"text_config.qk_scale_factor": 0.5, "vision_config.out_hidden_size": 256, "out_hidden_size": 256}),
    "nemotron_h_omni": Tiny(
        {"image_token_id": 5},
        create={
            "vision_hidden_size": 64,
            "projector_hidden_size": 64,
            "text_config": {
                "layers_block_type": ["linear_attention", "full_attention", "moe", "full_attention", "mlp"],
                "mamba_num_heads": 4,
                "mamba_head_dim": 16,
                "n_groups": 2,
                "ssm_state_size": 8,
                "moe_shared_expert_intermediate_size": 32,
            },
        },
    ),
    "ovis2": Tiny(),
    "paddleocr_vl": Tiny({"text_config.rope_parameters": _ROPE}),
    "paligemma": Tiny(),
    "perception_lm": Tiny(
        create={
            "vision_config": {
                "model_type": "timm_wrapper",
                "architecture": "vit_pe_core_tiny_patch16_384",
                "do_pooling": False,
                "global_pool": "",
                "model_args": _PE,
            }
        },
        images={"tile_size": 56, "max_num_tiles": 4},
    ),
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
    "unlimited_ocr": Tiny(
        {"text_config.num_key_value_heads": 4},
        create={"vision_config": {"sam_config": _SAM}},
        images={"size": {"height": 256, "width": 256}, "tile_size": 256},
    ),
    "video_llama_3": Tiny(),
    "video_llava": Tiny(),
    "vipllava": Tiny({"vision_feature_layers": [-1, -2]}),
}
"""Types whose residual stream, attention rows, answers and padding are proved."""

RESIDUALS: dict[str, Tiny] = {
    "dots3_note": Tiny(
        {
            "vision_config.adapter_in_dim": 64,
            "vision_config.adapter_out_dim": 64,
            "vision_config.moe_intermediate_size": 96,
            "text_config.index_n_heads": 16,
        },
        create={"text_config": {"num_hidden_layers": 4, "use_sliding_window": False, "index_topk": 4}},
        images={"temporal_patch_size": 1},
    ),
    "inkling_mm_model": Tiny(),
    "mistral_large4": Tiny({"text_config.kv_source_layers": [0, 1, 2, 3]}),
}
"""Types whose residual stream and answers are proved, and whose attention is another than a softmax over all tokens, or is not read."""

UNPROVED: dict[str, str] = {
    "fuyu": "image patches enter without an image token",
    "instructblip": "its image features depend on the prompt",
    "kosmos-2": "its configuration does not name the image token",
    "kosmos-2.5": "its configuration does not name the image token",
}
"""Types that are tried like any other, and why no proof is in the table."""
