"""Layer curves in small multiples that share their axes: one panel per position, or per relation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.figures.drawing import draw_layer_curves, metric_label
from stratascope.figures.style import COLOURS, GREY, paper_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT_WIDTH = 7.0
"""Inches: both columns of a two-column page."""
NARROW = 1.75
"""Inches of a panel."""


def draw_curve_panel(
    curve: pd.DataFrame,
    ax: Axes,
    *,
    others: Mapping[str, pd.DataFrame],
    metric: str,
    name: str = "probe",
    chance: float | None = None,
    detected: Sequence[tuple[int, int]] = (),
    title: str | None = None,
    layers: str = "layer",
    muted: Sequence[str] = (),
) -> Axes:
    """Layer curve with controls and baselines dashed in grey, and the layers in which it is detected.

    Parameters
    ----------
    curve, others
        Tables with columns layer, metric, value, low, high; others by name.
    ax
        Where to draw.
    metric
        Which rows of the tables.
    name
        Of the curve, in a legend.
    chance
        Height of the chance line.
    detected
        (first, last) runs of layers in which the advantage is significant: bars below the curves.
    title, layers
        Over the axes, below them.
    muted
        Names of the controls and baselines of all panels, so that each has one line style; those of this one by default.
    """
    draw_layer_curves({name: curve, **others}, ax, metric=metric, chance=chance, muted=muted or list(others), title=title)
    ax.set_xlabel(layers)
    for number, (first, last) in enumerate(detected):
        place: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "color": COLOURS[0], "clip_on": False}
        label = "detected above all of these" if number == 0 else None
        ax.plot([first - 0.25, last + 0.25], [0.03, 0.03], linewidth=2.6, solid_capstyle="butt", label=label, **place)
    return ax


def draw_value_panel(
    table: pd.DataFrame,
    ax: Axes,
    *,
    value: str,
    by: str = "relation",
    overall: pd.DataFrame | None = None,
    chance: float | None = None,
    layers: str = "layer",
) -> Axes:
    """Accuracy on the examples of one value, such as a relation, and on all examples in grey.

    Parameters
    ----------
    table
        One row per value and layer: by, layer, examples, groups, value, low, high; a result of kind accuracy_by.
    ax
        Where to draw.
    value, by
        Which of the values, and what they are values of.
    overall
        Rows of all examples: layer, value.
    chance
        Height of the chance line.
    layers
        Label below the axes.

    Raises
    ------
    InvalidInputError
        The table has no such value.
    """
    from matplotlib.ticker import MaxNLocator

    rows = table[table["by"] == value].sort_values("layer")
    if rows.empty:
        raise InvalidInputError(f"expected a value of {', '.join(sorted(set(table['by'])))}, found {value!r}")
    if overall is not None:
        ax.plot(overall["layer"], overall["value"], color=GREY, linewidth=0.9, label="all examples")
    if chance is not None:
        ax.axhline(chance, color="black", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0, label="chance level of all examples")
    layer = rows["layer"].to_numpy()
    ax.fill_between(layer, rows["low"].to_numpy(float), rows["high"].to_numpy(float), color=COLOURS[0], alpha=0.2, linewidth=0)
    ax.plot(layer, rows["value"].to_numpy(float), color=COLOURS[0], linewidth=1.3, label=f"this {by}")
    ax.set_title(f"{value} ({int(rows['examples'].iloc[0]):,})", fontsize=7, fontweight="normal")
    ax.set_xlabel(layers)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def panel_figure(count: int, *, columns: int = 4, height: float = 1.5, titled: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows that share both axes; surplus places stay empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, count)
    lines = -(-count // columns)
    width = max(NARROW * columns + 0.5, 3.4)
    with paper_style():
        figure = Figure(figsize=(min(width, TEXT_WIDTH), height * lines + 0.55 + 0.25 * titled))
        FigureCanvasAgg(figure)
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for ax in axes[count:]:
            ax.remove()
        for place in range(max(count - columns, 0), count):
            axes[place].tick_params(labelbottom=True)
    return figure, list(axes[:count])


def label_outside(axes: Sequence[Axes], *, metric: str, columns: int = 4) -> None:
    """Label the score at the left panels, and layers at the lowest panel of each column."""
    columns = min(columns, len(axes))
    for number, ax in enumerate(axes):
        ax.set_ylabel(metric_label(metric) if number % columns == 0 else "")
        if number + columns < len(axes):
            ax.set_xlabel("")


def span_of(tables: Sequence[pd.DataFrame], metric: str, *, room: float = 0.04) -> tuple[float, float]:
    """Limits of the score axis for all values of a metric, with room below for the bars of detected layers."""
    rows = pd.concat([table[table["metric"] == metric] for table in tables])
    low, high = float(np.nanmin(rows["low"])), float(np.nanmax(rows["high"]))
    return low - 3 * room * (high - low), high + room * (high - low)


def label_panels(figure: Figure, axes: Sequence[Axes], title: str = "") -> None:
    """One legend below the panels of a figure, which also names the chance line, and a title above them, where there is one."""
    from matplotlib.lines import Line2D

    named = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    handles = list(named.values())
    if len(axes) > 1:
        for text in [text for ax in axes for text in ax.texts if text.get_text() == "chance"]:
            text.remove()
        handles.append(Line2D([], [], color="black", linewidth=0.7, linestyle=(0, (1, 2)), label="chance"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=8.5, fontweight="bold")


def mark_trivial(ax: Axes, values: Sequence[float]) -> None:
    """Mark a panel whose labels the words before the position state: decoding them there is no finding.

    Parameters
    ----------
    ax
        The panel, with its final limits.
    values
        Scores of the curve, which the text stays away from.
    """
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, facecolor="#eeeeee", edgecolor="none", zorder=-5))
    low, high = ax.get_ylim()
    heights = (np.asarray(values, float) - low) / (high - low)
    place = max((0.92, 0.5, 0.2), key=lambda y: float(np.abs(heights - y).min()))
    ax.text(0.5, place, "stated by the caption", transform=ax.transAxes, ha="center", va="center", fontsize=6.5, fontstyle="italic")
