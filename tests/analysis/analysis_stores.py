"""Maps drawn at random, and stores whose attention, answers and boxes are planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stratascope.store import ActivationStore, BlockWriter, StoreLayout, create_store, encode_maps

LAYERS, HEADS, GRID = 3, 4, (4, 5)
IMAGE, CAPTION, SUBJECT, OBJECT, TOKENS = (2, 22), (24, 29), (25, 26), (28, 29), 32
TELLING = (1, 2)
"""Layer and head whose attention on the boxes goes with a right answer."""


def random_maps(layers: int, tokens: int, seed: int, shape: float = 0.3) -> np.ndarray:
    """(layer, query, key) causal, rows sum to 1; the smaller the shape, the more of a row lies on few keys."""
    rng = np.random.default_rng(seed)
    maps = np.tril(rng.gamma(shape, size=(layers, tokens, tokens)) + 1e-12)
    return maps / maps.sum(-1, keepdims=True)


def decoder_maps(layers: int = 28, tokens: int = 64, seed: int = 1) -> np.ndarray:
    """Maps with a deep decoder's vice: a first token that takes most of every row, and little to choose between the others."""
    rng = np.random.default_rng(seed)
    logits = 0.5 * rng.normal(size=(layers, tokens, tokens)) + 0.2 * rng.normal(size=(layers, 1, tokens))
    logits[:, :, 0] += rng.uniform(4, 7, (layers, 1))
    weights = np.exp(logits) * np.tri(tokens)
    return weights / weights.sum(-1, keepdims=True)


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


WINDOWS = ("0-2", "0-0", "1-2")
HIDDEN = ("system", "image", "subject", "relation", "object", "caption_rest", "template", "subject_box", "object_box")
CELLS = tuple(f"cell_{r}_{c}" for r in range(GRID[0]) for c in range(GRID[1]))


