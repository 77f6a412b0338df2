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
    """Reliability diagram: accuracy by confidence; the diagonal is perfect calibration.

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
    ax.plot([low, 1], [low, 1], color=GREY, linewidth=0.9, linestyle="--", label="perfect calibration")
    ax.plot(rows["confidence"], rows["accuracy"], color=COLOURS[0], marker="o", linewidth=1.2, label=f"layer {layer}")
    ax.annotate(f"ECE {rows['error'].iloc[0]:.3f}", (0.97, 0.04), xycoords="axes fraction", ha="right", fontsize=6.5)
    ax.set_xlabel("Confidence (probability of the predicted class)")
    ax.set_ylabel("Accuracy")
    if title:
        ax.set_title(title)
    return ax


def draw_codelength(table: pd.DataFrame, ax: Axes, *, task: str, layers: str = "layer") -> Axes:
    """Compression of labels by layer, controls and baselines dashed in grey; a line at 1, the uniform code.

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
    ax.text(1.01, 1, "uniform\ncode", transform=ax.get_yaxis_transform(), va="center", fontsize=6.5)
    ax.set_xlabel(layers)
    return ax
