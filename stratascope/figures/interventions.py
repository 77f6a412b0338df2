"""Figures of interventions: effects by layer, dose-response of steering, heat map of patching, probe beside effects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stratascope.figures.drawing import LAYER_LABELS, label_shares, metric_label, new_figure
from stratascope.figures.heatmaps import draw_grid
from stratascope.figures.style import COLOURS, GREY, MARKERS, SEQUENTIAL, paper_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Mapping[str, tuple[pd.DataFrame, pd.DataFrame | None]]
"""Label -> rows with columns layer and flipped (with _low_simultaneous, _high_simultaneous), and those of random directions."""


def draw_flips(series: Series, ax: Axes, *, title: str | None = None) -> Axes:
    """Share of flipped answers by layer of each kind of intervention, with simultaneous bands; its random directions dashed.

    Parameters
    ----------
    series
        What to draw; the share that patching restores is left out.
    ax
        Where to draw.
    title
        Over the axes.
    """
    shown = [(label, *rows) for label, rows in series.items() if not label.startswith("patch")]
    for k, (label, rows, random) in enumerate(shown):
        layer, value = rows["layer"].to_numpy(), rows["flipped"].to_numpy(float)
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        low, high = (rows[f"flipped_{end}_simultaneous"].to_numpy(float) for end in ("low", "high"))
        ax.fill_between(layer, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(layer, value, color=colour, marker=marker, label=label)
        if random is not None:
            ax.plot(random["layer"].to_numpy(), random["flipped"].to_numpy(float), color=colour, linestyle="--", linewidth=0.9)
    if any(random is not None for *_, random in shown):
        ax.plot([], [], color=GREY, linestyle="--", linewidth=0.9, label="random directions")
    return label_shares(ax, "Flipped answers", title)


def draw_dose_response(table: pd.DataFrame, ax: Axes, *, title: str | None = None) -> Axes:
    """Mean change of the logit difference by signed steering factor, one line for each layer.

    Parameters
    ----------
    table
        Layer (rows) by factor (columns), in units of the mean size of the logit difference.
    ax
        Where to draw.
    title
        Over the axes.
    """
    import matplotlib as mpl

    colours = mpl.colormaps[SEQUENTIAL]
    layers = table.index.to_list()
    factors = np.array([0.0, *table.columns])
    order = np.argsort(factors)
    for k, layer in enumerate(layers):
        values = np.array([0.0, *table.loc[layer].to_numpy(float)])
        colour = colours(0.05 + 0.85 * k / max(1, len(layers) - 1))
        ax.plot(
            factors[order], values[order], color=colour, marker="o", markersize=2.5, label=f"layer {layer}" if len(layers) < 9 else None
        )
    if len(layers) >= 9 and ax.figure is not None:
        bar = mpl.cm.ScalarMappable(mpl.colors.Normalize(min(layers), max(layers)), colours)
        ax.figure.colorbar(bar, ax=ax, pad=0.02, fraction=0.05).set_label("Decoder layer", fontsize=7)
    ax.axhline(0, color=GREY, linewidth=0.7)
    ax.axvline(0, color=GREY, linewidth=0.7)
    ax.set_xlabel("Steering (distances of the class means)")
    ax.set_ylabel("Change of the logit difference\n(mean size = 1)")
    if title:
        ax.set_title(title)
    return ax


def draw_patches(grid: pd.DataFrame, ax: Axes, *, title: str | None = None) -> Axes:
    """Heat map of the share of the logit difference that patching restores.

    Parameters
    ----------
    grid
        Position (rows) by layer (columns).
    ax
        Where to draw.
    title
        Over the axes.
    """
    rows, columns = [str(row) for row in grid.index], grid.columns.tolist()
    label, below = "Share of the logit difference restored", LAYER_LABELS["residual"]
    return draw_grid(
        grid.to_numpy(float), ax, rows=rows, columns=columns, label=label, column_label=below, diverging=True, title=title
    )  # fmt: skip


def intervention_figure(series: Series, doses: pd.DataFrame, patches: Mapping[str, pd.DataFrame], title: str) -> Figure | None:
    """Panels of what was run: flipped answers, dose-response, and the restored share of patching by position and layer.

    Parameters
    ----------
    series
        As of `draw_flips`.
    doses
        As of `draw_dose_response`; empty without steering.
    patches
        Source -> share restored, position by layer.
    title
        Of the first panel.
    """
    flips = any(not label.startswith("patch") for label in series)
    count = int(flips) + int(len(doses) > 0) + len(patches)
    if not count:
        return None
    figure, axes = new_figure(count, width=3.5 * count, height=3.0)
    left = list(axes)
    with paper_style():
        if flips:
            ax = draw_flips(series, left.pop(0), title=title)
            ax.legend(loc="upper left", fontsize=6.5)
        if len(doses):
            ax = draw_dose_response(doses, left.pop(0), title="Dose-response")
            ax.legend(loc="upper left", fontsize=6) if ax.get_legend_handles_labels()[0] else None
        for source, grid in patches.items():
            draw_patches(grid, left.pop(0), title=f"patch from {source}")
    return figure


def encoding_use_figure(panels: Mapping[str, tuple[pd.DataFrame, Series]], concept: str) -> Figure:
    """Probe score above effects by layer, a column of two panels for each position; squares mark the layers encoded and used.

    Parameters
    ----------
    panels
        Position -> rows with columns layer, metric, score (with intervals), chance, encoded, used; and the effects.
    concept
        Its name, in titles.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with paper_style():
        figure = Figure(figsize=(3.6 * len(panels), 4.4))
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, len(panels), squeeze=False, sharex="col", height_ratios=(1, 1.25))
        for column, (position, (table, series)) in enumerate(panels.items()):
            top, bottom = axes[0][column], axes[1][column]
            layer, metric = table["layer"].to_numpy(), str(table["metric"].iloc[0])
            low, high = (table[f"score_{end}_simultaneous"].to_numpy(float) for end in ("low", "high"))
            top.fill_between(layer, low, high, color="black", alpha=0.15, linewidth=0)
            top.plot(layer, table["score"], color="black", marker="o", label="probe")
            top.axhline(float(table["chance"].iloc[0]), color=GREY, linewidth=0.8, linestyle="--", label="chance")
            top.set_ylabel(metric_label(metric))
            top.set_title(f"{concept} at {position}")
            top.legend(loc="best", fontsize=6.5)
            draw_flips(series, bottom)
            patched = [(label, rows) for label, (rows, _) in series.items() if label.startswith("patch")]
            for k, (label, rows) in enumerate(patched):
                colour = COLOURS[-2 - k % 3]
                ends = [rows[f"flipped_{end}_simultaneous"].to_numpy(float) for end in ("low", "high")]
                bottom.fill_between(rows["layer"].to_numpy(), *ends, color=colour, alpha=0.15, linewidth=0)
                bottom.plot(rows["layer"], rows["flipped"], color=colour, marker="x", linestyle="-.", label=f"{label} (restored)")
            if patched and all(rows.startswith("patch") for rows in series):
                bottom.set_ylabel("Share restored")
            elif patched:
                bottom.set_ylabel("Flipped answers; share restored")
            bottom.legend(loc="best", fontsize=6.5)
            for ax, name, colour in ((top, "encoded", "black"), (bottom, "used", COLOURS[0])):
                on = layer[table[name].to_numpy(bool)]
                place = ax.get_xaxis_transform()
                if not len(on):
                    continue
                ax.plot(on, np.full(len(on), 0.02), "s", color=colour, markersize=4, transform=place, clip_on=False)
                ax.text(1.01, 0.02, name, transform=ax.transAxes, fontsize=6.5, va="center", color=colour)
            bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
