"""Section of a report on selections of examples (--only), each next to all examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from stratascope.report.blocks import Beside, Block, Drawing, Interval, Prose, Table
from stratascope.report.figure_registry import FIGURES
from stratascope.report.headline import percent
from stratascope.report.result_set import ResultSet
from stratascope.results.stored_result import Source, StoredResult
from stratascope.store import choice_text

MOST_DRAWN = 4
HALF = 4.1
"""Inches of a figure beside another."""


def selection_blocks(results: ResultSet) -> list[Block]:
    """One row for all examples and one for each selection, with figures of their attention; [] without selections."""
    selections = results.selections
    if not selections:
        return []
    rows = {"all examples": results.whole.own, **{f"only {choice_text(only)}": own for only, own in selections.items()}}
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
        "Some results are of a selection of the examples (--only). They are reported here alone. All other results on this page are of "
        "all examples, except probes whose name contains a selection."
    )
    blocks: list[Block] = [Prose(words)]
    blocks += [Table(["examples of", *columns], shown, sources=sources)] if shown else []
    drawn = [block for only, own in selections.items() for block in _drawings(only, own)][:MOST_DRAWN]
    return [*blocks, *([Beside(drawn)] if drawn else [])]


def _drawings(only: Sequence[str], own: Sequence[StoredResult]) -> list[Block]:
    said, results = choice_text(only), ResultSet(own)
    blocks: list[Block] = []
    for kind, figure, title, array in (
        ("attention_share", "parts", "Attention share by part of the prompt", "arrays/share"),
        ("box_overlap", "overlap", "Overlap of each head's attention with the gold boxes", "arrays/overlap"),
    ):
        for found in results.of(kind)[:1]:
            drawn = FIGURES[figure].figure(results, width=HALF, height=2.6)
            alt = f"{FIGURES[figure].shows}, only {said}"
            blocks.append(Drawing(drawn, alt, "", f"{title}: only {said}", [found.source(array)]))
    return blocks


def _count(found: StoredResult) -> int:
    if "example" in found.file.arrays:
        return len(found.file.arrays["example"][1])
    counts = found.attributes.get("examples")
    return int(counts) if counts is not None else int(found.table("confidence")["examples"].iloc[0])


def _right(found: StoredResult) -> Any:
    row = found.table("confidence").iloc[0]
    ends = (row["accuracy_low"], row["accuracy_high"])
    return Interval(row["accuracy"], *ends) if np.isfinite(ends).all() else float(row["accuracy"])


def _on_image(found: StoredResult) -> str:
    return percent(found.mean("share", found.attributes["parts"].index("image")))


def _in_boxes(found: StoredResult) -> str:
    mean = found.mean("overlap", found.attributes["boxes"].index("both"))
    return f"{found.attributes['measure']} {mean:.2f}" if np.isfinite(mean) else "no boxes"


def _best_head(found: StoredResult) -> str:
    table = found.table("auroc")
    best = table.iloc[int(table["auroc"].to_numpy().argmax())]
    ends = f"[{best['low_simultaneous']:.2f}, {best['high_simultaneous']:.2f}]"
    return f"{best['auroc']:.2f} {ends}, block {int(best['layer'])} head {int(best['head'])}"


_READ: dict[str, tuple[str, str, Callable[[StoredResult], Any]]] = {
    "answer_confidence": ("accuracy of the model", "tables/confidence", _right),
    "attention_share": ("attention share of the image", "arrays/share", _on_image),
    "box_overlap": ("overlap with the boxes, mean over heads", "arrays/overlap", _in_boxes),
    "answer_prediction": ("AUROC for a right answer, best head", "tables/auroc", _best_head),
}
"""Kind -> column, source of its number, function that reads it."""
