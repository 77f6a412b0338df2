"""Probes on image cells: solving one task, and the rows of its scores by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.probe.curve.advantage import Advantage
from stratascope.probe.curve.metrics import main_metric, score_layers, score_table
from stratascope.probe.curve.value_metrics import score_values
from stratascope.probe.solver.standardised_rows import Rows, suited_dtype
from stratascope.probe.tasks.image_cells import CellTask
from stratascope.probe.validation.cross_validation import classify, regress
from stratascope.probe.validation.out_of_fold import OutOfFold
from stratascope.stats.auroc import effective_groups
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import INTERVALS, constant_within_folds

Floats = NDArray[Any]
GAIN = ("baseline", "advantage", "advantage_low", "advantage_high")
"""Columns of the score of the cell's position alone, and of the difference to it."""
LEAST = "minimum_detectable_effect"
ORDER = ["curve", "metric", "layer", "rows", "value", *INTERVALS, "chance", *GAIN, LEAST]
"""Columns of the rows."""


def solve(task: CellTask, x: Floats) -> OutOfFold:
    """Out-of-fold answers of a task from features (cell, column)."""
    rows = Rows(x, task.folds.of, dtype=suited_dtype(x))
    if not task.classes:
        return regress(rows, task.labels[None], task.folds)[0]
    return classify(rows, task.labels[None], task.folds, classes=len(task.classes), basis=rows.eigenbasis())[0]


def score_rows(
    task: CellTask, layers: NDArray[np.intp], answers: Sequence[OutOfFold], bootstrap: Bootstrap, level: float
) -> list[pd.DataFrame]:
    """Rows of the table of one task."""
    values, spread = _scores(task, answers, bootstrap)
    alone, drawn = _scores(task, [solve(task, task.position)], bootstrap) if task.position.shape[1] else ({}, {})
    if not task.classes:
        values, spread = ({name: each[f"r2_{name}"] for name in ("row", "column")} for each in (values, spread))
        metric, chance, curves = "r2", 0.0, ["row", "column"]
    else:
        metric, curves = main_metric(len(task.classes)), [task.name]
        chance = 0.5 if metric == "auroc" else 1 / len(task.classes)
        values, spread = {task.name: values[metric]}, {task.name: spread[metric]}
    used = task.folds.of >= 0
    logits = np.stack([answer.logits[:, used] for answer in answers])
    certain, groups = constant_within_folds(logits, task.folds.of[used]), bootstrap.count
    if task.classes and metric == "auroc":
        groups = effective_groups(logits[:, 0], task.labels[used] == 1, task.folds.of[used], bootstrap.groups)
    found = []
    for curve in curves:
        rows = score_table(layers, {metric: values[curve]}, {metric: spread[curve]}, {metric: chance}, groups, level, certain)
        base, drawn_base = (alone[metric], drawn[metric]) if alone else (np.array([chance]), np.array([chance]))
        over = Advantage.of(
            layers, values[curve] - base, spread[curve] - drawn_base, metric=metric, name=curve, baseline="", level=level,
            groups=bootstrap.count, certain=certain, attributes={} if alone else {"chance": chance},
        )  # fmt: skip
        gain: dict[str, Any] = dict.fromkeys(GAIN, np.nan) | {LEAST: over.minimum_detectable_effect}
        if alone:
            gain |= zip(GAIN, (base[0], over.table["value"], over.bands.low_simultaneous, over.bands.high_simultaneous), strict=True)
        found.append(rows.assign(curve=curve, rows=int(used.sum()), **gain))
    return [rows[ORDER] for rows in found]


def _scores(task: CellTask, answers: Sequence[OutOfFold], bootstrap: Bootstrap) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Values (layer,) and draws (draw, layer) of each metric."""
    used = task.folds.of >= 0
    logits, labels, targets = np.stack([a.logits[:, used] for a in answers]), task.labels[used], 1 if task.classes else 2
    noise, turned = (
        np.array([np.nan_to_num(each, nan=1.0).reshape(targets, -1).mean(1) for each in shares])
        for shares in ([a.noise_share for a in answers], [a.decision_share for a in answers])
    )
    if not task.classes:
        return score_values(logits, labels, ("row", "column"), bootstrap, noise)
    return score_layers(logits, labels, task.folds.of[used], len(task.classes), bootstrap, noise[:, 0], turned[:, 0])
