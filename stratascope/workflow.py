"""What one command does with a store: compute, save the results, draw them, and say in a few words what came out."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.report import draw_attention_share, draw_layer_curves, draw_overlay, new_figure, paper_style, save_figure

if TYPE_CHECKING:
    from stratascope.analysis import RolloutResult
    from stratascope.probe import LayerCurve
    from stratascope.store import ActivationStore

SHOWN_ROLLOUTS = 8
PLAIN_GROUND = 235


def probe_and_draw(
    store: ActivationStore,
    baseline: ActivationStore | None,
    folder: Path,
    *,
    tasks: Sequence[str],
    positions: Sequence[str] | None,
    folds: int,
    seed: int,
    scheduler: str | None = None,
    progress: bool = False,
) -> str:
    """Probe every task at every position, save each curve, draw one figure a task; the text names peaks, onsets and files."""
    chosen = tuple(positions or store.layout.positions)
    lines: list[str] = []
    drawn: dict[str, dict[str, LayerCurve]] = {}
    muted: dict[str, dict[str, LayerCurve]] = {}
    for which, suffix in ((store, ""), (baseline, "baseline")):
        for position in chosen if which is not None else ():
            assert which is not None
            for curve in _curves(which, tasks, position, folds=folds, seed=seed, scheduler=scheduler, progress=progress):
                save_curve(curve, folder, suffix)
                kept, name = (muted, f"{position}, baseline") if suffix else (drawn, position)
                kept.setdefault(curve.task, {})[name] = curve
                lines.append(f"{curve.task:<16} {position:<12} {peak_text(curve)}{'  (baseline)' if suffix else ''}")
                if suffix:
                    over = drawn[curve.task][position].difference(curve)
                    lines.append(f"{curve.task:<16} {position:<12} over the baseline: {over.onset()}, {over.offset()}")
    for task, curves in drawn.items():
        path = draw_curves(
            curves, folder / f"probe-{_file_name(task)}.png", muted=muted.get(task, {}), title=f"{task}: what a probe reads, by layer"
        )
        lines.append(f"figure {path}")
    return "\n".join([*lines, f"results in {folder}"])


def _curves(store: ActivationStore, tasks: Sequence[str], position: str, **options: Any) -> list[LayerCurve]:
    """The curves of one position, over the examples that have it."""
    from stratascope.probe import probe_study

    present = store.position_present[:, store.layout.positions.index(position)] if position in store.layout.positions else None
    examples = None if present is None or present.all() else np.flatnonzero(present)
    return probe_study(store, tasks, (position,), examples=examples, **options)


def save_curve(curve: LayerCurve, folder: Path, suffix: str = "") -> Path:
    """Save as probe-TASK-POSITION[-SUFFIX].zarr.zip in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("-".join(filter(None, ["probe", _file_name(curve.task), curve.position, suffix])) + ".zarr.zip")
    curve.save(path)
    return path


def _file_name(task: str) -> str:
    return task.replace(":", "-")


def peak_text(curve: LayerCurve) -> str:
    """The best layer's accuracy with its interval, and where the score first rises above chance."""
    rows = curve.rows("accuracy")
    best = rows.iloc[int(rows["value"].to_numpy().argmax())]
    interval = f"[{best['low']:.3f}, {best['high']:.3f}]"
    return f"accuracy {best['value']:.3f} {interval} at layer {int(best['layer'])}, chance {best['chance']:.3f}; {curve.onset}"


def draw_curves(
    curves: Mapping[str, LayerCurve], path: Path, *, muted: Mapping[str, LayerCurve], title: str, metric: str = "accuracy"
) -> Path:
    """Layer curves of one task with their controls, as a figure file."""
    figure, (ax,) = new_figure(1, width=4.6, height=2.9)
    with paper_style():
        tables = {name: curve.table for name, curve in [*curves.items(), *muted.items()]}
        chance = float(next(iter(curves.values())).rows(metric)["chance"].iloc[0])
        draw_layer_curves(tables, ax, metric=metric, chance=chance, muted=list(muted), title=title)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save_figure(figure, path)


