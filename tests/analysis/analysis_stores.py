"""Maps drawn at random, and stores whose attention, answers and boxes are planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stratascope.store import ActivationStore, BlockWriter, StoreLayout, create_store

LAYERS, HEADS, GRID = 3, 4, (4, 5)
IMAGE, CAPTION, SUBJECT, OBJECT, TOKENS = (2, 22), (24, 29), (25, 26), (28, 29), 32
TELLING = (1, 2)
"""Layer and head whose attention on the boxes goes with a right answer."""


def random_maps(layers: int, tokens: int, seed: int, shape: float = 0.3) -> np.ndarray:
    """(layer, query, key) causal, rows sum to 1; the smaller the shape, the more of a row lies on few keys."""
    rng = np.random.default_rng(seed)
    maps = np.tril(rng.gamma(shape, size=(layers, tokens, tokens)) + 1e-12)
    return maps / maps.sum(-1, keepdims=True)


def planted_store(path: Path, *, examples: int = 240, sink: tuple[int, float] | None = None, seed: int = 0) -> ActivationStore:
    """A store of attention rows and answers, two examples an image.

    Four of five answers are right where the head `TELLING` looks at the boxes, one of five elsewhere; all other heads draw rows of no
    meaning. The boxes' sizes vary, and have no part in it.

    Parameters
    ----------
    sink
        Token and the share that it takes of every row.
    """
    rng = np.random.default_rng(seed)
    layout = StoreLayout(
        examples=examples, layers=LAYERS, hidden=4, heads=HEADS, tokens=TOKENS, positions=("final",),
        spans=("image", "caption", "subject", "object", "final"), choices=("True", "False"), record=frozenset({"attention_rows"}),
        thumbnail=None, block=64,
    )  # fmt: skip
    corner = rng.uniform(0, 0.5, (examples, 2, 2))
    size = rng.uniform(0.25, 0.5, (examples, 2, 2))
    boxes = np.concatenate([corner, corner + size], -1) * 100
    table = pd.DataFrame(
        {
            "id": [f"e{k}" for k in range(examples)],
            "image": [f"{k // 2}.png" for k in range(examples)],
            "caption": "The cat is under the bed.",
            "relation": np.where(np.arange(examples) % 3 == 0, "under", "left of"),
            "label": rng.integers(0, 2, examples),
            "subject": "cat",
            "object": "bed",
            "split": "test",
            "image_width": 100,
            "image_height": 100,
            **{
                f"{who}_{side}": boxes[:, w, s]
                for w, who in enumerate(("subject", "object"))
                for s, side in enumerate(("x0", "y0", "x1", "y1"))
            },
        }
    )
    spans = np.tile(np.array([IMAGE, CAPTION, SUBJECT, OBJECT, (TOKENS - 1, TOKENS)], np.int32), (examples, 1, 1))
    create_store(
        path, layout, examples=table, spans=spans, token_ids=np.zeros((examples, TOKENS), np.int32), vocabulary={0: "x"},
        n_tokens=np.full(examples, TOKENS, np.int32), grid=np.tile(np.array(GRID, np.int32), (examples, 1)),
        position_present=np.ones((examples, 1), bool), has_map=np.zeros(examples, bool),
        provenance={"condition": "original", "prompt": {"answers": ["False", "True"]}},
    )  # fmt: skip
    rows = rng.dirichlet(np.ones(TOKENS), (LAYERS, examples, HEADS))
    looks = rng.random(examples) < 0.5
    for k in np.flatnonzero(looks):
        cells = cells_inside(boxes[k, 0]) | cells_inside(boxes[k, 1])
        rows[TELLING[0], k, TELLING[1], IMAGE[0] : IMAGE[1]] *= np.where(cells, 8, 1)
    if sink:
        rows[..., sink[0]] = 0
    rows /= rows.sum(-1, keepdims=True)
    if sink:
        rows *= 1 - sink[1]
        rows[..., sink[0]] = sink[1]
    right = rng.random(examples) < np.where(looks, 0.8, 0.2)
    choice = np.where(right, 1 - table["label"], table["label"])  # choices are True, False
    logits = np.where(np.arange(2) == np.asarray(choice)[:, None], 2.0, 0.0)
    with BlockWriter(path) as writer:
        for block in range(layout.blocks):
            numbers = np.array(layout.block_examples(block))
            arrays = {
                "attention_rows": rows[:, numbers].astype(np.float16),
                "answer_logits": logits[numbers].astype(np.float32),
                "status": np.ones(len(numbers), np.uint8),
            }
            writer.write(block, arrays)
    return ActivationStore.open(path)


def cells_inside(box: np.ndarray) -> np.ndarray:
    """(cell,) whose centre lies in a box of a 100 x 100 image, written out."""
    inside = np.zeros(GRID[0] * GRID[1], bool)
    for cell in range(len(inside)):
        y, x = (cell // GRID[1] + 0.5) * 100 / GRID[0], (cell % GRID[1] + 0.5) * 100 / GRID[1]
        inside[cell] = box[0] <= x < box[2] and box[1] <= y < box[3]
    return inside
