"""The first batch compared with the model itself and its own processor, so that a wrong capture stops before hours are spent."""

from __future__ import annotations

import numpy as np
from PIL import Image
from transformers import AutoProcessor

from stratascope.errors import CaptureError, InvalidInputError, MissingExtraError
from stratascope.extract.families.patch_grid import PatchGrid
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.run.model import Captured, CaptureModel


def tolerance(plan: ExtractionPlan) -> float:
    """How far logits may be off for rounding, by the precision of the model."""
    return 1e-3 if plan.provenance["model"]["dtype"] == "float32" else 0.15


def check_capture(plan: ExtractionPlan, model: CaptureModel, captured: Captured, alone: Captured) -> None:
    """Refuse a capture that does not agree with the model's own answers.

    Parameters
    ----------
    plan, model
        What is extracted, by what.
    captured
        Of a batch.
    alone
        Of the batch's first example by itself.

    Raises
    ------
    CaptureError
        If activations are not finite, rows do not sum to 1, the last residual or the parts of the logits do not give the model's logits,
        or the batch moves an example's numbers.
    """
    dtype = plan.provenance["model"]["dtype"]
    logits = captured.answer_logits
    if not np.isfinite(captured.residual).all() or not np.isfinite(logits).all():
        raise CaptureError(f"expected finite activations, found some that are not in {dtype}; use --dtype bfloat16 or float32")
    sums = captured.rows.sum(-1)
    if not np.allclose(sums, 1, atol=1e-3):
        raise CaptureError(f"expected attention rows that sum to 1, found sums from {sums.min():.4f} to {sums.max():.4f}")
    scale = max(1.0, float(np.abs(logits).max()))
    allowed = tolerance(plan) * scale
    if "final" in plan.store.positions:
        final = captured.residual[-1, plan.store.positions.index("final")]
        own = model.readout(final, tuple(plan.tokenizer.choice_ids.values()))
        _expect_close("the last captured residual to give the model's own logits", own, logits, allowed)
    if captured.parts is not None:
        parts, difference = captured.parts, logits[:, 0] - logits[:, 1]
        _expect_close("the heads' logits and the rest to add up to the answer's", parts.total.numpy(), difference, allowed)
        if parts.tokens is not None:
            weighted = (captured.rows * parts.tokens.numpy()).sum(-1)
            # what the heads wrote was mixed in the model's precision, the tokens' parts were not
            _expect_close("the tokens' logits to add up to the heads'", weighted, parts.heads.numpy(), allowed)
    if captured.top_logits is not None:
        highest = captured.top_logits[:, 0]
        if (logits.max(-1) > highest + 1e-6 * scale).any() or (np.diff(captured.top_logits, axis=-1) > 0).any():
            raise CaptureError("expected the likeliest tokens' logits to fall and none of an answer to stand above them, found otherwise")
    _expect_close(
        "an example alone to give the same logits as in its batch",
        alone.answer_logits[0],
        logits[0],
        allowed,
        "; use --batch-tokens 1",
    )


def check_prompt(plan: ExtractionPlan, example: int, image: Image.Image) -> None:
    """Refuse token ids that are not those of the family's own processor, given the same text and image.

    Raises
    ------
    CaptureError
        Naming the first token that differs.
    InvalidInputError
        If the processor cannot be loaded.
    MissingExtraError
        If it needs a package that is not installed.
    """
    try:
        processor = AutoProcessor.from_pretrained(plan.source.folder, local_files_only=True)
    except ImportError as error:
        raise MissingExtraError(f"expected all that the processor of {plan.source.name} needs to be installed, found: {error}") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{plan.source.name}: expected its processor in {plan.source.folder}, found: {error}") from error
    wording, image_id = plan.tokenizer.wording, plan.tokenizer.image_id
    text = wording.asked(plan.prompt.fill(plan.examples[example]).text)
    made = processor(text=[text], images=[image], add_special_tokens=wording.adds_special, return_tensors="pt")
    own, planned = made["input_ids"][0].numpy(), plan.layouts[example].ids
    number = np.arange(len(planned) + 1)
    if isinstance(plan.tokenizer.rule, PatchGrid):  # limits may be others than the processor's; cells are counted for every image
        number = np.append(number[:-1][planned != image_id], number[-1])
        own, planned = own[own != image_id], planned[planned != image_id]
    if own.tolist() != planned.tolist():
        common = min(len(own), len(planned))
        differ = np.flatnonzero(own[:common] != planned[:common])
        at = int(differ[0]) if len(differ) else common
        shown = [plan.tokenizer.tokenizer.decode(ids[at : at + 4].tolist(), skip_special_tokens=False) for ids in (planned, own)]
        raise CaptureError(
            f"expected the planned tokens of example {plan.examples[example].id} to be those of the model's own processor, found them to "
            f"differ at token {number[at]}: {shown[0]!r} planned, {shown[1]!r} by the processor; report this with the model's name"
        )


def _expect_close(what: str, found: np.ndarray, wanted: np.ndarray, tolerance: float, remedy: str = "") -> None:
    gap = float(np.abs(found - wanted).max())
    if not gap <= tolerance:
        raise CaptureError(f"expected {what}, found them {gap:.3g} apart{remedy}")
