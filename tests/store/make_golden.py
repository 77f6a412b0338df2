"""Write the golden store that every reader, of today and later, must open: `python tests/store/make_golden.py [FOLDER]`.

Run it once for each format version and keep what it wrote. Values are told by arithmetic, so that a reader in any language can
check them without this package: see `test_store_golden.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from stratascope.store import BlockWriter, StoreLayout, create_store

GOLDEN = Path(__file__).parent / "golden"
LAYOUT = StoreLayout(
    examples=5, layers=2, hidden=4, heads=2, tokens=4, positions=("final", "image", "subject"), spans=("image", "final"),
    choices=("True", "False"), record=frozenset({"residual", "attention_rows", "attention_maps"}), block=2, thumbnail=(3, 2),
    computed_dtype="bfloat16",
)  # fmt: skip
N_TOKENS = np.array([4, 3, 4, 2, 4])


def residual(examples: range) -> np.ndarray:
    """(layer, position, example, hidden): 1000 layer + 100 position + 10 example + hidden; example 3 has no subject."""
    layer, position, example, hidden = np.ix_(range(3), range(3), examples, range(4))
    values = (1000 * layer + 100 * position + 10 * example + hidden).astype(np.float32)
    values[:, 2, [e == 3 for e in examples]] = np.nan
    return values


def attention_rows(examples: range) -> np.ndarray:
    """(layer, example, head, token): weight 1/2 on token `head`, the rest on token 0 too or spread: [1/2 + ...]."""
    rows = np.full((2, len(examples), 2, 4), np.nan, np.float16)
    for i, example in enumerate(examples):
        t = N_TOKENS[example]
        rows[:, i, :, :t] = 0
        rows[:, i, 0, 0] = 1
        rows[:, i, 1, :2] = 0.5
    return rows


def attention_maps(examples: range) -> np.ndarray:
    """(example, layer, query, key) packed: each query half on token 0 and half on itself; the first query all on itself."""
    maps = np.zeros((len(examples), 2, 4, 4), np.uint8)
    for i, example in enumerate(examples):
        if example % 2 == 0:
            t = N_TOKENS[example]
            maps[i, :, range(t), range(t)] = 255
            maps[i, :, :t, 0] = 255
    return maps


def main(path: Path) -> None:
    examples = pd.DataFrame(
        {
            "id": [f"golden-{i}" for i in range(5)],
            "image": ["a.png", "a.png", "b.png", "b.png", "ü.png"],
            "caption": [f"The cat is {'under' if i % 2 else 'above'} the bed." for i in range(5)],
            "relation": ["under" if i % 2 else "above" for i in range(5)],
            "label": [0, 1, 1, 0, 1],
            "split": ["train", "train", "test", "test", None],
            "subject_x0": [0.5, np.nan, 1.5, 2.5, 3.5],
        }
    )
    create_store(
        path,
        LAYOUT,
        examples=examples,
        spans=np.array([[[0, 1], [n - 1, n]] for n in N_TOKENS]),
        token_ids=np.where(np.arange(4) < N_TOKENS[:, None], [[7, 8, 9, 7]], -1),
        vocabulary={7: "▁the", 8: "▁cat", 9: "\n"},
        n_tokens=N_TOKENS,
        grid=np.ones((5, 2), int),
        position_present=np.array([[True, True, i != 3] for i in range(5)]),
        has_map=np.arange(5) % 2 == 0,
        provenance={"model": {"name": "golden"}, "created": "2026-01-01T00:00:00Z"},
    )
    with BlockWriter(path) as writer:
        for block in (0, 2):  # block 1 is left unwritten: readers must refuse it
            members = writer.block_examples(block)
            n = len(members)
            writer.write(
                block,
                {
                    "residual": residual(members),
                    "attention_rows": attention_rows(members),
                    "attention_maps": attention_maps(members),
                    "answer_logits": np.array([[e + 0.5, -e] for e in members], np.float32),
                    "status": np.ones(n, np.uint8),
                    "thumbnail": np.full((n, 3, 2, 3), 10, np.uint8) * np.array(members, np.uint8)[:, None, None, None],
                },
            )
    for left in (path / "written" / "claims").iterdir():
        left.unlink()
    (path / "written" / "claims").rmdir()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN / "v1.zarr")
