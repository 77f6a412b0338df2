"""A loaded model working through a plan, block by block, checking itself on the first batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from stratascope.errors import CaptureError
from stratascope.extract.capture import Pooling
from stratascope.extract.filling import empty_arrays, fill
from stratascope.extract.images import UNDECODABLE, apply_condition, open_image, thumbnail
from stratascope.extract.model import Batch, CaptureModel, Wanted
from stratascope.extract.plan import ExtractionPlan
from stratascope.extract.selfcheck import check_capture, check_prompt, tolerance
from stratascope.extract.targets import Knockouts
from stratascope.store import STATUS_CODES


@dataclass(frozen=True)
class LoadedBlock:
    """A block's images, decoded and conditioned, before the model sees them."""

    members: Sequence[int]
    """Example numbers."""
    images: dict[int, Image.Image]
    thumbnails: dict[int, np.ndarray]
    problems: dict[int, tuple[str, str]]
    """Example -> why its image cannot be had, and the name of the status that is recorded."""


def load_block(plan: ExtractionPlan, members: Sequence[int]) -> LoadedBlock:
    """Read and decode a block's images; needs no model, so that it can run ahead in a thread."""
    loaded = LoadedBlock(members, {}, {}, {})
    for k in members:
        name = plan.shown[k]
        fact, path = plan.facts[name], plan.settings.images / name
        if fact.problem:
            loaded.problems[k] = (fact.problem, "unreadable_image")
            continue
        try:
            image = open_image(path)
        except UNDECODABLE as error:
            loaded.problems[k] = (f"{path} could be decoded when planning and no longer can ({error})", "unreadable_image")
            continue
        if image.size != (fact.width, fact.height):
            loaded.problems[k] = (f"{path} changed its size since planning", "image_mismatch")
            continue
        loaded.images[k] = apply_condition(image, plan.settings.condition)
        if plan.store.thumbnail is not None:
            loaded.thumbnails[k] = thumbnail(loaded.images[k], plan.store.thumbnail, plan.layouts[k].view)
    return loaded


