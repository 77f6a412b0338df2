"""Settings of an extraction: model, data, what to save."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stratascope.datasets.own_prompts import find_prompt
from stratascope.datasets.prompts import Prompt
from stratascope.errors import InvalidInputError
from stratascope.extract.model_files import QUANTIZE
from stratascope.extract.plan.images import CONDITIONS
from stratascope.extract.plan.knockout_plan import ALL_MODES, MODES
from stratascope.store.format.generated_positions import generated_number
from stratascope.store.format.prompt_parts import CELL_POSITION, IMAGE_POSITION, MEANS, TOKEN_POSITION

RECORDS = (
    "residual",
    "attention_rows",
    "attention_maps",
    "form_logits",
    "top_tokens",
    "value_norms",
    "head_outputs",
    "head_logits",
    "value_logits",
    "vision_residual",
    "vision_output",
    "vision_maps",
    "vision_change",
    "hiding_estimate",
    "gradient_rollout",
    "gradient_maps",
    "knockout",
)
"""Arrays that can be saved; the answer logits always are."""

DEFAULT_RECORDS = RECORDS[:5]

COMPANIONS = {
    "head_logits": ("mlp_logits", "embedding_logits"),
    "top_tokens": ("top_logits",),
    "hiding_estimate": ("gradient_input",),
    "vision_maps": ("vision_parent", "vision_grid", "vision_box"),
    "gradient_maps": ("gradient_scale",),
}
"""Arrays that are saved together with a requested one."""

TOP_TOKENS = 5
"""Number of most likely next tokens that are saved."""

FUSIONS = ("mean", "max", "min")
"""How attention maps are aggregated over heads."""

DTYPES = ("float32", "bfloat16", "float16")
"""Precisions of the model."""

TEXT_POSITIONS = ("subject", "relation", "object")
BOX_POSITIONS = ("subject_box", "object_box")
POSITIONS = ("final", "image", *TEXT_POSITIONS, *BOX_POSITIONS)
"""Positions that are saved by default, in the order in which they are stored; each is one token or a mean of tokens."""

GROUPS = ("default", "means", "tokens", "cells", "answers")
"""Groups of positions: `POSITIONS`; means over the spans of `MEANS`; every text token from image or prompt on, by its role; groups of image
cells; all generated tokens (the first few of them are in `default`, too)."""

GRID_POSITIONS = tuple(f"grid_{row}_{column}" for row in range(4) for column in range(4))
"""Sixteenths of the image, for the vision tower."""

DEVICE_MAPS = ("auto",)
"""How the weights can be spread over devices."""

DEVICES = r"auto|cpu|mps|(cuda|xpu)(:\d+)?"
"""Valid devices, as a regular expression."""


@dataclass(frozen=True)
class ExtractionSettings:
    """Settings of an extraction, validated at construction."""

    model: str
    """`demo`, a folder or a Hub id."""
    examples: tuple[Path, ...]
    """Files of examples."""
    images: Path | None
    """Folder of the images; None for a plan with `image_size`."""
    boxes: Path | None = None
    """Gold boxes in COCO's instances format."""
    prompt: str = "true-false"
    """Name of one of `datasets.PROMPTS`, a file that ends in .toml, or a text with fields such as {caption}."""
    answers: tuple[str, ...] | None = None
    """Answers of a prompt that is a text: to a true caption, then to a false one."""
    shuffle_options: int | None = None
    """Seed of the order in which each question's options are shown; None: as published."""
    system: str | None = None
    """Text of the system turn; None: as the chat template has it; empty: no system turn."""
    condition: str = "original"
    """Change to the images: original (none), blank (mean colour), mirror (flipped left-right), shuffled-image (exchanged) or patch-shuffle
    (image tokens permuted before the decoder, by example)."""
    positions: tuple[str, ...] | None = None
    """Positions to save: names, and names of `GROUPS`; None: all of `POSITIONS` that the examples have."""
    record: tuple[str, ...] = DEFAULT_RECORDS
    """Arrays to save besides the answer logits, of `RECORDS`."""
    fusion: str = "mean"
    """How attention maps are aggregated over heads: mean, max or min."""
    maps: int | None = None
    """Number of evenly spaced examples with attention maps; None: all."""
    patches: int = 0
    """Number of evenly spaced examples whose residual stream is saved at every image token."""
    patch_layers: tuple[int, ...] | None = None
    """Layers at which it is saved, of 0 (what enters the first block) to L; None: five, evenly spaced from 0 to L."""
    knockouts: int | None = 128
    """Number of evenly spaced examples with attention knockouts; None: all."""
    knockout_modes: tuple[str, ...] = MODES
    """Which tokens cannot attend to the target: `final` (the final token), `later` (all later tokens), or a group of tokens: a part of the
    prompt of `PARTS`, `caption` or `prompt`."""
    knockout_window: int | None = None
    """Blocks in a sliding window of knockouts, besides the window of all blocks; None: a quarter of the blocks; 0: none."""
    changes: int | None = 128
    """Number of evenly spaced examples, of those with both gold boxes, whose `vision_change` is measured; None: all."""
    thumbnail: tuple[int, int] | None = (112, 112)
    """(width, height) in pixels of the thumbnails in the store; None: no thumbnails."""
    limit: int | None = None
    """Use only the first examples, this many."""
    max_pixels: int | None = None
    """Larger images are shrunk to this many pixels; None: the processor's limit."""
    dtype: str | None = None
    """float32, bfloat16 or float16; None: float32 on a CPU, that of the weights on a GPU."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: a GPU if there is one."""
    device_map: str | None = None
    """`auto`: spread the weights over all GPUs, then the host's memory and the disk (needs accelerate); None: on `device` alone."""
    quantize: str | None = None
    """4bit or 8bit: quantise the weights on loading (needs bitsandbytes); None: as they are in the files."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    untrained: int | None = None
    """Seed of random initial weights in the model's architecture, for a baseline; None: trained weights."""
    generate: int = 0
    """Greedy tokens to generate after the prompt, at most; 0: none."""
    block: int = 64
    """Examples in a shard block: the unit of writing and resuming."""
    seed: int = 0
    """Seed of the exchange of images under `shuffled-image`, and of the order of image tokens under `patch-shuffle`."""
    image_size: tuple[int, int] | None = field(default=None, compare=False)
    """(width, height) to assume for every image, for planning only."""
    stored_prompt: Prompt | None = field(default=None, compare=False)
    """Prompt of an existing store, instead of `prompt`."""
    strict: bool = field(default=False, compare=False)
    """Raise an error for unreadable images and for boxes that do not fit their image, instead of leaving them out."""

    def __post_init__(self) -> None:
        if self.images is None and self.image_size is None:
            raise InvalidInputError(
                "expected a folder of images, found none; set `images`, or `image_size` to plan before they are downloaded"
            )
        asked = self.asked  # raises its own error
        if self.shuffle_options is not None and "{options}" not in asked.text:
            raise InvalidInputError(
                f"expected a prompt that shows {{options}} for `shuffle_options`, found {asked.name}: {asked.text!r}; choose "
                "letters, vlmevalkit or embspatial, or leave the order as published"
            )
        _expect_among("condition", self.condition, CONDITIONS)
        for name in self.record:
            _expect_among("record", name, RECORDS)
        for name in self.positions or ():
            if not is_position(name):
                raise InvalidInputError(
                    f"expected `positions` to be among {', '.join((*POSITIONS, *GROUPS))}, or one such as caption_mean, subject_0, "
                    f"after_caption_0 or cell_0_0, found {name!r}"
                )
        for name in self.positions or ():
            number = 0 if name == "answers" else generated_number(name)
            if number is not None and number >= self.generate:
                raise InvalidInputError(
                    f"expected `generate` of at least {number + 1} for the position {name}, found {self.generate}; raise it"
                )
        mapped = [name for name in self.record if name in ("vision_maps", "gradient_maps")]
        if mapped and "attention_maps" not in self.record:
            raise InvalidInputError(f"expected attention_maps in `record` beside {mapped[0]}, of the same examples, found none; add it")
        if "vision_change" in self.record and self.condition in ("blank", "shuffled-image"):
            raise InvalidInputError(
                f"expected images with the objects of their boxes for vision_change, found `condition` {self.condition}; leave it out of "
                "`record`"
            )
        if self.condition == "patch-shuffle":
            self._expect_no_cells()
        _expect_among("fusion", self.fusion, FUSIONS)
        if self.dtype is not None:
            _expect_among("dtype", self.dtype, DTYPES)
        if self.quantize is not None:
            _expect_among("quantize", self.quantize, QUANTIZE)
        if self.device_map is not None:
            _expect_among("device_map", self.device_map, DEVICE_MAPS)
        self._expect_whole_weights()
        if not re.fullmatch(DEVICES, self.device):
            raise InvalidInputError(f"expected `device` auto, cpu, cuda, cuda:N, mps or xpu, found {self.device!r}")
        for name, value in (("limit", self.limit), ("block", self.block), ("max_pixels", self.max_pixels)):
            if value is not None and value < 1:
                raise InvalidInputError(f"expected `{name}` to be at least 1, found {value}")
        for name, value in (
            ("maps", self.maps),
            ("patches", self.patches),
            ("knockouts", self.knockouts),
            ("changes", self.changes),
            ("knockout_window", self.knockout_window),
            ("untrained", self.untrained),
            ("generate", self.generate),
        ):
            if value is not None and value < 0:
                raise InvalidInputError(f"expected `{name}` to be 0 or more, found {value}")
        if self.patch_layers is not None and not (self.patches and self.patch_layers):
            raise InvalidInputError("expected `patches` and at least one layer in `patch_layers`, found one without the other; set both")
        for name in self.knockout_modes:
            _expect_among("knockout_modes", name, ALL_MODES)
        if "knockout" in self.record and not self.knockout_modes:
            raise InvalidInputError(f"expected `knockout_modes` among {', '.join(ALL_MODES)}, found none")

    def _expect_whole_weights(self) -> None:
        """Refuse what needs plain weights on one device."""
        if self.untrained is not None and (self.device_map or self.quantize):
            raise InvalidInputError(
                "expected `untrained` without `device_map` and `quantize`, as random weights are drawn on the host, found both"
            )
        alone = [name for name in self.record if name in ("hiding_estimate", "gradient_rollout", "gradient_maps", "knockout")]
        if self.device_map and alone:
            raise InvalidInputError(
                f"expected `record` without {' and '.join(alone)} for `device_map`, as these run single blocks on one device, found "
                f"{'it' if len(alone) == 1 else 'them'}; leave {'it' if len(alone) == 1 else 'them'} out, or set `quantize` instead"
            )

    def _expect_no_cells(self) -> None:
        """Refuse what has a place in the image, which permuted image tokens do not have."""
        placed = [name for name in self.positions or () if name in ("cells", *BOX_POSITIONS) or name.startswith("cell_")]
        for parameter, found in (
            ("positions", placed),
            ("record", [name for name in self.record if name in ("vision_output", "vision_maps", "vision_change")]),
            ("patches", [str(self.patches)] if self.patches else []),
        ):
            if found:
                raise InvalidInputError(
                    f"expected `{parameter}` without places in the image for `condition` patch-shuffle (permuted image tokens), found "
                    f"{', '.join(found)}; leave {'it' if len(found) == 1 else 'them'} out"
                )

    @cached_property
    def asked(self) -> Prompt:
        """The question to the model."""
        return find_prompt(self.prompt, self.answers) if self.stored_prompt is None else self.stored_prompt

    def image_path(self, name: str) -> Path:
        """Path of the image with this name."""
        assert self.images is not None, "a plan with a stated image size opens no image"
        return self.images / name

    @property
    def held(self) -> frozenset[str]:
        """Optional arrays of the store: those of `record` and their companions."""
        patches = {"patch_residual"} if self.patches else set()
        return with_companions(*self.record) | patches


def with_companions(*names: str) -> frozenset[str]:
    """Arrays of `RECORDS` and those that are saved together with them."""
    return frozenset(names).union(*(COMPANIONS.get(name, ()) for name in names))


def is_position(name: str) -> bool:
    """Whether a prompt can have a position of this name, or it names a group of positions."""
    mean = name.endswith("_mean") and name.removesuffix("_mean") in MEANS
    patterned = TOKEN_POSITION.fullmatch(name) or CELL_POSITION.fullmatch(name) or IMAGE_POSITION.fullmatch(name)
    return name in POSITIONS or name in GROUPS or mean or bool(patterned) or generated_number(name) is not None


def _expect_among(parameter: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in known:
        raise InvalidInputError(f"expected `{parameter}` to be among {', '.join(known)}, found {value!r}")
