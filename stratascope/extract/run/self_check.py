"""Check the first batch against the plain model and its own processor, before hours are spent on a wrong capture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from qwen_vl_utils import fetch_image
from transformers import AutoProcessor

from stratascope.errors import CaptureError, InvalidInputError, MissingExtraError
from stratascope.extract.families.general_family import family_of
from stratascope.extract.families.image_tokens import PatchGrid
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.images import image_token_order
from stratascope.extract.run.generation import with_generated_tokens
from stratascope.extract.run.inputs import given_images
from stratascope.extract.run.model import Captured, CaptureModel
from stratascope.extract.run.reference import Reference


@dataclass(frozen=True)
class Limits:
    """Tolerances for rounding, by precision of the model."""

    inner: float
    """Relative error of residual vectors (norm), and total variation distance of attention rows, averaged over heads."""
    growth: float
    """The same at the entry of the first block, and the increase per block, up to `inner`."""
    logits: float
    """Difference of the model's own logits in two passes, relative to the larger of their size and their spread."""
    rounding: float
    """The same for logits of one pass in the model's precision and in float32."""

    def at(self, depth: int) -> np.ndarray:
        """(depth,) limits of residual layers, or of the rows of blocks."""
        return np.asarray(np.minimum(self.inner, self.growth * np.arange(1, depth + 1)))


LIMITS = {
    "float32": Limits(inner=1e-3, growth=1e-3, logits=1e-3, rounding=1e-3),
    "float16": Limits(inner=0.02, growth=0.003, logits=0.02, rounding=4e-3),
    "bfloat16": Limits(inner=0.1, growth=0.024, logits=0.15, rounding=0.03),
}
"""At least 1.5 times the errors of correct runs on random models of every family (whose attention is sharper than that of trained models)
and on SmolLM2-135M.

In bfloat16 the residual stream of the former differs by .023 at layer 1 and .041 at layer 4, of the latter by .002 and .027 at layer 30,
rows by .008 in block 0 and .049 in block 3; in float16 by an eighth of that. Shifting the text after the image by one position changes
layer 1 of the built-in model by .056, of SmolLM2 by .17."""


def limits_of(plan: ExtractionPlan) -> Limits:
    """Tolerances for a plan: those of bfloat16 for quantised models, whose activations are rounded, too."""
    model = plan.provenance["model"]
    return LIMITS["bfloat16" if model["quantization"] else model["dtype"]]


CHECKED = 6
"""Examples of the first batch that are compared, at most; evenly spaced, including the shortest and the longest."""


def load_processor(plan: ExtractionPlan) -> Any:
    """Load the processor of the model.

    Raises
    ------
    InvalidInputError
        If it cannot be loaded.
    MissingExtraError
        If it needs a package that is not installed.
    """
    try:
        return AutoProcessor.from_pretrained(plan.source.folder, local_files_only=True)
    except ImportError as error:
        raise MissingExtraError(f"expected the packages for the processor of {plan.source.name} to be installed, found: {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{plan.source.name}: expected its processor in {plan.source.folder}, found: {error}") from error


def check_prompt(plan: ExtractionPlan, example: int, images: Sequence[Image.Image], processor: Any = None) -> Mapping[str, Any]:
    """Refuse token ids that differ from those of the family's own processor.

    Parameters
    ----------
    plan, example, images
        The plan, the example number and its images, see `ExtractionPlan.images_of`.
    processor
        From `load_processor`; loaded if omitted.

    Returns
    -------
    Mapping
        Output of the processor: keywords of the forward pass.

    Raises
    ------
    CaptureError
        Naming the first token that differs.
    """
    processor = load_processor(plan) if processor is None else processor
    prompt_format, rule = plan.tokenizer.prompt_format, plan.tokenizer.rule
    text = prompt_format.processor_text(plan.prompt.fill(plan.examples[example]).text)
    options: dict[str, Any] = {"add_special_tokens": prompt_format.adds_special, "return_tensors": "pt"}
    if isinstance(rule, PatchGrid):  # resized by qwen_vl_utils within the limits of the plan, which may differ from the processor's
        sizes = [dict(zip(("resized_width", "resized_height"), rule.resize(*image.size), strict=True)) for image in images]
        images = [fetch_image({"image": image, **size}, image_patch_size=rule.patch) for image, size in zip(images, sizes, strict=True)]
        options["do_resize"] = False
    made: Mapping[str, Any] = processor(text=[text], images=given_images(images), **options)
    own, planned = made["input_ids"][0].numpy(), plan.layouts[example].ids
    if own.tolist() != planned.tolist():
        common = min(len(own), len(planned))
        differ = np.flatnonzero(own[:common] != planned[:common])
        at = int(differ[0]) if len(differ) else common
        shown = [plan.tokenizer.tokenizer.decode(ids[at : at + 4].tolist(), skip_special_tokens=False) for ids in (planned, own)]
        raise CaptureError(
            f"expected the planned tokens of example {plan.examples[example].id} to be those of the model's own processor, found them to "
            f"differ at token {at}: {shown[0]!r} planned, {shown[1]!r} by the processor; report this with the model's name"
        )
    return made


