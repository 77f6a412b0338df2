"""What points at the things that are named: its figure and its part of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stratascope.figures.column_layout import name_rows, place_legend
from stratascope.figures.style import COLOURS, GREY, MARKERS
from stratascope.report.blocks import Block, Drawing, Missing, Prose, Table
from stratascope.results.collection import Findings
from stratascope.results.view import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stratascope.report.figure_selection import Choice

AGAINST = {"others": "other things", "ground": "the rest of the image"}
COMMAND = "stratascope pointing STORE --boxes instances.json"


def draw_ratios(table: pd.DataFrame, against: str, ax: Axes) -> Axes:
    """A line for each method: how many times as much it gives a cell of the named things, with its interval, on a log axis.

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
    for k, (rows, name) in enumerate(((measured, "measured by hiding"), (~measured, "computed"))):
        if rows.any():
            ax.hlines(place[rows], low[rows], high[rows], color=COLOURS[k], linewidth=2, alpha=0.45)
            ax.plot(value[rows], place[rows], MARKERS[k], color=COLOURS[k], label=name)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    name_rows(ax, table["label"].str.removesuffix(", measured").tolist(), f"named things over {AGAINST[against]}, by cell")
    place_legend(ax, inside="lower right")
    return ax


def draw_pointing(findings: Findings, ax: Axes, choice: Choice) -> Axes:
    """How much more each method gives the things that are named than others."""
    found = findings.one("pointing", "what points at the named things", COMMAND)
    return draw_ratios(found.table("methods"), against(found), ax)


def against(found: Found) -> str:
    """What the named things were compared with."""
    return "others" if found.attributes["others"] else "ground"


def pointing_blocks(findings: Findings, store: str) -> list[Block]:
    """Whether methods point at what the caption names."""
    from stratascope.report.figure_registry import FIGURES

    found = findings.of("pointing")
    if not found:
        what = "Whether methods point at the named things is not known yet; make it known with"
        return [Missing(what, f"stratascope pointing {store} --boxes instances.json")]
    table, beside = found[0].table("methods"), against(found[0])
    rows = [
        [r["label"], f"{r[f'over_{beside}']:.3g}", f"{r[f'over_{beside}_low']:.3g} to {r[f'over_{beside}_high']:.3g}", f"{r['wins']:.0%}"]
        for r in table.to_dict("records")
    ]
    return [
        Prose(
            "A method that says what the answer comes from should give the image's cells of the two things that the caption names more "
            f"than those of {AGAINST[beside]}. At 1 it does not know them."
        ),
        Drawing(
            FIGURES["pointing"].figure(findings, width=6.4, height=0.7 + 0.24 * len(table)),
            f"how many times as much each method gives a cell of the named things as one of {AGAINST[beside]}, with intervals",
            "Mean size of a cell's score over examples, and 95 % intervals by bootstrap over images. Measured: the effect of hiding.",
            "",
            [found[0].source("tables/methods")],
        ),
        Table(
            ["method", "named over others" if beside == "others" else "named over the rest", "95 % interval", "of the examples"],
            rows,
            caption=f"The last column: in how many examples named cells have more. {int(table['examples'].max())} examples.",
            sources=[found[0].source("tables/methods")],
        ),
    ]
