"""Gallery of examples, each an image with a map over its cells; maps may be signed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.figures.style import COLOURS, DIVERGING, GREY, SEQUENTIAL, muted, overlay, paper_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GLYPHS = ("o", "^", "x", ".", "s", "D")


@dataclass(frozen=True)
class Tile:
    """One example of a gallery."""

    image: NDArray[np.uint8]
    """(height, width, 3)"""
    cells: NDArray[Any]
    """(row, column): transparent at 0, full colour at the largest size."""
    text: str = ""
    """Over the picture."""
    boxes: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Name -> x0, y0, x1, y1 as shares of width and height."""
    marks: NDArray[Any] | None = None
    """(row, column) names, each drawn as a small sign of its own."""
    signed: bool = False
    """Whether cells may be below 0; so it is where one of them is."""


def draw_gallery(
    tiles: Sequence[Tile], *, columns: int = 4, title: str = "", marks: Mapping[str, str] | None = None, heads: Sequence[str] = ()
) -> Figure:
    """A figure of all tiles, row by row.

    Parameters
    ----------
    tiles
        In the order of reading.
    columns
        Tiles in a row.
    title
        Over the figure.
    marks
        Names that the tiles' marks may have -> what the legend says of them.
    heads
        Over the columns, where each column shows one thing.

    Raises
    ------
    InvalidInputError
        If there are no tiles, or a map is not finite.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    if not tiles:
        raise InvalidInputError("expected at least one picture, found none")
    columns = min(columns, len(tiles))
    lines = -(-len(tiles) // columns)
    with paper_style():
        figure = Figure(figsize=(1.85 * columns, 2.15 * lines + 0.65 + 0.25 * bool(marks)))
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax in axes[len(tiles) :]:
            ax.remove()
        for k, (tile, ax) in enumerate(zip(tiles, axes, strict=False)):
            draw_tile(tile, ax, list(marks or ()))
            over = [heads[k]] if heads and k < columns else []
            ax.set_title("\n".join([*over, *filter(None, [tile.text])]), fontsize=6.5, fontweight="normal")
        if title:
            figure.suptitle(title, fontsize=8, x=0.01, ha="left")
        signed = any(tile.signed or (np.asarray(tile.cells) < 0).any() for tile in tiles)
        scale = ScalarMappable(Normalize(-1 if signed else 0, 1), DIVERGING if signed else SEQUENTIAL)
        bar = figure.colorbar(scale, ax=axes[: len(tiles)].tolist(), location="bottom", shrink=0.3, aspect=30, anchor=(0.0, 0.0))
        ends = {-1: "-largest", 0: "0", 1: "largest"} if signed else {0: "0", 1: "largest cell of the image"}
        bar.set_ticks(list(ends), labels=list(ends.values()))
        if marks:
            signs = [
                axes[0].scatter([], [], s=9, marker=sign, color="black", linewidths=0.6, label=label)
                for sign, label in zip(GLYPHS, marks.values(), strict=False)
            ]
            figure.legend(handles=signs, loc="outside lower left", ncols=len(marks), fontsize=6.5)
    return figure


def draw_tile(tile: Tile, ax: Axes, marks: Sequence[str] = ()) -> Axes:
    """Muted image with coloured cells, boxes and marks.

    Raises
    ------
    InvalidInputError
        If the map is not finite or no (row, column) grid.
    """
    from matplotlib.patches import Rectangle

    cells = np.asarray(tile.cells, np.float64)
    if cells.ndim != 2 or not np.isfinite(cells).all():
        raise InvalidInputError(f"expected a finite map (row, column), found shape {cells.shape}")
    height, width = tile.image.shape[:2]
    extent = (0.0, float(width), float(height), 0.0)
    ax.imshow(muted(tile.image), extent=extent)
    ax.imshow(overlay(cells, tile.signed), extent=extent, interpolation="nearest")
    for k, (name, (x0, y0, x1, y1)) in enumerate(tile.boxes.items()):
        colour = ("#000000", COLOURS[0])[k % 2]
        ax.add_patch(
            Rectangle((x0 * width, y0 * height), (x1 - x0) * width, (y1 - y0) * height, fill=False, edgecolor=colour, linewidth=1.2)
        )
        place, va = _label_place(name, (x0, y0, x1, y1), [box for other, box in tile.boxes.items() if other != name])
        ax.annotate(
            name, (x0 * width, place * height), color=colour, fontsize=6, va=va, xytext=(0, 1.5 if va == "bottom" else -1.5),
            textcoords="offset points", bbox={"facecolor": "white", "alpha": 0.7, "pad": 0.6, "linewidth": 0},
        )  # fmt: skip
    if tile.marks is not None:
        rows, columns = cells.shape
        for sign, name in zip(GLYPHS, marks, strict=False):
            row, column = np.nonzero(tile.marks == name)
            ax.scatter(
                (column + 0.5) * width / columns, (row + 0.5) * height / rows, s=min(9, 160 / max(rows, columns)), marker=sign,
                color="black", linewidths=0.5, alpha=0.7,
            )  # fmt: skip
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(GREY)
        spine.set_linewidth(0.4)
    return ax


def _label_place(name: str, box: Sequence[float], others: Sequence[Sequence[float]]) -> tuple[float, str]:
    """Edge of a box at which its name stands, and the name's alignment there: above it, or below where it would hide another object."""
    x0, y0, _, y1 = box
    width, height = 0.035 * len(name), 0.075
    hidden = []
    for top, inside in ((y0 - height, y0 >= height), (y1, y1 + height <= 1)):
        overlaps = [max(0.0, min(x0 + width, b[2]) - max(x0, b[0])) * max(0.0, min(top + height, b[3]) - max(top, b[1])) for b in others]
        hidden.append((not inside, sum(overlaps)))
    return (y0, "bottom") if hidden[0] <= hidden[1] else (y1, "top")
