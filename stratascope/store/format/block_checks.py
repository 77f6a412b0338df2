"""Checks of a shard block before it is written: shapes, finite numbers, rows that sum to 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.store.format.arrays import ArraySpec
from stratascope.store.format.generated_positions import with_generated
from stratascope.store.format.layout import RECORDED, STATUS_CODES, StoreLayout

ROW_TOLERANCE = 2e-3
"""How far an attention row's sum may be from 1: float16 weights over a thousand tokens stay within."""


@dataclass(frozen=True)
class BlockFacts:
    """Facts about the n examples of a shard block that are known before the model runs."""

    examples: Sequence[int]
    n_tokens: NDArray[np.int32]
    """(n,)"""
    position_present: NDArray[np.bool_]
    """(n, position)"""
    has_map: NDArray[np.bool_]
    """(n,)"""
    patches: NDArray[np.integer] | None = None
    """(n,) image tokens in patch_residual, 0 for examples that it does not hold; None for a store without it."""

    def held(self, spec: ArraySpec) -> NDArray[np.bool_]:
        """(n,) whether an array holds each example: all, or those of its mask."""
        if not spec.mask:
            return np.ones(len(self.examples), bool)
        if spec.mask == "has_map":
            return self.has_map
        return np.zeros(len(self.examples), bool) if self.patches is None else np.asarray(self.patches > 0)

    def only(self, kept: NDArray[np.bool_]) -> BlockFacts:
        """The facts about the examples that a mask (n,) keeps."""
        return BlockFacts(
            [example for example, keep in zip(self.examples, kept, strict=True) if keep],
            self.n_tokens[kept],
            self.position_present[kept],
            self.has_map[kept],
            None if self.patches is None else self.patches[kept],
        )


