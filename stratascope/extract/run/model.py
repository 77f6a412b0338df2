"""The model itself: loaded, set to capture, and asked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from stratascope.extract.families.patch_grid import ImageRule
from stratascope.extract.model_files import ModelSource
from stratascope.extract.plan.knockout_plan import Knockouts
from stratascope.extract.run.capture import Capture, Pooling, capturing, use_captured_attention
from stratascope.extract.run.device_copy import Arrival, side_of, to_host
from stratascope.extract.run.gradients import TokenGradients, token_gradients
from stratascope.extract.run.inputs import PreparedImages, forward_inputs, joined, prepare_image
from stratascope.extract.run.knockout import check_trace, effects, tracing
from stratascope.extract.run.loading import load_image_processor, load_model, on_device, usable_device
from stratascope.extract.run.logit_terms import LogitParts, check_attributable, directions, logit_parts
from stratascope.extract.run.reference import Reference, run_reference
from stratascope.extract.run.unembedding import Unembedding
from stratascope.extract.run.vision_features import ImageFeatures, given_to_model, image_features, places, takes_features


@dataclass(frozen=True)
class Batch:
    """Examples of one forward pass, right-padded."""

    members: tuple[int, ...]
    """Example numbers."""
    input_ids: torch.Tensor
    """(batch, token) int64."""
    lengths: torch.Tensor
    """(batch,) int64."""
    images: Mapping[str, torch.Tensor]
    """Keyword of the model's forward -> tensor, of all images."""
    pooling: Pooling
    features: Sequence[ImageFeatures] = ()
    """Of each example's image, instead of pixels; empty: the model makes them of `images`."""
    segments: Sequence[tuple[int, int]] = ()
    """(example, segment) of the vision tower's residual stream that are wanted of `features`; empty: it is not recorded."""
    entry: Pooling | None = None
    """What is pooled where the stream enters the first block, besides the positions; None: nothing."""


@dataclass(frozen=True)
class Captured:
    """What one batch gave, on the host."""

    residual: np.ndarray
    """(layer, position, example, hidden) float32."""
    rows: np.ndarray
    """(block, example, head, token) float32, zero beyond an example's own tokens."""
    answer_logits: np.ndarray
    """(example, choice), computed in float32 from the residual stream that leaves the last block."""
    final: np.ndarray
    """(example, hidden) float32: that stream at the final token."""
    fused: np.ndarray | None = None
    """(example, block, query, key) float32."""
    value_norms: np.ndarray | None = None
    """(block, example, head, token) float32."""
    head_outputs: np.ndarray | None = None
    """(block, example, head, head width) float32."""
    vision: np.ndarray | None = None
    """(layer, segment, vision hidden) float32."""
    entry: np.ndarray | None = None
    """(example, position, hidden) float32, of the batch's `entry`."""
    parts: LogitParts | None = None
    """Of the first choice's logit minus the second's, on the host."""
    form_logits: np.ndarray | None = None
    """(example, form) float32."""
    top_tokens: np.ndarray | None = None
    """(example, rank) token ids, the likeliest first."""
    top_logits: np.ndarray | None = None
    """(example, rank) float32."""
    model_logits: np.ndarray | None = None
    """(example, choice): the model's own, in its own precision."""


@dataclass(frozen=True)
class Coming:
    """What one batch gave, perhaps still on its way to the host."""

    arrival: Arrival

    def result(self) -> Captured:
        """All of it, once it is there; may be asked for by any thread."""
        values = self.arrival.result()
        parts = {each.name: values.pop(each.name, None) for each in fields(LogitParts)}
        made = {name: None if values is None else torch.from_numpy(values) for name, values in parts.items()}
        return Captured(**values, parts=None if made["heads"] is None else LogitParts(**made))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Wanted:
    """What a pass is asked for, beside residuals and rows."""

    choices: tuple[int, ...]
    """Tokens whose logits are the answer's."""
    arrays: frozenset[str] = frozenset()
    """Of maps, value_norms, value_logits, head_outputs, head_logits."""
    forms: tuple[int, ...] = ()
    """Tokens whose logits are kept besides."""
    ranks: int = 0
    """How many of the likeliest next tokens are kept."""
    known_tokens: int | None = None
    """Tokens with a text; models have more rows in their head. None: all."""
    fusion: str = "mean"
    """How a map's heads are made one."""
    model_logits: bool = False
    """Whether the model's own logits are kept, to compare those computed in float32 with them."""


