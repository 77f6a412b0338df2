"""All figures by name: which results each needs, by which command they are made, and what draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.report.attended import draw_answer_prediction, draw_image_heads, draw_overlap_heads, draw_share, draw_share_parts
from stratascope.report.believing import draw_carried_by_block, draw_faithfulness, draw_writers
from stratascope.report.figures import METRIC_LABELS, draw_layer_curves, new_figure
from stratascope.report.findings import Findings, Found
from stratascope.report.heatmaps import draw_grid
from stratascope.report.pointing import COMMAND, draw_pointing
from stratascope.report.style import COLOURS, COLUMN_WIDTH, GREY, paper_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Choice:
    """Which of several results of a kind a figure shows."""

    task: str | None = None
    """None for truth, or the first there is."""
    position: str | None = None
    """None for the final token, or the first there is."""


@dataclass(frozen=True)
class NamedFigure:
    """A figure that can be asked for by name."""

    name: str
    shows: str
    kind: str
    """Of the results it needs."""
    command: str
    """What makes them."""
    draw: Callable[[Findings, Axes, Choice], Axes]
    height: float = 2.3
    """Inches; the width is a column's."""

    def figure(self, findings: Findings, choice: Choice = Choice(), *, width: float = COLUMN_WIDTH, height: float | None = None) -> Figure:
        """The figure on a canvas of its own.

        Parameters
        ----------
        findings
            Where its results are.
        choice
            Which of several to show.
        width, height
            In inches; a paper's column, and the figure's own height by default.

        Raises
        ------
        NotRecordedError
            If its results are absent.
        """
        findings.one(self.kind, f"results of kind {self.kind}", self.command)
        figure, (ax,) = new_figure(1, width=width, height=height or self.height)
        with paper_style():
            self.draw(findings, ax, choice)
        return figure


def chosen_curve(findings: Findings, choice: Choice, *, needs: Callable[[Found], object] = lambda curve: True) -> Found:
    """The curve of the chosen task and position; NotRecordedError listing what there is."""
    for curve in findings.curves:
        if choice.task in (None, curve.task) and choice.position in (None, curve.position) and needs(curve):
            return curve
    there = ", ".join(f"{c.task} at {c.position}" if c.position else c.task for c in findings.curves) or "none"
    wanted = f"{choice.task or 'any task'} at {choice.position or 'any position'}"
    raise NotRecordedError(f"expected a layer curve of {wanted} with what the figure needs, found {there}; run `stratascope probe STORE`")


def score_of(curve: Found) -> str:
    """What a reader is told of a curve: accuracy, or R2 of a task of values."""
    return "r2" if curve.attributes.get("targets") else "accuracy"


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
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0)) if ax.get_figure().get_figwidth() > 4.4 else ax.legend(loc="best")  # type: ignore[union-attr]
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
        ax.fill_between(layer, low, high, color=COLOURS[k % len(COLOURS)], alpha=0.18, linewidth=0)
        ax.plot(layer, table["value"].to_numpy(float), color=COLOURS[k % len(COLOURS)], marker="o", label=f"over {advantage_name(found)}")
    ax.axhline(0, color=GREY, linewidth=0.7)
    ax.set_xlabel("residual stream after k decoder blocks")
    metric = str(findings.advantages_of(curve)[0].table("table")["metric"].iloc[0])
    ax.set_ylabel(f"{METRIC_LABELS.get(metric, metric)} above the baseline")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="best")
    return ax


def advantage_name(found: Found) -> str:
    """Over what: blank images, shuffled labels, ..."""
    over = found.attributes.get("baseline") or {}
    if "of" in over:
        return "the best of its baselines"
    if "layer" in over:
        return "the embeddings" if over["layer"] == 0 else f"layer {over['layer']}"
    control = str(over.get("task", "")).partition(":")[2]
    condition = str(over.get("condition") or "chance")
    names = {"shuffled": "shuffled labels", "control": "the control task"}
    names |= {"blank": "blank images", "mirror": "mirrored images", "shuffled-image": "exchanged images"}
    names |= {"untrained": "untrained weights"}
    return names.get(control or condition, control or condition)


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


