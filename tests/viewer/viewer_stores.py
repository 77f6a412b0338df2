"""Synthetic stores for the page: everything recorded and hostile texts, the shape of a 7B model, a million examples."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import google_crc32c
import numpy as np
import pandas as pd
from numcodecs import VLenUTF8, Zstd

from stratascope.store import BlockWriter, StoreLayout, create_store, encode_maps
from stratascope.store.format import arrays

SPANS = ("system", "image", "prompt", "caption", "subject", "relation", "object", "final")
HOSTILE = [
    "<img src=x onerror=\"document.title='taken'\">", "</script><script>document.title='taken'</script>", "=HYPERLINK(\"http://x\")",
    "\u202eright to left\u202c", "a\nb\tc", "{{7*7}} ${7*7}", "'; alert(1); '", "\x00\x07nul", "🦊 fox" * 40,
    "<b>bold</b> &amp; \"quotes\"",
]  # fmt: skip
EVERYTHING = frozenset({"attention_rows", "attention_maps", "value_norms", "value_logits", "head_logits", "mlp_logits", "embedding_logits"})
OBJECTS = ("cat", "bed", "dog", "table", "cup", "horse", "person", "bench", "car", "kite")
RELATIONS = ("under", "left of", "on", "inside", "behind", "touching", "<i>odd</i>")


def caption(number: int) -> str:
    """Of an example: every tenth is hostile."""
    if number % 10 == 3:
        return HOSTILE[number // 10 % len(HOSTILE)]
    a, b = OBJECTS[number % 10], OBJECTS[(number // 10 + 1) % 10]
    return f"The {a} is {RELATIONS[number % 6]} the {b}, №{number}."


def layout_of(examples: int, *, layers: int = 6, heads: int = 4, tokens: int = 48, **changes: Any) -> StoreLayout:
    """A layout without residuals."""
    values: dict[str, Any] = {
        "examples": examples, "layers": layers, "hidden": 8, "heads": heads, "tokens": tokens, "positions": ("final",), "spans": SPANS,
        "choices": ("True", "False"), "record": EVERYTHING, "thumbnail": (40, 40), "computed_dtype": "float32",
    }  # fmt: skip
    return StoreLayout(**{**values, **changes})


def known_of(layout: StoreLayout, rows: int, columns: int, *, words: int = 300, seed: int = 0) -> dict[str, Any]:
    """Arguments of `create_store`: 4 tokens of system, the image, a caption of 9, the rest template."""
    rng = np.random.default_rng(seed)
    n, cells = layout.examples, rows * columns
    length = layout.tokens - np.arange(n) % 3
    start = 4 + cells
    spans = np.zeros((n, len(SPANS), 2), np.int32)
    for k, (first, last) in enumerate([(0, 4), (4, start), (0, 0), (start + 1, start + 10), (start + 2, start + 3), (start + 4, start + 5),
                                       (start + 7, start + 9), (0, 0)]):  # fmt: skip
        spans[:, k] = (first, last)
    spans[:, 2, 1] = length
    spans[:, 7] = np.stack([length - 1, length], 1)
    ids = rng.integers(10, words, (n, layout.tokens)).astype(np.int32)
    ids[:, 4:start] = 5
    ids[:, start + 10 :] = np.arange(layout.tokens - start - 10) + 10
    ids[np.arange(layout.tokens) >= length[:, None]] = -1
    numbers = np.arange(n)
    small = n <= 20_000
    examples = pd.DataFrame(
        {
            "id": [f"id-{i}" if i % 10 != 4 else f"<script>{i}</script>" for i in range(n)],
            "image": "a.png",
            "caption": [caption(i) for i in range(n)] if small else np.char.add("The cat is under the bed, number ", numbers.astype(str)),
            "relation": [RELATIONS[i % 7] for i in range(n)],
            "label": numbers % 2,
            "split": None,
        }
    )
    if small:
        examples = examples.assign(image_width=100 * columns, image_height=100 * rows, subject_x0=100.0, subject_y0=100.0, subject_x1=250.0,
                                   subject_y1=300.0, object_x0=np.nan, object_y0=1.0, object_x1=2.0, object_y1=3.0)  # fmt: skip
    texts = {i: f"Ġw{i}" for i in range(10, words)} | {5: "<|image_pad|>"}
    texts |= {10 + k: text for k, text in enumerate(HOSTILE)}
    return {
        "examples": examples, "spans": spans, "token_ids": ids, "vocabulary": texts, "n_tokens": length,
        "grid": np.tile([rows, columns], (n, 1)),
        "position_present": np.ones((n, 1), bool), "has_map": numbers % 4 != 3,
        "provenance": {"model": {"name": "synthetic <b>model</b>"}, "condition": "original",
                       "prompt": {"answers": ["False", "True"]}, "created": "2026-01-01"},
    }  # fmt: skip


def block_of(layout: StoreLayout, known: dict[str, Any], block: int) -> dict[str, np.ndarray]:
    """Arrays of a block; its sixth example could not be read."""
    rng = np.random.default_rng([7, block])
    members = np.array(layout.block_examples(block))
    n, tokens, layers, heads = len(members), layout.tokens, layout.layers, layout.heads
    length = known["n_tokens"][members]
    inside = np.arange(tokens) < length[:, None]
    status = np.where(np.arange(n) == 5, 2, 1).astype(np.uint8)
    out: dict[str, np.ndarray] = {"status": status, "answer_logits": rng.normal(size=(n, len(layout.choices))).astype(np.float32)}
    if layout.thumbnail:
        noise = rng.integers(0, 256, (n, *layout.thumbnail, 3), dtype=np.uint8)
        out["thumbnail"] = noise
    per_head = (layers, n, heads, tokens)
    if "attention_rows" in layout.record:
        # one draw for each layer and head, the same for all examples but for a shift: random numbers are slow
        scores = rng.gamma(0.3, 1, (layers, 1, heads, tokens)).astype(np.float32) ** 2 * (1 + np.arange(n)[:, None, None] / n)
        scores[..., 0] += 0.5
        scores = scores * inside[None, :, None]
        out["attention_rows"] = np.where(inside[None, :, None], scores / scores.sum(-1, keepdims=True), np.nan).astype(np.float16)
    for name in ("value_norms", "value_logits"):
        if name in layout.record:
            values = rng.gamma(2, 1, per_head) if name == "value_norms" else rng.normal(size=per_head)
            out[name] = np.where(inside[None, :, None], values, np.nan).astype(np.float16)
    if "head_logits" in layout.record:
        out["head_logits"] = rng.normal(size=(layers, n, heads)).astype(np.float32)
    if "mlp_logits" in layout.record:
        out["mlp_logits"] = rng.normal(size=(layers, n)).astype(np.float32)
    if "embedding_logits" in layout.record:
        difference = out["answer_logits"][:, 0] - out["answer_logits"][:, 1]
        out["embedding_logits"] = (difference - out["head_logits"].sum((0, 2)) - out["mlp_logits"].sum(0)).astype(np.float32)
    for name in ("hiding_estimate", "gradient_input"):
        if name in layout.record:
            out[name] = np.where(inside, rng.normal(size=(n, tokens)), np.nan).astype(np.float32)
    if "knockout" in layout.record:
        effects = rng.normal(size=(n, len(layout.knockout_modes), len(layout.knockout_windows), len(layout.knockout_targets)))
        out["knockout"] = np.where((members % 2 == 0)[:, None, None, None], effects, np.nan).astype(np.float32)
    if "top_tokens" in layout.record:
        out["top_tokens"] = np.stack([[5, 700 + k % 7, 1200, 2499, 11] for k in members]).astype(np.int32)
        out["top_logits"] = -np.sort(-rng.normal(size=(n, 5))).astype(np.float32)
    if "attention_maps" in layout.record:
        maps = np.zeros((n, layers, tokens, tokens), np.uint8)
        for i, example in enumerate(members):
            t = length[i]
            if known["has_map"][example] and status[i] == 1:
                weights = rng.gamma(0.4, 1, (layers, t, t)) * np.tri(t) + 1e-4 * np.tri(t)
                maps[i, :, :t, :t] = encode_maps(weights / weights.sum(-1, keepdims=True))
        out["attention_maps"] = maps
    if "gradient_rollout" in layout.record:
        relevance = rng.gamma(0.5, 1, (n, layers + 1, tokens))
        out["gradient_rollout"] = np.where(inside[:, None], relevance, np.nan).astype(np.float32)
    if "vision_maps" in layout.record:
        out |= _tower_of(layout, known, members[known["has_map"][members]], rng)
    return out


def _tower_of(layout: StoreLayout, known: dict[str, Any], members: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Two tiles over the left and the right half and a view of the whole image; each image token is made of a patch of every view."""
    count, (rows, columns), tokens = len(members), known["grid"][0], layout.vision_tokens
    maps = rng.dirichlet(np.full(tokens, 0.4), (count * layout.vision_blocks * 3, tokens))
    parents = np.broadcast_to(np.concatenate([[-1], 4 + np.arange(rows * columns)]), (count, 3, tokens))
    return {
        "vision_maps": encode_maps(maps, causal=False).reshape(count, layout.vision_blocks, 3, tokens, tokens),
        "vision_parent": parents.astype(np.int32),
        "vision_grid": np.broadcast_to(np.array([rows, columns], np.int32), (count, 3, 2)),
        "vision_box": np.broadcast_to(np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 1]], np.float32), (count, 3, 4)),
    }