class ExtractionSession:
    """A model and the plan it works through.

    Parameters
    ----------
    plan
        What to extract.
    batch_tokens
        At most so many tokens, padding included, in a forward pass; halved for good when the GPU's memory runs out.
    """

    def __init__(self, plan: ExtractionPlan, batch_tokens: int) -> None:
        self.plan, self.batch_tokens = plan, batch_tokens
        model = plan.provenance["model"]
        self.model = CaptureModel(plan.source, device=model["device"], dtype=model["dtype"], rule=plan.tokenizer.rule)
        self.wanted = Wanted(
            choices=tuple(plan.tokenizer.choice_ids.values()),
            arrays=plan.store.record & {"value_norms", "value_logits", "head_outputs", "head_logits"},
            forms=tuple(plan.forms.values()),
            ranks=plan.store.ranks,
            known_tokens=plan.tokenizer.tokenizer.get_vocab_size(),
            fusion=plan.store.fusion,
        )
        self.knockout_tokens = batch_tokens
        """At most so many tokens at once in knockouts."""
        self.checked = self.knocked = False
        self.failed: dict[int, str] = {}
        """Example number -> why it was not recorded."""
        self.halvings = 0
        """How often a batch had to be halved for lack of memory."""

    def block(self, loaded: LoadedBlock, bar: Any) -> dict[str, np.ndarray]:
        """Everything that the store wants of a block's examples, in its own axes."""
        members, images = loaded.members, loaded.images
        arrays = empty_arrays(self.plan.store, len(members))
        if "thumbnail" in arrays:
            for k, small in loaded.thumbnails.items():
                arrays["thumbnail"][k - members[0]] = small
        for k, (reason, code) in loaded.problems.items():
            self.failed[k] = reason
            arrays["status"][k - members[0]] = STATUS_CODES[code]
        bar.update(len(loaded.problems))
        for batch in self._batches(list(images)):
            self._one_batch(batch, [images[k] for k in batch], members[0], arrays)
            bar.update(len(batch))
        return arrays

    def _batches(self, members: Sequence[int]) -> Iterator[list[int]]:
        """Examples sorted by length and cut so that a padded batch stays within the token budget; the same in every run."""
        counts = self.plan.token_counts
        batch: list[int] = []
        for example in sorted(members, key=lambda k: (counts[k], k)):
            if batch and (len(batch) + 1) * int(counts[example]) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(example)
        if batch:
            yield batch

    def _one_batch(self, members: list[int], images: list[Image.Image], first: int, arrays: dict[str, np.ndarray]) -> None:
        maps = {"maps"} if self.plan.has_map[members].any() else frozenset()
        try:
            captured = self.model.run(self._batch(members, images), replace(self.wanted, arrays=self.wanted.arrays | maps))
        except torch.OutOfMemoryError:
            if len(members) == 1:
                raise
            captured = None
        if captured is None:  # outside of the handler, so that the failed pass's tensors are gone
            torch.cuda.empty_cache()
            self.halvings += 1
            half = len(members) // 2
            self._one_batch(members[:half], images[:half], first, arrays)
            self._one_batch(members[half:], images[half:], first, arrays)
            return
        if not self.checked:
            alone = self.model.run(self._batch(members[:1], images[:1]), Wanted(self.wanted.choices))
            check_prompt(self.plan, members[0], images[0])
            check_capture(self.plan, self.model, captured, alone)
            self.checked = True
        self.failed |= fill(self.plan, members, captured, np.array(members) - first, arrays)
        for k, image in zip(members, images, strict=True):
            if self.plan.knockouts is not None and self.plan.knockouts.chosen[k] and k not in self.failed:
                arrays["knockout"][k - first] = self._knock_out(k, image, self.plan.knockouts)

    def _knock_out(self, example: int, image: Image.Image, knockouts: Knockouts) -> np.ndarray:
        """One example's knockouts, in batches that are halved for good when the memory runs out."""
        targets, pair = self.plan.hidden_tokens(example), (self.wanted.choices[0], self.wanted.choices[1])
        check = None if self.knocked else tolerance(self.plan)
        while True:
            try:
                found = self.model.knock_out(self._batch([example], [image]), pair, targets, knockouts, self.knockout_tokens, check)
            except torch.OutOfMemoryError:
                if self.knockout_tokens == 1:
                    raise
            else:
                self.knocked = True
                return found
            torch.cuda.empty_cache()
            self.halvings += 1
            self.knockout_tokens = max(1, self.knockout_tokens // 2)

    def _batch(self, members: Sequence[int], images: Sequence[Image.Image]) -> Batch:
        plan = self.plan
        lengths = plan.token_counts[list(members)]
        ids = np.zeros((len(members), int(lengths.max())), np.int64)
        for row, k in enumerate(members):
            ids[row, : lengths[row]] = plan.layouts[k].ids
        prepared = self.model.prepare(images)
        for k, cut in zip(members, prepared.cuts, strict=True):
            if cut != plan.layouts[k].cut:
                raise CaptureError(
                    f"expected the processor to cut {plan.shown[k]} into {plan.layouts[k].cut} as planned, found {cut}; report this with "
                    "the image's size and the model's name"
                )
        segments = []
        if "vision_residual" in plan.store.record:
            segments = [(row, cells) for row, k in enumerate(members) for cells in plan.vision_cells(k).values()]
        entry = None
        if "vision_output" in plan.store.record:
            entry = Pooling.of([[plan.vision_tokens(k, name) for name in plan.store.vision_positions] for k in members])
        return Batch(
            tuple(members),
            torch.from_numpy(ids),
            torch.from_numpy(lengths.astype(np.int64)),
            prepared.tensors,
            Pooling.of([[plan.position_tokens(k, position) for position in plan.store.positions] for k in members]),
            segments,
            entry,
        )
