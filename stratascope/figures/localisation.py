"""Localisation of attribution methods: ratios with intervals on a log axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stratascope.figures.column_layout import name_rows, place_legend
from stratascope.figures.style import COLOURS, GREY, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AGAINST = {"others": "other objects", "ground": "the rest of the image"}


def draw_ratios(table: pd.DataFrame, against: str, ax: Axes) -> Axes:
    """One row per method: ratio of its score on the named objects to that elsewhere, with its 95 % interval, on a log axis.

    Parameters
    ----------
    table
        As of `analysis.Pointing`, in the order of reading: method, label, over_AGAINST with its ends.
    against
        `others` or `ground`.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    value, low, high = (table[f"over_{against}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    measured = table["method"].str.startswith("knockout_").to_numpy()
    place = np.arange(len(table))
    ax.axvline(1, color=GREY, linewidth=0.7, zorder=0)
    for k, (rows, name) in enumerate(((measured, "knockout (measured)"), (~measured, "attribution method"))):
        if rows.any():
            ax.hlines(place[rows], low[rows], high[rows], color=COLOURS[k], linewidth=2, alpha=0.45)
            ax.plot(value[rows], place[rows], MARKERS[k], color=COLOURS[k], label=name)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    name_rows(ax, table["label"].str.removesuffix(", measured").tolist(), f"Score ratio, named objects / {AGAINST[against]}")
    place_legend(ax, inside="lower right")
    return ax
