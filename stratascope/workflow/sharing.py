"""Attention share as a command does it: computed, saved, drawn, and said for the block where the image gets most."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stratascope.report import draw_attention_share, new_figure, paper_style, save_figure
from stratascope.workflow.telling import file_name, part_lines, result_path, titled, told

if TYPE_CHECKING:
    from stratascope.analysis import AttentionShare
    from stratascope.store import ActivationStore


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
