"""Attribution: direct logit attribution by decoder block, and localisation of methods on the named objects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.figures.column_layout import name_rows, place_legend
from stratascope.figures.style import COLOURS, GREY, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AGAINST = {"others": "other objects", "ground": "the rest of the image"}


def draw_carried(
    heads: NDArray[Any], blocks: NDArray[Any], layers: Sequence[int], ax: Axes, *, label: str, title: str | None = None
) -> Axes:
    """Attribution of heads and of the rest of each block: one dot per head, lines for their sum and for the rest.

    Parameters
    ----------
    heads
        (layer, head) what each head carries or adds.
    blocks
        (layer,) the rest of each block; NaN where it is not known.
    layers
        Numbers of the blocks.
    label
        What the numbers are.
    """
    from matplotlib.ticker import MaxNLocator

    place = np.asarray(layers)
    ax.axhline(0, color=GREY, linewidth=0.6, zorder=0)
    ax.scatter(np.broadcast_to(place[:, None], heads.shape), heads, s=9, color=COLOURS[0], alpha=0.55, linewidths=0, label="one head")
    ax.plot(place, heads.sum(1), color=COLOURS[0], marker=MARKERS[0], label="all heads")
    if np.isfinite(blocks).any():
        ax.plot(place, blocks, color=COLOURS[1], marker=MARKERS[1], label="MLP and biases")
    ax.set_xlabel("Decoder block")
    ax.set_ylabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="best")
    if title:
        ax.set_title(title)
    return ax


def draw_sum(steps: Sequence[tuple[str, float, float]], ax: Axes, *, start: float, ends: tuple[str, str], title: str | None = None) -> Axes:
    """Waterfall of the logit difference over decoder blocks.

    Parameters
    ----------
    steps
        Name, what the heads add, what the rest adds, in order.
    start
        Contribution of the embedding.
    ends
        Choices that a sum above and below 0 favours.
    """
    place, level = 0.0, start
    ax.axhline(0, color=GREY, linewidth=0.6, zorder=0)
    ax.bar(place, start, width=0.7, color=GREY, label="embedding")
    for _, of_heads, of_rest in steps:
        for k, (value, colour, name) in enumerate(((of_heads, COLOURS[0], "heads"), (of_rest, COLOURS[1], "MLP and biases"))):
            at = place + 0.81 + 0.38 * k
            ax.bar(at, value, bottom=level, width=0.36, color=colour, label=name if place == 0 else None)
            ax.hlines(level + value, at - 0.18, at + 0.56, color=GREY, linewidth=0.5)
            level += value
        place += 1
    ax.bar(place + 1, level, width=0.7, color=COLOURS[2], label="sum")
    ax.set_xticks(range(len(steps) + 2), ["emb.", *(name for name, _, _ in steps), "sum"])
    ax.set_xlabel("Decoder block")
    ax.set_ylabel(f"logit({ends[0]}) − logit({ends[1]})")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    if title:
        ax.set_title(title)
    return ax


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
