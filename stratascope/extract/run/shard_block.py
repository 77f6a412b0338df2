"""One block on its way through the model: its batches, its failures, its arrays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stratascope.errors import InvalidInputError
from stratascope.extract.run.block_arrays import empty_arrays, fill, leave_out_unstorable
from stratascope.extract.run.image_reader import LoadedImage, shown_image
from stratascope.extract.run.inputs import joined
from stratascope.extract.run.model import Batch, Coming
from stratascope.extract.run.pipeline import Behind
from stratascope.extract.run.vision_features import ImageFeatures
from stratascope.store import STATUS_CODES

if TYPE_CHECKING:
    from stratascope.extract.run.session import ExtractionSession


class BlockWork:
    """Fills the arrays of one block.

    Parameters
    ----------
    session
        The model and the plan.
    first
        Number of the block's first example.
    count
        How many examples it has.
    images
        Those of the block next, each once, in the order in which they are needed.
    filling
        Takes results as they come.
    bar
        Is told of examples that are done.
    """

    def __init__(
        self, session: ExtractionSession, first: int, count: int, images: Iterator[LoadedImage], filling: Behind, bar: Any
    ) -> None:
        self._session, self._first, self._images, self._filling, self._bar = session, first, images, filling, bar
        self._loaded: dict[str, LoadedImage] = {}
        self._features: dict[int, ImageFeatures] = {}
        self.arrays = empty_arrays(session.plan.store, count)
        """Everything that the store wants of the block, once all `pieces` are done."""
        self.pieces: list[Future[Any]] = []

    def run(self, members: Sequence[int]) -> None:
        """Send the block's examples through the model, in the order given."""
        while members:
            batch = self._session.next_batch(members)
            ready = [k for k in batch if self._ready(k)]
            if not ready or self._through(ready):
                members = members[len(batch) :]

    def leave_out_unstorable(self) -> None:
        """Mark examples of which a number does not fit the store, once all `pieces` are done."""
        self._session.failed |= leave_out_unstorable(self._session.plan, self._first, self.arrays)

    def _ready(self, example: int) -> bool:
        """Have what the model needs of an example's image; or record why it cannot be had."""
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
        if session.model.takes_features and example not in self._features:
            self._features[example] = session.features.obtain(name, lambda: self._compute(example, loaded))
            self._loaded[name] = replace(loaded, prepared=None)
        return True

    def _compute(self, example: int, loaded: LoadedImage) -> ImageFeatures:
        session = self._session
        prepared = loaded.prepared or session.prepare(shown_image(session.plan, loaded.name))  # features that were dropped meanwhile
        try:
            return session.compute_features(example, prepared)
        except torch.OutOfMemoryError:
            pass
        self._make_room()
        return session.compute_features(example, prepared)

    def _through(self, members: list[int]) -> bool:
        """Send a batch through the model; false where its memory ran out and smaller ones shall be tried."""
        session, batch = self._session, self._batch(members)
        try:
            coming: Coming | None = session.launch(batch)
        except torch.OutOfMemoryError as error:
            if len(members) == 1:
                raise InvalidInputError(
                    f"expected memory for one example of {batch.input_ids.shape[1]} tokens on {session.model.device}, found too little "
                    f"({str(error).splitlines()[0]}); lower --max-pixels, record less, or take a larger GPU"
                ) from error
            coming = None
        if coming is None:  # outside of the handler, so that the failed pass's tensors are gone
            self._make_room()
            session.halvings += 1
            session.batch_tokens = len(members) // 2 * batch.input_ids.shape[1]
            return False
        self.pieces.append(self._filling.submit(self._fill, batch, coming))
        knockouts = session.plan.knockouts
        chosen = [] if knockouts is None else [k for k in members if knockouts.chosen[k]]
        backward = members if "hiding_estimate" in self.arrays else []
        if chosen or backward:
            self._filling.drain()
        for k in backward:
            if k not in session.failed:
                found, tokens = session.token_gradients(k, self._batch([k])), len(session.plan.layouts[k].ids)
                self.arrays["gradient_input"][k - self._first, :tokens] = found.inputs.cpu().numpy()
                self.arrays["hiding_estimate"][k - self._first, :tokens] = found.hiding.cpu().numpy()
        for k in chosen:
            if k not in session.failed:
                self.arrays["knockout"][k - self._first] = session.knock_out(k, self._batch([k]))
        for k in members:
            self._features.pop(k, None)
        return True

    def _batch(self, members: list[int]) -> Batch:
        session = self._session
        if session.model.takes_features:
            return session.batch(members, {}, [self._features[k] for k in members])
        prepared = [self._loaded[session.plan.shown[k]].prepared for k in members]
        return session.batch(members, joined([each for each in prepared if each is not None]).tensors)

    def _fill(self, batch: Batch, coming: Coming) -> bool:
        at = np.array(batch.members) - self._first
        self._session.failed |= fill(self._session.plan, batch.members, coming.result(), at, self.arrays)
        self._bar.update(len(batch.members))
        return True

    def _make_room(self) -> None:
        """Give back all of the GPU's memory that is not needed now."""
        self._filling.drain()
        self._session.features.clear()
        torch.cuda.empty_cache()