def share_and_draw(store: ActivationStore, folder: Path) -> str:
    """Attention share of all examples: saved, drawn, and said for the block where the image gets most."""
    from stratascope.analysis import attention_share

    found = attention_share(store)
    folder.mkdir(parents=True, exist_ok=True)
    found.save(folder / "share.zarr.zip")
    figure, (ax,) = new_figure(1, width=4.6, height=2.9)
    with paper_style():
        draw_attention_share(found.values, found.tokens, found.parts, ax, title="where the final token looks")
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    path = save_figure(figure, folder / "share.png")
    image = found.parts.index("image")
    by_block = found.values[..., image].mean((0, 2))
    best = int(by_block.argmax())
    return (
        f"image: {found.tokens[:, image].mean():.1%} of the tokens, {by_block[best]:.1%} of the final token's attention in block {best} "
        f"(its highest, mean over heads), {by_block.mean():.1%} over all blocks\nfigure {path}\nresults in {folder}"
    )


def roll_and_draw(store: ActivationStore, folder: Path, *, examples: Sequence[int] | None, window: tuple[int, int] | None) -> str:
    """Rollout of chosen examples: saved, and drawn over the images."""
    from stratascope.analysis import rollout_examples

    if examples is None and "attention_maps" in store.layout.record:  # else rollout_examples says what is missing
        examples = np.flatnonzero(store.available("attention_maps"))[:SHOWN_ROLLOUTS].tolist()
        if not examples:
            raise NotRecordedError("expected examples with attention maps, found none written yet; finish the extraction")
    outside = [k for k in examples or () if not 0 <= k < store.layout.examples]
    if outside:
        raise InvalidInputError(f"expected example numbers from 0 to {store.layout.examples - 1}, found {outside[0]}")
    found = rollout_examples(store, examples, window=window)
    folder.mkdir(parents=True, exist_ok=True)
    found.save(folder / "rollout.zarr.zip")
    path = draw_rollouts(store, found, folder / "rollout.png")
    return f"figure {path}\nresults in {folder}"


def picture(store: ActivationStore, example: int) -> np.ndarray:
    """The stored thumbnail at its image's own shape, (height, width, 3) uint8; plain ground where no thumbnails are stored."""
    from PIL import Image

    row = store.examples.iloc[example]
    has = store.layout.thumbnail is not None and bool(store.available("thumbnail")[example])
    small = store.thumbnail(example) if has else np.full((112, 112, 3), PLAIN_GROUND, np.uint8)
    scale = 2 * max(small.shape[:2]) / max(row.image_width, row.image_height)
    size = max(1, round(row.image_width * scale)), max(1, round(row.image_height * scale))
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def relative_boxes(store: ActivationStore, examples: Sequence[int]) -> list[dict[str, tuple[float, float, float, float]]]:
    """For each example its gold boxes that are known, as shares of width and height, by what they hold."""
    from stratascope.analysis.boxes import shown_boxes

    table = store.examples.iloc[list(examples)]
    try:
        boxes = shown_boxes(store)[list(examples)]
    except NotRecordedError:
        return [{} for _ in examples]
    names = zip(table["subject"], table["object"], strict=True)
    return [
        {str(name): tuple(box.tolist()) for name, box in zip(pair, two, strict=True) if np.isfinite(box[0])}
        for pair, two in zip(names, boxes, strict=True)
    ]


def draw_rollouts(store: ActivationStore, found: RolloutResult, path: Path) -> Path:
    """Up to eight examples in rows of four: image, rollout onto its cells, boxes where known, caption and label."""
    shown = range(min(len(found.examples), SHOWN_ROLLOUTS))
    columns = min(len(shown), 4)
    from matplotlib.figure import Figure

    with paper_style():
        lines = -(-len(shown) // columns)
        figure = Figure(figsize=(1.85 * columns, 2.15 * lines + 0.25))
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax in axes[len(shown) :]:
            ax.remove()
        numbers = [int(found.examples["example"].iloc[k]) for k in shown]
        for k, (number, boxes) in enumerate(zip(numbers, relative_boxes(store, numbers), strict=True)):
            row = store.examples.iloc[number]
            cells = found.onto_image(k)
            text = f"{textwrap.fill(row.caption, 34)}\n{'true' if row.label else 'false'}; {cells.sum():.0%} on the image"
            draw_overlay(picture(store, number), cells, axes[k], boxes=boxes)
            axes[k].set_title(text, fontsize=6.5, fontweight="normal")
        span = found.attributes["window"] or [0, store.layout.layers]
        figure.suptitle(
            f"raw rollout of the final token, blocks {span[0]} to {span[1] - 1}, {found.attributes['fusion']} over heads; "
            "full tint: the image's largest cell",
            fontsize=8,
            x=0.01,
            ha="left",
        )
    return save_figure(figure, path)
