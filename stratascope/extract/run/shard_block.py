"""Fill shard blocks of the store: images are read ahead of the model, results are written behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from stratascope.errors import InvalidInputError
from stratascope.extract.families.general_family import family_of
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.run.inputs import LoadedImage, first_per_image, joined, shown_image
from stratascope.extract.run.model import Batch, Captured, PendingCapture
from stratascope.extract.run.pipeline import BackgroundQueue, prefetch
from stratascope.extract.run.session import ExtractionSession
from stratascope.extract.run.vision_features import FeatureCache, ImageFeatures, feature_budget
from stratascope.store import RECORDED, STATUS_CODES, StoreLayout, encode_maps
from stratascope.store.format.block_checks import BlockFacts, unstorable_examples


def empty_arrays(layout: StoreLayout, count: int, patched: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a block with `count` examples and fill values, status `recorded`; floats as float32.

    Arrays with a mask have the `patched` examples of the block alone.
    """
    arrays = {}
    for spec in layout.arrays():
        if spec.when == "block":
            dtype = np.float32 if spec.dtype.startswith("float") else spec.dtype
            arrays[spec.name] = np.full(spec.block_shape(patched if spec.mask else count), spec.fill, dtype)
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
        "answer_logits": captured.answer_logits,
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
        arrays["residual"][:, :, at] = captured.residual[:, : len(plan.store.positions)]
        for row, k in enumerate(members):
            arrays["residual"][:, ~plan.present[k], at[row]] = np.nan
    _fill_vision(plan, members, captured, at, arrays)
    _fill_patches(plan, members, captured, int(members[0] - at[0]), arrays)
    failed, causal = {}, family_of(plan.source).causal
    for row, k in enumerate(members):
        tokens = len(plan.layouts[k].ids)
        for name, values in by_token.items():
            if name in arrays and values is not None:
                arrays[name][:, at[row], :, :tokens] = values[:, row, :, :tokens]
        fused = None if captured.fused is None or not plan.has_map[k] else captured.fused[row, :, :tokens, :tokens]
        computed = (captured.final[row], captured.rows[:, row], *([] if fused is None else [fused]))
        if not all(np.isfinite(values).all() for values in computed):
            arrays["status"][at[row]] = STATUS_CODES["non_finite"]
            failed[k] = f"the model returned a value that is not finite in {plan.provenance['model']['dtype']}"
        elif "attention_maps" in arrays and fused is not None:
            arrays["attention_maps"][at[row], :, :tokens, :tokens] = encode_maps(fused, causal=causal)
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


def _fill_patches(plan: ExtractionPlan, members: Sequence[int], captured: Captured, first: int, arrays: dict[str, np.ndarray]) -> None:
    """Copy image tokens; `first` is the number of the block's first example."""
    if captured.patches is None or "patch_residual" not in arrays:
        return
    patched = [k for k in members if plan.has_patches[k]]
    for row, k in enumerate(patched):
        count, place = int(np.prod(plan.layouts[k].grid)), int(plan.has_patches[first:k].sum())
        arrays["patch_residual"][:, place, :count] = captured.patches[:, row, :count]


