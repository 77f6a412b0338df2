"""What points at the things that are named: its figure and its part of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stratascope.figures.localisation import AGAINST, draw_ratios
from stratascope.report.blocks import Block, Drawing, Missing, Prose, Table
from stratascope.results.collection import Findings
from stratascope.results.view import Found

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stratascope.report.figure_selection import Choice

COMMAND = "stratascope pointing STORE --boxes instances.json"


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
