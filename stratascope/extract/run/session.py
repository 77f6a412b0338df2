"""A loaded model with a plan: batches, the check of the first batch, knockouts, gradients."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial

import numpy as np
import torch
from PIL import Image

from stratascope.errors import CaptureError, InvalidInputError
from stratascope.extract.families.general_family import ProcessorRule, family_of
from stratascope.extract.plan.answer_tokens import ABSENT
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.images import image_token_order
from stratascope.extract.run.answer_scores import answer_scores
from stratascope.extract.run.capture import PatchTokens, Pooling
from stratascope.extract.run.device_memory import OutOfMemory, attempt
from stratascope.extract.run.generation import Generation
from stratascope.extract.run.gradients import ARRAYS, TokenGradients
from stratascope.extract.run.halvings import Halving, Halvings, Work
from stratascope.extract.run.inputs import LoadedImage, PreparedImages, check_cut, joined, load_image, shown_image
from stratascope.extract.run.loading import Arrangement
from stratascope.extract.run.model import Batch, CaptureModel, CaptureRequest, PendingCapture
from stratascope.extract.run.self_check import (
    CHECKED,
    check_capture,
    check_generated,
    check_patches,
    check_prompt,
    image_token_order_of,
    limits_of,
    load_processor,
)
from stratascope.extract.run.tower_maps import TowerMapRequests
from stratascope.extract.run.vision_change import vision_changes
from stratascope.extract.run.vision_features import FeatureCache, ImageFeatures
from stratascope.extract.run.vision_tower import CellRequest


class ExtractionSession:
    """A model and its plan.

    Parameters
    ----------
    plan
        The plan of the extraction.
    batch_tokens
        Tokens in a forward pass, at most, padding included; halved permanently when memory runs out.
    """

    def __init__(self, plan: ExtractionPlan, batch_tokens: int) -> None:
        self.plan, self.batch_tokens, self._given_tokens = plan, batch_tokens, batch_tokens
        model = plan.provenance["model"]
        self.model = CaptureModel(
            plan.source,
            device=plan.device,
            dtype=model["dtype"],
            rule=plan.tokenizer.rule,
            untrained=plan.settings.untrained,
            arrangement=Arrangement(plan.settings.device_map, plan.settings.quantize),
        )
        if len(plan.images_of(0)) > 1 and not self.model.accepts_features:
            raise InvalidInputError(
                f"expected a model that accepts precomputed image features for several images in a prompt, found the type "
                f"{plan.source.config.get('model_type')}, which takes one; use another model, or one image"
            )
        self.request = CaptureRequest(
            choices=_compared_tokens(plan),
            arrays=plan.store.record & {"value_norms", "value_logits", "head_outputs", "head_logits"},
            forms=tuple(plan.forms.values()),
            ranks=plan.store.ranks,
            known_tokens=plan.tokenizer.tokenizer.get_vocab_size(),
            fusion=plan.store.fusion,
            generation=Generation(plan.store.generated, tuple(plan.provenance["generation"]["end"]), plan.generated_positions)
            if plan.store.generated
            else None,
        )
        self.features, self.tower_maps = FeatureCache((), 0), TowerMapRequests(plan)
        self.checked = self.knocked = self.scored = False
        self.on_checked: Callable[[], object] = lambda: None
        """Called once, after the first batch agreed with the model."""
        self.failed: dict[int, str] = {}
        """Example number -> why it failed."""
        self.halvings = 0
        """How often a batch was halved because memory ran out."""
        self.kept = Halvings()
        """Where batches were halved, in this run and in earlier ones of the same store."""

    @property
    def threads(self) -> tuple[int, int]:
        """Threads that prepare images, and threads that write blocks; on a CPU the model needs the others."""
        return (min(4, os.cpu_count() or 1), 2) if self.model.device.type == "cuda" else (1, 1)

    def launch(self, batch: Batch) -> PendingCapture:
        """Start a batch; the first one is checked against the model itself."""
        maps = {"maps"} if self.plan.has_map[list(batch.members)].any() else frozenset()
        first = not self.checked
        pending = self.model.launch(batch, replace(self.request, arrays=self.request.arrays | maps, model_logits=first))
        if first:
            self._check(batch, pending)
            self.checked = True
            self.on_checked()
        return pending

    def compute_features(self, example: int, prepared: PreparedImages, name: str) -> ImageFeatures:
        """Features of the image `name` of an example, from the vision tower."""
        cells, tower = self._vision_cells[0].get(name), family_of(self.plan.source).tower
        request = CellRequest(cells, self.plan.layouts[example].grid, tower) if cells and tower else None
        return self.model.features(prepared, request, self.tower_maps.request(example))

    def knock_out(self, example: int, batch: Callable[[], Batch], block: int, place: int) -> np.ndarray:
        """Knockout effects of an example, from a batch of it alone; sub-batches are halved permanently when memory runs out.

        Parameters
        ----------
        example, batch
            Its number, and what makes the batch.
        block, place
            The example's block, and how many examples of the block came before it.

        Raises
        ------
        InvalidInputError
            If memory does not suffice for a sub-batch of one.
        """
        knockouts = self.plan.knockouts
        assert knockouts is not None
        targets, pair = self.plan.masked_tokens(example), (self.request.choices[0], self.request.choices[1])
        check = None if self.knocked else limits_of(self.plan).inner
        while True:
            tokens = self.kept.limit("knockouts", block, place, self._given_tokens)
            found = attempt(partial(lambda *known: self.model.knock_out(batch(), *known), pair, targets, knockouts, tokens, check))
            if not isinstance(found, OutOfMemory):
                self.knocked = True
                return found
            if tokens == 1:
                raise self.too_little("a knockout of one example", found, "lower `max_pixels`, leave knockout out of `record`")
            torch.cuda.empty_cache()
            self.halve("knockouts", block, place, tokens // 2)

    def vision_changes(self, example: int) -> np.ndarray:
        """Changes in the vision tower where a box is painted over, see `vision_changes`; InvalidInputError if memory does not suffice."""
        found = attempt(partial(vision_changes, self.plan, example, self.prepare, self.model.features))
        if isinstance(found, OutOfMemory):
            raise self.too_little("changes in the vision tower", found, "lower `max_pixels`, leave vision_change out of `record`")
        return found

    def score_answers(self, members: Sequence[int], batch_of: Callable[[list[int]], Batch], block: int, place: int) -> np.ndarray:
        """(example, choice) float32: log-probabilities of the examples' answers, see `answer_scores`; arguments as of `knock_out`.

        Raises
        ------
        InvalidInputError
            If memory does not suffice for a single answer.
        """
        answers = [self.plan.tokenizer.answers(self.plan.examples[k]) for k in members]
        lengths = self._counts[list(members)]
        tolerance = None if self.scored else limits_of(self.plan).logits
        while True:
            tokens = 1 if self._alone else self.kept.limit("answers", block, place, self._given_tokens)
            found = attempt(partial(answer_scores, self.model, members, answers, lengths, batch_of, tokens, tolerance))
            if not isinstance(found, OutOfMemory):
                self.scored = True
                missing = len(self.plan.store.choices) - found.shape[1]
                return np.pad(found, ((0, 0), (0, missing)), constant_values=ABSENT)
            if tokens == 1:
                raise self.too_little("an answer of one example", found, "lower `max_pixels`")
            torch.cuda.empty_cache()
            self.halve("answers", block, place, tokens // 2)

    def token_gradients(self, example: int, batch: Callable[[], Batch]) -> TokenGradients:
        """Gradient attributions of each token of an example, from a batch of it alone.

        Raises
        ------
        InvalidInputError
            If memory does not suffice for the backward pass of one example.
        """
        pair, want = (self.request.choices[0], self.request.choices[1]), self.plan.store.record & ARRAYS
        want -= frozenset() if self.plan.has_map[example] else {"gradient_maps"}
        found = attempt(lambda: self.model.gradients(batch(), pair, want))
        if isinstance(found, OutOfMemory):
            tokens = len(self.plan.layouts[example].ids)
            raise self.too_little(
                f"the backward pass of one example of {tokens} tokens",
                found,
                "leave hiding_estimate, gradient_rollout and gradient_maps out of `record`",
            )
        return found

    def move_on(self, block: int, place: int) -> None:
        """Go on to an example of a block: batches are as large as memory allowed there, in this run or an earlier one."""
        self.batch_tokens = self.kept.limit("capture", block, place, self._given_tokens)

    def halve(self, work: Work, block: int, place: int, tokens: int) -> None:
        """Lower the tokens in a forward pass from an example on, because memory ran out."""
        self.halvings += 1
        self.kept.add(Halving(work, block, place, tokens))

    def too_little(self, what: str, found: OutOfMemory, remedy: str) -> InvalidInputError:
        """The error for work that memory does not suffice for, although nothing smaller can be tried."""
        return InvalidInputError(
            f"expected memory for {what} on {self.model.device}, found too little ({found.reason}); {remedy}, or take a larger GPU"
        )

    def next_batch(self, members: Sequence[int]) -> list[int]:
        """The first of `members` (sorted by length) that fit in a padded batch within the token budget; at least one.

        Pixels of unknown processors are not joined: without precomputed features such a model runs one example at a time, as does one
        that generates and does not `decodes_together`.
        """
        if self._alone or (self.request.generation is not None and not self.model.decodes_together):
            return [members[0]]
        counts, batch = self.plan.token_counts, [members[0]]
        for example in members[1:]:
            if (len(batch) + 1) * int(counts[example]) > self.batch_tokens:
                break
            batch.append(example)
        return batch

    @property
    def _alone(self) -> bool:
        """Whether a forward pass takes one image."""
        return isinstance(self.plan.tokenizer.rule, ProcessorRule) and not self.model.accepts_features

    def in_order(self, members: Sequence[int]) -> list[int]:
        """Sort examples by length, so that batches have little padding; the same in every run."""
        return sorted(members, key=lambda k: (self._counts[k], k))

    @cached_property
    def _counts(self) -> np.ndarray:
        return self.plan.token_counts

    @cached_property
    def _vision_cells(self) -> tuple[dict[str, list[np.ndarray]], dict[int, list[int]]]:
        """Image -> distinct sets of cells that its examples need from the vision tower; example -> indices of its sets."""
        sets: dict[str, list[np.ndarray]] = {}
        chosen: dict[int, list[int]] = {}
        known: dict[tuple[str, bytes], int] = {}
        if "vision_residual" in self.plan.store.record:
            for k, name in enumerate(self.plan.shown):
                chosen[k] = []
                for cells in self.plan.vision_cells(k).values():
                    key = (name, np.asarray(cells, np.int64).tobytes())
                    if key not in known:
                        known[key] = len(sets.setdefault(name, []))
                        sets[name].append(cells)
                    chosen[k].append(known[key])
        return sets, chosen

    def load(self, place: tuple[int, int]) -> LoadedImage:
        """An image by example and number; prepared for the model unless its features are cached."""
        example, number = place
        known = self.plan.images_of(example)[number] in self.features
        return load_image(self.plan, example, None if known else self.prepare, number)

    def prepare(self, image: Image.Image) -> PreparedImages:
        """Inputs of one image, from the family's own processor."""
        return self.model.prepare([image])

    def _check(self, batch: Batch, pending: PendingCapture) -> None:
        """Compare the first batch with single examples, prepared by the model's own processor, through the plain model."""
        captured, processor, references = pending.result(), load_processor(self.plan), {}
        finite = np.flatnonzero(np.isfinite(captured.final).all(1) & np.isfinite(captured.rows).all((0, 2, 3)))
        if not len(finite):
            raise CaptureError(
                f"expected finite activations, found none in the first {len(batch.members)} examples in {self.model.dtype}; "
                "set `dtype` to bfloat16 or float32"
            )
        for place in np.unique(np.linspace(0, len(finite) - 1, min(len(finite), CHECKED)).round().astype(int)):
            row = int(finite[place])
            example = batch.members[row]
            images = [shown_image(self.plan, name) for name in self.plan.images_of(example)]
            made = check_prompt(self.plan, example, images, processor)
            tokens = [self.plan.position_tokens(example, name) for name in self._pooled]
            order = image_token_order_of(self.plan, self.model, example, made)
            if captured.generated is not None:
                check_generated(self.plan, self.model, captured, row, example, made)
            references[row] = self.model.reference(made, tokens, self.request.choices, order)
        check_capture(self.plan, self.model, captured, references, self.request.choices)
        check_patches(self.plan, batch.members, captured, self._pooled.index("image"))

    @property
    def _pooled(self) -> tuple[str, ...]:
        """Positions of the captured residual stream; the first batch is also compared at the final and the image tokens."""
        positions = self.plan.prompt_positions
        return positions if self.checked else (*positions, *(name for name in ("final", "image") if name not in positions))

    def _image_tokens(self, members: Sequence[int]) -> dict[int, np.ndarray]:
        """Row of a batch -> image tokens, of the examples whose residual stream is saved at each of them."""
        return {row: np.arange(*self.plan.layouts[k].spans["image"]) for row, k in enumerate(members) if self.plan.has_patches[k]}

    def _batch(self, members: Sequence[int], images: Sequence[Image.Image]) -> Batch:
        """A batch with pixels of its images, those of an example one after the other."""
        each = [self.prepare(image) for image in images]
        places = [(k, number) for k in members for number in range(len(self.plan.images_of(k)))]
        for (k, number), prepared in zip(places, each, strict=True):
            check_cut(self.plan, k, prepared, number)
        return self.batch(members, joined(each).tensors)

    def batch(self, members: Sequence[int], images: Mapping[str, torch.Tensor], features: Sequence[ImageFeatures] = ()) -> Batch:
        """A batch with pixels or features of its images.

        Raises
        ------
        InvalidInputError
            If image tokens are to be permuted and the model takes pixels alone.
        """
        plan, seed = self.plan, self.plan.settings.seed
        if plan.settings.condition == "patch-shuffle":
            if not features:
                raise InvalidInputError(
                    "expected a model that accepts precomputed image features for `condition` patch-shuffle, found another; choose "
                    "another model or condition"
                )
            features = [one.reordered(image_token_order(one.tokens, seed, k)) for k, one in zip(members, features, strict=True)]
        lengths = self._counts[list(members)]
        ids = np.zeros((len(members), int(lengths.max())), np.int64)
        for row, k in enumerate(members):
            ids[row, : lengths[row]] = plan.layouts[k].ids
        segments = []
        if "vision_residual" in plan.store.record and features:
            per = len(features) // len(members)  # an example's own image is the last
            segments = [((row + 1) * per - 1, segment) for row, k in enumerate(members) for segment in self._vision_cells[1][k]]
        entry = None
        if "vision_output" in plan.store.record:
            entry = Pooling.of([plan.vision_tokens(k) for k in members])
        return Batch(
            tuple(members),
            torch.from_numpy(ids),
            torch.from_numpy(lengths.astype(np.int64)),
            images,
            Pooling.of([[plan.position_tokens(k, position) for position in self._pooled] for k in members]),
            tuple(features),
            segments,
            entry,
            PatchTokens.of(self._image_tokens(members), plan.store.patch_layers),
        )


def _compared_tokens(plan: ExtractionPlan) -> tuple[int, ...]:
    """Tokens whose logits every pass gives: the answers, or first tokens of some where answers have several."""
    if not plan.tokenizer.scored:
        return tuple(tokens[0] for tokens in plan.tokenizer.answer_tokens.values())
    first = dict.fromkeys(tokens[0] for tokens in plan.tokenizer.answers(plan.examples[0]))
    return (*first, *first)[:2]  # two in any case, as their difference is taken