PLACES = ("left", "right", "on", "under")


def question_store(path: Path) -> Path:
    """96 questions with four answers, knockouts of every second one, the likeliest next tokens, two estimates by token."""
    record = EVERYTHING | {"knockout", "top_tokens", "top_logits", "hiding_estimate", "gradient_input"}
    targets = ("system", "image", "subject", "relation", "object", "caption_rest", "template", "subject_box", "object_box")
    cells = tuple(f"cell_{r}_{c}" for r in range(2) for c in range(3))
    layout = layout_of(96, choices=PLACES, record=record, knockout_modes=("final", "later"), knockout_windows=("0-5", "0-2", "3-5"),
                       knockout_targets=targets + cells, ranks=5)  # fmt: skip
    known = known_of(layout, 5, 5, words=2500)
    numbers = np.arange(96)
    known["examples"] = known["examples"].assign(label=numbers % 4, relation=[PLACES[k % 4] for k in numbers])
    rows = {
        "difficulty": ["<i>hard</i>" if k % 2 else None for k in numbers],
        "seconds": numbers / 7,
        "indoors": numbers % 3 == 0,
        "count": numbers,
    }
    known["examples"] = known["examples"].assign(**rows)
    known["provenance"] |= {"prompt": {"answers": list(PLACES)}, "data": {"labels": "choice"}}
    create_store(path, layout, **known)
    with BlockWriter(path) as writer:
        for block in range(2):
            writer.write(block, block_of(layout, known, block))
    return path


