"""Synthetic stores whose truth label can be read from a known layer on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stratascope.store import BlockWriter, StoreLayout, create_store

RELATIONS = ("left of", "right of", "above", "below")
POSITIONS = ("final", "relation")


def planted_store(
    path: Path,
    *,
    examples: int = 400,
    layers: int = 5,
    hidden: int = 12,
    onset: int = 3,
    offset: int | None = None,
    strength: float = 1.0,
    outlier: float = 0.0,
    seed: int = 0,
    condition: str = "original",
    written: int | None = None,
    split: bool = False,
    boxes: bool = False,
    heads: bool = False,
    vision: bool = False,
    hashed: bool = False,
    twins: bool = False,
    near: bool = False,
    pair: bool = False,
    images_from: int = 0,
    relations: tuple[str, ...] = RELATIONS,
    changed: Mapping[str, object] | None = None,
    numbers: int | None = None,
    positions: tuple[str, str] = POSITIONS,
) -> Path:
    """Two examples an image; at `final` the label lies along one direction in layers onset..offset-1; at `relation` the relation does.

    The last example lacks the position `relation`. With `boxes`, the subject's x is in column 5 at `final` from layer 2 on; with
    `heads`, head 1 reads the label from the onset on; with `vision`, the vision tower does from its first layer on. Examples do
    not depend on the condition; a `blank` store has no label to read.

    `hashed` adds the hashes of images. With `twins` every photo lies under two names, each with one example, labels are tossed for each
    photo, and all that activations tell is the photo; with `near` its two files differ, and their perceptual hashes in a few bits.
    `changed` sets columns of example 7. `numbers` is a seed of the noise alone. `positions` are other names of `final` and `relation`.
    """
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {
            "id": [f"e{i:05d}" for i in range(examples)],
            "image": [f"{images_from + i // 2:05d}.png" for i in range(examples)],
            "caption": "The cat is somewhere.",
            "relation": rng.choice(relations, examples),
            "label": rng.integers(0, 2, examples),
            "subject": rng.choice(["cat", "dog", "cup"], examples),
            "object": rng.choice(["bed", "box"], examples),
            "split": np.where(np.arange(examples) < 0.75 * examples, "train", "test") if split else "test",
            "image_width": 56,
            "image_height": 56,
            "brightness": rng.normal(size=examples),
        }
    )
    if twins:
        names = [f"{'ab'[i % 2]}/{i // 2:05d}.png" for i in range(examples)]
        table = table.assign(image=names, label=np.repeat(rng.integers(0, 2, examples // 2), 2))
    if hashed or twins:
        table["image_sha256"] = [f"{images_from + i // 2:064x}" for i in range(examples)]
    if near:
        table["image_sha256"] = [f"{i:064x}" for i in range(examples)]
        hashes = np.repeat(rng.integers(0, 256, (examples // 2, 72), np.uint8), 2, 0)
        hashes[::2, 1:5] ^= 0b1111  # 16 of 575 bits
        table["image_phash"] = [one.tobytes().hex() for one in hashes]
    for column, value in (changed or {}).items():
        table.loc[7, column] = value
    if boxes:
        corner = rng.uniform(0, 26, (examples, 4))
        for who, (x, y) in {"subject": corner.T[:2], "object": corner.T[2:]}.items():
            table = table.assign(**{f"{who}_x0": x, f"{who}_y0": y, f"{who}_x1": x + 20, f"{who}_y1": y + 30})
        table.loc[3, "object_x0"] = np.nan
    seen_by_vision = ["vision_residual", "vision_output"] if vision else []
    extra = [*(["head_outputs"] if heads else []), *seen_by_vision]
    layout = StoreLayout(
        examples=examples, layers=layers, hidden=hidden, heads=2, tokens=6, positions=positions, spans=("image", "final"),
        choices=("True", "False"), record=frozenset({"residual", *extra}),
        head_dim=4 if heads else 0, vision_layers=2 if vision else 0, vision_hidden=6 if vision else 0,
        vision_positions=("image",) if vision else (), block=64, thumbnail=None, computed_dtype="float32",
    )  # fmt: skip
    present = np.ones((examples, 2), dtype=bool)
    present[-1, 1] = False
    create_store(
        path,
        layout,
        examples=table,
        spans=np.tile(np.array([[0, 4], [5, 6]], np.int32), (examples, 1, 1)),
        token_ids=np.zeros((examples, 6), np.int32),
        vocabulary={0: "x"},
        n_tokens=np.full(examples, 6),
        grid=np.tile(np.array([2, 2], np.int32), (examples, 1)),
        position_present=present,
        has_map=np.zeros(examples, bool),
        provenance={"model": "planted", "condition": condition, "data": {"examples": {"planted.jsonl": f"{seed:064x}"}}},
    )
    noise = np.random.default_rng([seed, 1 if condition == "original" else 2, *([] if numbers is None else [numbers])])
    residual = noise.normal(size=(layers + 1, 2, examples, hidden)).astype(np.float32)
    residual[:, :, :, 1] += outlier
    if twins:
        residual = np.repeat(residual[:, :, ::2], 2, axis=2)
    direction = np.ones(hidden) / np.sqrt(hidden)
    sign = 2.0 * table["label"].to_numpy() - 1
    last = layers + 1 if offset is None else offset
    if pair:
        toss = 2.0 * noise.integers(0, 2, examples) - 1
        residual[onset:last, 0] += (strength * toss[:, None] * direction).astype(np.float32)
        residual[onset:last, 1] += (strength * (toss * sign)[:, None] * np.where(np.arange(hidden) % 2, direction, -direction)).astype(
            np.float32
        )
    elif condition == "original":
        residual[onset:last, 0] += (strength * sign[:, None] * direction).astype(np.float32)
    if boxes:
        residual[2:, 0, :, 5] += 3 * ((table["subject_x0"] - 13) / 13).to_numpy(np.float32)
    code = table["relation"].map({r: i for i, r in enumerate(relations)}).to_numpy()
    residual[:, 1, np.arange(examples), 2 + code] += 4
    residual[:, ~present.T] = np.nan
    logits = np.stack([sign, -sign], axis=1) + noise.normal(size=(examples, 2))
    with BlockWriter(path) as writer:
        for block in range(layout.blocks if written is None else written):
            members = layout.block_examples(block)
            part = slice(members.start, members.stop)
            arrays: dict[str, Any] = {
                "residual": residual[:, :, part],
                "answer_logits": logits[part].astype(np.float32),
                "status": np.ones(len(members), np.uint8),
            }
            if vision:
                seen = noise.normal(size=(3, 1, len(members), 6)).astype(np.float32)
                seen[1:, 0, :, 2] += 2 * sign[part]
                arrays["vision_residual"] = seen
                handed_on = noise.normal(size=(1, len(members), hidden)).astype(np.float32)
                handed_on[0, :, 3] += 2 * sign[part]
                arrays["vision_output"] = handed_on
            if heads:
                outputs = noise.normal(size=(layers, len(members), 2, 4)).astype(np.float32)
                outputs[onset:, :, 1, 0] += 2 * sign[part]
                arrays["head_outputs"] = outputs
            writer.write(block, arrays)
    return path