def by_relation(findings: Findings, choice: Choice) -> Found:
    """Accuracy by relation of the chosen curve; NotRecordedError where there is none."""
    there = [f for f in findings.of("accuracy_by") if f.attributes.get("by") == "relation"]
    order = {(c.task, c.position): k for k, c in enumerate(findings.curves)}
    there.sort(key=lambda f: order.get((f.task, f.position), 99))
    for found in there:
        if choice.task in (None, found.task) and choice.position in (None, found.position):
            return found
    raise NotRecordedError("expected accuracy by relation among the results, found none; run `stratascope probe STORE --tasks truth`")


def draw_answers(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """How often the model is right, by relation, with intervals."""
    found = findings.one("answer_confidence", "answers", "stratascope answers STORE")
    table = found.table("confidence")
    shown = table[table["relation"] != ""].head(24).iloc[::-1]
    place = np.arange(len(shown))
    value = shown["accuracy"].to_numpy(float)
    low, high = (shown[f"accuracy_{end}"].to_numpy(float) for end in ("low", "high"))
    ax.hlines(place, low, high, color=COLOURS[0], linewidth=2.2, alpha=0.45)
    ax.plot(value, place, "o", color=COLOURS[0])
    ax.set_yticks(place, [f"{name} ({count})" for name, count in zip(shown["relation"], shown["examples"], strict=True)])
    ax.set_xlim(min(0.45, float(np.nanmin(low)) - 0.02), 1.01)
    ax.set_xlabel("answers of the model that are right")
    return ax


FIGURES: dict[str, NamedFigure] = {
    figure.name: figure
    for figure in (
        NamedFigure(
            "curves",
            "a task's score by layer at each position, with baselines",
            "layer_curve",
            "stratascope probe STORE",
            draw_curves_of_task,
        ),
        NamedFigure("positions", "position by layer", "layer_curve", "stratascope probe STORE", draw_positions, 1.9),
        NamedFigure(
            "advantage",
            "how far a curve is above its baselines",
            "advantage",
            "stratascope probe STORE --baseline BLANK",
            draw_advantages,
        ),
        NamedFigure(
            "relations",
            "a probe's accuracy by relation and layer",
            "accuracy_by",
            "stratascope probe STORE --tasks truth",
            draw_by_relation,
            3.0,
        ),
        NamedFigure(
            "answers", "how often the model is right, by relation", "answer_confidence", "stratascope answers STORE", draw_answers, 3.0
        ),
        NamedFigure("share", "attention on image and text, every head a dot", "attention_share", "stratascope share STORE", draw_share),
        NamedFigure("parts", "attention by part of the prompt", "attention_share", "stratascope share STORE", draw_share_parts),
        NamedFigure("heads", "the image's share of each head's attention", "attention_share", "stratascope share STORE", draw_image_heads),
        NamedFigure(
            "faithfulness",
            "which method ranks tokens as hiding them does",
            "faithfulness",
            "stratascope faithfulness STORE",
            draw_faithfulness,
            2.6,
        ),
        NamedFigure("pointing", "which method points at the things that are named", "pointing", COMMAND, draw_pointing, 2.8),
        NamedFigure(
            "carried",
            "what heads and blocks write of the answer",
            "logit_attribution",
            "stratascope attribution STORE",
            draw_carried_by_block,
        ),
        NamedFigure("writers", "what each head writes of the answer", "logit_attribution", "stratascope attribution STORE", draw_writers),
        NamedFigure("overlap", "each head's attention in the boxes", "box_overlap", "stratascope overlap STORE", draw_overlap_heads),
        NamedFigure(
            "prediction",
            "whether attention on the boxes predicts a right answer",
            "answer_prediction",
            "stratascope overlap STORE",
            draw_answer_prediction,
        ),
    )
}
"""Name -> figure, in the order of a report."""


def named_figure(name: str) -> NamedFigure:
    """A figure by name; InvalidInputError listing them all."""
    if name not in FIGURES:
        raise InvalidInputError(f"expected a figure of {', '.join(FIGURES)}, found {name!r}; see `stratascope figure --list`")
    return FIGURES[name]
