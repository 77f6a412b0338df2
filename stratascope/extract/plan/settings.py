"""What a person chooses of an extraction."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stratascope.datasets.prompts import PROMPTS
from stratascope.errors import InvalidInputError
from stratascope.extract.plan.images import CONDITIONS
from stratascope.extract.plan.knockout_plan import MODES

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
    "hiding_estimate",
    "knockout",
)
"""What can be recorded; the answer's logits always are."""

DEFAULT_RECORDS = RECORDS[:5]

COMPANIONS = {"head_logits": ("mlp_logits", "embedding_logits"), "top_tokens": ("top_logits",), "hiding_estimate": ("gradient_input",)}
"""Arrays that come with one that was asked for."""

TOP_TOKENS = 5
"""How many of the likeliest next tokens are kept."""

FUSIONS = ("mean", "max", "min")
"""How the heads of an attention map are made one."""

TEXT_POSITIONS = ("subject", "relation", "object")
BOX_POSITIONS = ("subject_box", "object_box")
POSITIONS = ("final", "image", *TEXT_POSITIONS, *BOX_POSITIONS)
"""Rules that turn a span into one vector, in the order in which they are stored."""

GRID_POSITIONS = tuple(f"grid_{row}_{column}" for row in range(4) for column in range(4))
"""Sixteenths of the image, for the vision tower."""

DEVICES = r"auto|cpu|mps|(cuda|xpu)(:\d+)?"
"""Devices that can be asked for, as a regular expression."""


@dataclass(frozen=True)
class ExtractionSettings:
    """What a person chooses of an extraction; validated at birth."""

    model: str
    """`demo`, a folder or a Hub id."""
    examples: tuple[Path, ...]
    """Files of rows."""
    images: Path | None
    """The folder they are in; None for a plan whose images' size is stated."""
    boxes: Path | None = None
    """Gold boxes in COCO's instances format."""
    prompt: str = "true-false"
    """Name of one of `datasets.PROMPTS`."""
    system: str | None = None
    """The system turn's text; None leaves it to the chat template, and an empty text leaves the turn out."""
    condition: str = "original"
    """What is done to the images: original, blank, mirror or shuffled-image."""
    positions: tuple[str, ...] | None = None
    """None: final, image, subject, relation, object as far as the prompt has them, and the boxes' where boxes are given."""
    record: tuple[str, ...] = DEFAULT_RECORDS
    """What is stored besides the answer's logits: names of docs/recording.md."""
    fusion: str = "mean"
    """How the heads of attention maps are made one: mean, max or min."""
    maps: int | None = None
    """Attention maps of only so many examples, evenly spread; None: of all."""
    knockouts: int | None = 128
    """Knockouts of only so many examples, evenly spread; None: of all."""
    knockout_modes: tuple[str, ...] = MODES
    """From whom a knockout hides: `final`, from the final token alone; `later`, from all later tokens."""
    knockout_window: int | None = None
    """Blocks in a sliding window, beside the window of all blocks; None: a quarter of them; 0: none."""
    thumbnail: tuple[int, int] | None = (112, 112)
    """(width, height) in pixels of the images that travel in the store; None: none do."""
    limit: int | None = None
    """Only the first so many examples."""
    max_pixels: int | None = None
    """Larger images are shrunk to so many; None: the processor's own limit."""
    dtype: str | None = None
    """float32, bfloat16 or float16; None: float32 on a CPU, the weights' own on a GPU."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto: a GPU where there is one."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    untrained: int | None = None
    """Seed of freshly drawn weights in the model's architecture, for a baseline; None: the model's own weights."""
    block: int = 64
    """Examples in a block: the unit of work, of writing and of resuming."""
    seed: int = 0
    """Of which image each example is shown under `shuffled-image`."""
    image_size: tuple[int, int] | None = field(default=None, compare=False)
    """(width, height) to assume of every image, for a plan only."""
    strict: bool = field(default=False, compare=False)
    """Refuse images that cannot be recorded and boxes that do not fit their photo, instead of leaving them out."""

    def __post_init__(self) -> None:
        if self.images is None and self.image_size is None:
            raise InvalidInputError(
                "expected a folder of images, found none; pass --images DIR, or to plan before the photos are there --image-size WxH"
            )
        _expect_among("--prompt", self.prompt, PROMPTS)
        _expect_among("--condition", self.condition, CONDITIONS)
        for name in self.record:
            _expect_among("--record", name, RECORDS)
        for name in self.positions or ():
            _expect_among("--positions", name, POSITIONS)
        _expect_among("--fusion", self.fusion, FUSIONS)
        if self.dtype is not None:
            _expect_among("--dtype", self.dtype, ("float32", "bfloat16", "float16"))
        if not re.fullmatch(DEVICES, self.device):
            raise InvalidInputError(f"expected --device auto, cpu, cuda, cuda:N, mps or xpu, found {self.device!r}")
        for option, value in (("--limit", self.limit), ("--block", self.block), ("--max-pixels", self.max_pixels)):
            if value is not None and value < 1:
                raise InvalidInputError(f"expected {option} to be at least 1, found {value}")
        for option, value in (
            ("--maps", self.maps),
            ("--knockouts", self.knockouts),
            ("--knockout-window", self.knockout_window),
            ("--untrained", self.untrained),
        ):
            if value is not None and value < 0:
                raise InvalidInputError(f"expected {option} to be 0 or more, found {value}")
        for name in self.knockout_modes:
            _expect_among("--knockout-modes", name, MODES)
        if "knockout" in self.record and not self.knockout_modes:
            raise InvalidInputError(f"expected --knockout-modes among {', '.join(MODES)}, found none")

    def image_path(self, name: str) -> Path:
        """Where an image of that name is."""
        assert self.images is not None, "images whose size is stated are never opened"
        return self.images / name

    @property
    def held(self) -> frozenset[str]:
        """Names of the optional arrays that what was asked for fills."""
        return frozenset(self.record).union(*(COMPANIONS[name] for name in self.record if name in COMPANIONS))


def _expect_among(option: str, value: str, known: Sequence[str] | Mapping[str, Any]) -> None:
    if value not in known:
        raise InvalidInputError(f"expected {option} to be among {', '.join(known)}, found {value!r}")
