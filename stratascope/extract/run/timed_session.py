"""A session that runs its stages in sequence and times each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.run.gradients import TokenGradients
from stratascope.extract.run.halvings import Work
from stratascope.extract.run.inputs import LoadedImage, PreparedImages
from stratascope.extract.run.model import Batch, PendingCapture
from stratascope.extract.run.pipeline import BackgroundQueue
from stratascope.extract.run.session import ExtractionSession
from stratascope.extract.run.vision_features import ImageFeatures

Clock = Callable[[], float]
"""Returns seconds."""


class TimedSession(ExtractionSession):
    """A session that waits for each stage and times it."""

    def __init__(self, plan: ExtractionPlan, batch_tokens: int, clock: Clock) -> None:
        super().__init__(plan, batch_tokens)
        self.clock = clock
        self.spent: dict[str, list[float]] = {}
        """Stage -> seconds of each call."""
        self.feature_bytes = 0
        """Bytes of the features of the largest image."""
        self.checking = 0.0
        """Seconds of the check of the first batch, which happens once."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        begin = self.clock()
        yield
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self.spent.setdefault(name, []).append(self.clock() - begin)

    def load(self, place: tuple[int, int]) -> LoadedImage:
        with self.timed("images"):
            return super().load(place)

    def compute_features(self, example: int, prepared: PreparedImages, name: str) -> ImageFeatures:
        with self.timed("vision tower"):
            features = super().compute_features(example, prepared, name)
        self.feature_bytes = max(self.feature_bytes, features.bytes)
        return features

    def launch(self, batch: Batch) -> PendingCapture:
        pending = super().launch(batch)
        pending.host_copy.result()  # otherwise the next stage would wait for it
        return pending

    def _check(self, batch: Batch, pending: PendingCapture) -> None:
        begin = self.clock()
        super()._check(batch, pending)
        self.checking += self.clock() - begin

    def halve(self, work: Work, block: int, place: int, tokens: int) -> None:
        super().halve(work, 0, 0, tokens)  # for all batches: the sample jumps between blocks, and starts again

    def token_gradients(self, example: int, batch: Callable[[], Batch]) -> TokenGradients:
        with self.timed("gradients"):
            return super().token_gradients(example, batch)

    def vision_changes(self, example: int) -> np.ndarray:
        with self.timed("vision changes"):
            return super().vision_changes(example)

    def knock_out(self, example: int, batch: Callable[[], Batch], block: int, place: int) -> np.ndarray:
        with self.timed("knockouts"):
            return super().knock_out(example, batch, block, place)


class ImmediateQueue(BackgroundQueue):
    """A queue that runs tasks at once in the caller's thread, and times them."""

    def __init__(self, session: TimedSession) -> None:
        super().__init__("fill")
        self._session = session

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        with self._session.timed("filling"):
            done.set_result(work(*arguments))
        return done


class NoBar:
    """A progress bar that shows nothing."""

    def update(self, count: int) -> None:
        """Do nothing."""