class CaptureModel:
    """A vision-language model that answers batches with what was captured on the way.

    Parameters
    ----------
    untrained
        Seed of freshly drawn weights; None: the files' own.

    Raises
    ------
    InvalidInputError
        If the weights do not fit the configuration, the device is absent or its memory does not hold them.
    """

    def __init__(self, source: ModelSource, *, device: str, dtype: str, rule: ImageRule, untrained: int | None = None) -> None:
        self.device, self.dtype, self._rule = usable_device(device), getattr(torch, dtype), rule
        model = load_model(source, self.dtype, untrained)
        self.image_processor = load_image_processor(source)
        self.model = on_device(model, self.device).requires_grad_(False)
        self.decoder = use_captured_attention(self.model)
        self.unembedding = Unembedding(self.model, self.decoder)
        self.takes_features = takes_features(self.model)
        """Whether images may be given as features that were computed before."""
        self._side = side_of(self.device)

    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Images as the family's own processor makes them, one by one, so that an image is the same in every batch."""
        return joined([prepare_image(self.image_processor, self._rule, image) for image in images])

    @torch.inference_mode()
    def features(self, prepared: PreparedImages, cells: Sequence[np.ndarray] = ()) -> ImageFeatures:
        """What the vision tower makes of one image; `cells` as of `image_features`."""
        return image_features(self.model, self._on_device(prepared.tensors), prepared.tensors, cells)

    def run(self, batch: Batch, wanted: Wanted) -> Captured:
        """One forward pass without a cache.

        Raises
        ------
        CaptureError
            If parts of the logits are wanted of a model whose logits have none.
        """
        return self.launch(batch, wanted).result()

    @torch.inference_mode()
    def launch(self, batch: Batch, wanted: Wanted) -> Coming:
        """`run` without waiting for a GPU: its results come to the host while it works on."""
        last, pair = (batch.lengths - 1).to(self.device), (wanted.choices[0], wanted.choices[1])
        apart = bool(wanted.arrays & {"head_logits", "value_logits"})
        if apart:
            check_attributable(self.model, self.decoder)
        capture = Capture(
            last,
            batch.pooling.to(self.device),
            wanted.arrays | ({"head_outputs"} if apart else frozenset()),
            wanted.fusion,
            batch.entry and batch.entry.to(self.device),
            toward=directions(self.model, self.decoder, pair) if "value_logits" in wanted.arrays else {},
        )
        keep: Any = 1
        if wanted.model_logits:
            keep, which = torch.unique(batch.lengths - 1, return_inverse=True)  # on the host: a GPU would have to be waited for
            keep = keep.to(self.device)
        with capturing(self.decoder, capture):
            output = self.model(**self._inputs(batch), use_cache=False, logits_to_keep=keep)
        own = None
        if wanted.model_logits:
            own = output.logits[torch.arange(len(last), device=self.device), which.to(self.device)][:, list(wanted.choices)].float()
        leaving = capture.final[max(capture.final)]
        top = self.unembedding.likeliest(leaving, wanted.ranks, wanted.known_tokens) if wanted.ranks else None
        held = capture.want
        found = {
            "residual": _stack(capture.residual).transpose(1, 2),
            "rows": _stack(capture.rows),
            "answer_logits": self.unembedding.logits(leaving, wanted.choices),
            "final": leaving,
            "fused": _stack(capture.fused).transpose(0, 1) if "maps" in held else None,
            "value_norms": _stack(capture.value_norms) if "value_norms" in held else None,
            "head_outputs": _stack(capture.head_outputs) if "head_outputs" in held else None,
            "vision": _segments(batch) if batch.segments else None,
            "entry": capture.entry,
            "form_logits": self.unembedding.logits(leaving, wanted.forms) if wanted.forms else None,
            "top_tokens": None if top is None else top[1],
            "top_logits": None if top is None else top[0],
            "model_logits": own,
        }
        if apart:
            parts = logit_parts(self.model, self.decoder, capture, pair)
            found |= {each.name: getattr(parts, each.name) for each in fields(parts)}
        return Coming(to_host({name: values for name, values in found.items() if values is not None}, self._side))

    def _inputs(self, batch: Batch) -> dict[str, Any]:
        """Keywords of a forward pass, on the device."""
        given = given_to_model(batch.features) if batch.features else {}
        images = places(batch.features) if batch.features else batch.images
        return {**self._on_device(forward_inputs(self.model, batch.input_ids, batch.lengths, images)), **given}

    def _on_device(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Floats in the model's precision; from pinned memory, so that a GPU need not be waited for."""
        moved = {}
        for name, values in tensors.items():
            given = values.pin_memory() if self.device.type == "cuda" else values
            there = given.to(self.device, non_blocking=True)
            moved[name] = there.to(self.dtype) if there.is_floating_point() else there
        return moved

    @torch.inference_mode()
    def knock_out(
        self, batch: Batch, pair: tuple[int, int], targets: Mapping[str, np.ndarray], knockouts: Knockouts, budget: int, check: float | None
    ) -> np.ndarray:
        """(mode, window, target) float32: what hiding each target of one example does to the first answer's logit minus the second's.

        Parameters
        ----------
        batch
            Of one example.
        pair
            Tokens of the two answers.
        targets, knockouts, budget
            See `knockout.effects`.
        check
            How far the residual stream of a pass that is run again may be off, relative to its norm; None: it is not checked.
        """
        blocks: Any = self.decoder.layers
        with tracing(blocks) as trace:
            self.model(**self._inputs(batch), use_cache=False, logits_to_keep=1)

        if check is not None:
            check_trace(blocks, trace, check)
        return effects(blocks, trace, targets, knockouts, partial(self.unembedding.difference, pair=pair), budget)

    def gradients(self, batch: Batch, pair: tuple[int, int]) -> TokenGradients:
        """What each token of one example is worth to the first answer's logit minus the second's, see `token_gradients`."""
        given = self._inputs(batch)
        blocks: Any = self.decoder.layers
        with torch.no_grad():
            difference = partial(self.unembedding.difference, pair=pair)
            return token_gradients(lambda: self.model(**given, use_cache=False, logits_to_keep=1), blocks, difference)

    def reference(self, inputs: Mapping[str, torch.Tensor], positions: Sequence[np.ndarray | None], choices: Sequence[int]) -> Reference:
        """One example through the model alone, see `run_reference`; `inputs` as its processor makes them."""
        known = set(inspect.signature(self.model.forward).parameters) - {"labels"}  # PaliGemma's processor makes some, for training
        given = self._on_device({name: values for name, values in inputs.items() if name in known})
        return run_reference(self.model, self.decoder, given, positions, choices)

    @torch.inference_mode()
    def readout(self, residual: np.ndarray, choice_ids: Sequence[int]) -> np.ndarray:
        """(example, hidden) leaving the last block -> (example, choice) float32 logits."""
        return _host(self.unembedding.logits(torch.from_numpy(residual).to(self.device), choice_ids))


def _stack(by_layer: Mapping[int, torch.Tensor]) -> torch.Tensor:
    return torch.stack([by_layer[k].float() for k in sorted(by_layer)])


def _segments(batch: Batch) -> torch.Tensor:
    """(layer, segment, vision hidden) float32."""
    kept = [batch.features[row].vision for row, _ in batch.segments]
    return torch.stack([vision[:, segment] for vision, (_, segment) in zip(kept, batch.segments, strict=True) if vision is not None], 1)


def _host(values: torch.Tensor) -> np.ndarray:
    return np.asarray(values.cpu().numpy())
