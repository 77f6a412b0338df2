"""Small synthetic stores, the same for the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stratascope.store import BlockWriter, StoreLayout, create_store, encode_maps

POSITIONS = ("final", "image", "subject", "relation")
SPANS = ("image", "caption", "final")


def small_layout(examples: int = 10, **changes: Any) -> StoreLayout:
    """Three blocks of four examples, three decoder blocks."""
    values: dict[str, Any] = {
        "examples": examples, "layers": 3, "hidden": 8, "heads": 2, "tokens": 12, "positions": POSITIONS, "spans": SPANS,
        "choices": ("True", "False"), "record": {"residual", "attention_rows", "attention_maps"}, "block": 4,
        "thumbnail": (6, 5), "computed_dtype": "bfloat16",
    }  # fmt: skip
    return StoreLayout(**{**values, **changes})


def birth(layout: StoreLayout, seed: int = 0) -> dict[str, Any]:
    """Arguments of `create_store`: example 1 lacks the position `subject` (where there are two), even ones have maps."""
    rng = np.random.default_rng(seed)
    n = layout.examples
    n_tokens = rng.integers(max(layout.tokens // 2, 1), layout.tokens + 1, n)
    n_tokens[-1] = layout.tokens
    inside = np.arange(layout.tokens) < n_tokens[:, None]
    spans = np.full((n, len(layout.spans), 2), -1, dtype=np.int32)
    spans[:, 0] = (0, 1)
    spans[:, -1] = np.stack([n_tokens - 1, n_tokens], 1)
    present = np.ones((n, len(layout.positions)), dtype=bool)
    present[1:2, 2:3] = False
    examples = pd.DataFrame(
        {
            "id": [f"scene-{i:05d}" for i in range(n)],
            "image": [f"{i // 2:05d}.png" for i in range(n)],
            "caption": [f"The cat is under the bed №{i}." for i in range(n)],
            "relation": ["under" if i % 3 else "left of" for i in range(n)],
            "label": np.arange(n) % 2,
            "subject": "cat",
            "object": "bed",
            "split": None,
            "image_width": 56,
            "image_height": 56,
            "subject_x0": np.where(np.arange(n) % 2, 1.5, np.nan),
        }
    )
    return {
        "examples": examples,
        "spans": spans,
        "token_ids": np.where(inside, rng.integers(0, 40, (n, layout.tokens)), -1),
        "vocabulary": {i: f"▁t{i}" for i in range(40)},
        "n_tokens": n_tokens,
        "grid": np.tile([2, 2], (n, 1)),
        "position_present": present,
        "has_map": np.arange(n) % 2 == 0,
        "provenance": {
            "model": "tiny", "revision": "abc", "data": {"images": {f"{i:05d}.png": "0" * 64 for i in range(3)}}, "created": "2026-01-01",
        },
    }  # fmt: skip


def softmax_maps(rng: np.random.Generator, layers: int, tokens: int) -> np.ndarray:
    """(layer, query, key) causal rows that sum to 1."""
    scores = rng.normal(size=(layers, tokens, tokens)) * 2
    weights = np.exp(scores) * np.tri(tokens)
    return weights / weights.sum(-1, keepdims=True)


def block_arrays(layout: StoreLayout, known: dict[str, Any], block: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a block as extraction hands them over; example 5 could not be read."""
    rng = np.random.default_rng([seed, block])
    members = layout.block_examples(block)
    n, t = len(members), layout.tokens
    arrays: dict[str, np.ndarray] = {
        "answer_logits": rng.normal(size=(n, len(layout.choices))).astype(np.float32),
        "status": np.array([2 if i == 5 else 1 for i in members], dtype=np.uint8),
    }
    if layout.thumbnail:
        arrays["thumbnail"] = rng.integers(0, 256, (n, *layout.thumbnail, 3), dtype=np.uint8)
    if "residual" in layout.record:
        values = rng.normal(size=(layout.layers + 1, len(layout.positions), n, layout.hidden)).astype(np.float32)
        values = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
        values[:, ~known["position_present"][members.start : members.stop].T] = np.nan
        arrays["residual"] = values
    if "attention_rows" in layout.record:
        rows = np.full((layout.layers, n, layout.heads, t), np.nan, dtype=np.float16)
        for i, example in enumerate(members):
            length = int(known["n_tokens"][example])
            rows[:, i, :, :length] = rng.dirichlet(np.ones(length), size=(layout.layers, layout.heads))
        arrays["attention_rows"] = rows
    if "attention_maps" in layout.record:
        maps = np.zeros((n, layout.layers, t, t), dtype=np.uint8)
        for i, example in enumerate(members):
            length = int(known["n_tokens"][example])
            if known["has_map"][example] and arrays["status"][i] == 1:
                maps[i, :, :length, :length] = encode_maps(softmax_maps(rng, layout.layers, length))
        arrays["attention_maps"] = maps
    return arrays


def make_store(path: Path, layout: StoreLayout | None = None, *, blocks: list[int] | None = None, seed: int = 0) -> Path:
    """A store with some or all blocks written."""
    layout = layout or small_layout()
    known = birth(layout, seed)
    create_store(path, layout, **known)
    with BlockWriter(path) as writer:
        for block in range(layout.blocks) if blocks is None else blocks:
            writer.write(block, block_arrays(layout, known, block, seed))
    return path
