"""Entanglement of the vision tower as a command does it: computed, saved, drawn, and said in a few words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stratascope.figures.vision_tower import draw_tower
from stratascope.report import new_figure, paper_style, save_figure
from stratascope.workflow.telling import result_path, told

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.probe import Entanglement
    from stratascope.store import ActivationStore


def entangle_and_draw(
    store: ActivationStore, folder: Path, *, full_attention: Sequence[int] | None = None, seed: int = 0, scheduler: str | None = None
) -> str:
    """Entanglement of a store: saved, drawn, and said for the first and the last layer of the tower and the merged cells."""
    from stratascope.probe import entanglement

    found = entanglement(store, full_attention=full_attention, seed=seed, scheduler=scheduler)
    found.save(result_path(folder, "entanglement"))
    path = draw_entanglement(found, folder / "entanglement.png")
    lines = [
        _said(found, position, what) for position, what in dict.fromkeys(zip(found.table["position"], found.table["what"], strict=True))
    ]
    if found.attributes["without_relation"]:
        lines.append(f"not asked for the relation: {found.attributes['without_relation']}")
    return told(folder, lines, [path])


def _said(found: Entanglement, position: str, what: str) -> str:
    from stratascope.probe.vision_tower import MERGED

    rows = found.rows(position, what)
    tower, merged = rows[rows["stage"] == "tower"], rows[rows["stage"] == MERGED]
    best = tower.iloc[int(tower["value"].to_numpy(float).argmax())]
    last = f", merged {merged['value'].iloc[0]:.2f}" if len(merged) else ""
    first, cells = tower["value"].iloc[0], position.replace("_", " ")
    return (
        f"{what:<14} from the {cells}: {first:+.2f} before the first block, highest {best['value']:.2f} [{best['low']:.2f}, "
        f"{best['high']:.2f}] after {int(best['layer'])} blocks{last} (chance {best['chance']:.2f}){_rise(tower)}"
    )


def _rise(tower: pd.DataFrame) -> str:
    """At which block it rises most, where the intervals before and after it part."""
    gains = np.diff(tower["value"].to_numpy(float))
    k = int(gains.argmax()) if len(gains) else 0
    if not len(gains) or not tower["low"].iloc[k + 1] > tower["high"].iloc[k]:
        return ""
    whole = ", which sees the whole image" if tower["whole_image"].iloc[k + 1] else ""
    return f"; rises most, by {gains[k]:.2f}, at block {int(tower['layer'].iloc[k + 1]) - 1}{whole}"


def draw_entanglement(found: Entanglement, path: Path) -> Path:
    """Two panels, cells of subject and object: scores by block; blocks that see the whole image are marked, unless all do."""
    from stratascope.probe.vision_tower import PLACES

    positions = list(dict.fromkeys(found.table["position"]))
    marked = found.attributes["full_attention"]
    marked = [] if len(marked) >= found.table["layer"].max() else marked
    figure, axes = new_figure(len(positions), width=3.3 * len(positions), height=2.7)
    with paper_style():
        for position, ax in zip(positions, axes, strict=True):
            own = found.table[found.table["position"] == position]
            curves = {what: found.rows(position, what) for what in dict.fromkeys(own["what"])}
            draw_tower(curves, ax, full_attention=marked, title=f"read from the cells of the {PLACES[position][0]}")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return save_figure(figure, path)
