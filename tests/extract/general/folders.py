"""Tiny models of general types as folders, with a tokenizer, the type's own processor and a chat template."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers as hf
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.extract.general.tiny import VOCABULARY, Tiny, build, config_of, image_processor
from tests.extract.saved import CHATML, SPLIT, _corpus

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<a>", "<b>")
"""The first tokens; those of `Files.tokens` follow at the ids that the configuration names."""


@dataclass(frozen=True)
class Files:
    """What a type's folder holds besides its model."""

    processor: str
    """Class of the processor."""
    tokens: dict[str, str]
    """Attribute of the processor's tokenizer, such as `image_token` -> token; of the configuration where it has that name with `_id`."""
    template: str
    """What the chat template writes for an image."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Arguments of the processor."""
    more: tuple[str, ...] = ()
    """Further special tokens."""
    begin: str = ""
    """What the chat template writes first."""
    video: str = ""
    """Class of the video processor."""


def tokenizer(config: Any, files: Files) -> hf.PreTrainedTokenizerFast:
    """Byte-level, with the image token at the configuration's id."""
    names = dict(files.tokens)
    fixed = {int(found): text for name, text in names.items() if isinstance(found := _number(config, name), int)}
    special: list[str] = []
    rest = [*SPECIAL, *(text for text in (*names.values(), *files.more) if text not in fixed.values())]
    while rest or max(fixed, default=-1) >= len(special):
        special.append(fixed.get(len(special)) or (rest.pop(0) if rest else f"<unused{len(special)}>"))
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(_corpus(), trainer)
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    assert made.get_vocab_size() <= VOCABULARY
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        bos_token="<a>",
        additional_special_tokens=[],
        extra_special_tokens=names,
    )


def _number(config: Any, name: str) -> Any:
    return getattr(config, f"{name}_id", getattr(config, f"{name}_index", None))


def save(name: str, tiny: Tiny, files: Files, folder: Path) -> Path:
    """A folder as the Hub would give it."""
    config = config_of(name, tiny)
    build(name, tiny).save_pretrained(folder)
    words = tokenizer(config, files)
    parts: dict[str, Any] = {"image_processor": image_processor(name, tiny), "tokenizer": words}
    if files.video:
        parts["video_processor"] = getattr(hf, files.video)()
    template = files.begin + CHATML.replace("IMAGE", files.template)
    getattr(hf, files.processor)(**parts, chat_template=template, **files.settings).save_pretrained(folder)
    return folder
