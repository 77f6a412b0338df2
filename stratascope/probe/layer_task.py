"""The work on one layer at one position: read its slice, solve everything, return scores' raw material. Runs in any process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.probe.cross_validation import OutOfFold, classify, regress
from stratascope.probe.plan import Batch, ProbeSettings
from stratascope.probe.rows import Eigenbasis, Rows
from stratascope.store import ActivationStore

Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class LayerTask:
    """One layer and position, with all its batches. Pickles to the store's address and small arrays."""

    store: ActivationStore
    layer: int
    position: str | None
    batches: Sequence[Batch]
    settings: ProbeSettings


@dataclass(frozen=True, eq=False)
class LayerAnswer:
    """Results of a LayerTask."""

    layer: int
    position: str | None
    answers: list[list[OutOfFold]]
    """By batch and labelling; logits of all examples of the store."""
    seconds: float


def run_layer(task: LayerTask) -> LayerAnswer:
    """Read the layer and solve its batches, one after another, with one BLAS thread."""
    from threadpoolctl import threadpool_limits

    started = time.perf_counter()
    with threadpool_limits(1, user_api="blas"):
        used = np.flatnonzero(np.any([batch.used for batch in task.batches], axis=0))
        x = task.store.read(task.settings.array, layer=task.layer, position=task.position, examples=used)
        x = x.reshape(len(used), -1)
        basis: Eigenbasis | None = None
        answers = []
        for batch in task.batches:
            rows = Rows(x, batch.folds.of[used])
            if batch.targets:
                answers.append(regress(rows, batch.labels[:, used], batch.folds, strengths=task.settings.strengths))
                continue
            if basis is None and task.settings.method == "logistic":
                # the basis of one set of examples serves the others: it only speeds up
                basis = rows.eigenbasis()
            answers.append(
                classify(
                    rows,
                    batch.labels[:, used],
                    batch.folds,
                    classes=len(batch.classes),
                    strengths=task.settings.strengths,
                    basis=basis,
                    tolerance=task.settings.tolerance,
                    method=task.settings.method,
                )
            )
            del rows
    spread = [[_spread(answer, used, len(batch.used)) for answer in found] for batch, found in zip(task.batches, answers, strict=True)]
    return LayerAnswer(task.layer, task.position, spread, time.perf_counter() - started)


def _spread(answer: OutOfFold, used: NDArray[np.intp], count: int) -> OutOfFold:
    from dataclasses import replace

    logits = np.full((len(answer.logits), count), np.nan, np.float32)
    logits[:, used] = answer.logits
    return replace(answer, logits=logits)


def task_bytes(examples: int, columns: int, problems: int) -> int:
    """Peak memory of a layer task: rows twice, the Gram matrix with its eigenvectors, weights and L-BFGS history."""
    smaller = min(examples, columns)
    return 4 * (2 * examples * columns + 4 * smaller**2 + problems * (24 * columns + 6 * examples))
