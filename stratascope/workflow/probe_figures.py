"""The figures of probing: curves beside controls and baselines, heatmaps, small multiples, confusions, transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from stratascope.figures.panels import TEXT_WIDTH, draw_curve_panel, draw_value_panel, label_outside, panel_figure, span_of
from stratascope.figures.score_grids import draw_confusion, draw_places, draw_score_grid, draw_transfer
from stratascope.report import draw_layer_curves, new_figure, paper_style, save_figure
from stratascope.store import column_texts
from stratascope.store.io.example_filter import NO_VALUE
from stratascope.workflow.probe_files import save_table, shown_metric
from stratascope.workflow.probed import Probed
from stratascope.workflow.telling import file_name, result_path

if TYPE_CHECKING:
    from stratascope.probe import LayerCurve
    from stratascope.store import ActivationStore
    from stratascope.workflow.probe_request import ProbeRequest

MOST_PANELS = 12
"""Values, relations say, that a figure of small multiples shows: those of the most examples."""
MOST_CLASSES = 12
"""Classes above which relations are confused by meta category."""


def draw_all(probed: Probed, store: ActivationStore, folder: Path, *, by_head: bool) -> list[Path]:
    """Every figure that the curves allow."""
    request = probed.request
    paths = []
    for task in request.tasks:
        mine = probed.of_task(task)
        if not mine:
            continue
        if not by_head and len(mine[0].layers) == 1:
            paths.append(draw_one_layer(probed, mine, folder))
            continue
        if len(mine) > 1 or by_head:
            paths.append(draw_grid(probed, mine, folder, by_head=by_head))
        if by_head:
            continue
        paths.append(draw_positions(probed, mine, folder))
        shown = next((curve for curve in mine if curve.position == "final"), mine[0])
        if shown.targets or ":" in task:
            continue
        if len(shown.classes) > 2:
            paths.append(draw_confusion_figure(shown, folder))
        if request.by != task:
            paths += draw_values(shown, store, request, folder)
    return paths


def draw_curves(
    curves: Mapping[str, LayerCurve], path: Path, *, muted: Mapping[str, LayerCurve], title: str, metric: str | None = None
) -> Path:
    """Layer curves of one task with their controls in one panel, as a figure file."""
    metric = metric or shown_metric(next(iter(curves.values())))
    figure, (ax,) = new_figure(1, width=4.6, height=2.9)
    with paper_style():
        tables = {name: curve.table for name, curve in [*curves.items(), *muted.items()]}
        chance = float(next(iter(curves.values())).rows(metric)["chance"].iloc[0])
        draw_layer_curves(tables, ax, metric=metric, chance=chance, muted=list(muted), title=title)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save_figure(figure, path)


def draw_positions(probed: Probed, mine: Sequence[LayerCurve], folder: Path) -> Path:
    """One panel a position: the task's curve, its controls and baselines, and where it is above all of them."""
    from matplotlib.lines import Line2D

    from stratascope.probe.curve.onset_offset import event_table

    request, metric, task = probed.request, probed.metric_of(mine[0]), mine[0].task
    layers = request.layer_label if len(mine) < 3 else "after k blocks"
    figure, axes = panel_figure(len(mine), height=1.6 if len(mine) > 1 else 2.4, titled=True)
    tables = []
    with paper_style():
        for curve, ax in zip(mine, axes, strict=True):
            beside = probed.beside(curve)
            tables += [curve.table, *(other.table for other in beside.values())]
            over = probed.advantages_of(curve)
            best = over.get("all", over["chance"])
            events = event_table(best.onset(request.margin), best.offset(request.margin))
            draw_curve_panel(
                curve.table, ax, others={name: other.table for name, other in beside.items()}, metric=metric, name="probe",
                chance=float(curve.rows(metric)["chance"].iloc[0]), events=events, title=curve.position, layers=layers,
            )  # fmt: skip
        axes[0].set_ylim(*span_of(tables, metric))
        label_outside(axes, metric=metric)
        handles, _ = axes[0].get_legend_handles_labels()
        if len(axes) > 1:  # the legend names the chance line for all
            for text in [text for ax in axes for text in ax.texts]:
                text.remove()
            handles.append(Line2D([], [], color="black", linewidth=0.7, linestyle=(0, (1, 2)), label="chance"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4)
        figure.suptitle(task, x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    return save_figure(figure, folder / f"{file_name('probe', task)}.png")


def draw_one_layer(probed: Probed, mine: Sequence[LayerCurve], folder: Path) -> Path:
    """Each position's score in the only layer that there is, or was asked for, beside controls and baselines."""
    request, metric, task = probed.request, probed.metric_of(mine[0]), mine[0].task
    tables: dict[str, list[pd.DataFrame]] = {"probe": [curve.table for curve in mine]}
    for curve in mine:
        for name, other in probed.beside(curve).items():
            tables.setdefault(name, []).append(other.table)
    figure, (ax,) = new_figure(1, width=min(1.6 + 0.6 * max(len(mine), 3), TEXT_WIDTH), height=2.4 if len(mine) <= 4 else 2.9)
    with paper_style():
        chance = float(mine[0].rows(metric)["chance"].iloc[0])
        title = f"{task} in {request.array}" if request.layers is None else f"{task} in {request.array}, layer {mine[0].layers[0]}"
        draw_places({name: pd.concat(rows) for name, rows in tables.items()}, ax, metric=metric, chance=chance, title=title)
        figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return save_figure(figure, folder / f"{file_name('probe', task)}.png")


def draw_grid(probed: Probed, mine: Sequence[LayerCurve], folder: Path, *, by_head: bool) -> Path:
    """Position by layer, or head by layer: saved as a score_grid and drawn."""
    from stratascope.probe import ScoreGrid

    grid = ScoreGrid.of(mine, probed.metric_of(mine[0]))
    name = file_name("heads" if by_head else "positions", mine[0].task)
    grid.save(result_path(folder, name))
    table = grid.table
    if by_head:
        table = table.assign(row=table["row"].str.removeprefix("head "))
    figure, (ax,) = new_figure(1, width=3.4, height=max(1.1 + 0.17 * len(mine), 1.7) if len(mine) <= 16 else 3.2)
    with paper_style():
        draw_score_grid(table, ax, title=mine[0].task, rows="head" if by_head else "", layers=probed.request.layer_label)
    return save_figure(figure, folder / f"{name}.png")


def draw_values(curve: LayerCurve, store: ActivationStore, request: ProbeRequest, folder: Path) -> list[Path]:
    """Small multiples of the accuracy for the commonest values of a column; none where there is only one."""
    from stratascope.probe import accuracy_by

    table = accuracy_by(curve, dict(zip(store.examples["id"], column_texts(store, request.by).fillna(NO_VALUE), strict=True)))
    size = table.drop_duplicates("by").set_index("by")["examples"].sort_values(ascending=False, kind="stable")
    shown = sorted(size.index[:MOST_PANELS])
    if len(shown) < 2:
        return []
    overall = curve.rows("accuracy")
    figure, axes = panel_figure(len(shown), height=1.15, titled=True)
    with paper_style():
        for value, ax in zip(shown, axes, strict=True):
            draw_value_panel(
                table, ax, value=value, by=request.by, overall=overall, chance=float(overall["chance"].iloc[0]),
                layers="after k blocks" if request.array == "residual" else "layer",
            )  # fmt: skip
        axes[0].set_ylim(0, 1.04)
        label_outside(axes, metric="accuracy")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        rest = f", the {len(shown)} commonest of {len(size)}" if len(size) > len(shown) else ""
        figure.suptitle(f"{curve.title}, by {request.by}{rest}", x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    return [save_figure(figure, folder / f"{file_name('probe', curve.task, curve.position, 'by', request.by)}.png")]


def draw_confusion_figure(curve: LayerCurve, folder: Path) -> Path:
    """Who is taken for whom at the best layer, saved and drawn; many relations by meta category."""
    from stratascope.probe import confusion
    from stratascope.store.format.categories import category_of

    layer = curve.peak.layer
    assert layer is not None, "a curve has a highest layer"
    grouped = len(curve.classes) > MOST_CLASSES and curve.task == "relation"
    table = confusion(curve, layer, category_of if grouped else None).reset_index().melt("label", var_name="predicted", value_name="count")
    facts = {"layer": layer, "grouped": "category" if grouped else ""}
    save_table(folder, "confusion", table, curve, "confusion", curve.task, curve.position, **facts)
    count = table["label"].nunique()
    size = min(max(2.2 + 0.16 * count, 2.8), 6.0)
    figure, (ax,) = new_figure(1, width=size + 0.8, height=size)
    with paper_style():
        where = f" at {curve.position}" if curve.position else ""
        draw_confusion(table, ax, title=f"{curve.task}{' by category' if grouped else ''}{where}, layer {layer}")
    return save_figure(figure, folder / f"{file_name('confusion', curve.task, curve.position)}.png")


def draw_transfer_figure(table: pd.DataFrame, curve: LayerCurve, folder: Path, parts: Sequence[str | None]) -> Path:
    """The layer by layer matrix; `parts` are those of the file's name, of which the last says where probes were tested."""
    figure, (ax,) = new_figure(1, width=3.4, height=2.9)
    with paper_style():
        draw_transfer(table, ax, title=f"{curve.title} to {parts[-1]}" if "to" in parts[3:] else curve.title)
    return save_figure(figure, folder / f"{file_name(*parts)}.png")
