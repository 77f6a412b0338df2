"""A session that works through pieces one after the other, with a clock in hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.run.gradients import TokenGradients
from stratascope.extract.run.image_reader import LoadedImage
from stratascope.extract.run.inputs import PreparedImages
from stratascope.extract.run.model import Batch, Coming
from stratascope.extract.run.pipeline import Behind
from stratascope.extract.run.session import ExtractionSession
from stratascope.extract.run.vision_features import ImageFeatures

Clock = Callable[[], float]
"""Gives seconds."""


class TimedSession(ExtractionSession):
    """A session that waits for each piece of work, and knows how long it took."""

    def __init__(self, plan: ExtractionPlan, batch_tokens: int, clock: Clock) -> None:
        super().__init__(plan, batch_tokens)
        self.clock = clock
        self.spent: dict[str, list[float]] = {}
        """Kind of work -> seconds of each piece."""
        self.feature_bytes = 0
        """What the largest image's features take."""
        self.checking = 0.0
        """Seconds of comparing the first batch with the model, which is done once."""

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        begin = self.clock()
        yield
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self.spent.setdefault(name, []).append(self.clock() - begin)

    def load(self, example: int) -> LoadedImage:
        with self.timed("images"):
            return super().load(example)

    def compute_features(self, example: int, prepared: PreparedImages) -> ImageFeatures:
        with self.timed("vision tower"):
            features = super().compute_features(example, prepared)
        self.feature_bytes = max(self.feature_bytes, features.bytes)
        return features

    def launch(self, batch: Batch) -> Coming:
        coming = super().launch(batch)
        coming.arrival.result()  # or who puts it in place would wait for it
        return coming

    def _check(self, batch: Batch, coming: Coming) -> None:
        begin = self.clock()
        super()._check(batch, coming)
        self.checking += self.clock() - begin

    def token_gradients(self, example: int, batch: Batch) -> TokenGradients:
        with self.timed("gradients"):
            return super().token_gradients(example, batch)

    def knock_out(self, example: int, batch: Batch) -> np.ndarray:
        with self.timed("knockouts"):
            return super().knock_out(example, batch)


class AtOnce(Behind):
    """Puts results in place where it is asked to, so that it is known what that takes."""

    def __init__(self, session: TimedSession) -> None:
        super().__init__("fill")
        self._session = session

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        with self._session.timed("filling"):
            done.set_result(work(*arguments))
        return done


class NoBar:
    """Stands for a progress bar."""

    def update(self, count: int) -> None:
        """Take no note."""
