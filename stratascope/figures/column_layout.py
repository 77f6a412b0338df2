"""Layout for one column of a paper: legend above the axes, long row names on several lines."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE = 4.4
"""Inches: from here on there is room for a legend at the side."""
LETTERS = 26
"""Of a row's name in a line of a narrow figure."""


def is_narrow(ax: Axes) -> bool:
    """Whether a figure is about as wide as a column."""
    figure = ax.get_figure(root=True)
    return figure is not None and figure.get_figwidth() <= WIDE


def place_legend(ax: Axes, *, columns: int = 2, inside: Literal["lower right"] | None = None, above: bool = False) -> None:
    """Above the axes in a column, else at the right, `above`, or `inside` at a corner that is known to be free: never over the data."""
    if above and not is_narrow(ax):
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns)
    elif is_narrow(ax):
        ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, fontsize=6, columnspacing=1.0, handlelength=1.6)
    elif inside is not None:
        ax.legend(loc=inside)
    else:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def name_rows(ax: Axes, names: Sequence[str], label: str) -> None:
    """Names of horizontal rows from the top, 0 the first, and the label of the axis below, which may begin left of the axes."""
    if is_narrow(ax):
        broken = ["\n".join(textwrap.wrap(name, LETTERS)) for name in names]
        ax.set_yticks(range(len(names)), broken, fontsize=6, linespacing=0.95)
        ax.set_xlabel(label, loc="right")
    else:
        ax.set_yticks(range(len(names)), list(names))
        ax.set_xlabel(label)
    ax.set_ylim(len(names) - 0.5, -0.5)
