"""Section of a report on probes of single image tokens."""

from __future__ import annotations

from stratascope.figures.drawing import metric_name
from stratascope.report.blocks import Block, Drawing, Folded, Interval, Prose, Table
from stratascope.report.result_set import ResultSet


def patch_blocks(results: ResultSet) -> list[Block]:
    """Probes of single image tokens by layer: figure and numbers of each result; empty without any."""
    blocks: list[Block] = []
    for found in results.of("patch_probes"):
        result = found.result
        rows = [
            [row["curve"], metric_name(row["metric"]), int(row["layer"]), Interval(row["value"], row["low"], row["high"]), row["chance"]]
            for row in result.table.to_dict("records")
        ]
        blocks += [
            Prose("Probes of the residual stream at single image tokens: what the cell shows, where it is, and where another one lies."),
            Drawing(
                result.figure(),
                "scores of probes on single image tokens by decoder layer, with the probe on the position of the cell alone",
                f"{'. '.join(line.strip() for line in result.summary().splitlines())}. Bootstrap over images.",
                "",
                [found.source("tables/table")],
            ),
            Folded(
                "Single image tokens: table",
                [Table(["curve", "score", "layer", "value, CI", "chance"], rows, sources=[found.source("tables/table")])],
            ),
        ]
    return blocks
