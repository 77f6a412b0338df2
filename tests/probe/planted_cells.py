"""A synthetic store of image tokens whose layers are known to hold a label, coordinates, or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stratascope.store import BlockWriter, StoreLayout, create_store

SIDE = 168.0
GRIDS = ((6, 6), (4, 6))
"""Of even and odd examples."""


def planted_cells(path: Path, *, examples: int = 60, hidden: int = 10, seed: int = 0, noise: float = 1.0, on_subject: int = 2) -> Path:
    """Image tokens of one example an image; the last two examples have none, and example 0 has no box of the object.

    Layer 0 is noise; from layer 1 on columns 1 and 2 hold row and column; at layer `on_subject` alone column 0 holds whether the centre of
    the cell lies in the subject's box. Boxes tend to the middle.
    """
    rng = np.random.default_rng(seed)
    corner = np.clip(rng.normal(50, 20, (2, 2, examples)), 0, 100)
    table = pd.DataFrame(
        {
            "id": [f"e{k}" for k in range(examples)],
            "image": [f"{k}.png" for k in range(examples)],
            "caption": "The cat is under the bed.",
            "relation": "under",
            "label": np.arange(examples) % 2,
            "subject": "cat",
            "object": "bed",
            "split": "test",
            "image_width": SIDE,
            "image_height": SIDE,
        }
    )
    for who, (x, y) in zip(("subject", "object"), corner, strict=True):
        table = table.assign(**{f"{who}_x0": x, f"{who}_y0": y, f"{who}_x1": x + 60, f"{who}_y1": y + 50})
    table.loc[0, "object_x0"] = np.nan
    grid = np.array([GRIDS[k % 2] for k in range(examples)])
    held = np.arange(examples) < examples - 2
    layout = StoreLayout(
        examples, 3, hidden, 2, 37, ("final",), ("image", "final"), ("True", "False"), record={"patch_residual"},
        patches=36, patch_layers=(0, 1, 2, 3), block=examples, thumbnail=None,
    )  # fmt: skip
    n_tokens = grid.prod(1) + 1
    spans = np.stack([np.stack([0 * n_tokens, n_tokens - 1], 1), np.stack([n_tokens - 1, n_tokens], 1)], 1)
    create_store(
        path,
        layout,
        examples=table,
        spans=spans,
        token_ids=np.where(np.arange(37) < n_tokens[:, None], 1, -1),
        vocabulary={1: "x"},
        n_tokens=n_tokens,
        grid=grid,
        position_present=np.ones((examples, 1), bool),
        has_map=np.zeros(examples, bool),
        has_patches=held,
        provenance={"condition": "original", "data": {}},
    )
    values = np.full((4, int(held.sum()), 36, hidden), np.nan, np.float32)
    for k in np.flatnonzero(held):
        rows, columns = grid[k]
        row, column = (each.ravel() for each in np.mgrid[:rows, :columns])
        y, x = (row + 0.5) * SIDE / rows, (column + 0.5) * SIDE / columns
        found = rng.normal(0, noise, (4, rows * columns, hidden))
        found[1:, :, 1] += 6 * y / SIDE
        found[1:, :, 2] += 6 * x / SIDE
        x0, y0 = corner[0, :, k]
        found[on_subject, :, 0] += 3 * ((x >= x0) & (x < x0 + 60) & (y >= y0) & (y < y0 + 50))
        values[:, k, : rows * columns] = found
    with BlockWriter(path) as writer:
        logits = rng.normal(size=(examples, 2)).astype(np.float32)
        writer.write(0, {"answer_logits": logits, "status": np.ones(examples, np.uint8), "patch_residual": values})
    return path
