"""The plan of an extraction: all that is known before the model runs, including its cost. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from stratascope.datasets.box_alignment import BoxAlignment
from stratascope.datasets.boxes import Box, cells_in_box, grid_cells
from stratascope.datasets.examples import Example
from stratascope.datasets.prompts import Prompt
from stratascope.errors import InvalidInputError
from stratascope.extract.families.general_family import family_of
from stratascope.extract.families.model_families import ModelShape
from stratascope.extract.families.tower_views import TowerViews
from stratascope.extract.model_files import ModelSource, resolve_model
from stratascope.extract.plan.image_boxes import flipped, in_view, view_size
from stratascope.extract.plan.images import ImageFacts, apply_condition, open_image, thumbnail
from stratascope.extract.plan.knockout_plan import MODES, Knockouts, computed_tokens, masked_tokens
from stratascope.extract.plan.published_models import PublishedModel
from stratascope.extract.plan.readout_words import readout_words
from stratascope.extract.plan.settings import BOX_POSITIONS, TEXT_POSITIONS, ExtractionSettings
from stratascope.extract.plan.token_layout import PromptTokenizer, TokenLayout
from stratascope.store import StoreLayout, estimate_sizes
from stratascope.store.format.generated_positions import generated_number
from stratascope.store.format.prompt_parts import IMAGE_POSITION, grouped_cells

THUMBNAIL_SAMPLE = 16
"""Images from which the size of all thumbnails is estimated."""


def patch_counts(layouts: Sequence[TokenLayout], has_patches: np.ndarray) -> np.ndarray:
    """(example,) int32: image cells of the examples of a mask (example,), 0 for the others."""
    counts = np.zeros(len(layouts), np.int32)
    for k in np.flatnonzero(has_patches).tolist():
        counts[k] = layouts[k].grid[0] * layouts[k].grid[1]
    return counts


@dataclass(frozen=True, repr=False)
class ExtractionPlan:
    """Examples with their tokens, the layout of the store, and its provenance before the run."""

    settings: ExtractionSettings
    source: ModelSource
    shape: ModelShape
    tokenizer: PromptTokenizer
    examples: list[Example]
    shown: list[str]
    """Image that the model sees for each example, the first one of several; differs from its own under `shuffled-image`."""
    facts: Mapping[str, ImageFacts]
    alignments: Mapping[str, BoxAlignment]
    """Alignment of the boxes of each image; empty without boxes."""
    layouts: list[TokenLayout]
    has_map: np.ndarray
    """(example,) bool."""
    has_patches: np.ndarray
    """(example,) bool: examples whose residual stream is saved at every image token."""
    forms: dict[str, int]
    """Answer form -> token id; empty if their logits are not saved."""
    knockouts: Knockouts | None
    """None without knockouts."""
    store: StoreLayout
    provenance: dict[str, Any]
    further: Sequence[tuple[str, ...]] = ()
    """Images after the first one that the model sees for each example; empty where examples have one."""
    tower: TowerViews | None = None
    """Views of the vision tower; None if its attention maps are not saved."""
    changed: np.ndarray | None = None
    """(example,) bool: examples whose changes in the vision tower are measured; None: of no example."""

    def __repr__(self) -> str:
        arrays = ", ".join(sorted(self.store.record))
        return f"<ExtractionPlan of {self.settings.model}: {len(self.examples):,} examples, {self.shape.layers} layers; {arrays}>"

    @cached_property
    def failed(self) -> dict[int, str]:
        """Example number -> why an image of it is unusable."""
        problems = {name: fact.problem for name, fact in self.facts.items() if fact.problem}
        found = {k: [problems[name] for name in self.images_of(k) if name in problems] for k in range(len(self.shown) if problems else 0)}
        return {k: each[0] for k, each in found.items() if each}

    @cached_property
    def shots(self) -> tuple[str, ...]:
        """Images of the prompt's few-shot turns, which every example has."""
        return tuple(name for shot in self.prompt.shots for name in shot.images)

    def images_of(self, example: int) -> tuple[str, ...]:
        """All images that the model sees for an example, in the order of the prompt: few-shot images, then its own."""
        return (*self.shots, self.shown[example], *(self.further[example] if self.further else ()))

    @property
    def device(self) -> str:
        """Device of the model; provenance has only its type, so that several GPUs can fill one store."""
        chosen, kind = self.settings.device, str(self.provenance["model"]["device"])
        return kind if chosen == "auto" else chosen

    @property
    def prompt(self) -> Prompt:
        """The question to the model."""
        return self.tokenizer.prompt

    @property
    def prompt_positions(self) -> tuple[str, ...]:
        """Saved positions of the prompt; those of generated tokens follow them."""
        return tuple(name for name in self.store.positions if generated_number(name) is None)

    @property
    def generated_positions(self) -> tuple[int, ...]:
        """Numbers of the generated tokens whose residual stream is saved."""
        return tuple(number for name in self.store.positions if (number := generated_number(name)) is not None)

    @property
    def token_counts(self) -> np.ndarray:
        """(example,) int32."""
        return np.array([len(layout.ids) for layout in self.layouts], np.int32)

    @property
    def patch_counts(self) -> np.ndarray:
        """(example,) int32: image tokens of each example in patch_residual, 0 for examples without."""
        return patch_counts(self.layouts, self.has_patches)

    def position_tokens(self, example: int, position: str) -> np.ndarray | None:
        """Tokens whose mean is a position.

        Parameters
        ----------
        example
            Its number.
        position
            Such as `final`, `subject_box`, `caption_mean`, `cell_0_0` or `after_caption_0`.

        Returns
        -------
        numpy.ndarray or None
            (k,) token indices; None if the example lacks the position.
        """
        layout = self.layouts[example]
        if position == "final":
            return np.array([len(layout.ids) - 1])
        if position == "image":
            return np.arange(*layout.spans["image"])
        if IMAGE_POSITION.fullmatch(position):
            return np.arange(*layout.spans[position])
        if position in TEXT_POSITIONS:
            span = layout.spans.get(position)
            return None if span is None else np.array([span[1] - 1])
        if position.endswith("_mean"):
            span = layout.spans.get(position.removesuffix("_mean"))
            return None if span is None else np.arange(*span)
        if position.startswith("cell_"):
            cells = grouped_cells(*layout.grid).get(position)
            return None if cells is None else layout.spans["image"][0] + cells
        if position not in BOX_POSITIONS:
            token = layout.roles.get(position)
            return None if token is None else np.array([token])
        box = self.shown_box(example, position.removesuffix("_box"))
        if box is None:
            return None
        return layout.spans["image"][0] + cells_in_box(box, view_size(layout.view), layout.grid)

    def file_size(self, example: int) -> tuple[int, int]:
        """(width, height) in pixels of the image that the model sees for an example, the first one of several."""
        fact = self.facts[self.shown[example]]
        return fact.width, fact.height

    def shown_box(self, example: int, name: str) -> Box | None:
        """A gold box within the view; None if it is unknown or outside the view.

        Parameters
        ----------
        example
            Its number.
        name
            `subject` or `object`.
        """
        row = self.examples[example]
        box = row.subject_box if name == "subject" else row.object_box
        if box is None or self.shown[example] != row.image:  # the boxes do not belong to another image
            return None
        if self.settings.condition == "patch-shuffle":  # its cells are anywhere among the image tokens
            return None
        if self.settings.condition == "mirror":
            box = flipped(box, self.file_size(example)[0])
        return in_view(box, self.layouts[example].view)

    def vision_cells(self, example: int) -> dict[str, np.ndarray]:
        """Image cells whose mean is a vision position, for each position.

        Parameters
        ----------
        example
            Its number.

        Returns
        -------
        dict
            Vision position -> (k,) raster indices of cells; absent boxes are left out.
        """
        layout = self.layouts[example]
        cells = {"image": np.arange(int(np.prod(layout.grid))), **grid_cells(*layout.grid)}
        boxes = {name: tokens - layout.spans["image"][0] for name, tokens in self._box_tokens(example).items()}
        return cells | {name: inside for name, inside in boxes.items() if name in self.store.vision_positions}

    def vision_tokens(self, example: int) -> list[np.ndarray | None]:
        """Tokens of the image cells of each vision position.

        Parameters
        ----------
        example
            Its number.

        Returns
        -------
        list
            (k,) token indices for each vision position of the store; None where the example lacks it.
        """
        cells, first = self.vision_cells(example), self.layouts[example].spans["image"][0]
        return [first + cells[name] if name in cells else None for name in self.store.vision_positions]

    def masked_tokens(self, example: int) -> dict[str, np.ndarray]:
        """Tokens that each knockout target masks.

        Parameters
        ----------
        example
            Its number.

        Returns
        -------
        dict
            Target -> (k,) indices of masked tokens; absent targets are left out. The spans `caption` and `prompt` are targets where the
            knockouts have a group of reading tokens; groups of cells are none under `patch-shuffle`.
        """
        joined = any(mode not in MODES for mode in self.settings.knockout_modes)
        found = masked_tokens(self.layouts[example], self._box_tokens(example), joined=joined)
        placed = self.settings.condition != "patch-shuffle"
        return {name: tokens for name, tokens in found.items() if placed or not name.startswith("cell_")}

    @cached_property
    def knockout_passes(self) -> float:
        """Cost of the knockouts in forward passes over an average example."""
        if self.knockouts is None:
            return 0.0
        blocks, family, work = self.shape.layers, family_of(self.source), 0
        for k in np.flatnonzero(self.knockouts.chosen):
            length = len(self.layouts[k].ids)
            together = None if family.causal else (0, length) if family.prefix else self.layouts[k].spans["image"]
            work += computed_tokens(self.knockouts, blocks, length, self.masked_tokens(int(k)), together)
        return work / blocks / float(self.token_counts.mean())

    def _box_tokens(self, example: int) -> dict[str, np.ndarray]:
        found = {name: self.position_tokens(example, name) for name in BOX_POSITIONS}
        return {name: tokens for name, tokens in found.items() if tokens is not None}

    @cached_property
    def present(self) -> np.ndarray:
        """(example, position) bool: positions that each example has, or may have for generated tokens."""
        examples = range(len(self.examples))
        columns = []
        for position in self.store.positions:
            if position in ("final", "image") or IMAGE_POSITION.fullmatch(position) or generated_number(position) is not None:
                columns.append([True] * len(examples))
            elif position in TEXT_POSITIONS:
                columns.append([position in layout.spans for layout in self.layouts])
            elif position.endswith("_mean"):
                columns.append([position.removesuffix("_mean") in layout.spans for layout in self.layouts])
            elif position.startswith("cell_"):
                columns.append([position in grouped_cells(*layout.grid) for layout in self.layouts])
            elif position not in BOX_POSITIONS:
                columns.append([position in layout.roles for layout in self.layouts])
            else:
                name = position.removesuffix("_box")
                columns.append([self.shown_box(k, name) is not None for k in examples])
        return np.array(columns, dtype=bool).T

    @cached_property
    def readout_words(self) -> pd.DataFrame:
        """Words whose rows of the unembedding the store keeps, as `Readout.words`; none without the residual stream."""
        relations = (example.relation for example in self.examples if not example.is_question)
        choices = {} if self.tokenizer.scored else self.tokenizer.answer_tokens
        words = readout_words(self.tokenizer.tokenizer, {choice: tokens[0] for choice, tokens in choices.items()}, relations)
        return words if "residual" in self.store.record else words.iloc[:0]

    @cached_property
    def estimate(self) -> pd.DataFrame:
        """Bytes by array, raw and on disk, see `StoreLayout.estimate`; thumbnails are estimated from a few images."""
        words = self.source.vocabulary_size if "top_tokens" in self.store.record else 0
        knocked = 0.0 if self.knockouts is None else float(self.knockouts.chosen.mean())
        return estimate_sizes(
            self.store,
            self.token_counts,
            self.has_map,
            self.present,
            self._sample_thumbnails(),
            words,
            knocked,
            self.patch_counts,
            len(self.readout_words),
            None if self.tower is None else self.tower.weights(map(self.file_size, range(len(self.examples))), self.has_map),
            None if self.changed is None else int(patch_counts(self.layouts, self.changed).sum()),
        )

    def _sample_thumbnails(self) -> np.ndarray | None:
        if self.settings.image_size is not None or self.store.thumbnail is None:
            return None
        names = [name for name in dict.fromkeys(self.shown) if not self.facts[name].problem]
        chosen = names[:: max(1, len(names) // THUMBNAIL_SAMPLE)][:THUMBNAIL_SAMPLE]
        images = [apply_condition(open_image(self.settings.image_path(name)), self.settings.condition) for name in chosen]
        return np.stack([thumbnail(image, self.store.thumbnail) for image in images]) if images else None

    @property
    def weights_here(self) -> bool:
        """Whether the weights are available on this machine; untrained models need none."""
        return self.settings.untrained is not None or self.source.weights_here

    def check_files(self) -> None:
        """Raise InvalidInputError if the plan was made without the model's files."""
        if isinstance(self.source, PublishedModel):
            raise InvalidInputError(
                f"{self.source.name}: expected the model's files, found a plan {self.source.note}; plan again where the Hub can be "
                "reached, or set `model` to a folder"
            )

    def with_weights(self) -> ExtractionPlan:
        """The same plan after downloading the weights of a Hub model."""
        if self.weights_here:
            return self
        self.check_files()
        return replace(self, source=resolve_model(self.settings.model, revision=self.source.revision, weights=True))
