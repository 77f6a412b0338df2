"""Whether a probe's probabilities mean what they say, and how short its labels can be told: two figures of further measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.figures.drawing import draw_layer_curves
from stratascope.figures.style import COLOURS, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stratascope.report.figure_selection import Choice
    from stratascope.results.collection import Findings
    from stratascope.results.view import Found


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


def draw_codelength_of(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """How short labels can be told, of one task and position."""
    found = _chosen(findings, "codelength", choice)
    draw_codelength(found.table("table"), ax, task=found.task, layers="residual stream after k decoder blocks")
    ax.set_ylabel(f"compression of {found.title}")
    ax.legend(loc="best")
    return ax


def draw_calibration_of(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """Sure and right, of one task and position, at the layer where the probe is right most often."""
    found = _chosen(findings, "calibration", choice)
    table = found.table("table")
    right = table["accuracy"].mul(table["examples"]).groupby(table["layer"]).sum()
    best = int(right.index.to_numpy()[right.to_numpy().argmax()])
    return draw_reliability(table, ax, layer=best, title=found.title)


def _chosen(findings: Findings, kind: str, choice: Choice) -> Found:
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
