"""Heatmaps of scores: position by layer, head by layer, layer by layer, and confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.figures.drawing import metric_label, metric_name
from stratascope.figures.heatmaps import DARK, LIGHT, short
from stratascope.figures.style import COLOURS, DIVERGING, GREY, SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

DENSE = 16
"""Rows or columns above which cells carry no numbers and only some ticks are named."""
ROOMY = 10
"""Columns up to which a cell has room for its score beside the dot."""


def draw_score_grid(table: pd.DataFrame, ax: Axes, *, title: str | None = None, rows: str = "", layers: str = "layer") -> Axes:
    """Scores by row (position or head) and layer; a dot in every cell whose simultaneous lower bound is above chance.

    Where cells are few, each says its score, and the dot stands in its corner.

    Parameters
    ----------
    table
        One row per cell: row, layer, metric, value, chance, found, such as the table of a result of kind score_grid.
    ax
        Where to draw; a colour bar takes a part of its room.
    title
        Over the axes.
    rows, layers
        Labels of the axes.

    Raises
    ------
    InvalidInputError
        The table has several metrics, or a cell twice.
    """
    metric = sorted(table["metric"].unique())
    if len(metric) != 1 or table.duplicated(["row", "layer"]).any():
        raise InvalidInputError(f"expected each cell once, in one metric, found metrics {', '.join(metric)}; choose rows of one")
    names = list(dict.fromkeys(table["row"]))
    value = table.pivot(index="row", columns="layer", values="value").loc[names]
    chance = float(table["chance"].min())
    image = _heat(value.to_numpy(float), ax, low=chance, high=max(1.0, float(table["value"].max())))
    found = table.pivot(index="row", columns="layer", values="found").loc[names].to_numpy(bool)
    y, x = np.nonzero(found)
    ink = np.where(np.asarray(image.norm(value.to_numpy(float)), float) < 0.55, LIGHT, DARK)
    corner = 0.0
    if len(value.columns) <= ROOMY and len(names) <= DENSE:
        corner = 0.34
        for (row, column), score in np.ndenumerate(value.to_numpy(float)):
            if np.isfinite(score):
                ax.text(column, row, short(score), ha="center", va="center", fontsize=6, color=ink[row, column])
    ax.scatter(x + corner, y + corner * 0.7, s=5 if max(value.shape) > DENSE or corner else 9, c=ink[found], linewidths=0)
    _name_axes(ax, names, list(value.columns), rows, layers)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=25)
    bar.outline.set_visible(False)
    dot = "\n(dot: above chance)" if found.any() else ""
    bar.set_label(metric_label(metric[0]) + dot, fontsize=7)
    return _finish(ax, title)


def draw_places(
    scores: Mapping[str, pd.DataFrame], ax: Axes, *, metric: str, chance: float | None = None, title: str | None = None
) -> Axes:
    """Scores of an array without layers by position, with intervals; the first set stands out, controls and baselines are grey.

    Parameters
    ----------
    scores
        Name -> one row per position: position, metric, value, low, high.
    ax
        Where to draw.
    metric
        Which rows of the tables.
    chance
        Height of the chance line.
    title
        Over the axes.
    """
    places = list(dict.fromkeys(next(iter(scores.values()))["position"]))
    markers = ("o", "s", "^", "D", "v")
    for number, (name, table) in enumerate(scores.items()):
        rows = table[table["metric"] == metric].set_index("position").reindex(places)
        at = np.arange(len(places)) + 0.14 * (number - (len(scores) - 1) / 2)
        value = rows["value"].to_numpy(float)
        ends = np.abs(rows[["low", "high"]].to_numpy(float).T - value)
        colour = GREY if number else COLOURS[0]
        ax.errorbar(at, value, ends, fmt=markers[number % len(markers)], color=colour, markersize=4, linewidth=1, label=name)
    if chance is not None:
        ax.axhline(chance, color="black", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0, label="chance")
    ax.set_xticks(range(len(places)), places, rotation=0 if len(places) <= 4 else 60, ha="center" if len(places) <= 4 else "right")
    ax.set_xlim(-0.6, len(places) - 0.4)
    ax.set_ylabel(metric_label(metric))
    return _finish(ax, title)


def draw_verdicts(table: pd.DataFrame, ax: Axes, *, metric: str, title: str | None = None, layers: str = "layer") -> Axes:
    """Advantages by curve and layer, with what can be claimed of each cell: detected (dot), absent (cross) or undecided (no mark).

    Parameters
    ----------
    table
        One row per cell: row, layer, value, verdict; rows in their order.
    ax
        Where to draw; a colour bar and a legend take a part of its room.
    metric
        Of the advantages.
    title
        Over the axes.
    layers
        Label of the layer axis.
    """
    names = list(dict.fromkeys(table["row"]))
    value = table.pivot(index="row", columns="layer", values="value").loc[names]
    verdict = table.pivot(index="row", columns="layer", values="verdict").loc[names].to_numpy()
    size = np.abs(value.to_numpy(float))
    reach = float(size[np.isfinite(size)].max(initial=1e-6))
    image = ax.imshow(value.to_numpy(float), cmap=DIVERGING, vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest")
    ink = np.where(size > 0.6 * reach, LIGHT, DARK)
    roomy = len(value.columns) <= ROOMY and len(names) <= DENSE
    if roomy:
        for (row, column), score in np.ndenumerate(value.to_numpy(float)):
            text = f"{score:+.2f}".replace("-0.00", "+0.00") if np.isfinite(score) else ""
            ax.text(column - 0.08, row, text, ha="center", va="center", fontsize=6, color=ink[row, column])
    beside = 0.36 if roomy else 0.0
    for name, marker in (("detected", "o"), ("absent", "x")):
        y, x = np.nonzero(verdict == name)
        ax.scatter(x + beside, y, s=9, marker=marker, c=ink[y, x], linewidths=0.8)
        ax.scatter([], [], s=12, marker=marker, c=GREY, linewidths=0.8, label=name)
    ax.scatter([], [], s=12, marker="none", label="no mark: undecided")
    ax.legend(loc="upper right", bbox_to_anchor=(1.0, -0.12 - 0.5 / max(len(names), 1)), ncols=3)
    _name_axes(ax, names, list(value.columns), "", layers)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=25)
    bar.outline.set_visible(False)
    bar.set_label(f"Advantage in {metric_name(metric)}")
    return _finish(ax, title)


def draw_transfer(table: pd.DataFrame, ax: Axes, *, title: str | None = None) -> Axes:
    """Scores of probes by training and test layer; cells with the same layer are outlined.

    Parameters
    ----------
    table
        One row per pair of layers: layer (trained), to_layer (tested), metric, value, chance.
    ax
        Where to draw.
    title
        Over the axes.
    """
    from matplotlib.patches import Rectangle

    value = table.pivot(index="layer", columns="to_layer", values="value")
    metric = str(table["metric"].iloc[0])
    chance = float(table["chance"].iloc[0])
    # a direction turned round scores below chance, and that is worth seeing
    image = _heat(value.to_numpy(float), ax, low=min(chance, float(value.min().min())), high=1.0)
    for row, trained in enumerate(value.index):
        for column in np.flatnonzero(value.columns == trained):
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=DARK, linewidth=0.9))
    _name_axes(ax, list(value.index), list(value.columns), "Training layer", "Test layer")
    ax.set_aspect("equal")
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=25)
    bar.outline.set_visible(False)
    bar.set_label(f"{metric_label(metric)}, chance {chance:.2g}")
    return _finish(ax, title)


def draw_confusion(table: pd.DataFrame, ax: Axes, *, title: str | None = None) -> Axes:
    """Confusion matrix as shares of the true class: every row sums to 1.

    Parameters
    ----------
    table
        One row per pair: label, predicted, count.
    ax
        Where to draw.
    title
        Over the axes.
    """
    counts = table.pivot(index="label", columns="predicted", values="count").fillna(0)
    share = counts.to_numpy(float) / np.maximum(counts.to_numpy(float).sum(axis=1, keepdims=True), 1)
    image = _heat(share, ax, low=0.0, high=1.0)
    if len(share) <= DENSE:
        for (row, column), part in np.ndenumerate(share):
            if part >= 0.005:
                ax.text(column, row, f"{100 * part:.0f}", ha="center", va="center", fontsize=6, color=LIGHT if part < 0.55 else DARK)
    examples = counts.sum(axis=1).astype(int)
    _name_axes(
        ax, [f"{name} ({examples[name]:,})" for name in counts.index], list(counts.columns), "True class (examples)", "Predicted class"
    )
    for label in ax.get_xticklabels():
        label.set(rotation=35, ha="right", rotation_mode="anchor")
    ax.set_aspect("equal")
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=25, format=lambda part, _: f"{100 * part:.0f} %")
    bar.outline.set_visible(False)
    bar.set_label("Share of the true class")
    return _finish(ax, title)


def _heat(values: np.ndarray, ax: Axes, *, low: float, high: float) -> AxesImage:
    return ax.imshow(values, cmap=SEQUENTIAL, vmin=low, vmax=max(high, low + 1e-6), aspect="auto", interpolation="nearest")


def _name_axes(ax: Axes, rows: list[object], columns: list[object], row_label: str, column_label: str) -> None:
    for names, set_ticks in ((rows, ax.set_yticks), (columns, ax.set_xticks)):
        step = 1 if len(names) <= DENSE else -(-len(names) // 10)
        places = list(range(0, len(names), step))
        set_ticks(places, [str(names[place]) for place in places])
    ax.tick_params(length=0)
    ax.set_xlabel(column_label)
    ax.set_ylabel(row_label)


def _finish(ax: Axes, title: str | None) -> Axes:
    for spine in ax.spines.values():
        spine.set_visible(False)
    if title:
        ax.set_title(title)
    return ax
