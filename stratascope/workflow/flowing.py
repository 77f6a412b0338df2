"""Attention flow as a command does it: computed, saved, drawn with what limits it, and said in a few words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stratascope.figures.gallery import Tile, draw_gallery
from stratascope.report import save_figure
from stratascope.workflow.choosing import MOST_SHOWN, first_examples, ids_line, those_held
from stratascope.workflow.pictures import picture, relative_boxes, verdict
from stratascope.workflow.telling import part_lines, result_path, told

if TYPE_CHECKING:
    from stratascope.analysis import FlowResult
    from stratascope.store import ActivationStore

LIMITS = {
    "source": "limited by what leaves the final token's column",
    "target": "by what enters the cell's own",
    "other": "by another cut",
}


def flow_and_draw(
    store: ActivationStore,
    folder: Path,
    *,
    examples: str | Sequence[int | str] | None = None,
    window: tuple[int, int] | None = None,
    scheduler: str | None = None,
) -> str:
    """Exact flow of chosen examples to every token and span: saved, drawn over the images, and said with its limiting cuts."""
    from stratascope.analysis import flow_examples

    chosen, left_out = those_held(store, "attention_maps", first_examples(store, "attention_maps", examples))
    found = flow_examples(store, chosen, window=window, scheduler=scheduler)
    found.save(result_path(folder, "flow"))
    path = draw_flows(store, found, folder / "flow.png")
    partial = [] if store.complete else part_lines(store, (), len(found.examples))
    lines = [*left_out, *partial, flow_text(found), ids_line(store, found.examples["example"].tolist())]
    return told(folder, lines, [path])


def flow_text(found: FlowResult) -> str:
    """Where flow is limited, which spans are saturated, and whether the values say anything of the tokens."""
    from stratascope.analysis.flow import CUTS

    first, last = found.attributes["window"]
    limits = found.cuts[found.cuts >= 0]
    shares = ", ".join(f"{name} {np.mean(limits == CUTS.index(name)):.0%}" for name in CUTS if (limits == CUTS.index(name)).any())
    lines = [
        f"flow through blocks {first} to {last - 1}, {len(found.examples)} examples; limited at: {shares}",
        "median rank correlation of flow with the token's position: "
        f"{found.examples['position_correlation'].median():.2f} (near -1: flow tells the position, and nothing of the token)",
    ]
    spans = found.spans.groupby("span", sort=False).agg(value=("value", "mean"), saturated=("saturated", "mean"))
    for name, value, saturated in zip(spans.index, spans["value"], spans["saturated"], strict=True):
        full = f"  saturated in {saturated:.0%} of examples: all that the final token sends can reach it" if saturated else ""
        lines.append(f"  into {name:<14} {value:.3f}{full}")
    warned = int((found.examples["warning"] != "").sum())
    if warned:
        lines.append(f"warning ({warned} of {len(found.examples)} examples): {found.examples['warning'].max()}, such as --window A-B")
    return "\n".join(lines)


def draw_flows(store: ActivationStore, found: FlowResult, path: Path) -> Path:
    """Up to eight examples: flow to each image cell as tint, what limits it as a sign."""
    from stratascope.analysis.flow import CUTS
    from stratascope.analysis.rollout_results import on_image

    numbers = [int(number) for number in found.examples["example"].iloc[:MOST_SHOWN]]
    tiles = []
    for k, (number, boxes) in enumerate(zip(numbers, relative_boxes(store, numbers), strict=True)):
        row, cells = store.examples.iloc[number], found.onto_image(k)
        follows = found.examples["position_correlation"].iloc[k]
        text = f"{textwrap.fill(row.caption, 34)}\n{verdict(store, number)}; correlation with position {follows:.2f}"
        # flow to all cells has a floor that says nothing of one of them
        lowest = float(cells.min())
        tiles.append(Tile(picture(store, number), cells - lowest, text, boxes, np.array(CUTS)[on_image(found.examples, found.cuts, k)]))
    first, last = found.attributes["window"]
    title = f"flow from the final token, blocks {first} to {last - 1}; no tint: the image's lowest cell, full tint: its highest"
    return save_figure(draw_gallery(tiles, title=title, marks=LIMITS), path)
