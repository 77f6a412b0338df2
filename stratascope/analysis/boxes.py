"""The image tokens that lie in the gold boxes of subject and object, as the model was shown them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.datasets.boxes import cells_in_box
from stratascope.errors import NotRecordedError
from stratascope.store import ActivationStore

SIDES = ("x0", "y0", "x1", "y1")
BOXES = ("subject", "object", "both")
"""`both` is the union, where subject and object both have a box."""


def shown_boxes(store: ActivationStore) -> NDArray[np.float64]:
    """(example, subject or object, side) gold boxes as shares of the image's width and height; NaN where not known.

    Under the condition `mirror` they are flipped, as the image was.

    Raises
    ------
    NotRecordedError
        If the store holds no boxes.
    """
    table = store.examples
    needed = [f"{who}_{side}" for who in ("subject", "object") for side in SIDES]
    absent = [name for name in needed if name not in table.columns]
    if absent or not np.isfinite(numbers := _numbers(table, needed)).any():
        raise NotRecordedError("expected gold boxes of subject and object in the store, found none; extract with --boxes instances.json")
    size = _numbers(table, ["image_width", "image_height", "image_width", "image_height"])
    boxes = numbers.reshape(-1, 2, 4) / size[:, None]
    if store.provenance["condition"] == "mirror":
        boxes = np.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], -1)
    return np.asarray(boxes)


def box_tokens(store: ActivationStore, examples: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(example, box, token) which tokens' cell centres lie in each of `BOXES`; the nearest cell where none does, no token where the box
    is not known.

    Raises
    ------
    NotRecordedError
        If the store holds no boxes.
    """
    boxes = shown_boxes(store)
    inside = np.zeros((len(examples), len(BOXES), store.layout.tokens), np.bool_)
    for k, number in enumerate(examples):
        start, grid = int(store.spans["image"][number, 0]), store.grid[number]
        for which in range(2):
            box = boxes[number, which]
            if start >= 0 and np.isfinite(box).all():
                x0, y0, x1, y1 = box.tolist()
                cells = cells_in_box((x0, y0, x1, y1), (1, 1), (int(grid[0]), int(grid[1])))
                inside[k, which, start + cells] = True
        if inside[k, :2].any(-1).all():
            inside[k, 2] = inside[k, 0] | inside[k, 1]
    return inside


def box_geometry(store: ActivationStore) -> pd.DataFrame:
    """All that can be said of the boxes without looking into the model, one row an example, NaN where a box is not known.

    Returns
    -------
    pandas.DataFrame
        Centres, widths and heights of both boxes (shares of the image), offset and distance of the centres, areas and the smaller of
        them, intersection over union, and the share of the image in either box.

    Raises
    ------
    NotRecordedError
        If the store holds no boxes.
    """
    boxes = shown_boxes(store)
    low, high = boxes[..., :2], boxes[..., 2:]
    centre, size = (low + high) / 2, high - low
    area = size.prod(-1)
    offset = centre[:, 0] - centre[:, 1]
    common = np.clip(np.minimum(high[:, 0], high[:, 1]) - np.maximum(low[:, 0], low[:, 1]), 0, None).prod(-1)
    union = area.sum(1) - common
    columns: dict[str, Any] = {}
    for k, who in enumerate(("subject", "object")):
        columns |= {f"{who}_x": centre[:, k, 0], f"{who}_y": centre[:, k, 1]}
        columns |= {f"{who}_width": size[:, k, 0], f"{who}_height": size[:, k, 1], f"{who}_area": area[:, k]}
    columns |= {"offset_x": offset[:, 0], "offset_y": offset[:, 1], "distance": np.hypot(offset[:, 0], offset[:, 1])}
    columns |= {"smaller_area": area.min(1), "overlap": common / np.where(union > 0, union, np.nan), "covered": union}
    return pd.DataFrame(columns)


def _numbers(table: pd.DataFrame, columns: list[str]) -> NDArray[np.float64]:
    return np.stack([pd.to_numeric(table[name], errors="coerce").to_numpy(float) for name in columns], -1)