def attributed_store(
    path: Path, *, examples: int = 96, noise: float = 0.0, measured: int | None = None, seed: int = 0, estimated: bool = False
) -> ActivationStore:
    """A store of everything that methods are computed from, in which hiding a token takes away exactly what it adds.

    Heads are sums of their tokens' attributions; with the blocks' and the embedding's parts they make the logits. Norms are the sizes
    of what tokens would add and something besides, so that norm-based attention ranks tokens better than raw attention, and worse than
    attribution.

    Parameters
    ----------
    noise
        Of the effects of hiding, in their own standard deviations.
    measured
        Examples whose effects were measured, from the first; all by default.
    estimated
        Whether the store holds an estimate of the effects, which is exact but for the noise, and gradients drawn at random.
    """
    rng = np.random.default_rng(seed)
    layout = StoreLayout(
        examples=examples, layers=LAYERS, hidden=4, heads=HEADS, tokens=TOKENS, positions=("final",),
        spans=("system", "image", "caption", "subject", "relation", "object", "final"), choices=("True", "False"), thumbnail=(8, 8),
        block=64, record=frozenset({
            "attention_rows", "attention_maps", "value_norms", "value_logits", "head_logits", "mlp_logits", "embedding_logits", "knockout",
            *(("hiding_estimate", "gradient_input") if estimated else ()),
        }), knockout_modes=("final", "later"), knockout_windows=WINDOWS, knockout_targets=(*HIDDEN, *CELLS),
    )  # fmt: skip
    spans = np.array([(0, 2), IMAGE, CAPTION, SUBJECT, (26, 27), OBJECT, (TOKENS - 1, TOKENS)], np.int32)
    table = pd.DataFrame(
        {
            "id": [f"e{k}" for k in range(examples)], "image": [f"{k // 2}.png" for k in range(examples)],
            "caption": "The cat is under the bed.", "relation": "under", "label": rng.integers(0, 2, examples), "subject": "cat",
            "object": "bed", "split": "test", "image_width": 100, "image_height": 100,
            **dict(zip(("subject_x0", "subject_y0", "subject_x1", "subject_y1"), (5.0, 5.0, 45.0, 55.0), strict=True)),
            **dict(zip(("object_x0", "object_y0", "object_x1", "object_y1"), (55.0, 45.0, 95.0, 95.0), strict=True)),
        }
    )  # fmt: skip
    create_store(
        path, layout, examples=table, spans=np.tile(spans, (examples, 1, 1)), token_ids=np.zeros((examples, TOKENS), np.int32),
        vocabulary={0: "x"}, n_tokens=np.full(examples, TOKENS, np.int32), grid=np.tile(np.array(GRID, np.int32), (examples, 1)),
        position_present=np.ones((examples, 1), bool), has_map=np.ones(examples, bool),
        provenance={"condition": "original", "prompt": {"answers": ["False", "True"]}},
    )  # fmt: skip
    shape = (LAYERS, examples, HEADS, TOKENS)
    rows = rng.dirichlet(np.full(TOKENS, 0.5), shape[:3]).astype(np.float16).astype(np.float64)
    values = (rng.normal(size=shape) * rng.gamma(0.5, size=(1, examples, 1, TOKENS))).astype(np.float16).astype(np.float64)
    added = rows * values
    norms = np.abs(values) + np.abs(rng.normal(size=shape)) * 0.3
    heads = added.sum(-1)
    blocks, embedding = rng.normal(size=(LAYERS, examples)), rng.normal(size=examples)
    difference = heads.sum((0, 2)) + blocks.sum(0) + embedding
    effects = -hidden(added, layout)
    effects += noise * effects.std() * rng.normal(size=effects.shape)
    effects[measured if measured is not None else examples :] = np.nan
    maps = random_maps(LAYERS, TOKENS, seed)
    with BlockWriter(path) as writer:
        for block in range(layout.blocks):
            numbers = np.array(layout.block_examples(block))
            whole = np.repeat(maps[None], len(numbers), 0)
            whole[:, :, -1] = np.moveaxis(rows[:, numbers].mean(2), 0, 1)
            whole /= whole.sum(-1, keepdims=True)
            arrays = {
                "attention_rows": rows[:, numbers].astype(np.float16),
                "attention_maps": np.stack([encode_maps(one) for one in whole]),
                "value_norms": norms[:, numbers].astype(np.float16),
                "value_logits": values[:, numbers].astype(np.float16),
                "head_logits": heads[:, numbers].astype(np.float32),
                "mlp_logits": blocks[:, numbers].astype(np.float32),
                "embedding_logits": embedding[numbers].astype(np.float32),
                "knockout": effects[numbers].astype(np.float32),
                "answer_logits": (difference[numbers, None] * np.array([0.5, -0.5])).astype(np.float32),
                "thumbnail": np.full((len(numbers), 8, 8, 3), 128, np.uint8),
                "status": np.ones(len(numbers), np.uint8),
            }
            if estimated:
                arrays["hiding_estimate"] = -added[:, numbers].sum((0, 2)).astype(np.float32)
                arrays["gradient_input"] = np.random.default_rng(block).normal(size=(len(numbers), TOKENS)).astype(np.float32)
            writer.write(block, arrays)
    return ActivationStore.open(path)


def hidden(added: np.ndarray, layout: StoreLayout) -> np.ndarray:
    """(example, mode, window, target) sums of what (layer, example, head, token) adds, target by target, written out."""
    out = np.zeros((added.shape[1], 2, len(WINDOWS), len(layout.knockout_targets)))
    cells = {f"cell_{r}_{c}": [IMAGE[0] + r * GRID[1] + c] for r in range(GRID[0]) for c in range(GRID[1])}
    boxes = {
        name: (IMAGE[0] + np.flatnonzero(cells_inside(np.array(box)))).tolist()
        for name, box in (("subject_box", (5, 5, 45, 55)), ("object_box", (55, 45, 95, 95)))
    }
    tokens = {
        "system": [0, 1], "image": list(range(*IMAGE)), "subject": [25], "relation": [26], "object": [28], "caption_rest": [24, 27],
        "template": [22, 23, 29, 30], **boxes, **cells,
    }  # fmt: skip
    for w, window in enumerate(WINDOWS):
        first, last = map(int, window.split("-"))
        for k, name in enumerate(layout.knockout_targets):
            out[:, :, w, k] = added[first : last + 1][..., tokens[name]].sum((0, 2, 3))[:, None]
    return out
