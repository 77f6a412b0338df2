"""The figures of what can be read, and of how the model answers: from the results of a store, on one pair of axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stratascope.errors import NotRecordedError
from stratascope.figures.calibration import draw_codelength, draw_reliability
from stratascope.figures.column_layout import place_legend
from stratascope.figures.drawing import METRIC_LABELS, draw_layer_curves
from stratascope.figures.heatmaps import draw_grid
from stratascope.figures.style import COLOURS, GREY, MARKERS
from stratascope.report.figure_selection import Choice, advantage_name, by_relation, chosen_curve, score_of
from stratascope.results.collection import Findings
from stratascope.results.view import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POSITION_NAMES = {"final": "final token", "image": "image, mean", "subject_box": "subject's box", "object_box": "object's box"}
CONTROL_NAMES = {"shuffled": "labels shuffled", "control": "random label a type"}


def draw_curves_of_task(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """A task at every position, with controls and baselines of the first."""
    first = chosen_curve(findings, choice)
    shown = [c for c in findings.curves if c.task == first.task and choice.position in (None, c.position)]
    curves = {POSITION_NAMES.get(c.position, c.position) or c.task: c.table("table") for c in shown}
    beside: dict[str, pd.DataFrame] = {}
    for found in findings.baselines_of(first):
        beside[f"{found.condition} image" if found.condition == "blank" else found.condition] = found.table("table")
    for found in findings.controls_of(first):
        control = found.task.partition(":")[2]
        beside[CONTROL_NAMES.get(control, control)] = found.table("table")
    metric = score_of(first)
    chance = float(first.rows(metric)["chance"].iloc[0])
    draw_layer_curves({**curves, **beside}, ax, metric=metric, chance=chance, muted=list(beside))
    place_legend(ax, columns=3)
    return ax


def draw_positions(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """A task's score for every position and layer."""
    first = chosen_curve(findings, choice)
    metric = score_of(first)
    found = {c.position: c.rows(metric).set_index("layer")["value"] for c in findings.curves if c.task == first.task}
    grid = pd.DataFrame(found).T
    chance = float(first.rows(metric)["chance"].iloc[0])
    return draw_grid(
        grid.to_numpy(),
        ax,
        rows=[POSITION_NAMES.get(p, p) for p in grid.index],
        columns=grid.columns.tolist(),
        label=metric if metric != "r2" else "R²",
        column_label="residual stream after k decoder blocks",
        low=min(chance, float(grid.min().min())),
        high=max(1.0, float(grid.max().max())),
    )


def draw_advantages(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """What a curve is above its baselines and controls, with simultaneous bands; where a band leaves 0, the advantage is real."""
    from matplotlib.ticker import MaxNLocator

    curve = chosen_curve(findings, choice, needs=findings.advantages_of)
    for k, found in enumerate(findings.advantages_of(curve)):
        table = found.table("table").sort_values("layer")
        layer = table["layer"].to_numpy()
        low, high = (table[f"{end}_simultaneous"].to_numpy(float) for end in ("low", "high"))
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        ax.fill_between(layer, low, high, color=colour, alpha=0.18, linewidth=0)
        ax.plot(layer, table["value"].to_numpy(float), color=colour, marker=marker, label=f"over {advantage_name(found)}")
    ax.axhline(0, color=GREY, linewidth=0.7)
    ax.set_xlabel("residual stream after k decoder blocks")
    metric = str(findings.advantages_of(curve)[0].table("table")["metric"].iloc[0])
    ax.set_ylabel(f"{METRIC_LABELS.get(metric, metric)} above the baseline")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    place_legend(ax)
    return ax


def draw_by_relation(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """A probe's accuracy for each relation and layer, the most frequent relations first."""
    found = by_relation(findings, choice)
    table = found.table("table")
    counts = table.groupby("by")["examples"].first().sort_values(ascending=False, kind="stable")
    grid = table.pivot(index="by", columns="layer", values="value").loc[counts.index[:24]]
    return draw_grid(
        grid.to_numpy(),
        ax,
        rows=[f"{name} ({counts[name]})" for name in grid.index],
        columns=grid.columns.tolist(),
        label="accuracy",
        column_label="residual stream after k decoder blocks",
        low=min(0.5, float(grid.min().min())),
        high=1.0,
    )


def draw_answers(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """How often the model is right, by relation, with intervals."""
    found = findings.one("answer_confidence", "answers", "stratascope answers STORE")
    table = found.table("confidence")
    named = table[table["relation"] != ""]
    shown = (named if len(named) else table.assign(relation="all")).head(24).iloc[::-1]
    place = np.arange(len(shown))
    value = shown["accuracy"].to_numpy(float)
    low, high = (shown[f"accuracy_{end}"].to_numpy(float) for end in ("low", "high"))
    ax.hlines(place, low, high, color=COLOURS[0], linewidth=2.2, alpha=0.45)
    ax.plot(value, place, "o", color=COLOURS[0])
    ax.set_yticks(place, [f"{name} ({count})" for name, count in zip(shown["relation"], shown["examples"], strict=True)])
    ax.set_xlim(min(0.45, float(np.nanmin(low)) - 0.02), 1.01)
    ax.set_xlabel("answers of the model that are right")
    return ax


def draw_codelength_of(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """How short labels can be told, of one task and position."""
    found = _chosen_result(findings, "codelength", choice)
    draw_codelength(found.table("table"), ax, task=found.task, layers="residual stream after k decoder blocks")
    ax.set_ylabel(f"compression of {found.title}")
    ax.legend(loc="best")
    return ax


def draw_calibration_of(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """Sure and right, of one task and position, at the layer where the probe is right most often."""
    found = _chosen_result(findings, "calibration", choice)
    table = found.table("table")
    right = table["accuracy"].mul(table["examples"]).groupby(table["layer"]).sum()
    best = int(right.index.to_numpy()[right.to_numpy().argmax()])
    return draw_reliability(table, ax, layer=best, title=found.title)


def _chosen_result(findings: Findings, kind: str, choice: Choice) -> Found:
    """The result of the chosen task and position; truth and the final token first."""
    there = sorted(findings.of(kind), key=lambda f: (f.task != "truth", f.task, f.position != "final", f.position))
    for found in there:
        if choice.task in (None, found.task) and choice.position in (None, found.position):
            return found
    names = ", ".join(f.title for f in there)
    raise NotRecordedError(
        f"expected a {kind} of {choice.task or 'any task'} at {choice.position or 'any position'}, found {names or 'none'}; "
        "run `stratascope probe STORE --measures mdl,calibration`"
    )
