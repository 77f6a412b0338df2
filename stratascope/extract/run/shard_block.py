"""Fill shard blocks of the store: images are read ahead of the model, results are written behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from stratascope.extract.run.block_arrays import empty_arrays, fill, fill_vision_maps, leave_out_unstorable
from stratascope.extract.run.device_memory import OutOfMemory, attempt
from stratascope.extract.run.gradients import ARRAYS
from stratascope.extract.run.inputs import LoadedImage, first_per_image, joined, shown_image, side_by_side
from stratascope.extract.run.model import Batch, PendingCapture
from stratascope.extract.run.pipeline import BackgroundQueue, prefetch
from stratascope.extract.run.session import ExtractionSession
from stratascope.extract.run.vision_features import FeatureCache, ImageFeatures, feature_budget
from stratascope.store import STATUS_CODES, StoreLayout

IMAGES_AHEAD = 32
"""Images that are prepared before the model needs them; one of 640 x 480 takes 7 MB for Qwen."""

BATCHES_WAITING = 1
"""Batches whose results wait to be copied into a block's arrays, besides the one that is being copied."""

BLOCKS_WAITING = 1
"""Blocks that wait to be written, besides those that are being written."""


BYTES_WAITING = 8 << 30
"""Bytes of filled blocks that are written or wait to be, at most, unless it is a single block."""