def check_capture(
    plan: ExtractionPlan, model: CaptureModel, captured: Captured, references: Mapping[int, Reference], choices: Sequence[int]
) -> None:
    """Refuse captured activations that disagree with the plain model or with each other.

    Parameters
    ----------
    plan, model
        The plan and the model.
    captured
        A batch whose first positions are those of the plan, with the model's own logits.
    references
        Row of the batch -> its example through the plain model, at the positions of the batch.
    choices
        Tokens whose logits were captured.

    Raises
    ------
    CaptureError
        If attention rows do not sum to 1; residual vectors, rows or logits differ from the references by more than rounding or belong to
        another layer or example; or the last residual or the logit terms do not give the model's logits.
    """
    limits, members = limits_of(plan), list(references)
    rows = captured.rows[:, members]
    sums = rows.sum(-1)
    if not np.allclose(sums, 1, atol=1e-3):
        raise CaptureError(f"expected attention rows that sum to 1, found sums from {sums.min():.4f} to {sums.max():.4f}")
    assert captured.model_logits is not None
    compare_examples(
        limits,
        captured.residual[:, :, members],
        [captured.rows[:, row, :, : each.rows.shape[-1]] for row, each in references.items()],
        captured.model_logits[members],
        list(references.values()),
    )
    scale = max(logit_scale(each) for each in references.values())
    answers = captured.answer_logits[members]
    own = model.readout(captured.final[members], choices)
    _expect_close("the last captured residual to give the model's own logits", own, captured.model_logits[members], limits.rounding * scale)
    exact = LIMITS["float32"].logits * scale
    _expect_close("answers to be read from the last captured residual", answers, own, exact)
    if captured.parts is not None:
        parts, difference = captured.parts, answers[:, 0] - answers[:, 1]
        _expect_close(
            "the logit terms of heads and the rest to add up to the answer logits", parts.total.numpy()[members], difference, exact
        )
        if parts.tokens is not None:
            by_token = rows * parts.tokens.numpy()[:, members]
            # head outputs are in the model's precision, terms by token in float32
            largest = max(scale, float(np.abs(by_token).sum(-1).max()))
            heads = parts.heads.numpy()[:, members]
            _expect_close("the logit terms of tokens to add up to those of the heads", by_token.sum(-1), heads, limits.rounding * largest)
    if captured.top_logits is not None:
        top = captured.top_logits[members]
        if (answers.max(-1) > top[:, 0] + 1e-6 * scale).any() or (np.diff(top, axis=-1) > 0).any():
            raise CaptureError(
                "expected the logits of the most likely tokens to be sorted, and no answer logit above them, found otherwise"
            )


def check_generated(plan: ExtractionPlan, model: CaptureModel, captured: Captured, row: int, example: int, made: Mapping[str, Any]) -> None:
    """Refuse generated tokens that differ from one pass over prompt and tokens, without a cache.

    Parameters
    ----------
    plan, model
        The plan and the model.
    captured, row
        A batch, and the row of the example in it.
    example
        Its number.
    made
        Output of the processor for its prompt.

    Raises
    ------
    CaptureError
        If a token is not the likeliest after those before it, or the residual stream differs by more than rounding.
    """
    assert captured.generated is not None
    assert captured.generated_residual is not None
    tokens, limits = captured.generated[row], limits_of(plan)
    chosen = tokens[tokens >= 0]
    own = chosen[~np.isin(chosen, plan.provenance["generation"]["end"])]
    length = len(plan.layouts[example].ids)
    inputs = with_generated_tokens(made, own.tolist(), prefix=family_of(plan.source).prefix)
    order = image_token_order_of(plan, model, example, made)
    reference = model.reference(inputs, [np.array([length - 1 + k]) for k in range(len(own) + 1)], chosen[:1], order)
    logits = model.readout(reference.residual[-1, : len(chosen)], None)
    short = float((logits.max(-1) - logits[np.arange(len(chosen)), chosen]).max())
    if not short <= limits.logits * max(float(np.abs(logits).max()), 2 * reference.spread):
        raise CaptureError(
            f"expected each generated token of example {plan.examples[example].id} to be the likeliest in a pass without a cache, found "
            f"one {short:.3g} below it; report this with the model's name"
        )
    kept = [(place, k) for place, k in enumerate(plan.generated_positions) if k < len(own)]
    for place, k in kept:
        alone, found = reference.residual[:, 1 + k], captured.generated_residual[:, place, row]
        apart = np.linalg.norm(found - alone, axis=-1) / np.linalg.norm(alone, axis=-1)
        _expect_within(f"residual stream at answer_{k}", "apart at layer", apart, limits)


