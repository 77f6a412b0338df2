"""Sizes and image tokens of a type without a family of its own, from its configuration class and its own processor."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from stratascope.errors import CaptureError, InvalidInputError
from stratascope.extract.families.general_family import (
    MERGED_TOWERS,
    ONE_IMAGE,
    PATCHED,
    RASTER,
    GeneralModel,
    ProcessorRule,
    tokens_in_grid,
)
from stratascope.extract.families.image_tokens import ImageTokens, whole
from stratascope.extract.families.model_families import FAMILIES, ModelShape
from stratascope.extract.model_files import ModelSource
from stratascope.extract.plan.chat_template import ChatFormat
from stratascope.extract.run.decoder import attention_blocks
from stratascope.extract.run.general_inputs import image_tensors, image_token_id
from stratascope.extract.run.inputs import PreparedImages, given_images
from stratascope.extract.run.loading import explained

_ASKED = "WHETHER"
"""The user's text while the processor is asked for an image's tokens."""
_GREY = (128, 128, 128)


def general_model(source: ModelSource, system: str | None) -> GeneralModel:
    """Read a model's sizes and how its processor writes images.

    Parameters
    ----------
    source
        The model.
    system
        Text of the system turn, see `ChatFormat`.

    Raises
    ------
    InvalidInputError
        If transformers has no such image-text-to-text type, or its processor writes images in a way that cannot be followed.
    MissingExtraError
        If transformers needs a package that is not installed.
    """
    kind = str(source.config.get("model_type"))
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise InvalidInputError(
            f"{source.name}: expected a model of the families {', '.join(FAMILIES)}, or another image-text-to-text type of transformers, "
            f"found model_type {kind!r}; use one that transformers itself loads (for InternVL those named -hf)"
        )
    with explained(source, "a configuration"):
        config = AutoConfig.from_pretrained(source.folder, local_files_only=True)
    asked = AskedProcessor(source, image_token_id(config))
    template = _template(source, asked.processor, system)
    rule = ProcessorRule(
        token=source.token_text(asked.image_id),
        written=template.placeholder,
        processor=type(asked.processor).__name__,
        probe=_Probe(asked, template, kind in RASTER),
    )
    return GeneralModel(_shape(config, source), rule, _capped(config))


def _template(source: ModelSource, processor: Any, system: str | None) -> ChatFormat:
    """The chat template with the placeholder that it writes for an image, or one of the processor's names that it writes once."""
    try:
        return ChatFormat(source, None, system)
    except InvalidInputError as error:
        for name in ("image_token", "boi_token", "image_placeholder"):
            if isinstance(found := getattr(processor, name, None), str):
                with suppress(InvalidInputError):
                    return ChatFormat(source, found, system)
        raise error


