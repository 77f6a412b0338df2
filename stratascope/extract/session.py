"""A loaded model working through a plan, block by block, checking itself on the first batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from stratascope.errors import CaptureError
from stratascope.extract.capture import Pooling
from stratascope.extract.images import apply_condition, open_image, thumbnail
from stratascope.extract.model import Batch, Captured, CaptureModel
from stratascope.extract.plan import ExtractionPlan
from stratascope.store import RECORDED, encode_maps


class ExtractionSession:
    """A loaded model and the plan it works through."""

    def __init__(self, plan: ExtractionPlan, batch_tokens: int) -> None:
        self.plan, self.batch_tokens = plan, batch_tokens
        model = plan.provenance["model"]
        self.model = CaptureModel(plan.source, device=model["device"], dtype=model["dtype"], grid=plan.tokenizer.grid)
        self.choices = list(plan.tokenizer.choice_ids.values())
        self.checked = False

    def block(self, members: Sequence[int], bar: Any) -> dict[str, np.ndarray]:
        """Everything that the store wants of these examples, in its own axes."""
        layout = self.plan.store
        first, count = members[0], len(members)
        arrays: dict[str, np.ndarray] = {
            "answer_logits": np.empty((count, len(layout.choices)), np.float32),
            "status": np.full(count, RECORDED, np.uint8),
        }
        if "residual" in layout.record:
            arrays["residual"] = np.empty((layout.layers + 1, len(layout.positions), count, layout.hidden), np.float32)
        if "attention_rows" in layout.record:
            arrays["attention_rows"] = np.full((layout.layers, count, layout.heads, layout.tokens), np.nan, np.float32)
        if "attention_maps" in layout.record:
            arrays["attention_maps"] = np.zeros((count, layout.layers, layout.tokens, layout.tokens), np.uint8)
        if layout.thumbnail is not None:
            arrays["thumbnail"] = np.empty((count, *layout.thumbnail, 3), np.uint8)
        for batch in self._batches(members):
            self._one_batch(batch, first, arrays)
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

    def _one_batch(self, members: list[int], first: int, arrays: dict[str, np.ndarray]) -> None:
        plan = self.plan
        images = [apply_condition(open_image(plan.settings.images / plan.examples[k].image), plan.settings.condition) for k in members]
        if "thumbnail" in arrays:
            for k, image in zip(members, images, strict=True):
                arrays["thumbnail"][k - first] = thumbnail(image, arrays["thumbnail"].shape[1:3])
        captured = self.model.run(self._batch(members, images), self.choices, maps=bool(plan.has_map[members].any()))
        if not self.checked:
            self._check(members, images, captured)
            self.checked = True
        at = np.array(members) - first
        arrays["answer_logits"][at] = captured.answer_logits
        if "residual" in arrays:
            residual = captured.residual.copy()
            for row, k in enumerate(members):
                for column, position in enumerate(plan.store.positions):
                    if plan.position_tokens(k, position) is None:
                        residual[:, column, row] = np.nan
            arrays["residual"][:, :, at] = residual
        for row, k in enumerate(members):
            tokens = len(plan.layouts[k].ids)
            if "attention_rows" in arrays:
                arrays["attention_rows"][:, k - first, :, :tokens] = captured.rows[:, row, :, :tokens]
            if "attention_maps" in arrays and plan.has_map[k]:
                assert captured.fused is not None
                arrays["attention_maps"][k - first, :, :tokens, :tokens] = encode_maps(captured.fused[row, :, :tokens, :tokens])

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
        pixels, grid = self.model.prepare(images)
        cells = [plan.layouts[k].grid for k in members]
        merge = plan.tokenizer.grid.merge
        if grid[:, 1:].tolist() != [[rows * merge, columns * merge] for rows, columns in cells]:
            raise CaptureError(
                f"expected the processor to cut the images as planned, {cells[0]} cells for {plan.examples[members[0]].image}, "
                f"found {grid[0].tolist()} patches; report this with the image's size and the model's name"
            )
        return Batch(
            tuple(members),
            torch.from_numpy(ids),
            torch.from_numpy(lengths.astype(np.int64)),
            pixels,
            grid,
            Pooling(torch.from_numpy(index), torch.from_numpy(weight)),
        )

    def _check(self, members: list[int], images: Sequence[Image.Image], captured: Captured) -> None:
        """Compare the first batch with the model itself, so that a wrong capture stops before hours are spent."""
        tolerance = 1e-3 if self.plan.provenance["model"]["dtype"] == "float32" else 0.15
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
        single = self.model.run(self._batch(members[:1], images[:1]), self.choices, maps=False)
        gap = float(np.abs(single.answer_logits[0] - captured.answer_logits[0]).max())
        if gap > tolerance * scale:
            raise CaptureError(
                f"expected an example alone to give the same logits as in its batch, found them {gap:.3g} apart; use --batch-tokens 1"
            )
