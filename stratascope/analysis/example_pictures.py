"""One example for figures and pages: its image, boxes, label and answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stratascope.analysis.box_cells import shown_boxes
from stratascope.errors import NotRecordedError

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

PLAIN_GROUND = 235
"""Grey level shown where no thumbnails are stored."""


def picture(store: ActivationStore, example: int) -> np.ndarray:
    """The stored thumbnail at its image's own shape, (height, width, 3) uint8; plain ground where no thumbnails are stored.

    Where the store does not say how large the image is, its shape is that of the grid of cells, which are square.
    """
    from PIL import Image

    row = store.examples.iloc[example]
    has = store.layout.thumbnail is not None and bool(store.available("thumbnail")[example])
    small = store.thumbnail(example) if has else np.full((112, 112, 3), PLAIN_GROUND, np.uint8)
    rows, columns = store.grid[example]
    width, height = float(row.get("image_width", columns)), float(row.get("image_height", rows))
    scale = 2 * max(small.shape[:2]) / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def relative_boxes(store: ActivationStore, examples: Sequence[int]) -> list[dict[str, tuple[float, float, float, float]]]:
    """For each example its gold boxes that are known, as shares of width and height, by what they hold."""
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


def answer_text(store: ActivationStore, example: int) -> str:
    """Label and the model's answer beside each other; the label alone where no answers are recorded."""
    label = label_text(store, example)
    label = label if label.startswith("right") else f"label {label}"
    try:
        logits = store.read("answer_logits", examples=[example])[0]
    except NotRecordedError:
        return label
    return f"{label}, model says {store.layout.choices[int(logits.argmax())].strip().lower()}"


def label_text(store: ActivationStore, example: int) -> str:
    """What an example's label says: true or false, or the right answer of a question."""
    label = int(store.examples["label"].iloc[example])
    if store.provenance.get("data", {}).get("labels") == "choice":
        answers = store.provenance.get("prompt", {}).get("answers") or store.layout.choices
        return f"right: {answers[label] if label < len(answers) else label}"
    return "true" if label else "false"