def _shape(config: Any, source: ModelSource) -> ModelShape:
    text = config.get_text_config(decoder=True)
    try:
        heads, hidden = int(text.num_attention_heads), int(text.hidden_size)
        context = getattr(text, "max_position_embeddings", None) or source.tokenizer_settings.get("model_max_length") or 1 << 20
        return ModelShape(
            layers=int(text.num_hidden_layers),
            hidden=hidden,
            heads=heads,
            head_dim=int(getattr(text, "head_dim", None) or hidden // heads),
            context=int(context),
            **_tower(config),
            dtype=str(config.dtype or text.dtype or "float32").removeprefix("torch."),
            attention=attention_blocks(text),
        )
    except Exception as error:  # fields that are missing, or differ by layer
        raise InvalidInputError(
            f"{source.name}: expected one number of layers, heads and hidden channels in its text configuration, found: {error}; use "
            "another model"
        ) from error


def _tower(config: Any) -> dict[str, Any]:
    """Sizes of a vision tower that can be captured."""
    vision: Any = config.vision_config if config.model_type in MERGED_TOWERS else None
    depth: Any = getattr(vision, "depth", None) or getattr(vision, "num_hidden_layers", 0)
    hidden: Any = getattr(vision, "embed_dim", None) or getattr(vision, "hidden_size", 0)
    whole = getattr(vision, "fullatt_block_indexes", None)
    patched: Any = config.vision_config if config.model_type in PATCHED else None
    blocks: Any = getattr(patched, "depth", None) or getattr(patched, "num_hidden_layers", 0)
    return {
        "vision_depth": int(blocks),
        "vision_layers": int(depth),
        "vision_hidden": int(hidden),
        "vision_whole": tuple(range(depth)) if whole is None else tuple(map(int, whole)),
    }


def _capped(config: Any) -> bool:
    return any(getattr(config.get_text_config(decoder=True), name, None) for name in ("final_logit_softcapping", "final_logit_softcap"))


@dataclass(frozen=True)
class Asked:
    """A processor's answer for one prompt and image."""

    text: str
    """What it gave its tokenizer."""
    ids: list[int]
    made: Mapping[str, Any]
    """Its output."""


class AskedProcessor:
    """A model's own processor, which also tells the text that it gives its tokenizer.

    Raises
    ------
    InvalidInputError
        If the model's files do not make a processor with a tokenizer.
    """

    def __init__(self, source: ModelSource, image_id: int) -> None:
        self.source, self.image_id = source, image_id
        with explained(source, "its processor"):
            self.processor = AutoProcessor.from_pretrained(source.folder, local_files_only=True)
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer is None or not hasattr(self.processor, "image_processor"):
            raise InvalidInputError(f"{source.name}: expected a processor of images and text, found {type(self.processor).__name__}")
        self._given: list[str] = []
        self._copies = threading.local()
        tokenizer.__class__ = _telling(type(tokenizer), self._given)

    def __call__(self, text: str, *images: Image.Image, special: bool) -> Asked:
        """Process one prompt and its images.

        Parameters
        ----------
        text
            The rendered chat template.
        images
            The images.
        special
            Whether the tokenizer adds its initial special tokens.

        Raises
        ------
        InvalidInputError
            If the processor does not accept them.
        """
        self._given.clear()
        sizes = " and ".join(f"{image.width} x {image.height}" for image in images)
        with explained(self.source, f"a processor that accepts {'an image' if len(images) == 1 else 'images'} of {sizes}"):
            made = self.processor(text=[text], images=given_images(images), return_tensors="pt", add_special_tokens=special)
        return Asked(self._given[-1] if self._given else "", [int(k) for k in made["input_ids"][0]], made)

    def prepare(self, text: str, image: Image.Image, *, special: bool) -> PreparedImages:
        """Inputs of the model that belong to the image, and the runs of its tokens; each thread has its own copy of the processor."""
        if not hasattr(self._copies, "processor"):
            self._copies.processor = copy.deepcopy(self.processor)
        with explained(self.source, f"a processor that accepts an image of {image.width} x {image.height}"):
            made = self._copies.processor(text=[text], images=[image], return_tensors="pt", add_special_tokens=special)
        return PreparedImages(image_tensors(made), (runs_of([int(k) for k in made["input_ids"][0]], self.image_id)[1],))


def _telling(kind: type, given: list[str]) -> type:
    """The same class of tokenizer, which puts the text of each call into `given`."""

    def called(self: Any, text: Any = None, *args: Any, **options: Any) -> Any:
        given.extend([text] if isinstance(text, str) else [each for each in text or () if isinstance(each, str)])
        return kind.__call__(self, text, *args, **options)

    return type(kind.__name__, (kind,), {"__call__": called})


def runs_of(ids: list[int], image_id: int) -> tuple[list[int], tuple[int, ...]]:
    """Token ids with each run of image tokens as a single one, and the length of each run.

    Examples
    --------
    >>> runs_of([1, 5, 5, 5, 2, 5, 3], 5)
    ([1, 5, 2, 5, 3], (3, 1))
    """
    short: list[int] = []
    runs: list[int] = []
    for k, token in enumerate(ids):
        if token == image_id and k and ids[k - 1] == image_id:
            runs[-1] += 1
            continue
        short.append(token)
        if token == image_id:
            runs.append(1)
    return short, tuple(runs)


@dataclass(frozen=True)
class _Probe:
    """Asks the processor for the tokens of a grey image of each size, within the rendered chat template."""

    asked: AskedProcessor
    template: ChatFormat
    raster: bool
    """Whether the image tokens are cells of a grid, whose size is in the processor's output."""

    @cached_property
    def _rendered(self) -> str:
        return self.template.render(_ASKED)

    def __call__(self, width: int, height: int) -> ImageTokens:
        source, rendered, placeholder = self.asked.source, self._rendered, self.template.placeholder
        found = self.asked(rendered, Image.new("RGB", (width, height), _GREY), special=self.template.adds_special)
        token = source.token_text(self.asked.image_id)
        start = rendered.index(placeholder)
        before, after = rendered[:start], rendered[start + len(placeholder) :]
        inner = found.text[len(before) : len(found.text) - len(after)]
        short, runs = runs_of(found.ids, self.asked.image_id)
        text = re.sub(f"(?:{re.escape(token)})+", token.replace("\\", "\\\\"), inner)
        follows = found.text.startswith(before) and found.text.endswith(after) and text.count(token) == len(runs) > 0
        own = source.tokenizer.encode(f"{before}{text}{after}", add_special_tokens=self.template.adds_special).ids
        if not follows or own != short:
            raise InvalidInputError(
                f"{source.name}: expected a processor that writes the image between the words of the chat template as {token}, found "
                f"{type(self.asked.processor).__name__}, which writes {found.text[:120]!r}; the type needs a rule of its own"
            )
        cells, grid = tokens_in_grid(self._grid(found.made), runs)
        return ImageTokens(text, runs, cells, grid, whole(width, height), runs, self._patches(found.made))

    def check_together(self, images: int) -> None:
        """Refuse a processor that writes one of several images in another way than a single one.

        Raises
        ------
        InvalidInputError
            If it does, or the model takes one image alone.
        """
        source, sizes = self.asked.source, [(64 + 32 * k, 64) for k in range(images)]
        if (kind := source.config.get("model_type")) in ONE_IMAGE:
            raise InvalidInputError(
                f"{source.name}: expected a model that accepts precomputed image features for several images in a prompt, found the type "
                f"{kind}, which takes one; use another model, or one image an example"
            )
        template = ChatFormat(source, self.template.placeholder, self.template.system, images=images)
        rendered, special = template.render(_ASKED), template.adds_special
        found = self.asked(rendered, *(Image.new("RGB", size, _GREY) for size in sizes), special=special)
        each = [self(*size) for size in sizes]
        first, *rest = rendered.split(template.placeholder)
        own = source.tokenizer.encode(first + "".join(a.text + b for a, b in zip(each, rest, strict=True)), add_special_tokens=special).ids
        runs = iter([count for image in each for count in image.runs])
        expanded = [[token] * next(runs) if token == self.asked.image_id else [token] for token in own]
        if found.ids != [token for part in expanded for token in part]:
            raise InvalidInputError(
                f"{source.name}: expected a processor that writes each of {images} images as it writes a single one, found "
                f"{type(self.asked.processor).__name__}, which does not; use another model, or one image an example"
            )

    def prepare(self, image: Image.Image) -> PreparedImages:
        """Inputs of the model that belong to an image."""
        return self.asked.prepare(self._rendered, image, special=self.template.adds_special)

    def _patches(self, made: Mapping[str, Any]) -> tuple[int, int] | None:
        """(rows, columns) of patches of the image, where the processor's output says so."""
        values, sizes = made.get("image_grid_thw"), made.get("image_sizes")
        if isinstance(values, torch.Tensor) and values.shape == (1, 3) and int(values[0, 0]) == 1:
            return int(values[0, 1]), int(values[0, 2])
        patch = getattr(self.asked.processor, "patch_size", None)
        if patch and sizes is not None and torch.as_tensor(sizes).shape == (1, 2):
            height, width = torch.as_tensor(sizes)[0].tolist()
            return height // int(patch), width // int(patch)
        return None

    def _grid(self, made: Mapping[str, Any]) -> tuple[int, int] | None:
        values = made.get("image_grid_thw")
        if not self.raster or not isinstance(values, torch.Tensor) or values.shape != (1, 3) or int(values[0, 0]) != 1:
            return None
        images = self.asked.processor.image_processor
        merge = int(getattr(images, "merge_size", None) or 1)
        sizes = made.get("image_merge_sizes")
        merge = int(sizes[0]) if isinstance(sizes, torch.Tensor) and sizes.numel() == 1 else merge
        return int(values[0, 1]) // merge, int(values[0, 2]) // merge


def check_official(source: ModelSource, rule: ProcessorRule, system: str | None) -> None:
    """Refuse a prompt whose token ids are not those of the processor's own `apply_chat_template`.

    Parameters
    ----------
    source, rule, system
        The model, its rule and the text of the system turn; nothing is compared where the system turn is removed.

    Raises
    ------
    CaptureError
        Naming the first token that differs.
    """
    probe = rule.probe
    if not isinstance(probe, _Probe) or system == "":
        return
    image, template = Image.new("RGB", (64, 48), _GREY), probe.template
    turns = template.conversation(_ASKED)
    turns[-1]["content"][0] = {"type": "image", "image": image}
    with explained(source, "a processor with a chat template"):
        made = probe.asked.processor.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **template.template_options
        )
    own = [int(k) for k in made["input_ids"][0]]
    planned = probe.asked(template.render(_ASKED), image, special=template.adds_special).ids
    if own != planned:
        at = next((k for k, (a, b) in enumerate(zip(own, planned, strict=False)) if a != b), min(len(own), len(planned)))
        raise CaptureError(f"{source.name}: expected the token ids of its own chat template, found them to differ at token {at}")
