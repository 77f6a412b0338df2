"""What the folder of each type holds besides its model, for tests that run the type's own processor."""

from __future__ import annotations

from tests.extract.general.folders import Files

_QWEN = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_start_token": "<|vision_start|>"}
_QWEN_MORE = ("<|vision_end|>",)
_QWEN_TEXT = "<|vision_start|><|image_pad|><|vision_end|>"

_PIXTRAL = Files(
    "PixtralProcessor",
    {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
    "[IMG]",
    {"patch_size": 14, "spatial_merge_size": 2},
)

FILES: dict[str, Files] = {
    "qwen3_5": Files("Qwen3VLProcessor", _QWEN, _QWEN_TEXT, more=_QWEN_MORE, video="Qwen3VLVideoProcessor"),
    "qwen3_vl_moe": Files("Qwen3VLProcessor", _QWEN, _QWEN_TEXT, more=_QWEN_MORE, video="Qwen3VLVideoProcessor"),
    "mistral_large4": _PIXTRAL,
    "llama4": Files(
        "Llama4Processor",
        {"image_token": "<|patch|>", "boi_token": "<|image_start|>", "eoi_token": "<|image_end|>"},
        "<|image|>",
        {"patch_size": 14, "pixel_shuffle_ratio": 0.5},
        more=("<|image|>", "<|tile_x_separator|>", "<|tile_y_separator|>"),
    ),
    "mllama": Files("MllamaProcessor", {"image_token": "<|image|>"}, "<|image|>", begin="{{ bos_token }}"),
    "mistral3": _PIXTRAL,
    "aya_vision": Files(
        "AyaVisionProcessor",
        {"image_token": "<|IMG_PATCH|>"},
        "<image>",
        {"patch_size": 16, "img_size": 64, "downsample_factor": 2},
        more=("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL"),
    ),
}
