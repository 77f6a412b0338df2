"""Tiny random models of every family as folders, with a tokenizer of the family's kind, its processor and a chat template of its form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import transformers as hf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.extract.families import VOCABULARY, build, config

WORDS = (
    "True or false: The cat is at the left side of the red car. Answer True or False. Yes No Where is the refrigerator in relation to "
    "the potted plant? Does this caption describe the image? Answer with left, right, above, below, inside, on or under. user assistant "
    "system model USER ASSISTANT User Assistant You are a helpful assistant. Answer briefly. INST"
)
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHATML = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
OWN_SYSTEM = """{% if messages[0]['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}"""
VICUNA = """{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}
{%- for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}
{%- for part in message['content'] | selectattr('type', 'equalto', 'text') %}
{%- if message['role'] == 'assistant' %}{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}
{%- else %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""
MISTRAL = """{% for message in messages %}{% if message['role'] == 'user' %}[INST] {% for part in message['content'] %}
{%- if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %} [/INST]
{%- elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + eos_token }}
{%- else %}{{ message['content'][0]['text'] + '\n' }}{% endif %}{% endfor %}"""
IDEFICS = """BEGIN{% for message in messages %}{{ message['role'] | capitalize }}
{%- if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}{% for part in message['content'] %}
{%- if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{{ '<end_of_utterance>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'][0]['text'] + '\n\n' %}
{%- set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}{% for message in messages %}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{- '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}{% for part in message['content'] %}
{%- if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] | trim }}{% endif %}{% endfor %}
{{- '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""

_QWEN = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<a>",
    "<b>",
    "<|image_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video_pad|>",
)
_TILES = ("<fake_token_around_image>", "<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)))
SPECIAL: dict[str, tuple[str, ...]] = {
    "qwen": _QWEN,
    "llava": ("<pad>", "<s>", "</s>", "<a>", "<b>", "<image>"),
    "idefics3": ("<pad>", "<|begin_of_text|>", "<end_of_utterance>", "<a>", "<b>", "<image>", *_TILES),
    "smolvlm": ("<pad>", "<|im_start|>", "<end_of_utterance>", "<a>", "<b>", "<image>", *_TILES),
    "gemma3": ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<image_soft_token>", "<start_of_image>", "<end_of_image>"),
    "internvl": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<a>", "<b>", "<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
    "paligemma": ("<pad>", "<bos>", "<eos>", "<a>", "<b>", "<image>"),
}
"""The first tokens of each family's vocabulary, at the ids that `tests.extract.families.config` names."""


def family_key(name: str) -> str:
    """qwen2_vl -> qwen, llava_next -> llava, ..."""
    return next(key for key in SPECIAL if name.startswith(key))


def tokenizer(name: str) -> Tokenizer:
    """Trained on a few words: byte-level (Qwen, Llama 3), or SentencePiece-like with byte fallback (Llama 2, Gemma)."""
    key = family_key(name)
    return (
        _sentencepiece(SPECIAL[key], prepend=key == "llava") if key in ("llava", "gemma3", "paligemma") else _byte_level(SPECIAL[key], key)
    )


def _byte_level(special: tuple[str, ...], key: str) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=[*special], initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(_corpus(), trainer)
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    if key == "idefics3":
        start = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 1)])
        made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), start])
    return made


