"""Write what the page's own tests compare with: `python -m tests.viewer.make_fixtures`. Numbers come from NumPy and the package."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import google_crc32c
import matplotlib as mpl
import numpy as np
from numcodecs import VLenUTF8

from stratascope.analysis import rollout_packed
from stratascope.analysis.flow import flow
from stratascope.analysis.tower_rollout import patch_picture, tower_rollout
from stratascope.figures.style import DIVERGING, SEQUENTIAL
from stratascope.store import decode_maps, encode_maps
from stratascope.store.format.prompt_parts import PARTS, token_parts
from tests.viewer.viewer_stores import HOSTILE

TARGET = Path(__file__).parents[2] / "viewer" / "tests" / "fixtures.json"


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def fixtures() -> dict[str, Any]:
    """Plain JSON, the same every time."""
    rng = np.random.default_rng(3)
    layers, tokens, padded = 4, 7, 9
    weights = rng.gamma(0.4, 1, (layers, tokens, tokens)) * np.tri(tokens) + 1e-3 * np.tri(tokens)
    packed = np.zeros((layers, padded, padded), np.uint8)
    packed[:, :tokens, :tokens] = encode_maps(weights / weights.sum(-1, keepdims=True))
    maps = decode_maps(packed, tokens)
    halves = np.concatenate([np.arange(0, 65536, 977), [0, 1, 1023, 1024, 0x3C00, 0x7BFF, 0x7C00, 0x8000, 0x8001, 0xFBFF, 0xFC00]]).astype(
        np.uint16
    )
    texts = [*HOSTILE, "", "plain", "a" * 200, "naïve café ▁x", "日本"]
    spans = {"system": (0, 2), "image": (2, 5), "caption": (5, 12), "subject": (6, 7), "relation": (7, 9), "object": (-1, -1)}
    arrays = {name: np.array([span]) for name, span in spans.items()}
    return {
        "crc32c": [[text_of(data), int(google_crc32c.value(data))] for data in (b"", b"123456789", bytes(range(256)) * 3, b"\0" * 32)],
        "halves": {"bits": halves.tolist(), "values": [repr(float(v)) for v in halves.view(np.float16)]},
        "texts": {"bytes": text_of(bytes(VLenUTF8().encode(np.array(texts, object)))), "texts": texts},
        "maps": {
            "layers": layers, "tokens": tokens, "padded": padded, "packed": text_of(packed.tobytes()), "decoded": maps.ravel().tolist(),
            "rollout": rollout_packed(packed[:, :tokens, :tokens]).tolist(),
            "bounds": [flow(maps, window=(first, layers), tokens=()).bound.tolist() for first in range(layers)],
        },
        "tower": tower_fixture(),
        "colours": {
            name: np.round(255 * mpl.colormaps[colour_map](np.linspace(0, 1, 17))[:, :3]).astype(int).tolist()
            for name, colour_map in (("sequential", SEQUENTIAL), ("diverging", DIVERGING))
        },
        "parts": {"spans": spans, "tokens": 14, "names": list(PARTS), "parts": token_parts(arrays, np.array([14]), 14)[0].tolist()},
    }  # fmt: skip


def tower_fixture() -> dict[str, Any]:
    """Rollout through a tower of a class token, tiles that also show padding, and the whole image."""
    rng = np.random.default_rng(4)
    views, tokens, blocks = 4, 8, 3
    grids = np.array([[2, 3], [2, 3], [2, 3], [-1, -1]])
    boxes = np.array([[0, -0.25, 0.5, 1.25], [0.5, -0.25, 1, 1.25], [0, 0, 1, 1], [0, 0, 0, 0]], np.float32)
    parents = np.full((views, tokens), -1)
    parents[0, 1:5], parents[1, 3:7], parents[2, 1:7] = 2, 3, [4, 4, 5, 5, 6, 6]
    packed = np.zeros((blocks, views, tokens, tokens), np.uint8)
    weights = rng.dirichlet(np.full(7, 0.5), (blocks * 3, 7))
    packed[:, :3, :7, :7] = encode_maps(weights, causal=False).reshape(blocks, 3, 7, 7)
    onto = rng.dirichlet(np.ones(9))
    rolled = tower_rollout(onto, packed[::-1], parents)
    picture = patch_picture(rolled[:, 1:], grids, boxes)
    return {
        "views": views, "tokens": tokens, "skipped": 1, "parents": parents.ravel().tolist(), "grids": grids.ravel().tolist(),
        "boxes": boxes.ravel().tolist(), "packed": [text_of(block.tobytes()) for block in packed], "onto": onto.tolist(),
        "rolled": rolled.ravel().tolist(), "grid": list(picture.shape), "picture": picture.ravel().tolist(),
    }  # fmt: skip


def main() -> None:
    TARGET.write_text(json.dumps(fixtures(), indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
