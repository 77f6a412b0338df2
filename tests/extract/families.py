"""Tiny random models of every family whose attention is captured, from configurations alone, and inputs that fit them."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf

IMAGE, PAD, VISION_START, VISION_END, VIDEO, VOCABULARY = 5, 0, 6, 7, 8, 1024
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
_QWEN = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START, "vision_end_token_id": VISION_END}
_GEMMA2 = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 12}


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(sections), **more}


def config(name: str) -> hf.PretrainedConfig:
    match name:
        case "qwen2_vl":
            tower = {"depth": 3, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "mlp_ratio": 2}
            return hf.Qwen2VLConfig(text_config={**_TEXT, "rope_parameters": _rope(2, 3, 3)}, vision_config=tower, **_QWEN)
        case "qwen2_5_vl":
            tower = {"depth": 4, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64, "window_size": 56}
            tower["fullatt_block_indexes"] = [1, 3]
            return hf.Qwen2_5_VLConfig(text_config={**_TEXT, "rope_parameters": _rope(2, 3, 3)}, vision_config=tower, **_QWEN)
        case "qwen3_vl":
            tower = {"depth": 4, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64, "patch_size": 16}
            tower |= {"num_position_embeddings": 256, "deepstack_visual_indexes": [0, 1, 2]}
            text = {**_TEXT, "head_dim": 16, "rope_parameters": _rope(4, 2, 2, mrope_interleaved=True)}
            return hf.Qwen3VLConfig(text_config=text, vision_config=tower, **_QWEN)
        case "llava":
            choice = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
            tower = hf.CLIPVisionConfig(**_TOWER)
            return hf.LlavaConfig(vision_config=tower, text_config=hf.LlamaConfig(**_TEXT), image_token_index=IMAGE, **choice)
        case "llava_next":
            choice = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
            pinpoints = [[56, 112], [112, 56], [112, 112]]
            text = hf.MistralConfig(**_TEXT, sliding_window=None)
            tower = hf.CLIPVisionConfig(**_TOWER)
            return hf.LlavaNextConfig(
                vision_config=tower, text_config=text, image_token_index=IMAGE, image_grid_pinpoints=pinpoints, **choice
            )
        case "idefics3":
            return hf.Idefics3Config(
                vision_config=_TOWER, text_config=hf.LlamaConfig(**_TEXT), image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD
            )
        case "smolvlm":
            return hf.SmolVLMConfig(
                vision_config=_TOWER, text_config=hf.LlamaConfig(**_TEXT), image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD
            )
        case "gemma3":
            kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
            text = hf.Gemma3TextConfig(**_TEXT, **_GEMMA2, layer_types=kinds)
            tower = hf.SiglipVisionConfig(**_TOWER, vision_use_head=False)
            return hf.Gemma3Config(
                vision_config=tower,
                text_config=text,
                image_token_index=IMAGE,
                mm_tokens_per_image=4,
                boi_token_index=VISION_START,
                eoi_token_index=VISION_END,
            )
        case "internvl":
            tower = hf.InternVLVisionConfig(**{**_TOWER, "image_size": [56, 56], "patch_size": [14, 14]})
            return hf.InternVLConfig(vision_config=tower, text_config=hf.Qwen2Config(**_TEXT), image_token_id=IMAGE, downsample_ratio=0.5)
        case "paligemma" | "paligemma2":
            text = hf.GemmaConfig(**_TEXT, head_dim=16) if name == "paligemma" else hf.Gemma2Config(**_TEXT, **_GEMMA2)
            tower = hf.SiglipVisionConfig(**_TOWER, vision_use_head=False)
            return hf.PaliGemmaConfig(vision_config=tower, text_config=text, image_token_index=IMAGE, projection_dim=64, hidden_size=64)
    raise KeyError(name)


FAMILIES = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llava",
    "llava_next",
    "idefics3",
    "smolvlm",
    "gemma3",
    "internvl",
    "paligemma",
    "paligemma2",
)

_IMAGES: dict[str, tuple[tuple[int, ...], int]] = {
    "llava": ((1, 3, 56, 56), 16),
    "llava_next": ((1, 5, 3, 56, 56), 16 + 8 * 8 + 8),
    "idefics3": ((1, 2, 3, 56, 56), 8),
    "smolvlm": ((1, 2, 3, 56, 56), 8),
    "gemma3": ((1, 3, 56, 56), 4),
    "internvl": ((1, 3, 56, 56), 4),
    "paligemma": ((1, 3, 56, 56), 16),
    "paligemma2": ((1, 3, 56, 56), 16),
}
"""Shape of an image's pixels and its number of tokens."""


def build(name: str, attention: str) -> torch.nn.Module:
    """The same random weights for every kind of attention, large enough that attention is far from uniform."""
    torch.manual_seed(0)  # of what the loop below leaves as it was made
    model = hf.AutoModelForImageTextToText.from_config(config(name), attn_implementation=attention)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for path, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim >= 2:
                weight.copy_(drawn if "embed_tokens" in path else drawn * 1.5 / weight[0].numel() ** 0.5)
            elif path.endswith("bias"):
                weight.copy_(0.1 * drawn)
            else:  # gains of norms, which families keep as the gain or as the gain minus one
                weight.add_(0.3 * drawn.abs())
    return model.eval()


def example(name: str, model: torch.nn.Module, words: int, seed: int) -> dict[str, torch.Tensor]:
    """One prompt: an image, then `words` words."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(20, VOCABULARY, (words + 2,), generator=generator).tolist()
    extra: dict[str, torch.Tensor] = {}
    if name.startswith("qwen"):
        rows, columns, patch = 8, 12, model.config.vision_config.patch_size
        extra["pixel_values"] = torch.randn(rows * columns, 3 * 2 * patch * patch, generator=generator)
        extra["image_grid_thw"] = torch.tensor([[1, rows, columns]])
        ids = [1, *text[:2], VISION_START, *[IMAGE] * (rows * columns // 4), VISION_END, *text[2:]]
    else:
        shape, count = _IMAGES[name]
        extra["pixel_values"] = torch.randn(*shape, generator=generator)
        if name == "llava_next":
            extra["image_sizes"] = torch.tensor([[100, 100]])
        ids = [*([] if name.startswith("pali") else [1, *text[:2]]), *[IMAGE] * count, *text[2:]]
    return {"input_ids": torch.tensor([ids]), **extra}


def left_padded(name: str, examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """A batch with the padding on the left, and the token types that a family needs to build its masks."""
    longest = max(e["input_ids"].shape[1] for e in examples)
    ids = torch.full((len(examples), longest), PAD)
    mask = torch.zeros_like(ids)
    for row, e in enumerate(examples):
        length = e["input_ids"].shape[1]
        ids[row, longest - length :] = e["input_ids"]
        mask[row, longest - length :] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    batch |= {key: torch.cat([e[key] for e in examples]) for key in examples[0] if key != "input_ids"}
    image = (ids == IMAGE).long()
    if name.startswith("qwen"):
        batch["mm_token_type_ids"] = image.int()
    if name == "gemma3":
        batch["token_type_ids"] = image
    if name.startswith("paligemma"):
        batch["token_type_ids"] = torch.zeros_like(image)
    return batch
