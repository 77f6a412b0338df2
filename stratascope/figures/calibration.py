"""Reliability diagrams and online codelength."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.figures.drawing import draw_layer_curves
from stratascope.figures.style import COLOURS, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_reliability(table: pd.DataFrame, ax: Axes, *, layer: int, title: str | None = None) -> Axes:
    """How often a probe is right where it is so sure; on the diagonal it is calibrated.

    Parameters
    ----------
    table
        One row per layer and bin: layer, bin, examples, confidence, accuracy, error; a result of kind calibration.
    ax
        Where to draw.
    layer
        Which of the layers.
    title
        Over the axes.

    Raises
    ------
    InvalidInputError
        The table has no such layer.
    """
    rows = table[table["layer"] == layer].sort_values("bin")
    if rows.empty:
        raise InvalidInputError(f"expected a layer of {sorted(set(table['layer']))}, found {layer}")
    low = min(0.5, float(rows[["confidence", "accuracy"]].min().min()))
    ax.plot([low, 1], [low, 1], color=GREY, linewidth=0.9, linestyle="--", label="calibrated")
    ax.plot(rows["confidence"], rows["accuracy"], color=COLOURS[0], marker="o", linewidth=1.2, label=f"layer {layer}")
    ax.annotate(f"expected error {rows['error'].iloc[0]:.3f}", (0.97, 0.04), xycoords="axes fraction", ha="right", fontsize=6.5)
    ax.set_xlabel("probability of the class chosen")
    ax.set_ylabel("accuracy")
    if title:
        ax.set_title(title)
    return ax


def draw_codelength(table: pd.DataFrame, ax: Axes, *, task: str, layers: str = "layer") -> Axes:
    """Compression by layer, with controls and baselines dashed in grey; 1, where nothing can be read, as a line.

    Parameters
    ----------
    table
        Rows of one position of a result of kind codelength: layer, task, store, metric, value, low, high.
    ax
        Where to draw.
    task
        Whose curve stands out; rows of `TASK:CONTROL` are its controls, those of a named store its baselines.
    layers
        Label below the axes.
    """
    curves: dict[str, pd.DataFrame] = {}
    for store, of in dict.fromkeys(zip(table["store"], table["task"], strict=True)):
        name = "probe" if (store, of) == ("", task) else store or of.partition(":")[2]
        curves[name] = table[(table["store"] == store) & (table["task"] == of)]
    draw_layer_curves(curves, ax, metric="compression", muted=[name for name in curves if name != "probe"])
    ax.axhline(1, color="black", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)
    ax.text(1.01, 1, "nothing\nread", transform=ax.get_yaxis_transform(), va="center", fontsize=6.5)
    ax.set_xlabel(layers)
    return ax
