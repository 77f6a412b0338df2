"""Minimum description length: how cheaply labels can be sent to someone who has the activations (Voita & Titov 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.probe.blas_threads import one_blas_thread
from stratascope.probe.bootstrap import Bootstrap
from stratascope.probe.cross_validation import STRENGTHS
from stratascope.probe.folds import number_groups
from stratascope.probe.layer_task import LayerTask, read_layer
from stratascope.probe.rows import Eigenbasis, Rows
from stratascope.probe.solver import BatchSolver
from stratascope.probe.study import Study, plan_study
from stratascope.probe.tasks import Task
from stratascope.scheduling import run_all
from stratascope.store import ActivationStore

Floats = NDArray[Any]
FRACTIONS = (0.0625, 0.125, 0.25, 0.5, 1.0)
"""Ends of the portions that are sent one after another, as shares of the groups."""
METRIC = "compression"


@dataclass(frozen=True, eq=False)
class Codelength:
    """Bits to send the labels of one layer."""

    each: Floats
    """(example,) bits of each label."""
    classes: int

    @property
    def bits(self) -> float:
        """Of all labels."""
        return float(self.each.sum())

    @property
    def uniform_bits(self) -> float:
        """With every class as likely as any other: log2(classes) a label."""
        return float(len(self.each) * np.log2(self.classes))

    @property
    def examples(self) -> int:
        """Labels that are sent."""
        return len(self.each)

    @property
    def compression(self) -> float:
        """uniform_bits / bits: 1 where nothing can be read."""
        return self.uniform_bits / self.bits


def online_codelength(
    x: Floats,
    labels: NDArray[np.integer],
    groups: NDArray[Any],
    *,
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    basis: Eigenbasis | None = None,
) -> Codelength:
    """Online code: each portion is sent with the probe trained on all portions before, the first one with uniform probabilities.

    The strength for a portion is the one that would have sent all earlier portions (from the second on) in the fewest bits; the
    first choice is the middle of the grid. Groups (images) are never divided, and go in random order. Voita & Titov 2020, section 2.2.

    Parameters
    ----------
    x
        (example, column).
    labels, groups
        (example,) class codes 0..classes-1, and names or numbers of groups.
    classes
        How many there are.
    strengths
        Inverse regularisation C to choose from.
    fractions
        Of the groups, ascending, where portions end; the last is 1.
    seed
        Of the order.
    basis
        Of the rows of `x`, where it is known: it only speeds up.

    Raises
    ------
    TooFewExamplesError
        The first portion has one class only.
    InvalidInputError
        The fractions do not ascend to 1.
    """
    portion = _portions(groups, fractions, seed)
    return _send(Rows(x, portion), labels[None], portion, classes, strengths, basis)[0]


def _portions(groups: NDArray[Any], fractions: Sequence[float], seed: int) -> NDArray[np.intp]:
    """(example,) which portion each belongs to."""
    if sorted(fractions) != list(fractions) or fractions[-1] != 1 or fractions[0] <= 0:
        raise InvalidInputError(f"expected ascending fractions that end with 1, found {tuple(fractions)}")
    number = number_groups(groups)
    rank = np.random.default_rng(seed).permutation(int(number.max()) + 1)[number]
    ends = np.ceil(np.asarray(fractions) * (number.max() + 1))
    return np.asarray(np.searchsorted(ends, rank, side="right"))


def _send(
    rows: Rows,
    labels: NDArray[np.integer],
    portion: NDArray[np.intp],
    classes: int,
    strengths: Sequence[float],
    basis: Eigenbasis | None,
) -> list[Codelength]:
    """One code for each labelling (labelling, example), solved together."""
    first = portion == 0
    if any(len(np.unique(one[first])) < 2 for one in labels):
        raise TooFewExamplesError(
            f"expected two classes in the first portion of {int(first.sum())} examples, found one; record more examples, "
            "or give a larger first fraction"
        )
    stages, count = int(portion.max()), len(labels)
    solver = BatchSolver(
        rows,
        labels,
        np.tile(np.tri(stages, stages + 1, dtype=bool), (count, 1)),
        classes=classes,
        which=np.repeat(np.arange(count), stages),
        basis=basis or rows.eigenbasis(),
        tolerance=1e-5,
    )
    path = sorted(strengths)
    bits = np.full((len(path), *labels.shape), np.log2(classes))
    for place, strength in enumerate(path):
        solver.solve(strength)
        for stage in range(stages):
            loss, known = solver.held_out(np.arange(count) * stages + stage, stage + 1)
            # a class never seen before is sent with uniform probability
            bits[place][:, rows.order[rows.part(stage + 1)]] = np.where(known, loss / np.log(2), np.log2(classes))
    found = []
    for each in bits.transpose(1, 0, 2):  # (strength, example)
        sums = np.array([each[:, portion == stage].sum(axis=1) for stage in range(1, stages + 1)])
        chosen = [len(path) // 2] + [int(np.argmin(sums[:stage].sum(axis=0))) for stage in range(1, stages)]
        found.append(Codelength(each[np.array([0, *chosen])[portion], np.arange(each.shape[1])], classes))
    return found


def codelength_of(study: Study, *, scheduler: str | None = None, workers: int | None = None, progress: bool = False) -> pd.DataFrame:
    """Online codelength of every task of classes of a study, by position and layer.

    Parameters
    ----------
    study
        From `plan_study`.
    scheduler, workers, progress
        As of `probe_study`.

    Returns
    -------
    pandas.DataFrame
        One row per task, position and layer: layer, position, task, metric (compression), value, low, high, bits, uniform_bits, examples.
        The interval is of drawing images anew, with the models as they are (bootstrap over groups).

    Raises
    ------
    InvalidInputError
        The study has no task of classes, or a probe for each head.
    TooFewExamplesError
        The first portion has one class only.
    """
    plans = {place: [batch for batch in plan if not batch.targets] for place, plan in study.plans.items()}
    if study.by_head or not any(plans.values()):
        what = f"a probe for each head of {study.settings.array}" if study.by_head else f"tasks of values: {', '.join(study.tasks)}"
        raise InvalidInputError(f"expected tasks of classes with one probe a layer for a codelength, found {what}; leave it out")
    work = [LayerTask(study.store, layer, place, plan, study.settings) for place, plan in plans.items() for layer in study.layers]
    found = run_all(_send_layer, work, scheduler=scheduler, workers=workers, progress=progress, label="codelengths")
    rows: list[dict[str, Any]] = []
    settings, groups = study.settings, study.store.examples[study.settings.groups].to_numpy(dtype=str)
    for number, (place, plan) in enumerate(plans.items()):
        of_place = found[number * len(study.layers) : (number + 1) * len(study.layers)]
        for k, batch in enumerate(plan):
            bootstrap = Bootstrap(groups[batch.used], draws=settings.draws, seed=settings.seed)
            for labelling, task in enumerate(batch.tasks):
                codes = [layer[k][labelling] for layer in of_place]
                draws = np.log2(len(batch.classes)) / bootstrap.mean(np.stack([code.each for code in codes], axis=1))
                tail = (1 - settings.level) / 2
                low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
                rows += [
                    {
                        "layer": layer,
                        "position": place or "",
                        "task": task,
                        "metric": METRIC,
                        "value": code.compression,
                        "low": float(low[column]),
                        "high": float(high[column]),
                        "bits": code.bits,
                        "uniform_bits": code.uniform_bits,
                        "examples": code.examples,
                    }
                    for column, (layer, code) in enumerate(zip(study.layers, codes, strict=True))
                ]
    return pd.DataFrame(rows)


def _send_layer(task: LayerTask) -> list[list[Codelength]]:
    """By batch and labelling."""
    settings = task.settings
    groups = task.store.examples[settings.groups].to_numpy(dtype=str)
    with one_blas_thread():
        x, used = read_layer(task)
        x = x.reshape(len(used), -1)
        answers = []
        for batch in task.batches:
            there = batch.used[used]
            portion = _portions(groups[used[there]], FRACTIONS, settings.seed)
            rows = Rows(x[there], portion)
            strengths = settings.strengths or STRENGTHS
            answers.append(_send(rows, batch.labels[:, used[there]], portion, len(batch.classes), strengths, None))
    return answers


def codelength_by_layer(
    store: ActivationStore | str | Path,
    task: str | Task = "truth",
    position: str | None = "final",
    **options: Any,
) -> pd.DataFrame:
    """Online codelength of a task by layer.

    Parameters
    ----------
    store
        An open store, or its path or address.
    task, position
        As of `plan_study`.
    options
        Of `plan_study`, such as layers, examples and fields of `ProbeSettings`.

    Returns
    -------
    pandas.DataFrame
        As of `codelength_of`.

    Raises
    ------
    InvalidInputError
        The task has values instead of classes.
    """
    return codelength_of(plan_study(store, (task,), (position,), **options))
