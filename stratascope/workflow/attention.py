"""Answers, attention share and rollout as commands do them: computed, saved, drawn, and said in a few words."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stratascope.report import draw_attention_share, draw_overlay, new_figure, paper_style, save_figure
from stratascope.workflow.choosing import MOST_SHOWN, first_examples, those_held
from stratascope.workflow.pictures import picture, relative_boxes, said
from stratascope.workflow.telling import file_name, part_lines, result_path, titled, told

if TYPE_CHECKING:
    from stratascope.analysis import AttentionShare, RolloutResult
    from stratascope.analysis.rollout import Form
    from stratascope.store import ActivationStore


def save_answers(store: ActivationStore, folder: Path, *, only: Sequence[str] = ()) -> str:
    """How often the model is right and how sure it is: saved, and said over all relations and for the best and the worst."""
    from stratascope.analysis import answer_confidence

    found = answer_confidence(store, only=only)
    found.save(result_path(folder, "answers", *only))
    rows = found.table[found.table["relation"] != ""].sort_values("accuracy", kind="stable")
    chosen = [found.table.iloc[0]] + ([rows.iloc[-1], rows.iloc[0]] if len(rows) > 1 else [])
    lines = [
        f"{row['relation'] or 'all relations':<16} right {row['accuracy']:6.1%} [{row['accuracy_low']:.1%}, {row['accuracy_high']:.1%}] "
        f"of {row['examples']:,}, confidence {row['confidence']:.2f}"
        for row in chosen
    ]
    lines[:0] = part_lines(store, only, len(found.answers))
    if found.attributes["condition"].startswith("untrained"):
        lines.insert(0, "of untrained weights, not of the model:")
    return told(folder, lines)


def share_and_draw(store: ActivationStore, folder: Path, *, weighing: str = "attention", only: Sequence[str] = ()) -> str:
    """Attention share of all examples or those chosen, or norm-based: saved, drawn, and said for the block where the image gets most."""
    from stratascope.analysis import attention_share

    found = attention_share(store, weighing=weighing, only=only)
    name = file_name("share", None if weighing == "attention" else weighing, *only)
    found.save(result_path(folder, name))
    figure, (ax,) = new_figure(1, width=4.6, height=2.9)
    with paper_style():
        title = "where the final token looks" + (", by norm" if weighing == "norm" else "")
        draw_attention_share(found.values, found.tokens, found.parts, ax, title=titled(title, only))
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    path = save_figure(figure, folder / f"{name}.png")
    about = part_lines(store, only, len(found.examples))
    return told(folder, [*about, share_text(found)], [path])


def share_text(found: AttentionShare) -> str:
    """The image's share and its highest block, sinks by the places where they lie, and what the image has without them."""
    from stratascope.analysis.sinks import DROPPED

    image = found.parts.index("image")
    by_block = found.values[..., image].mean((0, 2))
    best = int(by_block.argmax())
    lines = [
        f"image: {found.tokens[:, image].mean():.1%} of the tokens, {by_block[best]:.1%} of the final token's attention in block "
        f"{found.attributes['layers'][best]} (its highest, mean over heads), {by_block.mean():.1%} over all blocks"
    ]
    sinks = found.sink_table()
    for row in sinks.to_dict("records"):
        if row["count"] > 0:
            lines.append(
                f"sinks, {row['place'].replace('_', ' ')}: {row['count']:.2f} an example, in {row['examples_with']:.0%} of them; they draw "
                f"{row['attention']:.1%} of the attention, most in block {row['layer']} head {row['head']}: {row['highest']:.1%}"
            )
    if len(lines) == 1:
        return f"{lines[0]}\nno sinks: no token takes {found.attributes['times']:g} times its fair share"
    if not sinks.loc[sinks["place"].isin(DROPPED), "count"].any():
        return "\n".join(lines)
    means = found.head_table()
    without = float(means.loc[means["part"] == "image", "share_without_sinks"].mean())
    if without != without:
        return "\n".join([*lines, "the sinks take everything: nothing can be said of the rest"])
    return "\n".join([*lines, f"without the sinks at the first token and the image's edge: {without:.1%} on the image over all blocks"])


def roll_and_draw(
    store: ActivationStore,
    folder: Path,
    *,
    examples: Sequence[int | str] | None,
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
    return told(folder, [*left_out, said], [path])


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
