"""Layer curves of one task in a report: one panel a position, each with its own controls and baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from stratascope.figures.drawing import LAYER_LABELS
from stratascope.figures.panels import draw_curve_panel, label_outside, label_panels, mark_trivial, panel_figure, span_of
from stratascope.figures.style import paper_style
from stratascope.report.figure_drawing import CONDITION_LABELS, CONTROL_LABELS, POSITION_LABELS, score_of
from stratascope.report.result_set import ResultSet, in_caption_text
from stratascope.results.stored_result import StoredResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3


def curve_panels(results: ResultSet, task: str) -> Figure:
    """Draw the curves of a task with their controls, baselines, and the layers in which they are above all of them.

    Panels of positions at which the words before state the labels are marked.

    Parameters
    ----------
    results
        Results of a store.
    task
        Task of at least one curve.
    """
    curves = [curve for curve in results.curves if curve.task == task]
    metric = score_of(curves[0])
    beside = [_beside(results, curve) for curve in curves]
    muted = list(dict.fromkeys(name for others in beside for name in others))
    figure, axes = panel_figure(len(curves), columns=COLUMNS, height=1.7)
    with paper_style():
        for curve, others, ax in zip(curves, beside, axes, strict=True):
            draw_curve_panel(
                curve.table("table"), ax, others=others, metric=metric, chance=float(curve.rows(metric)["chance"].iloc[0]),
                detected=_detected(results, curve), title=POSITION_LABELS.get(curve.position, curve.position) or task,
                layers=LAYER_LABELS["residual"].partition(" (")[0], muted=muted,
            )  # fmt: skip
        axes[0].set_ylim(*span_of([*(curve.table("table") for curve in curves), *(t for some in beside for t in some.values())], metric))
        for curve, ax in zip(curves, axes, strict=True):
            if in_caption_text(curve):
                mark_trivial(ax, curve.rows(metric)["value"].tolist())
        label_outside(axes, metric=metric, columns=COLUMNS)
        label_panels(figure, axes)
    return figure


def _beside(results: ResultSet, curve: StoredResult) -> dict[str, pd.DataFrame]:
    """Tables of the controls and baselines of a curve by their names in a legend."""
    found: dict[str, pd.DataFrame] = {}
    for other in results.baselines_of(curve):
        found[CONDITION_LABELS.get(other.condition, other.condition)] = other.table("table")
    for other in results.controls_of(curve):
        control = other.task.partition(":")[2]
        found[CONTROL_LABELS.get(control, control)] = other.table("table")
    return found


def _detected(results: ResultSet, curve: StoredResult) -> list[tuple[int, int]]:
    """Runs of layers in which the curve is detected above all of its baselines, or above chance where it has none."""
    over = [f for f in results.saved_advantages(curve) if "of" in (f.attributes.get("baseline") or {})]
    found = over[0].result if over else curve.result.difference()
    return list(found.detected)
