"""Localisation on the named objects: its section of a report."""

from __future__ import annotations

from stratascope.figures.localisation import AGAINST
from stratascope.report.attribution_figures import against
from stratascope.report.blocks import Block, Drawing, Missing, Prose, Table
from stratascope.report.figure_registry import FIGURES
from stratascope.results.collection import Findings


def pointing_blocks(findings: Findings, store: str) -> list[Block]:
    """Whether methods point at what the caption names."""
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