def million_store(path: Path, examples: int = 1_000_000) -> Path:
    """A store of a million examples without their weight: a small one whose pieces are linked again and again, with captions and ids
    of their own. Only its first block is written; its digests are those of the small one."""
    small = 2048
    layout = layout_of(small, layers=2, heads=2, tokens=20, thumbnail=None, record=frozenset({"attention_rows"}))
    with mock.patch.object(arrays, "_MANY", 1):  # cut as a long store is
        write_store(path, layout, 2, 2, blocks=[0], words=50)
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["layout"]["examples"] = examples
    for name, node in root["consolidated_metadata"]["metadata"].items():
        dims = node.get("dimension_names") or []
        if "block" in dims:
            node["shape"] = [-(-examples // layout.block)]
        if "example" not in dims:
            continue
        axis = dims.index("example")
        node["shape"][axis] = examples
        piece = node["chunk_grid"]["configuration"]["chunk_shape"][axis]
        written = "sharding_indexed" in str(node["codecs"]) or piece == layout.block
        own = {"example": "id-{}", "examples/caption": "The cat is under the bed, number {}"}.get(name)
        for k in range(0 if own else small // piece, 0 if written else -(-examples // piece)):
            parts = [str(k) if i == axis else "0" for i in range(len(dims))]
            file = path / name / "c" / "/".join(parts)
            if own:
                texts = [own.format(i) for i in range(k * piece, min((k + 1) * piece, examples))] + [""] * max(
                    0, (k + 1) * piece - examples
                )
                packed = Zstd(1).encode(VLenUTF8().encode(np.array(texts, object)))
                file.write_bytes(packed + google_crc32c.Checksum(packed).digest()[::-1])
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                os.link(path / name / "c" / "/".join("0" for _ in dims), file)
    (path / "zarr.json").write_text(json.dumps(root))
    return path


def write_store(path: Path, layout: StoreLayout, rows: int, columns: int, *, blocks: list[int], words: int = 300) -> Path:
    """A store with some blocks written."""
    known = known_of(layout, rows, columns, words=words)
    create_store(path, layout, **known)
    with BlockWriter(path) as writer:
        for block in blocks:
            writer.write(block, block_of(layout, known, block))
    return path
