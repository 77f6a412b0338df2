"""A loaded model whose forward passes return captured activations."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from stratascope.extract.families.general_family import ProcessorRule
from stratascope.extract.families.image_tokens import ImageRule
from stratascope.extract.model_files import ModelSource
from stratascope.extract.plan.knockout_plan import Knockouts
from stratascope.extract.run.capture import Capture, PatchTokens, Pooling, capturing, stacked, use_captured_attention
from stratascope.extract.run.decoder import kept_logits, takes
from stratascope.extract.run.device_copy import HostCopy, copy_stream, to_host
from stratascope.extract.run.float32 import full_float32
from stratascope.extract.run.general_inputs import general_inputs
from stratascope.extract.run.generation import Generation, KeptCache, decodes_together, generate
from stratascope.extract.run.gradients import TokenGradients, token_gradients
from stratascope.extract.run.inputs import PreparedImages, forward_inputs, joined, prepare_image
from stratascope.extract.run.knockout import check_trace, knockout_effects, tracing
from stratascope.extract.run.loading import WHOLE, Arrangement, is_arranged, load_image_processor, load_model, on_device, usable_device
from stratascope.extract.run.logits import LogitParts, Unembedding, check_attributable, directions, logit_parts, on_host
from stratascope.extract.run.map_packing import HostMaps
from stratascope.extract.run.reference import Reference, run_reference
from stratascope.extract.run.tower_maps import TowerMapRequest
from stratascope.extract.run.vision_features import (
    ImageFeatures,
    accepts_features,
    feature_inputs,
    image_features,
    image_grids,
    image_sizes,
    vision_segments,
)
from stratascope.extract.run.vision_tower import CellRequest
from stratascope.extract.run.weights import execution_device


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
    """Features of each example's image, instead of pixels; empty: the model computes them from `images`."""
    segments: Sequence[tuple[int, int]] = ()
    """(example, segment) of the vision tower's residual stream to take from `features`; empty: it is not saved."""
    entry: Pooling | None = None
    """Further positions at the entry of the first block; None: none."""
    patches: PatchTokens | None = None
    """Image tokens that are kept one by one; None: none."""


@dataclass(frozen=True)
class Captured:
    """Activations and logits of one batch, on the host."""

    residual: np.ndarray
    """(layer, position, example, hidden) float32."""
    rows: np.ndarray
    """(block, example, head, token) float32, zero beyond an example's own tokens; no block of a model without softmax attention."""
    answer_logits: np.ndarray
    """(example, choice), computed in float32 from the output of the last block."""
    final: np.ndarray
    """(example, hidden) float32: output of the last block at the final token."""
    maps: HostMaps | None = None
    """Packed attention maps."""
    value_norms: np.ndarray | None = None
    """(block, example, head, token) float32."""
    head_outputs: np.ndarray | None = None
    """(block, example, head, head width) float32."""
    vision: np.ndarray | None = None
    """(layer, segment, vision hidden) float32."""
    entry: np.ndarray | None = None
    """(example, position, hidden) float32: the batch's `entry`."""
    patches: np.ndarray | None = None
    """(layer, row of the batch's `patches`, patch, hidden) float32: the residual stream at image tokens."""
    parts: LogitParts | None = None
    """Terms of the logit of the first choice minus that of the second."""
    form_logits: np.ndarray | None = None
    """(example, form) float32."""
    top_tokens: np.ndarray | None = None
    """(example, rank) token ids, most likely first."""
    top_logits: np.ndarray | None = None
    """(example, rank) float32."""
    model_logits: np.ndarray | None = None
    """(example, choice): logits of the model in its own precision."""
    generated: np.ndarray | None = None
    """(example, generated) token ids, -1 after the end of the turn."""
    generated_residual: np.ndarray | None = None
    """(layer, kept, example, hidden) float32: the residual stream at generated tokens, NaN from the end of the turn on."""


@dataclass(frozen=True)
class PendingCapture:
    """Captured activations of a batch that may still be copied to the host."""

    host_copy: HostCopy
    maps: Sequence[HostCopy] = ()
    """Of the packed maps of each block."""

    def result(self) -> Captured:
        """Wait for the copies; any thread may call this."""
        values = self.host_copy.result()
        parts = {each.name: values.pop(each.name, None) for each in fields(LogitParts)}
        made = {name: None if values is None else torch.from_numpy(values) for name, values in parts.items()}
        maps = HostMaps(tuple(each.result() for each in self.maps)) if self.maps else None
        return Captured(**values, maps=maps, parts=None if made["heads"] is None else LogitParts(**made))  # type: ignore[arg-type]


