"""What results of a part of the examples say, each beside those of all examples: never among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stratascope.report.blocks import Beside, Block, Drawing, Interval, Prose, Table
from stratascope.report.figure_registry import FIGURES
from stratascope.report.headline import percent
from stratascope.results.collection import Findings
from stratascope.results.source import Source
from stratascope.results.view import Found
from stratascope.store import choice_text

MOST_DRAWN = 4
HALF = 4.1
"""Inches of a figure beside another."""


def part_blocks(findings: Findings) -> list[Block]:
    """A row for all examples and one for each part that was asked after, and what its attention does; nothing where there are no parts."""
    parts = findings.parts
    if not parts:
        return []
    rows = {"all examples": findings.whole.own, **{f"only {choice_text(only)}": own for only, own in parts.items()}}
    cells: dict[str, dict[str, Any]] = {}
    sources: list[Source] = []
    for name, own in rows.items():
        for kind, (column, table, read) in _READ.items():
            for found in (f for f in own if f.kind == kind and f.weighing == "attention"):
                cells.setdefault(column, {})[name] = read(found)
                cells.setdefault("examples", {}).setdefault(name, _count(found))
                sources.append(found.source(table))
    columns = ["examples", *(column for column, _, _ in _READ.values() if column in cells)]
    shown = [[name, *(cells[column].get(name) for column in columns)] for name in rows if name in cells.get("examples", {})]
    words = (
        "Some results are of a part of the examples, chosen with --only. They stand here alone: all else on this page is of all "
        "examples, but for probes whose name says otherwise."
    )
    blocks: list[Block] = [Prose(words)]
    blocks += [Table(["of", *columns], shown, sources=sources)] if shown else []
    drawn = [block for only, own in parts.items() for block in _drawings(only, own)][:MOST_DRAWN]
    return [*blocks, *([Beside(drawn)] if drawn else [])]


def _drawings(only: Sequence[str], own: Sequence[Found]) -> list[Block]:
    said, findings = choice_text(only), Findings(own)
    blocks: list[Block] = []
    for kind, figure, title, array in (
        ("attention_share", "parts", "Where the final token looks", "arrays/share"),
        ("box_overlap", "overlap", "Which heads look at the things that are named", "arrays/overlap"),
    ):
        for found in findings.of(kind)[:1]:
            drawn = FIGURES[figure].figure(findings, width=HALF, height=2.6)
            alt = f"{FIGURES[figure].shows}, only {said}"
            blocks.append(Drawing(drawn, alt, "", f"{title}: only {said}", [found.source(array)]))
    return blocks


def _count(found: Found) -> int:
    if "example" in found.result.arrays:
        return len(found.result.arrays["example"][1])
    counts = found.attributes.get("examples")
    return int(counts) if counts is not None else int(found.table("confidence")["examples"].iloc[0])


def _right(found: Found) -> Any:
    row = found.table("confidence").iloc[0]
    ends = (row["accuracy_low"], row["accuracy_high"])
    return Interval(row["accuracy"], *ends) if np.isfinite(ends).all() else float(row["accuracy"])


def _on_image(found: Found) -> str:
    return percent(found.mean("share", found.attributes["parts"].index("image")))


def _in_boxes(found: Found) -> str:
    mean = found.mean("overlap", found.attributes["boxes"].index("both"))
    return f"{found.attributes['measure']} {mean:.2f}" if np.isfinite(mean) else "no boxes known"


def _best_head(found: Found) -> str:
    table = found.table("auroc")
    best = table.iloc[int(table["auroc"].to_numpy().argmax())]
    ends = f"[{best['low_simultaneous']:.2f}, {best['high_simultaneous']:.2f}]"
    return f"{best['auroc']:.2f} {ends}, block {int(best['layer'])} head {int(best['head'])}"


_READ: dict[str, tuple[str, str, Callable[[Found], Any]]] = {
    "answer_confidence": ("the model is right", "tables/confidence", _right),
    "attention_share": ("attention on the image", "arrays/share", _on_image),
    "box_overlap": ("attention in the boxes, mean over heads", "arrays/overlap", _in_boxes),
    "answer_prediction": ("AUROC for a right answer, best head", "tables/auroc", _best_head),
}
"""Kind -> column, where its number stands, what reads it."""
