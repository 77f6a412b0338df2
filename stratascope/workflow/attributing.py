"""Direct logit attribution as a command does it: computed, saved, drawn, and said with whether it adds up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stratascope.figures.attributions import draw_carried
from stratascope.report import new_figure, paper_style, save_figure
from stratascope.store import choice_of
from stratascope.workflow.telling import file_name, part_lines, result_path, titled, told

if TYPE_CHECKING:
    from stratascope.analysis import LogitAttribution
    from stratascope.store import ActivationStore

SAID = 5
"""Heads that are named."""


def attribute_and_draw(store: ActivationStore, folder: Path, *, only: Sequence[str] = (), scheduler: str | None = None) -> str:
    """Attribution of the answers' logit difference to heads, blocks and parts of the prompt: saved, drawn, and said."""
    from stratascope.analysis import logit_attribution

    found = logit_attribution(store, only=only, scheduler=scheduler)
    name = file_name("attribution", *only)
    found.save(result_path(folder, name))
    path = draw_attribution(found, folder / f"{name}.png")
    about = part_lines(store, only, len(found.examples))
    return told(folder, [*about, attribution_text(found)], [path])


def attribution_text(found: LogitAttribution) -> str:
    """Whether it adds up, what heads and the rest carry, and which heads most."""
    first, second = found.attributes["choices"]
    lines = [f"what adds up to logit({first}) - logit({second}) at the final token, {len(found.examples)} examples"]
    if np.isfinite(found.remainder).all():
        typical = float(np.abs(found.difference).mean())
        lines.append(f"heads + blocks + embedding equal the model's own difference within {np.abs(found.remainder).max():.1g}; "
                     f"its mean size is {typical:.2f}")  # fmt: skip
    else:
        lines.append("the store does not hold what blocks and embedding add (mlp_logits, embedding_logits): heads alone do not add up")
    heads, rest = found.carried.sum(), found.carried_by_blocks.sum()
    beside = f", the rest of the blocks {rest:.0%}" if np.isfinite(rest) else ""
    lines.append(f"of the difference's variance over examples all heads carry {heads:.0%}{beside}")
    table = found.head_table().sort_values("carried", ascending=False, key=abs, kind="stable").head(SAID)
    parts = [name for name in table.columns if name.startswith("support_")]
    for row in table.to_dict("records"):
        through = f", most through {max(parts, key=lambda name: abs(row[name])).removeprefix('support_')}" if parts else ""
        lines.append(f"  block {row['layer']} head {row['head']}: {row['carried']:+.1%} of the variance{through}")
    return "\n".join(lines)


def draw_attribution(found: LogitAttribution, path: Path) -> Path:
    """What each head and the rest of each block carry of the difference, by block."""
    figure, (ax,) = new_figure(1, width=4.6, height=2.9)
    first, second = found.attributes["choices"]
    with paper_style():
        draw_carried(
            found.carried,
            found.carried_by_blocks,
            found.attributes["layers"],
            ax,
            label="share of the difference's variance",
            title=titled(f"what writes logit({first}) - logit({second})", choice_of(found.attributes)),
        )
    return save_figure(figure, path)