def _fill_vision(plan: ExtractionPlan, members: Sequence[int], captured: Captured, at: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    names = plan.store.vision_positions
    owners = [(row, name) for row, k in enumerate(members) for name in (plan.vision_cells(k) if names else ())]
    for segment, (row, name) in enumerate(owners):
        if captured.vision is not None:
            arrays["vision_residual"][:, names.index(name), at[row]] = captured.vision[:, segment]
        if captured.entry is not None:
            arrays["vision_output"][names.index(name), at[row]] = captured.entry[row, names.index(name)]


IMAGES_AHEAD = 32
"""Images that are prepared before the model needs them; one of 640 x 480 takes 7 MB for Qwen."""

BATCHES_WAITING = 1
"""Batches whose results wait to be copied into a block's arrays, besides the one that is being copied."""

BLOCKS_WAITING = 1
"""Blocks that wait to be written, besides those that are being written."""


class BlockStore(Protocol):
    """Where filled blocks are written."""

    def block_examples(self, block: int) -> range: ...

    def write(self, block: int, arrays: dict[str, np.ndarray]) -> None: ...


def fill_blocks(
    session: ExtractionSession, store: BlockStore, blocks: Sequence[int], bar: Any, on_checked: Callable[[], object] = lambda: None
) -> None:
    """Fill blocks in order: threads prepare images ahead of the model and store its results behind it.

    All queues are bounded, so memory stays bounded with a slow disk. If this ends early, filled blocks are written and the others are
    left out.

    Parameters
    ----------
    session
        The model and its plan.
    store
        Takes the filled blocks.
    blocks
        Their numbers.
    bar
        A progress bar; updated by the number of finished examples.
    on_checked
        Called once, after the first batch agreed with the model and before anything is written.
    """
    session.on_checked = on_checked
    readers, writers = session.threads
    members = {block: session.in_order(store.block_examples(block)) for block in blocks}
    session.features = FeatureCache(
        (session.plan.shown[k] for each in members.values() for k in each), feature_budget(session.model.device)
    )
    wanted = (k for block in blocks for k in first_per_image(session.plan, members[block]))
    with (
        BackgroundQueue("write", threads=writers, waiting=BLOCKS_WAITING) as writing,
        BackgroundQueue("fill", waiting=BATCHES_WAITING) as filling,
        ThreadPoolExecutor(readers, "read") as pool,
    ):
        images = prefetch(pool, session.load, wanted, IMAGES_AHEAD)
        try:
            for block in blocks:
                place = store.block_examples(block)
                filled = ShardBlock(session, place.start, len(place), images, filling, bar)
                filled.run(members[block])
                writing.submit(_write, store, block, filled)
        finally:
            images.close()


def _write(store: BlockStore, block: int, filled: ShardBlock) -> None:
    """Write a block when all its batches succeeded; otherwise leave it out."""
    if all(batch.result() for batch in filled.batches):
        filled.leave_out_unstorable()
        store.write(block, filled.arrays)


class ShardBlock:
    """The arrays of one shard block, and the batches that fill them.

    Parameters
    ----------
    session
        The model and the plan.
    first
        Number of the block's first example.
    count
        How many examples it has.
    images
        Images of the block, each once, in the order in which they are needed.
    filling
        Queue of results to copy into the arrays.
    bar
        Progress bar; updated by the number of finished examples.
    """

    def __init__(
        self, session: ExtractionSession, first: int, count: int, images: Iterator[LoadedImage], filling: BackgroundQueue, bar: Any
    ) -> None:
        self._session, self._first, self._images, self._filling, self._bar = session, first, images, filling, bar
        self._loaded: dict[str, LoadedImage] = {}
        self._features: dict[int, ImageFeatures] = {}
        self.arrays = empty_arrays(session.plan.store, count, int(session.plan.has_patches[first : first + count].sum()))
        """All arrays of the block; complete once all `batches` are done."""
        self.batches: list[Future[Any]] = []

    def run(self, members: Sequence[int]) -> None:
        """Run the block's examples through the model, in the given order."""
        while members:
            batch = self._session.next_batch(members)
            ready = [k for k in batch if self._ready(k)]
            if not ready or self._run_batch(ready):
                members = members[len(batch) :]

    def leave_out_unstorable(self) -> None:
        """Mark examples with values that the store cannot represent, once all `batches` are done."""
        self._session.failed |= leave_out_unstorable(self._session.plan, self._first, self.arrays)

    def _ready(self, example: int) -> bool:
        """Load the image of an example or its features; false, with the reason recorded, if that is impossible."""
        session, place = self._session, example - self._first
        if example in session.failed:
            return False
        name = session.plan.shown[example]
        while name not in self._loaded:
            loaded = next(self._images)
            self._loaded[loaded.name] = loaded
        loaded = self._loaded[name]
        if loaded.problem:
            session.failed[example], status = loaded.problem
            self.arrays["status"][place] = STATUS_CODES[status]
            self._bar.update(1)
            return False
        if loaded.thumbnail is not None:
            self.arrays["thumbnail"][place] = loaded.thumbnail
        if session.model.accepts_features and example not in self._features:
            self._features[example] = session.features.obtain(name, lambda: self._compute(example, loaded))
            self._loaded[name] = replace(loaded, prepared=None)
        return True

    def _compute(self, example: int, loaded: LoadedImage) -> ImageFeatures:
        session = self._session
        prepared = loaded.prepared or session.prepare(shown_image(session.plan, loaded.name))  # its features were evicted in the meantime
        try:
            return session.compute_features(example, prepared)
        except torch.OutOfMemoryError:
            pass
        self._free_memory()
        return session.compute_features(example, prepared)

    def _run_batch(self, members: list[int]) -> bool:
        """Run a batch through the model; false if memory ran out and smaller batches must be tried."""
        session, batch = self._session, self._batch(members)
        try:
            coming: PendingCapture | None = session.launch(batch)
        except torch.OutOfMemoryError as error:
            if len(members) == 1:
                raise InvalidInputError(
                    f"expected memory for one example of {batch.input_ids.shape[1]} tokens on {session.model.device}, found too little "
                    f"({str(error).splitlines()[0]}); lower `max_pixels`, reduce `record`, or take a larger GPU"
                ) from error
            coming = None
        if coming is None:  # outside of the handler, so that the tensors of the failed pass are freed
            self._free_memory()
            session.halvings += 1
            session.batch_tokens = len(members) // 2 * batch.input_ids.shape[1]
            return False
        self.batches.append(self._filling.submit(self._fill, batch, coming))
        knockouts = session.plan.knockouts
        chosen = [] if knockouts is None else [k for k in members if knockouts.chosen[k]]
        backward = members if "hiding_estimate" in self.arrays else []
        if chosen or backward:
            self._filling.drain()
        for k in backward:
            if k not in session.failed:
                gradients, tokens = session.token_gradients(k, self._batch([k])), len(session.plan.layouts[k].ids)
                self.arrays["gradient_input"][k - self._first, :tokens] = gradients.inputs.cpu().numpy()
                self.arrays["hiding_estimate"][k - self._first, :tokens] = gradients.knockout_estimate.cpu().numpy()
        for k in chosen:
            if k not in session.failed:
                self.arrays["knockout"][k - self._first] = session.knock_out(k, self._batch([k]))
        for k in members:
            self._features.pop(k, None)
        return True

    def _batch(self, members: list[int]) -> Batch:
        session = self._session
        if session.model.accepts_features:
            return session.batch(members, {}, [self._features[k] for k in members])
        prepared = [self._loaded[session.plan.shown[k]].prepared for k in members]
        return session.batch(members, joined([each for each in prepared if each is not None]).tensors)

    def _fill(self, batch: Batch, coming: PendingCapture) -> bool:
        at = np.array(batch.members) - self._first
        self._session.failed |= fill(self._session.plan, batch.members, coming.result(), at, self.arrays)
        self._bar.update(len(batch.members))
        return True

    def _free_memory(self) -> None:
        """Free all GPU memory that is not needed now."""
        self._filling.drain()
        self._session.features.clear()
        torch.cuda.empty_cache()
