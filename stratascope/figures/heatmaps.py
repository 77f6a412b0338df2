"""Heatmaps: relation by layer, head by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import InvalidInputError
from stratascope.figures.style import DIVERGING, SEQUENTIAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

WRITTEN = 90
"""Cells that still get their number written."""
DARK, LIGHT = "#010101", "#fefefe"
"""Nearly black and white: what stands on a coloured cell must not follow the page's light or dark."""


def draw_grid(
    values: NDArray[Any],
    ax: Axes,
    *,
    rows: Sequence[Any],
    columns: Sequence[Any],
    label: str,
    row_label: str = "",
    column_label: str = "",
    low: float | None = None,
    high: float | None = None,
    diverging: bool = False,
    title: str | None = None,
) -> Axes:
    """Heatmap with a colour bar; small grids show the number of each cell.

    Parameters
    ----------
    values
        (row, column); NaN stays empty.
    ax
        Where to draw.
    rows, columns
        Names along the two axes; the first row is at the top for names, at the bottom for numbers.
    label
        What the numbers are.
    low, high
        Ends of the colour scale; those of the values by default.
    diverging
        Centred at 0: purple below, orange above.
    title
        Over the axes.

    Raises
    ------
    InvalidInputError
        If names and values do not fit, or no value is finite.
    """
    grid = np.asarray(values, np.float64)
    if grid.shape != (len(rows), len(columns)):
        raise InvalidInputError(f"expected values of shape {(len(rows), len(columns))}, found {grid.shape}")
    known = grid[np.isfinite(grid)]
    if not known.size:
        raise InvalidInputError(f"{label}: expected at least one finite value, found none")
    least, most = float(known.min()) if low is None else low, float(known.max()) if high is None else high
    if diverging:
        most = max(abs(least), abs(most)) or 1.0
        least = -most
    if most <= least:
        most = least + 1e-9
    named = not all(isinstance(row, int | np.integer) for row in rows)
    picture = ax.imshow(
        np.ma.masked_invalid(grid),
        aspect="auto",
        cmap=DIVERGING if diverging else SEQUENTIAL,
        vmin=least,
        vmax=most,
        interpolation="none",
        origin="upper" if named else "lower",
    )
    ax.set_xticks(_ticks(len(columns)), [str(columns[k]) for k in _ticks(len(columns))])
    ax.set_yticks(_ticks(len(rows), 12), [str(rows[k]) for k in _ticks(len(rows), 12)])
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    if grid.size <= WRITTEN:
        for (row, column), value in np.ndenumerate(grid):
            if np.isfinite(value):
                share = (value - least) / (most - least)
                dark = abs(share - 0.5) < 0.33 if diverging else share > 0.6
                ax.text(column, row, short(value), ha="center", va="center", fontsize=6, color=DARK if dark else LIGHT)
    assert ax.figure is not None
    bar = ax.figure.colorbar(picture, ax=ax, pad=0.015, fraction=0.05, aspect=25)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=2, labelsize=6.5)
    bar.set_label(label, fontsize=7)
    ax.set_xlabel(column_label)
    ax.set_ylabel(row_label)
    if title:
        ax.set_title(title)
    return ax


def draw_heads(
    values: NDArray[Any],
    layers: Sequence[int],
    ax: Axes,
    *,
    label: str,
    low: float | None = None,
    diverging: bool = False,
    title: str | None = None,
) -> Axes:
    """Heatmap of one number per head, decoder block by head.

    Parameters
    ----------
    values
        (layer, head); NaN stays empty.
    layers
        Numbers of the blocks.
    ax, label, low, diverging, title
        As of `draw_grid`.
    """
    rows, columns = [int(k) for k in layers], list(range(values.shape[1]))
    return draw_grid(
        values, ax, rows=rows, columns=columns, label=label, row_label="Decoder block", column_label="Head", low=low,
        diverging=diverging, title=title,
    )  # fmt: skip


def _ticks(count: int, most: int = 15) -> list[int]:
    step = next(k for k in (1, 2, 4, 5, 10, 20, 50, 100, count) if count <= most * k or k == count)
    return list(range(0, count, step))


def short(value: float) -> str:
    """Two decimals, without a leading zero, as a cell has room for."""
    text = f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−")
    return text.replace("0.", ".", 1) if abs(value) < 1 else text
