"""The plan of an extraction: everything that is known before the model runs, and what it will cost (no torch)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from stratascope.datasets.boxes import Box, BoxIndex, cells_in_box, grid_cells
from stratascope.datasets.examples import Example, files_digest, load_examples
from stratascope.datasets.prompts import PROMPTS, Prompt
from stratascope.errors import InvalidInputError
from stratascope.extract.answers import answer_forms
from stratascope.extract.contents import store_contents
from stratascope.extract.cutting import PatchGrid
from stratascope.extract.families import ModelShape, check_family, image_rule, logits_capped, model_shape
from stratascope.extract.images import (
    ImageFacts,
    apply_condition,
    images_digest,
    inspect_images,
    open_image,
    shown_images,
    stated_images,
    thumbnail,
)
from stratascope.extract.layout import SPANS, TILES, PromptTokenizer, TokenLayout
from stratascope.extract.settings import BOX_POSITIONS, GRID_POSITIONS, POSITIONS, TEXT_POSITIONS, TOP_TOKENS, ExtractionSettings
from stratascope.extract.sources import ModelSource, resolve_model
from stratascope.extract.targets import MODES, Knockouts, computed_tokens, hidden_tokens, layer_windows, ordered_targets
from stratascope.extract.views import flipped, in_view, view_size
from stratascope.store import StoreLayout

THUMBNAIL_SAMPLE = 16
"""Images by which the size of all thumbnails is judged."""


@dataclass(frozen=True)
class ExtractionPlan:
    """Examples with their tokens, the store's layout, and the provenance that is known beforehand."""

    settings: ExtractionSettings
    source: ModelSource
    shape: ModelShape
    tokenizer: PromptTokenizer
    examples: list[Example]
    shown: list[str]
    """The image that each example is shown, which differs from its own under `shuffled-image`."""
    facts: Mapping[str, ImageFacts]
    layouts: list[TokenLayout]
    has_map: np.ndarray
    """(example,) bool."""
    forms: dict[str, int]
    """Way to answer -> its token id; empty where their logits are not recorded."""
    knockouts: Knockouts | None
    """None where none are measured."""
    store: StoreLayout
    provenance: dict[str, Any]

    @property
    def failed(self) -> dict[int, str]:
        """Example number -> why its image cannot be decoded."""
        return {k: self.facts[name].problem for k, name in enumerate(self.shown) if self.facts[name].problem}

    @property
    def device(self) -> str:
        """Where the model runs; provenance names only the kind, so that several GPUs can fill one store."""
        chosen, kind = self.settings.device, str(self.provenance["model"]["device"])
        return kind if chosen == "auto" else chosen

    @property
    def prompt(self) -> Prompt:
        return self.tokenizer.prompt

    @property
    def token_counts(self) -> np.ndarray:
        """(example,) int32."""
        return np.array([len(layout.ids) for layout in self.layouts], np.int32)

    def position_tokens(self, example: int, position: str) -> np.ndarray | None:
        """Token indices whose mean is the vector of `position`; None where this example has no such position."""
        layout = self.layouts[example]
        if position == "final":
            return np.array([len(layout.ids) - 1])
        if position == "image":
            return np.arange(*layout.spans["image"])
        if position in TEXT_POSITIONS:
            span = layout.spans.get(position)
            return None if span is None else np.array([span[1] - 1])
        box = self.shown_box(example, position.removesuffix("_box"))
        if box is None:
            return None
        return layout.spans["image"][0] + cells_in_box(box, view_size(layout.view), layout.grid)

    def file_size(self, example: int) -> tuple[int, int]:
        """(width, height) in pixels of the image that the example is shown."""
        fact = self.facts[self.shown[example]]
        return fact.width, fact.height

    def shown_box(self, example: int, name: str) -> Box | None:
        """Gold box of `subject` or `object` within the layout's view; None where it is not known, or wholly out of what is seen."""
        row = self.examples[example]
        box = row.subject_box if name == "subject" else row.object_box
        if box is None or self.shown[example] != row.image:  # of another image the boxes say nothing
            return None
        if self.settings.condition == "mirror":
            box = flipped(box, self.file_size(example)[0])
        return in_view(box, self.layouts[example].view)

    def vision_cells(self, example: int) -> dict[str, np.ndarray]:
        """Vision position -> raster indices of the image cells that are averaged; absent boxes are left out."""
        layout = self.layouts[example]
        cells = {"image": np.arange(int(np.prod(layout.grid))), **grid_cells(*layout.grid)}
        boxes = {name: tokens - layout.spans["image"][0] for name, tokens in self._box_tokens(example).items()}
        return cells | {name: inside for name, inside in boxes.items() if name in self.store.vision_positions}

    def vision_tokens(self, example: int, position: str) -> np.ndarray | None:
        """Token indices of the image cells of a vision position; None where this example has no such position."""
        cells = self.vision_cells(example).get(position)
        return None if cells is None else self.layouts[example].spans["image"][0] + cells

    def hidden_tokens(self, example: int) -> dict[str, np.ndarray]:
        """Target of knockouts -> indices of the tokens that are hidden; absent targets are left out."""
        return hidden_tokens(self.layouts[example], self._box_tokens(example))

    @cached_property
    def knockout_passes(self) -> float:
        """What the knockouts compute, as a number of plain passes over an average example."""
        if self.knockouts is None:
            return 0.0
        blocks, family, work = self.shape.layers, check_family(self.source), 0
        for k in np.flatnonzero(self.knockouts.chosen):
            length = len(self.layouts[k].ids)
            together = None if family.causal else (0, length) if family.prefix else self.layouts[k].spans["image"]
            work += computed_tokens(self.knockouts, blocks, length, self.hidden_tokens(int(k)), together)
        return work / blocks / float(self.token_counts.mean())

    def _box_tokens(self, example: int) -> dict[str, np.ndarray]:
        found = {name: self.position_tokens(example, name) for name in BOX_POSITIONS}
        return {name: tokens for name, tokens in found.items() if tokens is not None}

    @cached_property
    def present(self) -> np.ndarray:
        """(example, position) bool: which positions each example has."""
        examples, positions = range(len(self.examples)), self.store.positions
        return np.array([[self.position_tokens(k, position) is not None for position in positions] for k in examples])

    @cached_property
    def estimate(self) -> pd.DataFrame:
        """Bytes by array, raw and on disk, as `StoreLayout.estimate` gives them; thumbnails judged by a few of the images."""
        words = self.tokenizer.tokenizer.get_vocab_size() if "top_tokens" in self.store.record else 0
        knocked = 0.0 if self.knockouts is None else float(self.knockouts.chosen.mean())
        return self.store.estimate(self.token_counts, self.has_map, self.present, self._sample_thumbnails(), words, knocked)

    def _sample_thumbnails(self) -> np.ndarray | None:
        if self.settings.image_size is not None or self.store.thumbnail is None:
            return None
        names = [name for name in dict.fromkeys(self.shown) if not self.facts[name].problem]
        chosen = names[:: max(1, len(names) // THUMBNAIL_SAMPLE)][:THUMBNAIL_SAMPLE]
        images = [apply_condition(open_image(self.settings.images / name), self.settings.condition) for name in chosen]
        return np.stack([thumbnail(image, self.store.thumbnail) for image in images]) if images else None

    def store_contents(self) -> dict[str, Any]:
        """What `create_store` writes before the model runs."""
        return store_contents(self)


def plan_extraction(settings: ExtractionSettings, *, weights: bool = False, progress: bool = False) -> ExtractionPlan:
    """Tokenise every example, check every image, lay out the store; run nothing and write nothing.

    Parameters
    ----------
    settings
        What was chosen.
    weights
        Fetch a Hub model's weights too, since an extraction follows.
    progress
        Show progress bars where there is a terminal.

    Raises
    ------
    InvalidInputError
        For anything that would make the extraction fail or mean nothing: bad rows, missing or unreadable images, an answer
        that is not one token, a prompt longer than the model's context, a position that no example has.
    """
    source = resolve_model(settings.model, revision=settings.revision, weights=weights)
    shape = model_shape(source)
    if "vision_residual" in settings.record and not check_family(source).tower:
        raise InvalidInputError(
            f"expected a model of Qwen's families for --record vision_residual, found {source.config['model_type']!r}, whose vision tower "
            "is not recorded; leave vision_residual out"
        )
    apart = sorted({"head_logits", "value_logits"} & set(settings.record))
    if apart and logits_capped(source):
        raise InvalidInputError(
            f"expected a model whose logits are linear in what heads and MLPs write for --record {', '.join(apart)}, found "
            f"{source.config['model_type']!r} with capped ones, to which no parts add up; leave {' and '.join(apart)} out"
        )
    rule = image_rule(source, settings.max_pixels)
    tokenizer = PromptTokenizer(source, PROMPTS[settings.prompt], rule, settings.system)
    boxes = BoxIndex.from_coco(settings.boxes) if settings.boxes else None
    asked = None if tokenizer.prompt.answers else tokenizer.prompt.choices
    examples = load_examples(settings.examples, boxes, asked)[: settings.limit]
    names = [example.image for example in examples]
    shown = shown_images(names, settings.condition, settings.seed)
    if settings.image_size is not None:
        facts = stated_images(names, *settings.image_size)
    else:
        facts = inspect_images(settings.images, names, strict=settings.strict, progress=progress)
    layouts = []
    for example, image in tqdm(list(zip(examples, shown, strict=True)), "tokens", disable=not progress, unit="example", leave=False):
        fact = facts[image]
        layouts.append(tokenizer.layout(example, (fact.width, fact.height)))
    longest = max(range(len(layouts)), key=lambda k: len(layouts[k].ids))
    if len(layouts[longest].ids) > shape.context:
        fact = facts[shown[longest]]
        raise InvalidInputError(
            f"example {examples[longest].id}: expected at most {shape.context} tokens (the model's context), "
            f"found {len(layouts[longest].ids)}, {_image_tokens(layouts[longest])} of them for an image of "
            f"{fact.width} x {fact.height}; " + ("lower --max-pixels" if isinstance(rule, PatchGrid) else "shrink the image")
        )
    has_map = _spread(len(examples), settings.maps) if "attention_maps" in settings.record else np.zeros(len(examples), bool)
    record = settings.held - (frozenset() if has_map.any() else {"attention_maps"})
    forms = answer_forms(tokenizer.tokenizer) if "form_logits" in record else {}
    record -= frozenset() if forms else {"form_logits"}
    knocked = _spread(len(examples), settings.knockouts) if "knockout" in record else np.zeros(len(examples), bool)
    record -= {"knockout"}  # joins below, with its targets
    sees = bool(record & {"vision_residual", "vision_output"})
    dtype, device = _dtype_and_device(settings, shape)
    positions = _positions(settings, examples, layouts)
    store = StoreLayout(
        examples=len(examples),
        layers=shape.layers,
        hidden=shape.hidden,
        heads=shape.heads,
        head_dim=shape.head_dim if "head_outputs" in record else 0,
        tokens=len(layouts[longest].ids),
        positions=positions,
        spans=(*SPANS, *([TILES] if any(TILES in layout.spans for layout in layouts) else [])),
        choices=tuple(tokenizer.prompt.choices),
        record=record,
        vision_layers=shape.vision_layers if "vision_residual" in record else 0,
        vision_hidden=shape.vision_hidden if "vision_residual" in record else 0,
        vision_positions=_vision_positions(positions) if sees else (),
        answer_forms=tuple(forms),
        ranks=TOP_TOKENS if "top_tokens" in record else 0,
        fusion=settings.fusion,
        block=settings.block,
        thumbnail=settings.thumbnail and settings.thumbnail[::-1],
        computed_dtype=dtype,
    )
    provenance = {
        "model": {
            "name": settings.model,
            "revision": source.revision,
            "family": str(source.config["model_type"]),
            "dtype": dtype,
            "device": device.partition(":")[0],
            "files": source.digests(),
        },
        "processor": {"rule": type(rule).__name__, **rule.settings()},
        "prompt": {
            "name": tokenizer.prompt.name,
            "text": tokenizer.prompt.text,
            "system": settings.system,
            "choices": tokenizer.choice_ids,
            "answers": list(tokenizer.prompt.answers or examples[0].choices) or None,
            "chat_template": source.chat_template,
        },
        "data": {
            "examples": files_digest(settings.examples),
            "boxes": files_digest([settings.boxes]) if settings.boxes else None,
            "images": images_digest(facts),
            "limit": settings.limit,
            **({"labels": "choice"} if examples[0].choices else {}),
        },
        "condition": settings.condition,
        "seed": settings.seed,
        "fusion": store.fusion,
        "maps": settings.maps,
    }
    plan = ExtractionPlan(settings, source, shape, tokenizer, examples, shown, facts, layouts, has_map, forms, None, store, provenance)
    return _with_knockouts(plan, knocked) if knocked.any() else plan


def _with_knockouts(plan: ExtractionPlan, chosen: np.ndarray) -> ExtractionPlan:
    """The plan with knockouts of the chosen examples, and room for them in the store."""
    settings = plan.settings
    modes = tuple(mode for mode in MODES if mode in settings.knockout_modes)
    targets = ordered_targets({name for k in np.flatnonzero(chosen) for name in plan.hidden_tokens(int(k))})
    knockouts = Knockouts(chosen, modes, layer_windows(plan.shape.layers, settings.knockout_window), targets)
    names = {"knockout_modes": modes, "knockout_windows": knockouts.window_names, "knockout_targets": targets}
    store = plan.store.subset(record=plan.store.record | {"knockout"}, **names)
    return replace(plan, knockouts=knockouts, store=store, provenance={**plan.provenance, "knockouts": knockouts.provenance()})


def _image_tokens(layout: TokenLayout) -> int:
    return sum(b - a for name in ("image", TILES) for a, b in [layout.spans.get(name, (0, 0))])


def _spread(count: int, wanted: int | None) -> np.ndarray:
    chosen = np.zeros(count, bool)
    if wanted is None or wanted >= count:
        chosen[:] = True
    else:
        chosen[(np.arange(wanted) * count) // max(wanted, 1)] = True
    return chosen


def _positions(settings: ExtractionSettings, examples: Sequence[Example], layouts: Sequence[TokenLayout]) -> tuple[str, ...]:
    exists: dict[str, Callable[[], bool]] = {
        "final": lambda: True,
        "image": lambda: True,
        **{name: lambda name=name: any(name in layout.spans for layout in layouts) for name in TEXT_POSITIONS},  # type: ignore[misc]
        "subject_box": lambda: any(example.subject_box for example in examples),
        "object_box": lambda: any(example.object_box for example in examples),
    }
    if settings.positions is None:
        return tuple(name for name in POSITIONS if exists[name]())
    for name in settings.positions:
        if not exists[name]():
            why = (
                "no boxes were matched; pass --boxes instances.json"
                if name in BOX_POSITIONS
                else f"the prompt {settings.prompt!r} does not name it"
            )
            raise InvalidInputError(f"expected an example with position {name!r}, found none: {why}")
    return tuple(name for name in POSITIONS if name in settings.positions)


def _vision_positions(positions: Sequence[str]) -> tuple[str, ...]:
    return ("image", *(name for name in BOX_POSITIONS if name in positions), *GRID_POSITIONS)


def _dtype_and_device(settings: ExtractionSettings, shape: ModelShape) -> tuple[str, str]:
    """The precision and kind of device of the extraction; without torch (a laptop that plans) a GPU is assumed for `auto`."""
    device = settings.device
    if device == "auto":
        try:
            import torch

            device = "cuda" if torch.cuda.is_available() else "cpu"
        except ImportError:
            device = "cuda"
    if settings.dtype is not None:
        return settings.dtype, device
    return ("float32" if device == "cpu" else shape.dtype), device
