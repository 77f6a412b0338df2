"""Style of all figures: colours for colour-blind readers (Okabe & Ito 2008), colour maps, sizes for one column of a paper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#777777"
SEQUENTIAL = "viridis"
"""Colour map of values with one direction, in figures and in the viewer."""
DIVERGING = "PuOr_r"
"""Colour map of signed values, purple below 0 and orange above; centred at 0."""
OPACITY = 0.8
"""Opacity of the largest value of a map over an image, as in the viewer."""
COLUMN_WIDTH = 3.4
"""Inches: one column of a two-column page."""

_SETTINGS: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.5,
    "figure.dpi": 150,
    "savefig.dpi": 220,
    "figure.constrained_layout.use": True,
    "text.parse_math": False,  # a caption with two dollar signs is no formula
    "svg.fonttype": "none",
    "svg.hashsalt": "stratascope",
    "pdf.fonttype": 42,
}


@contextmanager
def paper_style() -> Iterator[None]:
    """Matplotlib settings of all figures, for the time of a `with`; global settings are left as they were."""
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):
        yield


def overlay(values: NDArray[Any], signed: bool = False) -> NDArray[np.float64]:
    """Colours of a map over an image, as in the viewer: transparent at 0, `OPACITY` at the largest size.

    Parameters
    ----------
    values
        Any shape, finite.
    signed
        Whether the values may be below 0: `DIVERGING` instead of `SEQUENTIAL`; so it is where one of them is.

    Returns
    -------
    numpy.ndarray
        (..., 4) red, green, blue and opacity from 0 to 1.

    Examples
    --------
    >>> overlay(np.array([0.0, 2.0])).round(2).tolist()
    [[0.27, 0.0, 0.33, 0.0], [0.99, 0.91, 0.14, 0.8]]
    """
    import matplotlib as mpl

    values = np.asarray(values, np.float64)
    share = values / (float(np.abs(values).max(initial=0)) or 1.0)
    signed = signed or bool((values < 0).any())
    colours = np.array(mpl.colormaps[DIVERGING](0.5 + 0.5 * share) if signed else mpl.colormaps[SEQUENTIAL](share), np.float64)
    colours[..., 3] = OPACITY * np.minimum(1, 1.05 * np.abs(share) ** 0.75)
    return colours


def muted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image with less colour and light, so that a map over it can be seen; as in the viewer.

    Parameters
    ----------
    image
        (height, width, 3)
    """
    grey = image.mean(-1, keepdims=True)
    return np.asarray((1 - 0.36 * OPACITY) * ((1 - 0.5 * OPACITY) * image + 0.5 * OPACITY * grey), np.uint8)
