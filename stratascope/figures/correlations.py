"""Rank correlations of methods with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.figures.column_layout import name_rows
from stratascope.figures.style import COLOURS, GREY, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_correlations(
    tables: Mapping[str, pd.DataFrame], order: Sequence[str], ax: Axes, *, title: str | None = None, apart: Sequence[str] = ()
) -> Axes:
    """One row per method, with a mark and a 95 % interval for each table.

    Parameters
    ----------
    tables
        Name -> table with columns label, correlation, low, high.
    order
        Labels from top to bottom.
    apart
        Labels at the end of `order` that are references: drawn hollow, below a line.

    Raises
    ------
    InvalidInputError
        If a label of `order` is in no table.
    """
    for k, (name, table) in enumerate(tables.items()):
        rows = table.set_index("label")
        missing = [label for label in order if label not in rows.index]
        if missing:
            raise InvalidInputError(f"expected a row for {missing[0]!r} in {name!r}, found none")
        rows = rows.loc[list(order)]
        place = np.arange(len(order)) + 0.22 * (k - (len(tables) - 1) / 2)
        colour = COLOURS[k % len(COLOURS)]
        ax.hlines(place, rows["low"], rows["high"], color=colour, linewidth=2, alpha=0.45)
        ranked, marker = ~rows.index.isin(list(apart)), MARKERS[k % len(MARKERS)]
        ax.plot(rows["correlation"][ranked], place[ranked], marker, color=colour, label=name)
        ax.plot(rows["correlation"][~ranked], place[~ranked], marker, color=colour, markerfacecolor="white")
    ax.axvline(0, color=GREY, linewidth=0.6, zorder=0)
    if apart:
        ax.axhline(len(order) - len(apart) - 0.5, color=GREY, linewidth=0.6, linestyle=":")
    name_rows(ax, [f"reference: {label}" if label in apart else label for label in order], "Spearman correlation with knockout effect")
    if title:
        ax.set_title(title)
    return ax
