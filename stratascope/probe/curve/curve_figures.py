"""Figures of a set of curves: positions, single layers, values of a column, calibration, codelength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from stratascope.figures.drawing import LAYER_LABELS, draw_layer_curves, new_figure
from stratascope.figures.panels import TEXT_WIDTH, draw_curve_panel, draw_value_panel, label_outside, label_panels, panel_figure, span_of
from stratascope.figures.reliability_diagrams import draw_codelength, draw_reliability
from stratascope.figures.score_grids import draw_places
from stratascope.figures.style import paper_style
from stratascope.probe.curve.breakdown import AccuracyBy
from stratascope.probe.curve.calibration import Calibration
from stratascope.probe.curve.curve_set import CurveSet
from stratascope.probe.curve.curve_table import CurveTable
from stratascope.probe.curve.layer_curve import LayerCurve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS = 12
"""Largest number of panels by value; the values with the most examples are shown."""


def layer_label(curve: LayerCurve, panels: int = 1) -> str:
    """Label of the layer axis; short for three panels or more."""
    label = LAYER_LABELS.get(str(curve.attributes.get("array", "residual")), "Layer")
    return label if panels < 3 else label.partition(" (")[0]


def curves_figure(curves: Mapping[str, LayerCurve], *, muted: Mapping[str, LayerCurve], title: str, metric: str | None = None) -> Figure:
    """Draw layer curves of one task with their controls in one panel."""
    first = next(iter(curves.values()))
    metric = metric or first.metric
    figure, (ax,) = new_figure(1, width=4.6, height=2.9)
    with paper_style():
        tables = {name: curve.table for name, curve in [*curves.items(), *muted.items()]}
        chance = float(first.rows(metric)["chance"].iloc[0])
        draw_layer_curves(tables, ax, metric=metric, chance=chance, muted=list(muted), title=title)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def positions_figure(curves: CurveSet, mine: Sequence[LayerCurve]) -> Figure:
    """Draw one panel per position: the curve, its controls and baselines, and the layers in which it is above all of them.

    Parameters
    ----------
    curves
        The set.
    mine
        Curves of one task, by position.
    """
    metric, task = curves.metric_of(mine[0]), mine[0].task
    figure, axes = panel_figure(len(mine), height=1.6 if len(mine) > 1 else 2.4, titled=True)
    tables = []
    muted = list(dict.fromkeys(name for curve in mine for name in curves.beside(curve)))
    with paper_style():
        for curve, ax in zip(mine, axes, strict=True):
            beside = curves.beside(curve)
            tables += [curve.table, *(other.table for other in beside.values())]
            over = curves.advantages_of(curve)
            detected = over.get("all", over["chance"]).detected
            draw_curve_panel(
                curve.table, ax, others={name: other.table for name, other in beside.items()}, metric=metric, name="probe",
                chance=float(curve.rows(metric)["chance"].iloc[0]), detected=list(detected), title=curve.position,
                layers=layer_label(curve, len(mine)), muted=muted,
            )  # fmt: skip
        axes[0].set_ylim(*span_of(tables, metric))
        label_outside(axes, metric=metric)
        label_panels(figure, axes, task)
    return figure


def single_layer_figure(curves: CurveSet, mine: Sequence[LayerCurve], *, name_layer: bool = False) -> Figure:
    """Draw the scores of a single layer by position, with controls and baselines."""
    metric, task = curves.metric_of(mine[0]), mine[0].task
    tables: dict[str, list[pd.DataFrame]] = {"probe": [curve.table for curve in mine]}
    for curve in mine:
        for name, other in curves.beside(curve).items():
            tables.setdefault(name, []).append(other.table)
    figure, (ax,) = new_figure(1, width=min(1.6 + 0.6 * max(len(mine), 3), TEXT_WIDTH), height=2.4 if len(mine) <= 4 else 2.9)
    with paper_style():
        chance = float(mine[0].rows(metric)["chance"].iloc[0])
        title = f"{task} in {mine[0].attributes.get('array', 'residual')}" + (f", layer {mine[0].layers[0]}" if name_layer else "")
        draw_places({name: pd.concat(rows) for name, rows in tables.items()}, ax, metric=metric, chance=chance, title=title)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def values_figure(curve: LayerCurve, accuracy: AccuracyBy) -> Figure | None:
    """Draw the accuracy for the most frequent values of a column, one panel each; None for a single value."""
    table, column = accuracy.table, str(accuracy.attributes["by"])
    size = table.drop_duplicates("by").set_index("by")["examples"].sort_values(ascending=False, kind="stable")
    shown = sorted(size.index[:MOST_PANELS])
    if len(shown) < 2:
        return None
    overall = curve.rows("accuracy")
    figure, axes = panel_figure(len(shown), height=1.15, titled=True)
    layers = layer_label(curve, len(shown))
    with paper_style():
        for value, ax in zip(shown, axes, strict=True):
            draw_value_panel(table, ax, value=value, by=column, overall=overall, chance=float(overall["chance"].iloc[0]), layers=layers)
        axes[0].set_ylim(0, 1.04)
        label_outside(axes, metric="accuracy")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        rest = f", the {len(shown)} most frequent of {len(size)}" if len(size) > len(shown) else ""
        figure.suptitle(f"{curve.title}, by {column}{rest}", x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    return figure


def calibration_figure(curves: Sequence[LayerCurve], calibrations: Sequence[Calibration], layers: Sequence[int]) -> Figure:
    """Draw one reliability diagram per curve of a task, at its layer in `layers`."""
    figure, axes = panel_figure(len(curves), height=1.9, titled=True)
    with paper_style():
        for curve, calibration, layer, ax in zip(curves, calibrations, layers, axes, strict=True):
            draw_reliability(calibration.table, ax, layer=layer, title=f"{curve.position or curve.task}, layer {layer}")
            if len(curves) > 2:  # the whole label does not fit below a small panel
                ax.set_xlabel("probability")
        label_outside(axes, metric="accuracy")
        figure.suptitle(f"{curves[0].task}: reliability diagram", x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    return figure


def codelength_figure(curves: Sequence[LayerCurve], codelengths: Sequence[CurveTable]) -> Figure:
    """Draw one panel per position: compression by layer with controls and baselines."""
    task = curves[0].task
    figure, axes = panel_figure(len(curves), height=1.6 if len(curves) > 1 else 2.4, titled=True)
    with paper_style():
        for curve, codelength, ax in zip(curves, codelengths, axes, strict=True):
            draw_codelength(codelength.table, ax, task=task, layers=layer_label(curve, len(curves)))
            ax.set_title(curve.position or task)
        label_outside(axes, metric="compression")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        figure.suptitle(f"{task}: online codelength (MDL)", x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    return figure
