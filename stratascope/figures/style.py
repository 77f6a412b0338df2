"""Style of all figures: colours for colour-blind readers (Okabe & Ito 2008), colour maps, sizes for one column of a paper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#777777"
SEQUENTIAL = "viridis"
"""Colour map of values with one direction, in figures and in the viewer."""
DIVERGING = "PuOr_r"
"""Colour map of signed values, purple below 0 and orange above; centred at 0."""
TINT, TINT_BELOW = (0.86, 0.29, 0.0), (0.33, 0.15, 0.53)
"""Tints over images, above and below 0: red, green, blue."""
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
