"""Accuracy of answers, overlap of attention with boxes, and its AUROC for a right answer (AdaptVis, figure b)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.figures.style import COLOURS, GREY, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DOTS = 1000
"""Dots of a scatter above which vector formats hold them as pixels."""


def draw_overlap(values: NDArray[Any], layers: Sequence[int], ax: Axes, *, label: str, even: float | None = None) -> Axes:
    """Mean overlap with the boxes by decoder block: one dot per head, a line for their mean.

    Parameters
    ----------
    values
        (layer, head); NaN where it is not known.
    even
        Overlap of a uniform map.
    """
    from matplotlib.ticker import MaxNLocator

    place = np.asarray(layers)
    known = np.isfinite(values)
    means = np.where(known.any(1), np.where(known, values, 0).sum(1) / np.maximum(known.sum(1), 1), np.nan)
    ax.scatter(np.broadcast_to(place[:, None], values.shape), values, s=9, color=COLOURS[0], alpha=0.5, linewidths=0, label="one head")
    ax.plot(place, means, color=COLOURS[0], marker=MARKERS[0], label="mean over heads")
    if even is not None:
        ax.axhline(even, color=GREY, linestyle=":", linewidth=0.9, label="uniform map")
    ax.set_xlabel("Decoder block")
    ax.set_ylabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="best", fontsize=6)
    return ax


def draw_accuracies(table: pd.DataFrame, ax: Axes) -> Axes:
    """Accuracy of the model's answers by relation with 95 % intervals, the first row at the top.

    Parameters
    ----------
    table
        One row per relation: relation, examples, accuracy, accuracy_low, accuracy_high.
    ax
        Axes to draw on.
    """
    rows = table.iloc[::-1]
    place = np.arange(len(rows))
    low, high = (rows[f"accuracy_{end}"].to_numpy(float) for end in ("low", "high"))
    ax.hlines(place, low, high, color=COLOURS[0], linewidth=2.2, alpha=0.45)
    ax.plot(rows["accuracy"].to_numpy(float), place, "o", color=COLOURS[0])
    ax.set_yticks(place, [f"{name} ({count})" for name, count in zip(rows["relation"], rows["examples"], strict=True)])
    ax.set_xlim(min(0.45, float(np.nanmin(low)) - 0.02), 1.01)
    ax.set_xlabel("Accuracy of the model's answers")
    return ax


def draw_prediction(table: pd.DataFrame, baseline: Mapping[str, float], ax: Axes) -> Axes:
    """AUROC of each head's overlap as predictor of a right answer, the best head's with its simultaneous interval, over the baseline.

    Parameters
    ----------
    table
        layer, head, auroc, low_simultaneous, high_simultaneous.
    baseline
        auroc, low, high of the boxes' geometry alone.
    """
    from matplotlib.ticker import MaxNLocator

    layers = np.array(sorted(set(table["layer"])))
    ax.axhspan(baseline["low"], baseline["high"], color=GREY, alpha=0.18, linewidth=0)
    ax.axhline(baseline["auroc"], color=GREY, linestyle="--", linewidth=1, label="box geometry alone")
    ax.axhline(0.5, color="black", linewidth=0.7, linestyle=(0, (1, 2)), zorder=0)
    ax.scatter(table["layer"], table["auroc"], s=9, color=COLOURS[1], alpha=0.5, linewidths=0, label="one head")
    best = table.loc[table.groupby("layer")["auroc"].idxmax()].set_index("layer").loc[layers]
    ax.plot(layers, best["auroc"], color=COLOURS[1], marker=MARKERS[1], label="best head")
    ax.fill_between(
        layers,
        best["low_simultaneous"].to_numpy(float),
        best["high_simultaneous"].to_numpy(float),
        color=COLOURS[1],
        alpha=0.14,
        linewidth=0,
    )
    ax.set_xlabel("Decoder block")
    ax.set_ylabel("AUROC for a right answer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="best", fontsize=6)
    return ax


def draw_components(scores: NDArray[Any], labels: NDArray[Any], explained: NDArray[Any], ax: Axes, *, title: str = "") -> Axes:
    """Two principal components, one dot per example in the colour and shape of its label.

    Parameters
    ----------
    scores
        (2, example).
    labels
        (example,) numbers; a negative one is unknown and grey.
    explained
        (2,) shares of the variance.
    ax
        Where to draw.
    title
        Over the axes.
    """
    pixels = len(labels) > MOST_DOTS
    for k, label in enumerate(np.unique(labels)):
        of, known = labels == label, label >= 0
        colour, marker = (COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]) if known else (GREY, ".")
        name = f"label {label}" if known else "no label"
        ax.scatter(scores[0, of], scores[1, of], s=5, color=colour, marker=marker, alpha=0.6, linewidths=0, label=name, rasterized=pixels)
    for axis, share, number in zip((ax.xaxis, ax.yaxis), explained, (1, 2), strict=True):
        axis.set_label_text(f"PC {number} ({share:.0%})" if np.isfinite(share) else f"PC {number}")
    ax.set_title(title)
    return ax