@dataclass(frozen=True)
class CaptureRequest:
    """What a forward pass captures besides residuals and rows."""

    choices: tuple[int, ...]
    """Token ids of the answers."""
    arrays: frozenset[str] = frozenset()
    """Optional arrays: maps, value_norms, value_logits, head_outputs, head_logits."""
    forms: tuple[int, ...] = ()
    """Further token ids whose logits are kept."""
    ranks: int = 0
    """Number of most likely next tokens that are kept."""
    known_tokens: int | None = None
    """Size of the tokenizer's vocabulary; the unembedding may have more rows. None: all rows."""
    fusion: str = "mean"
    """How maps are aggregated over heads."""
    model_logits: bool = False
    """Whether to keep the model's own logits, to compare the float32 logits with them."""
    generation: Generation | None = None
    """How tokens are generated; None: none."""


class CaptureModel:
    """A vision-language model that captures activations of batches.

    Parameters
    ----------
    untrained
        Seed of random initial weights; None: trained weights.
    arrangement
        On which devices the weights lie, and how they are quantised.

    Raises
    ------
    InvalidInputError
        If the weights do not fit the configuration, the device does not exist or its memory does not hold them.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        device: str,
        dtype: str,
        rule: ImageRule,
        untrained: int | None = None,
        arrangement: Arrangement = WHOLE,
    ) -> None:
        place, precision = usable_device(device), getattr(torch, dtype)
        self._use(load_model(source, precision, untrained, arrangement, place), rule, place, precision)
        self.image_processor = None if isinstance(rule, ProcessorRule) else load_image_processor(source)

    @classmethod
    def of(cls, model: Any, rule: ImageRule) -> CaptureModel:
        """Around a model in memory on the host, for images that are already prepared."""
        made = cls.__new__(cls)
        made._use(model, rule, torch.device("cpu"), model.dtype)
        return made

    def _use(self, model: Any, rule: ImageRule, device: torch.device, dtype: torch.dtype) -> None:
        self.model = (model if is_arranged(model) else on_device(model, device)).requires_grad_(False)
        self.device, self.dtype, self._rule = execution_device(self.model.get_input_embeddings()), dtype, rule
        self.decoder = use_captured_attention(self.model)
        self.unembedding = Unembedding(self.model, self.decoder, self.device)
        self.accepts_features = accepts_features(self.model)
        """Whether a forward pass accepts precomputed image features."""
        self.decodes_together = decodes_together(self.model, self.decoder)
        """Whether prompts of different lengths can be continued in one batch."""
        self._copy_stream = copy_stream(self.device)

    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Inputs of images from the family's own processor, one by one, so that an image is the same in every batch."""
        return joined([prepare_image(self.image_processor, self._rule, image) for image in images])

    @full_float32()
    @torch.inference_mode()
    def features(self, prepared: PreparedImages, cells: CellRequest | None = None, maps: TowerMapRequest | None = None) -> ImageFeatures:
        """Features of one image from the vision tower, see `image_features`."""
        return image_features(self.model, self._on_device(prepared.tensors), prepared.tensors, cells, maps)

    def run(self, batch: Batch, request: CaptureRequest) -> Captured:
        """One forward pass without a cache.

        Raises
        ------
        CaptureError
            If the request includes logit terms and the logits are not linear in the outputs of heads and MLPs.
        """
        return self.launch(batch, request).result()

    @full_float32()
    @torch.inference_mode()
    def launch(self, batch: Batch, request: CaptureRequest) -> PendingCapture:
        """Start a forward pass; its results are copied to the host while a GPU keeps computing."""
        last, pair = (batch.lengths - 1).to(self.device), (request.choices[0], request.choices[1])
        has_terms = bool(request.arrays & {"head_logits", "value_logits"})
        if has_terms:
            check_attributable(self.model, self.decoder)
        capture = Capture(
            last,
            batch.pooling.to(self.device),
            request.arrays | ({"head_outputs"} if has_terms else frozenset()),
            request.fusion,
            batch.entry and batch.entry.to(self.device),
            patches=batch.patches and batch.patches.to(self.device),
            send=partial(to_host, stream=self._copy_stream),
            toward=directions(self.model, self.decoder, pair) if "value_logits" in request.arrays else {},
        )
        keep: Any = 1
        rows, which = torch.arange(len(last), device=self.device), last
        if (request.model_logits or request.generation) and takes(self.model, "logits_to_keep"):
            keep, index = torch.unique(batch.lengths - 1, return_inverse=True)  # on the host: on a GPU this would synchronise
            keep, which = keep.to(self.device), index.to(self.device)
        inputs = self.inputs(batch)
        cache = KeptCache(self.model, self.decoder, self.decodes_together) if request.generation else None
        with capturing(self.decoder, capture), cache.watching() if cache else nullcontext():
            output = self.model(**inputs, use_cache=cache is not None, **(cache.given if cache else {}), **kept_logits(self.model, keep))
        own = output.logits[rows, which][:, list(request.choices)].float() if request.model_logits else None
        generated = None
        if cache is not None and request.generation is not None:
            first = output.logits[rows, which]
            generated = generate(self.model, self.decoder, cache, output, first, batch.lengths, request.generation)
        output_residual = capture.final[max(capture.final)]
        top = self.unembedding.most_likely(output_residual, request.ranks, request.known_tokens) if request.ranks else None
        held = capture.want
        found = {
            "residual": stacked(capture.residual).transpose(1, 2),
            "rows": stacked(capture.rows) if capture.rows else torch.zeros(0, len(last), 1, batch.input_ids.shape[1]),
            "answer_logits": self.unembedding.logits(output_residual, request.choices),
            "final": output_residual,
            "value_norms": stacked(capture.value_norms) if "value_norms" in held else None,
            "head_outputs": stacked(capture.head_outputs) if "head_outputs" in held else None,
            "vision": vision_segments(batch.features, batch.segments) if batch.segments else None,
            "entry": capture.entry,
            "patches": stacked(capture.patch_residual) if capture.patch_residual else None,
            "form_logits": self.unembedding.logits(output_residual, request.forms) if request.forms else None,
            "top_tokens": None if top is None else top[1],
            "top_logits": None if top is None else top[0],
            "model_logits": own,
            "generated": None if generated is None else generated.tokens,
            "generated_residual": None if generated is None else generated.residual,
        }
        if has_terms:
            parts = logit_parts(self.model, self.decoder, capture, pair)
            found |= {each.name: getattr(parts, each.name) for each in fields(parts)}
        coming = to_host({name: values for name, values in found.items() if values is not None}, self._copy_stream)
        return PendingCapture(coming, [capture.maps[block] for block in sorted(capture.maps)])

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """Keywords of a forward pass, on the device."""
        given = feature_inputs(batch.features) if batch.features else {}
        general = isinstance(self._rule, ProcessorRule)
        sizes = image_sizes if general else image_grids
        images = sizes(batch.features) if batch.features else batch.images
        made = (general_inputs if general else forward_inputs)(self.model, batch.input_ids, batch.lengths, images)
        return {**self._on_device(made), **given}

    def _on_device(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Move tensors to the device, floats in the model's precision; pinned memory avoids synchronising a GPU."""
        moved: dict[str, Any] = {}
        for name, values in tensors.items():
            if values is None:
                moved[name] = None
                continue
            given = values.pin_memory() if self.device.type == "cuda" else values
            there = given.to(self.device, non_blocking=True)
            moved[name] = there.to(self.dtype) if there.is_floating_point() else there
        return moved

    @full_float32()
    @torch.inference_mode()
    def knock_out(
        self, batch: Batch, pair: tuple[int, int], targets: Mapping[str, np.ndarray], knockouts: Knockouts, budget: int, check: float | None
    ) -> np.ndarray:
        """(mode, window, target) float32: knockout effects of one example on the logit of the first answer minus that of the second.

        Parameters
        ----------
        batch
            A batch of one example.
        pair
            Token ids of the two answers.
        targets, knockouts, budget
            See `knockout_effects`.
        check
            Tolerance of a rerun's residual stream relative to its norm; None: no check.
        """
        blocks: Any = self.decoder.layers
        with tracing(blocks) as trace:
            self.model(**self.inputs(batch), use_cache=False, **kept_logits(self.model, 1))

        if check is not None:
            check_trace(blocks, trace, check)
        return knockout_effects(blocks, trace, targets, knockouts, partial(self.unembedding.difference, pair=pair), budget)

    @full_float32()
    def gradients(self, batch: Batch, pair: tuple[int, int], want: frozenset[str]) -> TokenGradients:
        """Gradient attributions of the logit of the first answer minus that of the second, see `token_gradients`."""
        given = self.inputs(batch)
        blocks: Any = self.decoder.layers
        with torch.no_grad():
            difference = partial(self.unembedding.difference, pair=pair)
            return token_gradients(lambda: self.model(**given, use_cache=False, **kept_logits(self.model, 1)), blocks, difference, want)

    @full_float32()
    def reference(
        self,
        inputs: Mapping[str, torch.Tensor],
        positions: Sequence[np.ndarray | None],
        choices: Sequence[int],
        order: np.ndarray | None = None,
    ) -> Reference:
        """Run one example through the plain model, see `run_reference`; `inputs` come from its processor."""
        known = set(inspect.signature(self.model.forward).parameters) - {"labels"}  # PaliGemma's processor returns labels, for training
        given = self._on_device({name: values for name, values in inputs.items() if name in known})
        return run_reference(self.model, self.decoder, given, positions, choices, order)

    @full_float32()
    @torch.inference_mode()
    def readout(self, residual: np.ndarray, choice_ids: Sequence[int] | None) -> np.ndarray:
        """(example, hidden) output of the last block -> (example, choice) float32 logits; None: of the whole vocabulary."""
        given, head = torch.from_numpy(residual).to(self.device), self.unembedding
        return on_host(head.all_logits(given) if choice_ids is None else head.logits(given, choice_ids))
