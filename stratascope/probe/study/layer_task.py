"""Layer tasks: read one layer at one position and solve all its batches. They run in any process."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.probe.curve.metrics import score_influences
from stratascope.probe.curve.value_metrics import value_influences
from stratascope.probe.solver.blas_threads import one_blas_thread
from stratascope.probe.solver.standardised_rows import Eigenbasis, Rows, suited_dtype
from stratascope.probe.study.batch import Batch
from stratascope.probe.study.cost import labellings_at_once
from stratascope.probe.study.positions import is_pair, read_at
from stratascope.probe.study.study_plan import ProbeSettings
from stratascope.probe.validation.cross_validation import METHODS, by_fold, classify, regress
from stratascope.probe.validation.estimators import estimator_of, fit_out_of_fold
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
    """(example, ...) activations of a task as of `read_at`, and the numbers of its examples in the store."""
    used = np.flatnonzero(np.any([batch.used for batch in task.batches], axis=0))
    name = task.settings.array
    layer = task.layer if task.store.layout.array(name).layer_dim else None
    return read_at(task.store, name, task.position, layer=layer, examples=used, pair=task.settings.pair), used


def content_digest(task: LayerTask) -> str:
    """Digest of the activations of a task and its example numbers."""
    return digest_of(*read_layer(task))


def digest_of(x: Floats, used: NDArray[np.intp]) -> str:
    """SHA-256 over (example, ...) activations, their shape and type, and example numbers."""
    digest = hashlib.sha256(f"{x.dtype.str} {x.shape}".encode())
    digest.update(np.ascontiguousarray(used, dtype=np.int64).tobytes())
    digest.update(np.ascontiguousarray(x).view(np.uint8).data)
    return digest.hexdigest()


def solve_features(task: LayerTask, x: Floats, used: NDArray[np.intp]) -> LayerAnswer:
    """Answer a task from features (example, column) of the examples `used` instead of activations."""
    with one_blas_thread():
        return LayerAnswer(task.layer, task.position, _solve(task, x, used), 0.0)


def _solve(task: LayerTask, x: Floats, used: NDArray[np.intp]) -> list[list[OutOfFold]]:
    basis: Eigenbasis | None = None
    solve: Callable[[Batch], list[OutOfFold]]
    bilinear = is_pair(task.position) and task.settings.pair == "bilinear"
    answers = []
    for batch in task.batches:
        if task.settings.method not in METHODS:
            solve = partial(_fit, task, x=x, used=used, bilinear=bilinear)
        elif bilinear:
            solve = partial(_solve_bilinear, task, x=x, used=used)
        else:
            rows = Rows(x, batch.folds.of[used], dtype=suited_dtype(x))
            if not batch.targets and basis is None and task.settings.method == "logistic":
                # one basis serves all batches, because it only speeds up the solver
                basis = rows.eigenbasis()
            solve = partial(_solve_rows, task, rows=rows, used=used, basis=basis)
        found: list[OutOfFold] = []
        scored: dict[int, tuple[Floats, Floats]] = {}
        step = labellings_at_once(batch, task.settings)
        for start in range(0, len(batch.labels), step):
            part = replace(batch, labels=batch.labels[start : start + step])
            for number, answer in enumerate(solve(part), start):
                # of further draws only the scores are kept: logits and weights of many classes would not fit in memory
                if number < len(batch.tasks):
                    found.append(answer)
                if number >= len(batch.tasks) or number in batch.further:
                    scored[number] = _scored(answer, batch.labels[number, used], batch, used)
        answers.append([_spread(_with_draws(one, batch, k, scored), used, len(batch.used)) for k, one in enumerate(found)])
    return answers


def _solve_rows(
    task: LayerTask, batch: Batch, rows: Rows, used: NDArray[np.intp], basis: Eigenbasis | None, fold: int | None = None
) -> list[OutOfFold]:
    settings, labels = task.settings, batch.labels[:, used]
    if batch.targets:
        return regress(rows, labels, batch.folds, strengths=settings.strengths, fold=fold)
    return classify(
        rows,
        labels,
        batch.folds,
        classes=len(batch.classes),
        strengths=settings.strengths,
        basis=basis,
        tolerance=settings.tolerance,
        method=str(settings.method),
        fold=fold,
    )


def _solve_bilinear(task: LayerTask, batch: Batch, x: Floats, used: NDArray[np.intp]) -> list[OutOfFold]:
    """Solve a bilinear pair probe: principal components are those of each fold's training examples."""
    from stratascope.probe.estimator import BilinearFeatures

    def features(training: NDArray[np.bool_]) -> Callable[[Floats], Floats]:
        return BilinearFeatures(task.settings.rank, seed=task.settings.seed).fit(x[training]).transform

    def solve(rows: Rows, fold: int) -> list[OutOfFold]:
        basis = None if batch.targets or task.settings.method != "logistic" else rows.eigenbasis()
        return _solve_rows(task, batch, rows, used, basis, fold)

    return by_fold(x, batch.folds.of[used], batch.folds, features, solve, dtype=suited_dtype(x))


def _fit(task: LayerTask, batch: Batch, x: Floats, used: NDArray[np.intp], *, bilinear: bool) -> list[OutOfFold]:
    """Fit an estimator of scikit-learn."""
    settings = task.settings
    estimator = estimator_of(settings.method, values=bool(batch.targets), seed=settings.seed)
    if bilinear:
        from sklearn.pipeline import make_pipeline

        from stratascope.probe.estimator import BilinearFeatures

        estimator = make_pipeline(BilinearFeatures(settings.rank, seed=settings.seed), estimator)
    return fit_out_of_fold(estimator, x, batch.labels[:, used], batch.folds.of[used], batch.folds, classes=len(batch.classes))


def _scored(answer: OutOfFold, labels: NDArray[Any], batch: Batch, used: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """(metric,) scores of one labelling, and (metric, example) influences of its tested examples."""
    tested = batch.folds.tested[used]
    share, turned = answer.shares(len(batch.targets), unknown=unmeasured_share(batch))
    logits, labels, folds = answer.logits[:, tested], labels[tested], batch.folds.of[used][tested]
    scores = (
        value_influences(logits, labels, batch.targets, share, folds)
        if batch.targets
        else score_influences(logits, labels, folds, len(batch.classes), float(share[0]), float(turned[0]))
    )
    influence = np.zeros((len(batch.metrics), len(used)))
    influence[:, tested] = [scores[metric][1] for metric in batch.metrics]
    return np.array([scores[metric][0] for metric in batch.metrics]), influence


def unmeasured_share(batch: Batch) -> float:
    """Share of noise where a fold did not measure it: 0 for a fixed test set, in which no model trains; else 1, the upper limit."""
    return 0.0 if batch.folds.test is not None else 1.0


def _with_draws(answer: OutOfFold, batch: Batch, task: int, scored: Mapping[int, tuple[Floats, Floats]]) -> OutOfFold:
    """The answer of a task, with the scores of all draws of a control."""
    if task not in scored:
        return answer
    values, influences = zip(*(scored[number] for number in batch.draws_of(task)), strict=True)
    return replace(answer, control_values=np.stack(values, axis=1), control_influence=np.mean(influences, axis=0))


def _spread(answer: OutOfFold, used: NDArray[np.intp], count: int) -> OutOfFold:
    """Logits and influences over all examples of the store, NaN and 0 for the unused."""
    logits = np.full((len(answer.logits), count), np.nan, np.float32)
    logits[:, used] = answer.logits
    influence = np.zeros((len(answer.control_influence), count))
    if influence.size:
        influence[:, used] = answer.control_influence
    return replace(answer, logits=logits, control_influence=influence)
