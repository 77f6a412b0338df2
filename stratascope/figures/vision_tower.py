"""Scores by block of the vision tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from stratascope.figures.style import COLOURS, GREY, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