def writing_room(layout: StoreLayout, writers: int) -> tuple[int, int]:
    """Threads that write blocks, and blocks that may wait for one: fewer where a block's arrays are large (maps of long prompts)."""
    size = sum(
        math.prod(spec.block_shape(layout.block)) * np.dtype(spec.dtype).itemsize for spec in layout.arrays() if spec.when == "block"
    )
    held = max(1, min(writers + BLOCKS_WAITING, BYTES_WAITING // max(size, 1)))
    return min(writers, held), held - min(writers, held)


class BlockStore(Protocol):
    """Where filled blocks are written."""

    def block_examples(self, block: int) -> range: ...

    def write(self, block: int, arrays: dict[str, np.ndarray]) -> None: ...


def fill_blocks(
    session: ExtractionSession,
    store: BlockStore,
    blocks: Sequence[int],
    bar: Any,
    on_checked: Callable[[], object] = lambda: None,
    *,
    in_bucket: bool = False,
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
    in_bucket
        Whether the store is in a bucket: two blocks are then sent at once, so that the line is busy while one of them is claimed, finished
        or marked.
    """
    session.on_checked = on_checked
    readers, writers = session.threads
    writing_threads, waiting = writing_room(session.plan.store, max(writers, 2) if in_bucket else writers)
    members = {block: session.in_order(store.block_examples(block)) for block in blocks}
    session.features = FeatureCache(
        (name for each in members.values() for k in each for name in session.plan.images_of(k)), feature_budget(session.model.device)
    )
    wanted = (place for block in blocks for place in first_per_image(session.plan, members[block]))
    with (
        BackgroundQueue("write", threads=writing_threads, waiting=waiting) as writing,
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
        self._block, self._place = first // session.plan.store.block, 0
        self._loaded: dict[str, LoadedImage] = {}
        self._features: dict[int, list[ImageFeatures]] = {}
        self.arrays = empty_arrays(session.plan, first, count)
        """All arrays of the block; complete once all `batches` are done."""
        self.batches: list[Future[Any]] = []

    def run(self, members: Sequence[int]) -> None:
        """Run the block's examples through the model, in the given order."""
        count = len(members)
        while members:
            self._place = count - len(members)
            self._session.move_on(self._block, self._place)
            batch = self._session.next_batch(members)
            ready = [k for k in batch if self._ready(k)]
            if not ready or self._run_batch(ready):
                members = members[len(batch) :]

    def leave_out_unstorable(self) -> None:
        """Mark examples with values that the store cannot represent, once all `batches` are done."""
        self._session.failed |= leave_out_unstorable(self._session.plan, self._first, self.arrays)

    def _ready(self, example: int) -> bool:
        """Load the images of an example or their features; false, with the reason recorded, if that is impossible."""
        session, place = self._session, example - self._first
        if example in session.failed:
            return False
        names = session.plan.images_of(example)
        for name in names:
            while name not in self._loaded:
                found = next(self._images)
                self._loaded[found.name] = found
        images = [self._loaded[name] for name in names]
        problem = next((loaded.problem for loaded in images if loaded.problem), None)
        if problem:
            session.failed[example], status = problem
            self.arrays["status"][place] = STATUS_CODES[status]
            self._bar.update(1)
            return False
        if small := [loaded.thumbnail for loaded in images if loaded.thumbnail is not None]:
            self.arrays["thumbnail"][place] = side_by_side(small)
        if session.model.accepts_features and example not in self._features:
            obtain = session.features.obtain
            self._features[example] = [obtain(each.name, partial(self._compute, example, each)) for each in images]
            self._loaded |= {loaded.name: replace(loaded, prepared=None) for loaded in images}
        return True

    def _compute(self, example: int, loaded: LoadedImage) -> ImageFeatures:
        session = self._session
        prepared = loaded.prepared or session.prepare(shown_image(session.plan, loaded.name))  # its features were evicted in the meantime
        found = attempt(lambda: session.compute_features(example, prepared, loaded.name))
        if isinstance(found, OutOfMemory):  # the second time with nothing else in the device's memory
            self._free_memory()
            found = attempt(lambda: session.compute_features(example, prepared, loaded.name))
        if isinstance(found, OutOfMemory):
            raise session.too_little(f"the image {loaded.name}", found, "lower `max_pixels`")
        return found

    def _run_batch(self, members: list[int]) -> bool:
        """Run a batch through the model; false if memory ran out and smaller batches must be tried."""
        session = self._session

        def started() -> tuple[Batch, PendingCapture]:
            batch = self._batch(members)
            return batch, session.launch(batch)

        coming = attempt(started)
        if isinstance(coming, OutOfMemory):
            tokens = int(session.plan.token_counts[members].max())
            if len(members) == 1:
                raise session.too_little(f"one example of {tokens} tokens", coming, "lower `max_pixels`, reduce `record`")
            self._free_memory()
            session.halve("capture", self._block, self._place, len(members) // 2 * tokens)
            return False
        self.batches.append(self._filling.submit(self._fill, *coming))
        knockouts = session.plan.knockouts
        chosen = [] if knockouts is None else [k for k in members if knockouts.chosen[k]]
        if session.plan.tokenizer.scored:
            found = session.score_answers(members, self._batch, self._block, self._place)
            self.arrays["answer_logits"][np.array(members) - self._first] = found
        backward = members if ARRAYS & self.arrays.keys() else []
        changed = [] if session.plan.changed is None else [k for k in members if session.plan.changed[k]]
        if chosen or backward or changed:
            self._filling.drain()
        for k in backward:
            if k not in session.failed:
                gradients, tokens = session.token_gradients(k, partial(self._batch, [k])), len(session.plan.layouts[k].ids)
                for name, values in gradients.arrays.items():
                    if name in ("gradient_maps", "gradient_scale"):
                        place = int(session.plan.has_map[self._first : k].sum())
                        self.arrays[name][place] = 0
                        self.arrays[name][place][(..., *[slice(tokens)] * (values.ndim - 1))] = values.cpu().numpy()
                    elif name in self.arrays:
                        self.arrays[name][k - self._first, ..., :tokens] = values.cpu().numpy()
        for place, k in enumerate(members, self._place):
            if k in chosen and k not in session.failed:
                self.arrays["knockout"][k - self._first] = session.knock_out(k, partial(self._batch, [k]), self._block, place)
        for k in changed:
            if k not in session.failed:
                found = session.vision_changes(k)
                self.arrays["vision_change"][k - self._first, ..., : found.shape[-1]] = found
        for k in members:
            self._features.pop(k, None)
        return True

    def _batch(self, members: list[int]) -> Batch:
        session = self._session
        if session.model.accepts_features:
            return session.batch(members, {}, [each for k in members for each in self._features[k]])
        prepared = [self._loaded[name].prepared for k in members for name in session.plan.images_of(k)]
        return session.batch(members, joined([each for each in prepared if each is not None]).tensors)

    def _fill(self, batch: Batch, coming: PendingCapture) -> bool:
        at = np.array(batch.members) - self._first
        self._session.failed |= fill(self._session.plan, batch.members, coming.result(), at, self.arrays)
        fill_vision_maps(self._session.plan, batch.members, [each.maps for each in batch.features], self._first, self.arrays)
        self._bar.update(len(batch.members))
        return True

    def _free_memory(self) -> None:
        """Free all GPU memory that is not needed now."""
        self._filling.drain()
        self._session.features.clear()
        torch.cuda.empty_cache()