def image_token_order_of(plan: ExtractionPlan, model: CaptureModel, example: int, made: Mapping[str, Any]) -> np.ndarray | None:
    """Image token in each slot of an example under `patch-shuffle`; None under other conditions."""
    if plan.settings.condition != "patch-shuffle":
        return None
    return image_token_order(int((made["input_ids"] == model.model.config.image_token_id).sum()), plan.settings.seed, example)


def check_patches(plan: ExtractionPlan, members: Sequence[int], captured: Captured, image: int) -> None:
    """Refuse captured image tokens whose mean is not the captured position `image`.

    Parameters
    ----------
    plan
        The plan.
    members
        Example numbers of the batch.
    captured
        The batch.
    image
        Index of the position `image` in its residual stream.

    Raises
    ------
    CaptureError
        If they differ by more than rounding.
    """
    if captured.patches is None:
        return
    rows = [row for row, k in enumerate(members) if plan.has_patches[k]]
    for tokens, row in zip(captured.patches.swapaxes(0, 1), rows, strict=True):
        mean = tokens[:, : int(plan.patch_counts[members[row]])].mean(1, dtype=np.float64)
        expected = captured.residual[list(plan.store.patch_layers), image, row]
        apart = np.linalg.norm(mean - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
        if not (apart <= LIMITS["float32"].inner).all():
            raise CaptureError(
                f"expected the image tokens of example {plan.examples[members[row]].id} to have the mean of the position image, found "
                f"{apart.max():.3g} apart; report this with the model's name"
            )


def logit_scale(reference: Reference) -> float:
    """Unit of the tolerance for logits of an example."""
    return max(float(np.abs(reference.logits).max()), 2 * reference.spread)


def compare_examples(
    limits: Limits, residual: np.ndarray, rows: Sequence[np.ndarray], logits: np.ndarray, references: Sequence[Reference]
) -> None:
    """Refuse examples of a batch that differ from single examples.

    Parameters
    ----------
    limits
        Tolerances.
    residual
        (layer, position, example, hidden).
    rows
        (block, head, token) of each example, without padding.
    logits
        (example, choice): logits of the model.
    references
        Each example at the same positions.

    Raises
    ------
    CaptureError
        Naming the first layer that differs.
    """
    alone = np.stack([each.residual for each in references], 2)
    there = np.isfinite(alone).all((0, 3))  # (position, example)
    apart = np.linalg.norm(residual[:, there] - alone[:, there], axis=-1) / np.linalg.norm(alone[:, there], axis=-1)
    _expect_within("residual stream", "apart at layer", apart.max(1), limits)
    _expect_own("layer", residual[:, there], alone[:, there])
    for position in np.flatnonzero(there.all(1)):
        _expect_own("example", residual[:, position].swapaxes(0, 1), alone[:, position].swapaxes(0, 1))
    for found, each in zip(rows, references, strict=True):
        moved = np.abs(found - each.rows).sum(-1).mean(-1) / 2
        _expect_within("attention rows", "of the weight moved in block", moved, limits)
    for own, each in zip(logits, references, strict=True):
        allowed = limits.logits * logit_scale(each)
        _expect_close("an example alone to give the same logits as in its batch", own, each.logits, allowed, "; set `batch_tokens` to 1")


def _expect_within(what: str, how: str, apart: np.ndarray, limits: Limits) -> None:
    """Refuse errors by layer or block beyond their limits."""
    allowed = limits.at(len(apart))
    wrong = ~(apart <= allowed)
    if wrong.any():
        k = int(np.argmax(wrong))
        raise CaptureError(
            f"expected the {what} of an example alone as in its batch, found {apart[k]:.3g} {how} {k} ({allowed[k]:.2g} is rounding); "
            "report this with the model's name"
        )


def _expect_own(what: str, found: np.ndarray, alone: np.ndarray) -> None:
    """Refuse items of (item, vector, hidden) that are much nearer to the reference of another item than to their own."""
    apart = np.zeros((len(found), len(alone)))
    for k in range(found.shape[1]):
        a, b = found[:, k].astype(np.float64), alone[:, k].astype(np.float64)
        squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
        apart += squares / (b * b).sum(1)[:, None]
    own = np.diag(apart)
    nearest = apart.argmin(1)
    wrong = (apart.min(1) < own / 4) & (own > 1e-10 * found.shape[1])  # squares: less than half the distance, and not by rounding
    if wrong.any():
        item = int(np.argmax(wrong))
        raise CaptureError(
            f"expected the residual stream of each {what} of the first batch to match its reference, found {what} {item} nearer to "
            f"the reference of {what} {nearest[item]}; report this with the model's name"
        )


def _expect_close(what: str, found: np.ndarray, expected: np.ndarray, tolerance: float, remedy: str = "") -> None:
    gap = float(np.abs(found - expected).max())
    if not gap <= tolerance:
        raise CaptureError(f"expected {what}, found them {gap:.3g} apart ({tolerance:.2g} is rounding){remedy}")
