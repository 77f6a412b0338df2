"""Image cells in the gold boxes of subject and object, on the image as the model saw it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.datasets.box_alignment import BoxAlignment, align_image
from stratascope.datasets.boxes import BoxIndex, cells_in_box
from stratascope.store import ActivationStore
from stratascope.store.format.prompt_parts import shown_boxes

BOXES = ("subject", "object", "both")
"""`both` is the union, where subject and object both have a box."""


def other_tokens(store: ActivationStore, examples: NDArray[np.int64], index: BoxIndex) -> NDArray[np.bool_]:
    """(example, token) image cells with their centre in the box of another object and outside the boxes of subject and object.

    Parameters
    ----------
    index
        Boxes of all objects in the images; other objects have another name. Boxes are aligned with the photos of the store; images with
        refused boxes have no other objects.
    """
    named = box_tokens(store, examples)[:, :2].any(1)
    others = np.zeros_like(named)
    alignments = photo_alignments(store, examples, index)
    mirrored = store.provenance.get("condition") == "mirror"
    for k, number in enumerate(examples):
        row, start, grid = store.examples.iloc[number], int(store.spans["image"][number, 0]), store.grid[number]
        if start < 0 or row.get("shown_image", row["image"]) != row["image"]:  # the model saw another image
            continue
        x, y = float(row.get("view_x0", 0)), float(row.get("view_y0", 0))
        width, height = (
            float(row.get(f"view_{b}", row[f"image_{side}"])) - at for b, side, at in (("x1", "width", x), ("y1", "height", y))
        )
        alignment = alignments.get(row["image"])
        for annotated in index.others(row["image"], (row["subject"], row["object"])):
            box = annotated if alignment is None else alignment.apply(annotated)
            if box is None:
                continue
            x0, y0, x1, y1 = (box[0] - x) / width, (box[1] - y) / height, (box[2] - x) / width, (box[3] - y) / height
            if min(x1, y1) <= 0 or max(x0, y0) >= 1:
                continue
            sides = (1 - x1, y0, 1 - x0, y1) if mirrored else (x0, y0, x1, y1)
            others[k, start + cells_in_box(sides, (1, 1), (int(grid[0]), int(grid[1])))] = True
    return np.asarray(others & ~named)


def photo_alignments(store: ActivationStore, examples: NDArray[np.int64], index: BoxIndex) -> dict[str, BoxAlignment]:
    """Alignment of the boxes of each image with the photo of the store.

    Parameters
    ----------
    index
        Boxes of the images.
    """
    table = store.examples.iloc[examples].drop_duplicates("image")
    found: dict[str, BoxAlignment] = {}
    for _, row in table.iterrows():
        photo = float(row.get("file_width", row["image_width"])), float(row.get("file_height", row["image_height"]))
        alignment = align_image(index, row["image"], photo, int(row.get("exif_orientation", 1)))
        if alignment is not None:
            found[row["image"]] = alignment
    return found


def box_tokens(store: ActivationStore, examples: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(example, box, token) image cells with their centre in each of `BOXES`; the nearest cell if none, no cell for an unknown box.

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
    """Geometry of the gold boxes, one row per example; NaN where a box is unknown.

    Returns
    -------
    pandas.DataFrame
        Centres, widths and heights of both boxes (shares of the image), offset and distance of the centres, areas and the smaller area,
        intersection over union, and the share of the image in either box.

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
