"""Arrays of a shard block, and the results of batches that are copied into them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stratascope.errors import CaptureError
from stratascope.extract.families.general_family import family_of
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.generated_answers import UNPARSED, parse_answer
from stratascope.extract.run.model import Captured
from stratascope.store import RECORDED, STATUS_CODES
from stratascope.store.format.arrays import ArraySpec
from stratascope.store.format.block_checks import BlockFacts, unstorable_examples


def held_examples(plan: ExtractionPlan, spec: ArraySpec) -> np.ndarray:
    """(example,) whether an array has each example: all, or those of its mask."""
    masks = {"": np.ones(len(plan.examples), bool), "has_map": plan.has_map, "has_patches": plan.has_patches}
    return masks[spec.mask]


def empty_arrays(plan: ExtractionPlan, first: int, count: int) -> dict[str, np.ndarray]:
    """Arrays of a block with fill values, status `recorded`; floats as float32.

    Parameters
    ----------
    plan
        The plan of the extraction.
    first, count
        The block's first example, and how many it has. Arrays with a mask have its examples alone.
    """
    arrays = {}
    for spec in plan.store.arrays():
        if spec.when == "block":
            dtype = np.float32 if spec.dtype.startswith("float") else spec.dtype
            shape = spec.block_shape(int(held_examples(plan, spec)[first : first + count].sum()))
            # zeros take no memory before they are written: maps of other examples
            arrays[spec.name] = np.full(shape, spec.fill, dtype) if spec.fill else np.zeros(shape, dtype)
    arrays["status"][:] = RECORDED
    return arrays


def fill(plan: ExtractionPlan, members: Sequence[int], captured: Captured, at: np.ndarray, arrays: dict[str, np.ndarray]) -> dict[int, str]:
    """Copy the results of a batch into the arrays of a block.

    Parameters
    ----------
    plan
        The plan of the extraction.
    members
        (batch,) example numbers.
    captured
        Results of the batch.
    at
        (batch,) indices of the members within the block.
    arrays
        As returned by `empty_arrays`; modified.

    Returns
    -------
    dict
        Example number -> why it failed.
    """
    by_example = {
        "answer_logits": None if plan.tokenizer.scored else captured.answer_logits,
        "form_logits": captured.form_logits,
        "top_tokens": captured.top_tokens,
        "top_logits": captured.top_logits,
        "embedding_logits": None if captured.parts is None else captured.parts.embedding.numpy(),
    }
    by_layer = {
        "head_outputs": captured.head_outputs,
        "head_logits": None if captured.parts is None else captured.parts.heads.numpy(),
        "mlp_logits": None if captured.parts is None else captured.parts.rest.numpy(),
    }
    by_token = {
        "attention_rows": captured.rows,
        "value_norms": captured.value_norms,
        "value_logits": None if captured.parts is None or captured.parts.tokens is None else captured.parts.tokens.numpy(),
    }
    for name, values in by_example.items():
        if name in arrays and values is not None:
            arrays[name][at] = values
    for name, values in by_layer.items():
        if name in arrays and values is not None:
            arrays[name][:, at] = values
    if "residual" in arrays:
        count = len(plan.prompt_positions)
        arrays["residual"][:, :count, at] = captured.residual[:, :count]
        if captured.generated_residual is not None:
            arrays["residual"][:, count:, at] = captured.generated_residual
        for row, k in enumerate(members):
            arrays["residual"][:, ~plan.present[k], at[row]] = np.nan
    _fill_generated(plan, members, captured, at, arrays)
    _fill_vision(plan, members, captured, at, arrays)
    _fill_patches(plan, members, captured, int(members[0] - at[0]), arrays)
    failed, causal = {}, family_of(plan.source).causal
    for row, k in enumerate(members):
        tokens = len(plan.layouts[k].ids)
        for name, values in by_token.items():
            if name in arrays and values is not None:
                arrays[name][:, at[row], :, :tokens] = values[:, row, :, :tokens]
        maps = captured.maps if plan.has_map[k] else None
        finite = all(np.isfinite(values).all() for values in (captured.final[row], captured.rows[:, row]))
        if not finite or (maps is not None and not maps.check(row, causal=causal)):
            arrays["status"][at[row]] = STATUS_CODES["non_finite"]
            failed[k] = f"the model returned a value that is not finite in {plan.provenance['model']['dtype']}"
        elif "attention_maps" in arrays and maps is not None:
            maps.copy_into(row, arrays["attention_maps"][at[row], :, :tokens, :tokens])
    return failed


def leave_out_unstorable(plan: ExtractionPlan, first: int, arrays: dict[str, np.ndarray]) -> dict[int, str]:
    """Mark examples of a filled block with values that the store cannot represent.

    Parameters
    ----------
    plan
        The plan of the extraction.
    first
        Number of the block's first example.
    arrays
        The filled arrays of the block; modified.

    Returns
    -------
    dict
        Example number -> why it failed.
    """
    members = range(first, first + len(arrays["status"]))
    part = slice(members.start, members.stop)
    tokens = plan.token_counts[part].astype(np.int32)
    facts = BlockFacts(members, tokens, plan.present[part], plan.has_map[part], plan.patch_counts[part])
    reasons = unstorable_examples(plan.store, facts, arrays)
    for place in reasons:
        arrays["status"][place] = STATUS_CODES["non_finite"]
        if "attention_maps" in arrays:
            arrays["attention_maps"][place] = 0
    return {first + place: reason for place, reason in reasons.items()}


def _fill_generated(
    plan: ExtractionPlan, members: Sequence[int], captured: Captured, at: np.ndarray, arrays: dict[str, np.ndarray]
) -> None:
    """Copy generated tokens, their text, and the choice that it names."""
    if captured.generated is None:
        return
    ends = plan.provenance["generation"]["end"]
    arrays["generated_tokens"][at] = captured.generated
    for row, (k, place) in enumerate(zip(members, at, strict=True)):
        tokens = captured.generated[row]
        own = tokens[(tokens >= 0) & ~np.isin(tokens, ends)].tolist()
        text = plan.tokenizer.tokenizer.decode(own, skip_special_tokens=True)
        options = plan.examples[k].options
        choice = UNPARSED if plan.prompt.own_options else parse_answer(text, plan.store.choices[: len(options) or None])
        stored = text.encode()[: arrays["generated_text"].shape[-1]].decode(errors="ignore").encode()
        arrays["generated_count"][place] = len(own)
        arrays["generated_choice"][place] = parse_answer(text, options) if choice == UNPARSED and options else choice
        arrays["generated_text"][place] = 0
        arrays["generated_text"][place, : len(stored)] = np.frombuffer(stored, np.uint8)


def _fill_patches(plan: ExtractionPlan, members: Sequence[int], captured: Captured, first: int, arrays: dict[str, np.ndarray]) -> None:
    """Copy image tokens; `first` is the number of the block's first example."""
    if captured.patches is None or "patch_residual" not in arrays:
        return
    patched = [k for k in members if plan.has_patches[k]]
    for row, k in enumerate(patched):
        count, place = int(np.prod(plan.layouts[k].grid)), int(plan.has_patches[first:k].sum())
        arrays["patch_residual"][:, place, :count] = captured.patches[:, row, :count]


