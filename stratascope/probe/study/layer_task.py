"""Layer tasks: read one layer at one position and solve all its batches. They run in any process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.probe.solver.blas_threads import one_blas_thread
from stratascope.probe.solver.standardised_rows import Eigenbasis, Rows, suited_dtype
from stratascope.probe.study.study_plan import Batch, ProbeSettings
from stratascope.probe.validation.cross_validation import classify, regress
from stratascope.probe.validation.out_of_fold import OutOfFold
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
    by_head: bool = False
    """Whether each head has its own probe."""


@dataclass(frozen=True, eq=False)
class LayerAnswer:
    """Answer to a LayerTask."""

    layer: int
    position: str | None
    answers: list[list[OutOfFold]]
    """By batch and labelling, with heads by head, batch and labelling; logits of all examples of the store."""
    seconds: float
    content: str = ""
    """Digest of the activations; see `content_digest`."""


def run_layer(task: LayerTask) -> LayerAnswer:
    """Read the layer and solve its batches, one after another, with one BLAS thread."""
    started = time.perf_counter()
    with one_blas_thread():
        x, used = read_layer(task)
        if task.by_head:  # (example, head, column)
            answers = [found for head in range(x.shape[1]) for found in _solve(task, np.ascontiguousarray(x[:, head]), used)]
        else:
            answers = _solve(task, x.reshape(len(used), -1), used)
        content = digest_of(x, used)
    return LayerAnswer(task.layer, task.position, answers, time.perf_counter() - started, content)


def read_layer(task: LayerTask) -> tuple[Floats, NDArray[np.intp]]:
    """(example, ...) activations of a task, and the numbers of its examples in the store."""
    used = np.flatnonzero(np.any([batch.used for batch in task.batches], axis=0))
    name = task.settings.array
    layer = task.layer if task.store.layout.array(name).layer_dim else None
    return task.store.read(name, layer=layer, position=task.position, examples=used), used


def content_digest(task: LayerTask) -> str:
    """Digest of the activations of a task and its example numbers."""
    return digest_of(*read_layer(task))


def digest_of(x: Floats, used: NDArray[np.intp]) -> str:
    """SHA-256 over (example, ...) activations, their shape and type, and example numbers."""
    digest = hashlib.sha256(f"{x.dtype.str} {x.shape}".encode())
    digest.update(np.ascontiguousarray(used, dtype=np.int64).tobytes())
    digest.update(np.ascontiguousarray(x).view(np.uint8).data)
    return digest.hexdigest()


def _solve(task: LayerTask, x: Floats, used: NDArray[np.intp]) -> list[list[OutOfFold]]:
    settings = task.settings
    basis: Eigenbasis | None = None
    answers = []
    for batch in task.batches:
        rows = Rows(x, batch.folds.of[used], dtype=suited_dtype(x))
        if batch.targets:
            found = regress(rows, batch.labels[:, used], batch.folds, strengths=settings.strengths)
        else:
            if basis is None and settings.method == "logistic":
                # one basis serves all batches, because it only speeds up the solver
                basis = rows.eigenbasis()
            found = classify(
                rows,
                batch.labels[:, used],
                batch.folds,
                classes=len(batch.classes),
                strengths=settings.strengths,
                basis=basis,
                tolerance=settings.tolerance,
                method=settings.method,
            )
        answers.append([_spread(answer, used, len(batch.used)) for answer in found])
    return answers


def _spread(answer: OutOfFold, used: NDArray[np.intp], count: int) -> OutOfFold:
    """Logits over all examples of the store, NaN for the unused."""
    logits = np.full((len(answer.logits), count), np.nan, np.float32)
    logits[:, used] = answer.logits
    return replace(answer, logits=logits)