def checked_block(layout: StoreLayout, facts: BlockFacts, arrays: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Check the arrays of a shard block, convert them to stored types, and derive the rest.

    What is not recorded (an absent position, an example whose status is not `recorded`) becomes fill, whatever was passed. An array with
    a mask is passed and returned with the examples of its mask alone.

    Raises
    ------
    InvalidInputError
        For an array too many or too few, a wrong shape, a status that is none, a non-finite value (with layer, example and
        position), a row that does not sum to 1.
    """
    specs = {s.name: s for s in layout.arrays() if s.when == "block"}
    if "attention_mean" in layout.record and "attention_rows" not in layout.record:
        raise InvalidInputError(
            "expected a store that holds attention_rows beside attention_mean, found a copy that left them out; extract anew"
        )
    if set(arrays) != set(specs):
        missing, extra = sorted(set(specs) - set(arrays)), sorted(set(arrays) - set(specs))
        raise InvalidInputError(
            f"expected the arrays {', '.join(sorted(specs))}, found {', '.join(sorted(arrays))}"
            + (f"; missing: {', '.join(missing)}" if missing else "") + (f"; not of this store: {', '.join(extra)}" if extra else "")
        )  # fmt: skip
    facts = _answered(layout, facts, arrays)
    n = len(facts.examples)
    status = _status(np.asarray(arrays["status"]), n)
    recorded = status == RECORDED
    out: dict[str, NDArray[Any]] = {}
    for name, spec in specs.items():
        values = status if name == "status" else np.asarray(arrays[name])
        kept = facts.held(spec)
        if values.shape != (shape := spec.block_shape(int(kept.sum()))):
            raise InvalidInputError(f"{name}: expected shape {shape} {spec.dims}, found {values.shape}")
        if name == "attention_maps":
            out[name] = _maps(values, facts, recorded)
        elif name == "vision_maps":
            out[name] = _vision_maps(layout, _bytes(name, values), arrays.get("vision_grid"), facts.only(kept), recorded[kept])
        elif np.dtype(spec.dtype).kind == "u":
            out[name] = _bytes(name, values)
        elif np.dtype(spec.dtype).kind == "i":
            out[name] = _integers(spec, values, recorded[kept])
        else:
            out[name] = _floats(layout, spec, values, facts.only(kept) if spec.mask else facts, recorded[kept])
    if "attention_rows" in out:
        _check_rows(layout, out["attention_rows"], facts, recorded)
        # (layer, example, head, token) -> (example, layer, token)
        mean = out["attention_rows"].mean(2, dtype=np.float32)
        out["attention_mean"] = np.ascontiguousarray(np.moveaxis(mean, 0, 1)).astype(np.float16)
    return out


def unstorable_examples(layout: StoreLayout, facts: BlockFacts, arrays: Mapping[str, Any]) -> dict[int, str]:
    """Examples that cannot be recorded because a number is not finite, or is too large for the type in which it is stored.

    Parameters
    ----------
    layout
        Of the store.
    facts
        Of the block's examples.
    arrays
        As of `BlockWriter.write`.

    Returns
    -------
    dict
        Place within the block, of examples whose status is `recorded` -> which number cannot be stored, and where.
    """
    facts = _answered(layout, facts, arrays)
    recorded = np.asarray(arrays["status"]) == RECORDED
    reasons: dict[int, str] = {}
    for spec in layout.arrays():
        if spec.when != "block" or np.dtype(spec.dtype).kind != "f":
            continue
        values, kept = np.asarray(arrays[spec.name]), facts.held(spec)
        places, own = np.flatnonzero(kept), facts.only(kept) if spec.mask else facts
        _, bad = _stored(layout, spec, values, own, recorded[kept])
        around = tuple(k for k in range(bad.ndim) if k != spec.example_axis)
        for row in np.flatnonzero(bad.any(around)):
            if int(places[row]) not in reasons:
                at = np.argwhere(bad & (np.arange(bad.shape[spec.example_axis]) == row).reshape(_example_shape(spec)))[0]
                reasons[int(places[row])] = _unstored(layout, spec, values, at, own)
    return reasons


def _answered(layout: StoreLayout, facts: BlockFacts, arrays: Mapping[str, Any]) -> BlockFacts:
    """The facts with the positions of generated tokens that each example has."""
    if not layout.generated:
        return facts
    count = np.asarray(arrays["generated_count"])
    if count.shape != (len(facts.examples),):
        raise InvalidInputError(f"generated_count: expected shape ({len(facts.examples)},), found {count.shape}")
    return replace(facts, position_present=with_generated(layout.positions, facts.position_present, count))


def _status(values: NDArray[Any], n: int) -> NDArray[np.uint8]:
    if values.shape != (n,):
        raise InvalidInputError(f"status: expected shape ({n},), found {values.shape}")
    codes = [c for c in STATUS_CODES.values() if c]
    if not np.isin(values, codes).all():
        raise InvalidInputError(f"status: expected codes among {codes} ({', '.join(STATUS_CODES)}), found {sorted(set(values.tolist()))}")
    return values.astype(np.uint8)


def _bytes(name: str, values: NDArray[Any]) -> NDArray[np.uint8]:
    if values.dtype != np.uint8:
        raise InvalidInputError(f"{name}: expected uint8, found {values.dtype}")
    return values


def _integers(spec: ArraySpec, values: NDArray[Any], recorded: NDArray[np.bool_]) -> NDArray[Any]:
    if values.dtype.kind not in "iu":
        raise InvalidInputError(f"{spec.name}: expected whole numbers, found {values.dtype}")
    held, least = _along_examples(spec, recorded), spec.fill if spec.gaps else 0
    if (held & (values < least)).any():
        raise InvalidInputError(
            f"{spec.name}: expected numbers of at least {least}, found {int(values[np.broadcast_to(held, values.shape)].min())}"
        )
    return np.where(held, values, np.asarray(spec.fill)).astype(spec.dtype)


def _maps(values: NDArray[Any], facts: BlockFacts, recorded: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Check that maps are there exactly where they should be: every row within the prompt non-empty, zeros elsewhere."""
    values = _bytes("attention_maps", values)
    for i, example in enumerate(facts.examples):
        t = int(facts.n_tokens[i]) if facts.has_map[i] and recorded[i] else 0
        if t and not values[i, :, :t, :t].any(-1).all():
            layer, row = np.argwhere(~values[i, :, :t, :t].any(-1))[0]
            raise InvalidInputError(
                f"attention_maps: expected a whole map of example {example}, found nothing at layer index {layer}, query {row}; "
                "pack it with encode_maps"
            )
        if values[i, :, t:].any() or values[i, :, :, t:].any():
            raise InvalidInputError(f"attention_maps: expected zeros beyond {t} tokens of example {example}, found weights; pad with zeros")
    return values


def _vision_maps(
    layout: StoreLayout, values: NDArray[np.uint8], grids: Any, facts: BlockFacts, recorded: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Check that every row of a view's own tokens is non-empty, with zeros elsewhere; all zeros for examples that failed.

    A copy without vision_grid is not checked.
    """
    for i, example in enumerate(facts.examples):
        for view in range(layout.vision_views if recorded[i] and grids is not None else 0):
            patches = int(np.prod(grids[i, view])) if grids[i, view].min() > 0 else 0
            t = patches + layout.vision_class_tokens if patches else 0
            own = values[i, :, view]
            if t > own.shape[-1] or not own[:, :t, :t].any(-1).all() or own[:, t:].any() or own[:, :, t:].any():
                raise InvalidInputError(
                    f"vision_maps: expected a whole map of {t} tokens, zeros beyond, for view {view} of example {example}, found another; "
                    "pack each map as encode_maps does"
                )
        if not recorded[i] and values[i].any():
            values = values.copy()
            values[i] = 0
    return values


def _floats(layout: StoreLayout, spec: ArraySpec, values: NDArray[Any], facts: BlockFacts, recorded: NDArray[np.bool_]) -> NDArray[Any]:
    if values.dtype.kind != "f":
        raise InvalidInputError(f"{spec.name}: expected floats, found {values.dtype}")
    stored, bad = _stored(layout, spec, values, facts, recorded)
    if bad.any():
        reason = _unstored(layout, spec, values, np.argwhere(bad)[0], facts)
        raise InvalidInputError(
            f"{reason}; record the example with status {STATUS_CODES['non_finite']} (non_finite), or compute in float32"
        )
    wanted, finite = _wanted(layout, spec, facts, recorded), np.isfinite(stored)
    within = _within(spec, facts)
    if within is not None and (finite & _along_examples(spec, recorded) & ~within).any():
        own = "prompt's n_tokens" if "token" in spec.dims else "example's image tokens"
        raise InvalidInputError(f"{spec.name}: expected NaN beyond each {own}, found numbers; pad on the right with NaN")
    if np.broadcast_to(wanted, stored.shape).all():
        return stored
    return np.where(wanted, stored, np.asarray(np.nan, dtype=spec.dtype))


def _stored(
    layout: StoreLayout, spec: ArraySpec, values: NDArray[Any], facts: BlockFacts, recorded: NDArray[np.bool_]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The values in their stored type, and which of them must be finite and are not."""
    with np.errstate(over="ignore"):  # what overflows becomes infinite
        stored = values.astype(spec.dtype, copy=False)
    unfit = np.isinf(stored) if spec.gaps else ~np.isfinite(stored)
    return stored, unfit & _wanted(layout, spec, facts, recorded)


def _unstored(layout: StoreLayout, spec: ArraySpec, values: NDArray[Any], at: NDArray[Any], facts: BlockFacts) -> str:
    value = values[tuple(at)]
    found = f"{value}, too large for {spec.dtype}," if np.isfinite(value) else str(value)
    return f"{spec.name}: expected finite numbers, found {found} at {layout.place_text(spec.name, at, facts.examples)}"


def _wanted(layout: StoreLayout, spec: ArraySpec, facts: BlockFacts, recorded: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where values must be finite, broadcastable to the block's array."""
    wanted = _along_examples(spec, recorded)
    if spec.position_dim is not None:
        names = layout.positions_of(spec.position_dim)
        columns = [layout.positions.index(p) if p in layout.positions else -1 for p in names]
        present = np.stack([facts.position_present[:, c] if c >= 0 else np.ones(len(recorded), bool) for c in columns])
        # (position, example) at the axes of this array, which follow each other
        before = spec.dims.index(spec.position_dim)
        wanted = wanted & present.reshape([1] * before + [*present.shape] + [1] * (len(spec.dims) - before - 2))
    within = _within(spec, facts)
    return wanted if within is None else wanted & within


def _along_examples(spec: ArraySpec, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A mask over a block's examples, broadcastable to the block's array."""
    return mask.reshape(_example_shape(spec))


def _example_shape(spec: ArraySpec) -> list[int]:
    return [-1 if i == spec.example_axis else 1 for i in range(len(spec.dims))]


def _within(spec: ArraySpec, facts: BlockFacts) -> NDArray[np.bool_] | None:
    """Whether a token lies within its prompt or image, broadcastable to an array that pads tokens after its examples; else None."""
    padded = next((dim for dim in ("token", "patch") if dim in spec.dims), None)
    lengths = facts.n_tokens if padded == "token" else facts.patches
    if padded is None or lengths is None:
        return None
    axis = spec.dims.index(padded)
    inside = np.arange(spec.shape[axis]) < lengths[:, None]
    shape = [1] * len(spec.dims)
    shape[spec.example_axis], shape[axis] = inside.shape
    return inside.reshape(shape)


def _check_rows(layout: StoreLayout, rows: NDArray[Any], facts: BlockFacts, recorded: NDArray[np.bool_]) -> None:
    picked = rows[:, recorded]  # (layer, recorded example, head, token)
    if not picked.size:
        return
    sums = np.asarray(np.nansum(picked, -1, dtype=np.float32))
    low = np.asarray(np.nanmin(picked, -1))
    wrong = ~(np.abs(sums - 1) <= ROW_TOLERANCE) | (low < 0)
    if wrong.any():
        layer, i, head = np.argwhere(wrong)[0]
        example = np.asarray(facts.examples)[recorded][i]
        raise InvalidInputError(
            f"attention_rows: expected weights that sum to 1 within {ROW_TOLERANCE}, found a row that sums to "
            f"{sums[layer, i, head]:.5g} (lowest {low[layer, i, head]:.3g}) at layer {layout.attention_layers[layer]}, example {example}, "
            f"head {head}; pass post-softmax weights"
        )
