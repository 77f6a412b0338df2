"""What adds up to the answers' logit difference, by decoder block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stratascope.report.style import COLOURS, GREY, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_carried(
    heads: NDArray[Any], blocks: NDArray[Any], layers: Sequence[int], ax: Axes, *, label: str, title: str | None = None
) -> Axes:
    """Heads and the rest of each block: one dot a head, a line through their sum, one through the rest.

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
    ax.plot(place, heads.sum(1), color=COLOURS[0], marker=MARKERS[0], label="all heads of the block")
    if np.isfinite(blocks).any():
        ax.plot(place, blocks, color=COLOURS[1], marker=MARKERS[1], label="rest of the block (MLP, biases)")
    ax.set_xlabel("decoder block")
    ax.set_ylabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(loc="best")
    if title:
        ax.set_title(title)
    return ax
