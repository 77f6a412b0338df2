"""A loaded model working through a plan, block by block, checking itself on the first batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from stratascope.errors import CaptureError
from stratascope.extract.capture import Pooling
from stratascope.extract.images import UNDECODABLE, apply_condition, open_image, thumbnail
from stratascope.extract.model import Batch, Captured, CaptureModel
from stratascope.extract.plan import ExtractionPlan
from stratascope.store import RECORDED, STATUS_CODES, encode_maps


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
        self.choices = list(plan.tokenizer.choice_ids.values())
        self.want = frozenset(plan.store.record) & {"value_norms", "head_outputs", "head_logits"}
        self.checked = False
        self.failed: dict[int, str] = {}
        """Example number -> why it was not recorded."""
        self.halvings = 0
        """How often a batch had to be halved for lack of memory."""

    def block(self, loaded: LoadedBlock, bar: Any) -> dict[str, np.ndarray]:
        """Everything that the store wants of a block's examples, in its own axes."""
        members, images = loaded.members, loaded.images
        arrays = self._empty(members)
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

    def _empty(self, members: Sequence[int]) -> dict[str, np.ndarray]:
        layout, count = self.plan.store, len(members)
        arrays: dict[str, np.ndarray] = {}
        for spec in layout.arrays():
            if spec.when == "block":
                dtype = np.float32 if spec.dtype.startswith("float") else spec.dtype
                arrays[spec.name] = np.full(spec.block_shape(count), spec.fill, dtype)
        arrays["status"][:] = RECORDED
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
        want = self.want | ({"maps"} if self.plan.has_map[members].any() else frozenset())
        try:
            captured = self.model.run(self._batch(members, images), self.choices, want)
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
            self._check(members, images, captured)
            self.checked = True
        self._fill(members, captured, first, arrays)

    def _fill(self, members: list[int], captured: Captured, first: int, arrays: dict[str, np.ndarray]) -> None:
        """Put a batch's results where the block's arrays want them."""
        plan = self.plan
        at = np.array(members) - first
        arrays["answer_logits"][at] = captured.answer_logits
        if "residual" in arrays:
            arrays["residual"][:, :, at] = captured.residual
            for row, k in enumerate(members):
                arrays["residual"][:, ~plan.present[k], at[row]] = np.nan
        if captured.head_outputs is not None and "head_outputs" in arrays:
            arrays["head_outputs"][:, at] = captured.head_outputs
        if captured.vision is not None:
            owners = [(row, name) for row, k in enumerate(members) for name in plan.vision_cells(k)]
            columns = {name: column for column, name in enumerate(plan.store.vision_positions)}
            for segment, (row, name) in enumerate(owners):
                arrays["vision_residual"][:, columns[name], at[row]] = captured.vision[:, segment]
        if captured.parts is not None:
            arrays["head_logits"][:, at] = captured.parts.heads.cpu().numpy()
        for row, k in enumerate(members):
            tokens = len(plan.layouts[k].ids)
            if "attention_rows" in arrays:
                arrays["attention_rows"][:, at[row], :, :tokens] = captured.rows[:, row, :, :tokens]
            if captured.value_norms is not None:
                arrays["value_norms"][:, at[row], :, :tokens] = captured.value_norms[:, row, :, :tokens]
            if "attention_maps" in arrays and plan.has_map[k]:
                assert captured.fused is not None
                arrays["attention_maps"][at[row], :, :tokens, :tokens] = encode_maps(captured.fused[row, :, :tokens, :tokens])
            if not all(np.isfinite(values[:, row]).all() for values in (captured.residual[:, 0], captured.rows)):
                arrays["status"][at[row]] = STATUS_CODES["non_finite"]
                self.failed[k] = f"the model gave a value that is not finite in {plan.provenance['model']['dtype']}"

    def _batch(self, members: Sequence[int], images: Sequence[Image.Image]) -> Batch:
        plan = self.plan
        lengths = plan.token_counts[list(members)]
        ids = np.zeros((len(members), int(lengths.max())), np.int64)
        chosen = [[plan.position_tokens(k, position) for position in plan.store.positions] for k in members]
        most = max((len(tokens) for row in chosen for tokens in row if tokens is not None), default=1)
        index = np.zeros((len(members), len(plan.store.positions), most), np.int64)
        weight = np.zeros(index.shape, np.float32)
        for row, k in enumerate(members):
            ids[row, : lengths[row]] = plan.layouts[k].ids
            for column, tokens in enumerate(chosen[row]):
                if tokens is not None:
                    index[row, column, : len(tokens)] = tokens
                    weight[row, column, : len(tokens)] = 1 / len(tokens)
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
        return Batch(
            tuple(members),
            torch.from_numpy(ids),
            torch.from_numpy(lengths.astype(np.int64)),
            prepared.tensors,
            Pooling(torch.from_numpy(index), torch.from_numpy(weight)),
            segments,
        )

    def _check(self, members: list[int], images: Sequence[Image.Image], captured: Captured) -> None:
        """Compare the first batch with the model itself, so that a wrong capture stops before hours are spent."""
        dtype = self.plan.provenance["model"]["dtype"]
        tolerance = 1e-3 if dtype == "float32" else 0.15
        if not np.isfinite(captured.residual).all() or not np.isfinite(captured.answer_logits).all():
            raise CaptureError(f"expected finite activations, found some that are not in {dtype}; use --dtype bfloat16 or float32")
        sums = captured.rows.sum(-1)
        if not np.allclose(sums, 1, atol=1e-3):
            raise CaptureError(f"expected attention rows that sum to 1, found sums from {sums.min():.4f} to {sums.max():.4f}")
        scale = max(1.0, float(np.abs(captured.answer_logits).max()))
        if "final" in self.plan.store.positions:
            final = captured.residual[-1, self.plan.store.positions.index("final")]
            own = self.model.readout(final, self.choices)
            gap = float(np.abs(own - captured.answer_logits).max())
            if gap > tolerance * scale:
                raise CaptureError(f"expected the last captured residual to give the model's own logits, found them {gap:.3g} apart")
        if captured.parts is not None:
            parts = captured.parts
            total = (parts.heads.sum((0, 2)) + parts.rest.sum(0) + parts.embedding + parts.constant).cpu().numpy()
            gap = float(np.abs(total - (captured.answer_logits[:, 0] - captured.answer_logits[:, 1])).max())
            if gap > tolerance * scale:
                raise CaptureError(f"expected the heads' logits and the rest to add up to the answer's, found them {gap:.3g} apart")
        single = self.model.run(self._batch(members[:1], images[:1]), self.choices)
        gap = float(np.abs(single.answer_logits[0] - captured.answer_logits[0]).max())
        if gap > tolerance * scale:
            raise CaptureError(
                f"expected an example alone to give the same logits as in its batch, found them {gap:.3g} apart; use --batch-tokens 1"
            )
