"""Which methods to believe, as commands do it: agreement with hiding and pointing at named things, computed, saved, drawn and said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratascope.figures.correlations import draw_correlations
from stratascope.report import new_figure, paper_style, save_figure
from stratascope.report.faithfulness import HIDDEN_FROM, TARGETS
from stratascope.report.localisation import AGAINST, draw_ratios
from stratascope.workflow.telling import part_lines, result_path, told

MOST_NAMED = 5
"""Images whose refused boxes are named."""

if TYPE_CHECKING:
    from stratascope.analysis import Faithfulness, Pointing
    from stratascope.store import ActivationStore


def compare_and_draw(store: ActivationStore, folder: Path, *, seed: int = 0, scheduler: str | None = None) -> str:
    """Every method's agreement with hiding: saved, drawn, and said for the setting that leads."""
    from stratascope.analysis import faithfulness

    found = faithfulness(store, seed=seed, scheduler=scheduler)
    found.save(result_path(folder, "faithfulness"))
    path = draw_faithfulness(found, folder / "faithfulness.png")
    return told(folder, [*([] if store.complete else part_lines(store, (), len(found.examples))), faithfulness_text(found)], [path])


def faithfulness_text(found: Faithfulness) -> str:
    """The best method and by how much, the others in order, and what to record for those that are missing."""
    best = found.best
    lines = []
    modes = [best["mode"], *(m for m in dict.fromkeys(found.table["mode"]) if m != best["mode"])]
    for targets in dict.fromkeys([best["targets"], *found.table["targets"]]):
        for mode in modes:
            rows = found.rows(targets, mode, best["window"])
            lines.append(
                f"rank correlation with the effect of {TARGETS[targets]} {HIDDEN_FROM.get(mode, mode)} in blocks {best['window']}; "
                f"mean effect {rows['effect_size'].iloc[0]:.3f} logits, {int(rows['examples'].max())} examples on "
                f"{int(rows['images'].max())} images"
            )
            lines += [
                f"  {row['correlation']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]  {row['label']}" for row in rows.to_dict("records")
            ]
    if "second" in best:
        about = f"{TARGETS[best['targets']]} {HIDDEN_FROM.get(best['mode'], best['mode'])}"
        sure = "" if best["ahead_low"] > 0 else ", which may be chance"
        ahead = f"{best['ahead']:.2f} [{best['ahead_low']:.2f}, {best['ahead_high']:.2f}] ahead of the next{sure}"
        lines.append(f"best for {about}: {best['label']}, {ahead}")
    lines += [f"not compared: {name}; record {arrays}" for name, arrays in found.attributes["missing"].items()]
    return "\n".join(lines)


def point_and_draw(store: ActivationStore, folder: Path, *, boxes: Path | None = None, seed: int = 0, scheduler: str | None = None) -> str:
    """How far every method points at the named things: saved, drawn, and said."""
    from stratascope.analysis import pointing
    from stratascope.datasets.boxes import BoxIndex
    from stratascope.datasets.examples import files_digest

    found = pointing(store, None if boxes is None else BoxIndex.from_coco(boxes), seed=seed, scheduler=scheduler)
    if boxes is not None:
        found = replace(found, attributes={**found.attributes, "boxes": files_digest([boxes])})
    found.save(result_path(folder, "pointing"))
    with paper_style():
        figure, (ax,) = new_figure(1, width=5.2, height=0.7 + 0.24 * len(found.table))
        draw_ratios(found.table, found.against, ax)
    path = save_figure(figure, folder / "pointing.png")
    return told(folder, [*([] if store.complete else part_lines(store, (), len(found.examples))), pointing_text(found)], [path])


def pointing_text(found: Pointing) -> str:
    """Each method's ratio, and what to record for those that are missing."""
    beside = found.against
    lines = [
        f"a cell of the named things, times one of {AGAINST[beside]} (mean size of the score, {len(found.examples)} examples); "
        "in how many of them it is more"
    ]
    for row in found.table.to_dict("records"):
        value, low, high = (row[f"over_{beside}{end}"] for end in ("", "_low", "_high"))
        lines.append(f"  {value:6.2f} [{low:.2f}, {high:.2f}]  {row['wins']:4.0%}  {row['label']}")
    lines += _alignment_text(found.attributes.get("box_alignment", {}))
    if beside == "ground":
        lines.append("other things are not told from the ground: give all boxes of the images with --boxes")
    return "\n".join([*lines, *(f"not compared: {name}; record {arrays}" for name, arrays in found.attributes["missing"].items())])


def _alignment_text(alignment: dict[str, Any]) -> list[str]:
    """How the boxes of --boxes were aligned with the photos, where not all are as annotated."""
    counts = [f"{alignment[case]:,} images' boxes {case}" for case in ("scaled", "turned") if case in alignment]
    lines = [f"{' and '.join(counts)} to their photos"] if counts else []
    refused = list(alignment.get("refused", {}).items())
    if refused:
        more = f"; and {len(refused) - MOST_NAMED} more" if len(refused) > MOST_NAMED else ""
        named = "; ".join(f"{name}: {reason}" for name, reason in refused[:MOST_NAMED])
        lines.append(f"left out, {len(refused):,} images whose boxes do not fit their photo: {named}{more}")
    return lines


def draw_faithfulness(found: Faithfulness, path: Path) -> Path:
    """One panel for cells and one for spans: each method's correlation where all blocks are hidden, for both modes."""
    from matplotlib.figure import Figure

    table = found.table[(found.table["effect"] == "size") & (found.table["window"] == found.table["window"].iloc[0])]
    kinds = list(dict.fromkeys(table["targets"]))
    order = found.rows(found.best["targets"], found.best["mode"])["label"].tolist()
    with paper_style():
        figure = Figure(figsize=(2.6 + 2.3 * len(kinds), 0.6 + 0.27 * len(order)))
        axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
        for kind, ax in zip(kinds, axes, strict=True):
            rows = table[table["targets"] == kind]
            modes = {HIDDEN_FROM.get(mode, mode): rows[rows["mode"] == mode] for mode in dict.fromkeys(rows["mode"])}
            draw_correlations(modes, order, ax, title=TARGETS[kind])
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=len(labels))
    return save_figure(figure, path)
