"""Attention shares by decoder block, stacked; knockout effects by window; scores by block of the vision tower; logit lens by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stratascope.figures.drawing import LAYER_LABELS, PART_LABELS, label_shares, new_figure
from stratascope.figures.heatmaps import draw_grid
from stratascope.figures.style import COLOURS, GREY, MARKERS, paper_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

PART_COLOURS = {
    "image": COLOURS[0],
    "subject": COLOURS[1],
    "relation": "#f4cd1c",
    "object": "#0e6844",
    "caption_rest": "#86698a",
    "template": "#acada4",
    "system": "#e6e7ec",
}
"""By part; each differs from all others for colour-blind readers too, on a page in light and dark as well, which sets the first two."""


def draw_share_stack(values: NDArray[Any], layers: Sequence[int], parts: Sequence[str], ax: Axes, *, title: str | None = None) -> Axes:
    """Attention share of each part of the prompt by decoder block, mean over examples and heads, stacked.

    Parameters
    ----------
    values
        (example, layer, head, part); sums to 1 over parts.
    layers
        Numbers of the blocks.
    parts
        Names of the last axis.
    ax
        Where to draw.
    title
        Over the axes.
    """
    from matplotlib.ticker import MaxNLocator

    means = np.asarray(values).mean((0, 2), dtype=np.float64)  # no copy of all examples in double precision
    order = [name for name in PART_COLOURS if name in parts] + [name for name in parts if name not in PART_COLOURS]
    bottom = np.zeros(len(layers))
    for name in order:
        share = means[:, list(parts).index(name)]
        colour = PART_COLOURS.get(name, "#777777")
        ax.bar(layers, share, bottom=bottom, width=0.86, color=colour, label=PART_LABELS.get(name, name), linewidth=0)
        bottom = bottom + share
    ax.set_ylim(0, 1)
    ax.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("Decoder block")
    ax.set_ylabel("Attention share (final token)")
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if title:
        ax.set_title(title)
    return ax


TARGET_LINES = {
    **{name: (COLOURS[k], "-") for k, name in enumerate(("image", "subject", "relation", "object", "caption_rest"))},
    "template": (GREY, "-"), "system": ("#b4b5ad", "-"), "caption": (COLOURS[6], "--"), "prompt": (COLOURS[5], "--"),
    "subject_box": (COLOURS[1], ":"), "object_box": (COLOURS[3], ":"),
}  # fmt: skip
"""Target of a knockout -> colour and line: solid for parts of the prompt, dashed for whole spans, dotted for boxes."""


def draw_window_effects(table: pd.DataFrame, ax: Axes, *, title: str | None = None) -> Axes:
    """Knockout effect by the centre of the window of blocks, one line per target, with simultaneous bands.

    Parameters
    ----------
    table
        Columns target, first, last, effect, low_simultaneous, high_simultaneous.
    ax
        Where to draw.
    title
        Over the axes.
    """
    from matplotlib.ticker import MaxNLocator

    for target, (colour, line) in TARGET_LINES.items():
        rows = table[table["target"] == target]
        if rows.empty:
            continue
        centre = (rows["first"].to_numpy(float) + rows["last"].to_numpy(float)) / 2
        low, high = (rows[f"{end}_simultaneous"].to_numpy(float) for end in ("low", "high"))
        label = PART_LABELS.get(target, target.replace("_", " "))
        if len(rows) == 1:
            ax.vlines(centre, low, high, color=colour, alpha=0.3)
        ax.fill_between(centre, low, high, color=colour, alpha=0.13, linewidth=0)
        ax.plot(centre, rows["effect"], color=colour, linestyle=line, marker="o", markersize=2.5, label=label)
    ax.axhline(0, color=GREY, linewidth=0.7, zorder=0)
    ax.set_xlabel("Centre of the window of blocks")
    ax.set_ylabel("Change of the logit difference\ntowards the answer")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title:
        ax.set_title(title)
    return ax


def window_effects_figure(panels: Mapping[str, pd.DataFrame]) -> Figure:
    """Panels of `draw_window_effects` by title, on one scale, with one legend."""
    from matplotlib.figure import Figure

    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    with paper_style():
        figure = Figure(figsize=(1.5 + 2.1 * columns, 0.5 + 1.8 * rows))
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
        named: dict[str, Any] = {}
        for ax, (title, table) in zip(axes, panels.items(), strict=False):
            draw_window_effects(table, ax, title=title)
            named |= dict(zip(*ax.get_legend_handles_labels()[::-1], strict=True))
            ax.label_outer()
        for ax in axes[len(panels) :]:
            ax.remove()
        figure.legend(list(named.values()), list(named), loc="outside right upper")
    return figure


def draw_tower(curves: Mapping[str, pd.DataFrame], ax: Axes, *, full_attention: Sequence[int] = (), title: str | None = None) -> Axes:
    """Layer curves through the vision tower, with hollow marks for the merged cells that the decoder receives.

    Parameters
    ----------
    curves
        Name -> table with columns stage (`tower` or another), layer (blocks passed), value, low, high, chance.
    full_attention
        Blocks that attend to the whole image: a bar between what enters and what leaves each.
    """
    from matplotlib.ticker import MaxNLocator

    for k, block in enumerate(full_attention):
        ax.axvspan(block, block + 1, color=GREY, alpha=0.16, linewidth=0, label="full-attention block" if k == 0 else None)
    for k, (name, table) in enumerate(curves.items()):
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        tower, merged = table[table["stage"] == "tower"], table[table["stage"] != "tower"]
        place, low, high = (tower[name].to_numpy(float) for name in ("layer", "low", "high"))
        ax.fill_between(place, low, high, color=colour, alpha=0.16, linewidth=0)
        ax.plot(tower["layer"], tower["value"], color=colour, marker=marker, label=name)
        ax.hlines(tower["chance"].iloc[0], tower["layer"].min(), tower["layer"].max(), color=colour, linestyle=":", linewidth=0.8)
        if len(merged):
            ax.plot(merged["layer"] + 0.7, merged["value"], color=colour, marker=marker, markerfacecolor="none", linestyle="none")
    ax.set_xlabel("Vision block (hollow: merged)")
    ax.set_ylabel("R²; balanced accuracy")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if title:
        ax.set_title(title)
    return ax


def draw_lens(series: Mapping[str, pd.DataFrame], probes: Mapping[str, pd.DataFrame], ax: Axes, *, title: str | None = None) -> Axes:
    """Shares of examples that the logit lens decodes, by layer, with simultaneous bands; accuracies of probes dashed.

    Parameters
    ----------
    series
        Name -> table with columns layer, value, low_simultaneous, high_simultaneous and baseline (drawn dotted).
    probes
        Name -> table with columns layer and value.
    ax
        Where to draw.
    title
        Over the axes.
    """
    for k, (name, table) in enumerate(series.items()):
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        layer, value, low, high = (table[column].to_numpy(float) for column in ("layer", "value", "low_simultaneous", "high_simultaneous"))
        ax.fill_between(layer, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(layer, value, color=colour, marker=marker, label=name)
        ax.hlines(table["baseline"].iloc[0], layer.min(), layer.max(), color=colour, linestyle=":", linewidth=0.8)
    for k, (name, table) in enumerate(probes.items()):
        dashes = ("--", "-.", (0, (1, 1)))[k % 3]
        ax.plot(table["layer"], table["value"], color=GREY, linestyle=dashes, label=name)
    ax.plot([], [], color=GREY, linestyle=":", linewidth=0.8, label="most frequent")
    return label_shares(ax, "Accuracy of the readout", title)


def draw_lens_and_words(draw: Callable[[Axes], Axes], grid: pd.DataFrame, *, title: str) -> Figure:
    """A figure of two: shares that the logit lens decodes, and a heat map of the likeliest words.

    Parameters
    ----------
    draw
        Draws the shares.
    grid
        Word (rows) by layer (columns), share of examples; without rows there is no heat map.
    title
        Over the heat map.
    """
    with paper_style():
        figure, axes = new_figure(2 if len(grid) else 1, width=7.6 if len(grid) else 4.6, height=max(3.2, 1.2 + 0.2 * len(grid)))
        draw(axes[0]).legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), ncols=2, columnspacing=1.0)
        if len(grid):
            rows, columns, below = [str(name) for name in grid.index], grid.columns.tolist(), LAYER_LABELS["residual"]
            label = "Share of examples"
            draw_grid(grid.to_numpy(float), axes[1], rows=rows, columns=columns, label=label, column_label=below, title=title)
    return figure