def fill_vision_maps(
    plan: ExtractionPlan, members: Sequence[int], maps: Sequence[np.ndarray | None], first: int, arrays: dict[str, np.ndarray]
) -> None:
    """Copy attention maps of the vision tower, (block, view, token, token) of each example, and the places of its tokens.

    Parameters
    ----------
    plan, members, arrays
        As of `fill`.
    maps
        Of each member; those of others than the plan's are left out.
    first
        Number of the block's first example.

    Raises
    ------
    CaptureError
        If a model takes no precomputed image features.
    """
    if plan.tower is None:
        return
    for row, k in enumerate(members):
        if not plan.has_map[k]:
            continue
        own = maps[row] if row < len(maps) else None
        if own is None:
            raise CaptureError("expected a model that takes precomputed image features for vision_maps, found another; leave it out")
        place, size = int(plan.has_map[first:k].sum()), plan.file_size(k)
        views, parents = plan.tower.of(*size), plan.tower.parents(plan.layouts[k].ids, plan.tokenizer.image_id, size)
        arrays["vision_maps"][place, :, : own.shape[1], : own.shape[2], : own.shape[3]] = own
        arrays["vision_parent"][place, : len(views), : parents.shape[1]] = parents
        arrays["vision_grid"][place, : len(views)] = [view.grid for view in views]
        arrays["vision_box"][place, : len(views)] = [view.box for view in views]


def _fill_vision(plan: ExtractionPlan, members: Sequence[int], captured: Captured, at: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    names = plan.store.vision_positions
    owners = [(row, name) for row, k in enumerate(members) for name in (plan.vision_cells(k) if names else ())]
    for segment, (row, name) in enumerate(owners):
        if captured.vision is not None:
            arrays["vision_residual"][:, names.index(name), at[row]] = captured.vision[:, segment]
        if captured.entry is not None:
            arrays["vision_output"][names.index(name), at[row]] = captured.entry[row, names.index(name)]