def _sentencepiece(special: tuple[str, ...], *, prepend: bool) -> Tokenizer:
    learner = Tokenizer(models.BPE())
    blanks = pre_tokenizers.Metaspace(prepend_scheme="always" if prepend else "never")
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), blanks])
    learner.train_from_iterator(_corpus(), trainers.BpeTrainer(vocab_size=600, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    pieces = [*special, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\n", "\n\n"]
    pieces += [piece for piece, _ in sorted(learned["vocab"].items(), key=lambda item: item[1]) if piece not in pieces]
    merges = [tuple(pair) for pair in learned["merges"]] + [("\n", "\n")]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = [normalizers.Prepend("▁")] if prepend else []
    made.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    if not prepend:
        made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    made.post_processor = processors.TemplateProcessing(single=f"{special[1]} $A", special_tokens=[(special[1], 1)])
    return made


def _corpus() -> Iterator[str]:
    yield from [WORDS, *(f" {word}" for word in WORDS.split())] * 20
    yield from WORDS.split() * 20


def wrapped(name: str) -> hf.PreTrainedTokenizerFast:
    key, special = family_key(name), SPECIAL[family_key(name)]
    extra = {"image_token": "<image>"}
    if key == "qwen":
        extra = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    elif key == "gemma3":
        extra = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    elif key == "internvl":
        extra = {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        }
    begin = None if key in ("qwen", "internvl") else special[1]
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(name), bos_token=begin, eos_token=special[2], pad_token=special[0], extra_special_tokens=extra
    )


def processor(name: str) -> hf.ProcessorMixin:
    """The family's own, of tiny sizes."""
    words, square = wrapped(name), {"height": 56, "width": 56}
    match name:
        case "qwen2_vl" | "qwen2_5_vl":
            images = hf.Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 48)
            kind = hf.Qwen2VLProcessor if name == "qwen2_vl" else hf.Qwen2_5_VLProcessor
            template = OWN_SYSTEM + CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
            return kind(images, words, hf.Qwen2VLVideoProcessor(), chat_template=template)
        case "qwen3_vl":
            images = hf.Qwen2VLImageProcessor(patch_size=16, size={"shortest_edge": 64 * 64, "longest_edge": 32 * 32 * 40})
            template = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
            return hf.Qwen3VLProcessor(images, words, hf.Qwen3VLVideoProcessor(), chat_template=template)
        case "llava":
            images = hf.CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=square)
            choice = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
            return hf.LlavaProcessor(images, words, chat_template=VICUNA, **choice)
        case "llava_next":
            pinpoints = [[56, 112], [112, 56], [112, 112]]
            images = hf.LlavaNextImageProcessor(size={"shortest_edge": 56}, crop_size=square, image_grid_pinpoints=pinpoints)
            choice = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
            return hf.LlavaNextProcessor(images, words, chat_template=MISTRAL, **choice)
        case "idefics3":
            images = hf.Idefics3ImageProcessor(size={"longest_edge": 4 * 56}, max_image_size={"longest_edge": 56})
            return hf.Idefics3Processor(images, words, image_seq_len=4, chat_template=IDEFICS.replace("BEGIN", "<|begin_of_text|>"))
        case "smolvlm":
            images = hf.SmolVLMImageProcessor(size={"longest_edge": 3 * 56}, max_image_size={"longest_edge": 56})
            template = IDEFICS.replace("BEGIN", "<|im_start|>")
            return hf.SmolVLMProcessor(images, words, hf.SmolVLMVideoProcessor(), image_seq_len=4, chat_template=template)
        case "gemma3":
            images = hf.Gemma3ImageProcessor(size=square)
            return hf.Gemma3Processor(images, words, image_seq_length=4, chat_template=GEMMA)
        case "internvl":
            images = hf.GotOcr2ImageProcessor(size=square, max_patches=6, crop_to_patches=False)
            template = OWN_SYSTEM + CHATML.replace("IMAGE", "<IMG_CONTEXT>{{ '\n' }}")
            return hf.InternVLProcessor(images, words, hf.InternVLVideoProcessor(), image_seq_length=4, chat_template=template)
        case "paligemma" | "paligemma2":
            return hf.PaliGemmaProcessor(hf.SiglipImageProcessor(size=square, image_seq_length=16), words)
    raise KeyError(name)


def save_files(name: str, folder: Path) -> Path:
    """All but the weights, which is what a plan needs."""
    config(name).save_pretrained(folder)
    processor(name).save_pretrained(folder)
    return folder


def save(name: str, folder: Path) -> Path:
    """A folder as the Hub would give it."""
    build(name, "eager").save_pretrained(folder)
    processor(name).save_pretrained(folder)
    assert tokenizer(name).get_vocab_size() <= VOCABULARY
    return folder
