"""Image, boxes, label and answer of single examples, for figures and pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import NotRecordedError
from stratascope.results.schema import columns
from stratascope.store.format.prompt_parts import shown_boxes
from stratascope.store.format.provenance import label_kind
from stratascope.store.io.offered_choices import OPTIONS, offered_logits

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

ON_IMAGE = columns("example", text="id", ints="example n_tokens image_start image_stop rows columns", keys=["example"])
"""Schema of `example_table`."""

MOST_EXAMPLES = 8
"""Examples in one figure."""
PLAIN_GROUND = 235
"""Grey level that stands for a missing thumbnail."""


def picture(store: ActivationStore, example: int) -> np.ndarray:
    """Thumbnail in the shape of its image, (height, width, 3) uint8; plain grey without a thumbnail.

    Where the store has no image size, the grid of square cells gives the shape.
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
    """Known gold boxes of each example: name of the object -> x0, y0, x1, y1 as shares of width and height."""
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
    """Label and answer of the model; the label alone where the store has no answers."""
    label = label_text(store, example)
    label = label if label.startswith("right") else f"label {label}"
    try:
        logits = offered_logits(store, store.read("answer_logits", examples=[example]), [example])[0]
    except NotRecordedError:
        return label
    return f"{label}, model says {store.layout.choices[int(logits.argmax())].strip().lower()}"


def label_text(store: ActivationStore, example: int) -> str:
    """Label as text: true, false, the right answer of a question, or unknown."""
    label = int(store.examples["label"].iloc[example])
    if (kind := label_kind(store.provenance)) == "none":
        return "unknown"
    if kind == "choice":
        answers = store.provenance.get("prompt", {}).get("answers") or store.layout.choices
        options = store.provenance.get("data", {}).get(OPTIONS)
        text = f" ({store.examples['right_option'].iloc[example]})" if options else ""
        return f"right: {answers[label] if label < len(answers) else label}{text}"
    return "true" if label else "false"


def example_table(store: ActivationStore, chosen: NDArray[np.int64]) -> pd.DataFrame:
    """Number, id and length of each example, and the span and grid of its image."""
    image = store.spans["image"][chosen]
    return pd.DataFrame(
        {
            "example": chosen,
            "id": store.examples["id"].to_numpy(object)[chosen],
            "n_tokens": store.n_tokens[chosen].astype(np.int64),
            "image_start": image[:, 0].astype(np.int64),
            "image_stop": image[:, 1].astype(np.int64),
            "rows": store.grid[chosen, 0].astype(np.int64),
            "columns": store.grid[chosen, 1].astype(np.int64),
        }
    )


def on_image(examples: pd.DataFrame, values: NDArray[Any], k: int) -> NDArray[Any]:
    """(rows, columns) values (example, token) of the k-th example on its image cells; (1, token) if the tokens have no known place."""
    row = examples.iloc[k]
    cells = values[k, int(row["image_start"]) : int(row["image_stop"])]
    return cells.reshape((int(row["rows"]), int(row["columns"])) if row["rows"] else (1, -1))
