"""Draws how a photo becomes image tokens, and which of them lie in a gold box: from the plan alone, no weights are needed.

`python docs/images/make_cells.py MODEL vsr/test.jsonl vsr/images vsr/instances.json IMAGE_NAME docs/images/cells.png`

MODEL is a Hub id or folder, such as Qwen/Qwen2.5-VL-7B-Instruct.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from stratascope.extract import ExtractionPlan, ExtractionSettings, plan_extraction
from stratascope.extract.plan.images import open_image

COLOURS = {"subject": "#0072b2", "object": "#d55e00"}


def draw(plan: ExtractionPlan, example: int) -> plt.Figure:
    """The photo with its cells; boxes and the cells whose centres they hold; the sixteenths of the vision tower's grid."""
    layout, row = plan.layouts[example], plan.examples[example]
    rows, columns = layout.grid
    image = open_image(plan.settings.images / row.image)
    high, wide = image.height / rows, image.width / columns
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.3), layout="constrained")
    for ax in axes:
        ax.imshow(image, extent=(0, image.width, image.height, 0), alpha=0.75)
        ax.set(xticks=[], yticks=[])
        _lines(ax, [k * wide for k in range(columns + 1)], [k * high for k in range(rows + 1)], image.size, color="white", lw=0.4)
    first = layout.spans["image"][0]
    for name, box in (("subject", row.subject_box), ("object", row.object_box)):
        tokens = plan.position_tokens(example, f"{name}_box")
        if box is None or tokens is None:
            continue
        for cell in tokens - first:
            r, c = divmod(int(cell), columns)
            axes[0].add_patch(Rectangle((c * wide, r * high), wide, high, color=COLOURS[name], alpha=0.4, lw=0))
            axes[0].plot((c + 0.5) * wide, (r + 0.5) * high, ".", color="white", ms=3)
        x0, y0, x1, y1 = box
        axes[0].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=COLOURS[name], lw=2))
        label = f"{name}: {getattr(row, name)}, {len(tokens)} cells"
        axes[0].text(x0 + 4, max(y0, 0) + 16, label, color="white", fontsize=9, bbox={"fc": COLOURS[name], "ec": "none", "pad": 1.5})
    axes[0].set_title(f"{image.width} x {image.height} pixels: {rows} rows x {columns} columns, {rows * columns} image tokens", fontsize=10)
    cells = plan.vision_cells(example)
    owner = np.full(rows * columns, -1)
    for number, name in enumerate(name for name in cells if name.startswith("grid_")):
        owner[cells[name]] = number
        r, c = np.divmod(cells[name], columns)
        middle = ((c.mean() + 0.5) * wide, (r.mean() + 0.5) * high)
        axes[1].text(*middle, name.removeprefix("grid_").replace("_", ","), color="white", ha="center", va="center", fontsize=11)
    shades = (owner.reshape(rows, columns) // 4 + owner.reshape(rows, columns) % 4) % 2
    axes[1].imshow(shades, extent=(0, image.width, image.height, 0), alpha=0.35, cmap="gray")
    axes[1].set_title("the vision tower's 4 x 4 grid: row, column", fontsize=10)
    return figure


def _lines(ax: Axes, xs: list[float], ys: list[float], size: tuple[int, int], **style: object) -> None:
    ax.vlines(xs, 0, size[1], **style)
    ax.hlines(ys, 0, size[0], **style)


if __name__ == "__main__":
    model, examples, images, boxes, image, out = sys.argv[1:]
    settings = ExtractionSettings(
        model=model,
        examples=(Path(examples),),
        images=Path(images),
        boxes=Path(boxes),
        record=("residual", "vision_residual"),
        device="cpu",
    )
    made = plan_extraction(settings)
    draw(made, made.shown.index(image)).savefig(out, dpi=72)
