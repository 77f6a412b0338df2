"""Rollout as a command does it: computed, saved, drawn over the images, and said in a few words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stratascope.report import draw_overlay, paper_style, save_figure
from stratascope.workflow.choosing import MOST_SHOWN, first_examples, ids_line, those_held
from stratascope.workflow.pictures import picture, relative_boxes, said
from stratascope.workflow.telling import part_lines, result_path, told

if TYPE_CHECKING:
    from stratascope.analysis import RolloutResult
    from stratascope.analysis.rollout import Form
    from stratascope.store import ActivationStore


def roll_and_draw(
    store: ActivationStore,
    folder: Path,
    *,
    examples: str | Sequence[int | str] | None,
    window: tuple[int, int] | None,
    form: Form = "raw",
    discard: float = 0.0,
    tower: str = "decoder",
) -> str:
    """Rollout of chosen examples: saved, drawn over the images, and said with what the image and the first token get."""
    from stratascope.analysis import rollout_examples

    asked = first_examples(store, "attention_maps", examples) if tower == "decoder" else None
    chosen, left_out = those_held(store, "attention_maps", asked)
    found = rollout_examples(store, chosen, window=window, form=form, discard=discard, tower=tower)
    found.save(result_path(folder, "rollout"))
    path = draw_rollouts(store, found, folder / "rollout.png")
    first, last = found.attributes["window"] or (0, store.layout.layers)
    onto = sum(float(found.onto_image(k).sum()) for k in range(len(found.examples))) / len(found.examples)
    said = f"{form} rollout, blocks {first} to {last - 1}, {len(found.examples)} examples: {onto:.1%} on the image, "
    said += f"{float(found.values[:, 0, 0].mean()):.1%} on the first token"
    partial = [] if store.complete else part_lines(store, (), len(found.examples))
    lines = [*left_out, *partial, said, ids_line(store, found.examples["example"].tolist())]
    return told(folder, lines, [path])


def draw_rollouts(store: ActivationStore, found: RolloutResult, path: Path) -> Path:
    """Up to eight examples: image, rollout onto its cells, boxes where known, number, caption, label and the model's answer."""
    shown = range(min(len(found.examples), MOST_SHOWN))
    columns = len(shown) if len(shown) <= 5 else min((4, 3), key=lambda n: -len(shown) % n)
    from matplotlib.figure import Figure

    with paper_style():
        lines = -(-len(shown) // columns)
        figure = Figure(figsize=(1.85 * columns, 2.25 * lines + 0.25))
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax in axes[len(shown) :]:
            ax.remove()
        numbers = [int(found.examples["example"].iloc[k]) for k in shown]
        for k, (number, boxes) in enumerate(zip(numbers, relative_boxes(store, numbers), strict=True)):
            row = store.examples.iloc[number]
            cells = found.onto_image(k)
            caption = textwrap.fill(f"#{number} {row.caption}", 34)
            text = f"{caption}\n{textwrap.fill(said(store, number), 40)}\n{cells.sum():.0%} of it on the image"
            draw_overlay(picture(store, number), cells, axes[k], boxes=boxes)
            axes[k].set_title(text, fontsize=6.5, fontweight="normal")
        span = found.attributes["window"] or [0, store.layout.layers]
        figure.suptitle(
            f"{found.attributes['form']} rollout of the final token, blocks {span[0]} to {span[1] - 1}, "
            f"{found.attributes['fusion']} over heads; full tint: the image's largest cell",
            fontsize=8,
            x=0.01,
            ha="left",
        )
    return save_figure(figure, path)
