"""A store of the shape that Qwen2.5-VL-7B gives on VSR, with a signal planted by a known rule, written through the real writer.

What is planted, and what a study of the store therefore has to find:

- `final`: the caption's truth along one direction in residual layers 14 to 24, and nowhere else;
- `subject`: where the subject is (the centre of its box) along two directions from layer 8 on;
- the final token's attention: SHARES of it on the first token, the image and the text, in every head;
- whole attention maps: a route from the final token, in blocks 18 to 27, to the cells of the subject's box and from nowhere else to them,
  and none to the cells that are in the object's box alone (`ROUTE`);
- the model's answers: right for 85 % of the examples;
- with blank images: nothing.

Everything else is noise that looks like Qwen's: channels of very different scale, five outliers among them, most of the variance in
few directions, each layer near the last one, values rounded to bfloat16.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stratascope.datasets.examples import Example, load_examples
from stratascope.datasets.scenes import write_scenes
from stratascope.store import BlockWriter, StoreLayout, create_store, encode_maps

TRUTH_LAYERS = range(14, 25)
LOCATION_FROM = 8
RIGHT_ANSWERS = 0.85
SHARES = {"sink": 0.6, "image": 0.1, "text": 0.3}
ROUTE_BLOCKS = range(18, 28)
ROUTE = {"onto": 0.15, "stays": 0.2, "kept": 0.9}
"""Weights in the maps of those blocks: of the final token on the subject's cells together, all alike, and on itself; in all blocks, of
each of those cells on itself."""
POSITIONS = ("final", "subject")
SPANS = ("system", "image", "prompt", "caption", "subject", "relation", "object", "final")
SIZES = ((640, 480), (480, 640), (640, 512), (612, 612))
"""(width, height) that the images are given: VSR's are COCO photos of such shapes."""
CELL = 28
TOKENS = 430
"""On average, of Qwen2.5-VL on VSR."""
OUTLIERS = 5
"""Channels of a spread far beyond the others', as in Qwen."""
HALF = 0.1
"""Of a box's width and height, as a share of the image's."""
SYSTEM, TEMPLATE = 14, 12
"""Tokens before the image; tokens of the question and the turn's end around the caption."""


@dataclass(frozen=True)
class Scale:
    """Sizes of the store; those of a 7B model by default."""

    examples: int
    maps: int
    layers: int = 28
    hidden: int = 3584
    heads: int = 28


def vsr_rows(folder: Path | None, count: int, scratch: Path) -> list[Example]:
    """The first `count` rows of VSR's random split; rows of generated scenes where VSR's files are not at hand."""
    if folder is None:
        write_scenes(scratch, count, seed=0)
        return load_examples(scratch / "scenes.jsonl")
    return load_examples([folder / "random" / f"{part}.jsonl" for part in ("train", "dev", "test")])[:count]


class PlantedStore:
    """The planted numbers of every block, the same for the same seed, whatever was written before."""

    def __init__(self, rows: list[Example], scale: Scale, *, blank: bool = False, seed: int = 0) -> None:
        self.rows, self.scale, self.blank, self.seed = rows, scale, blank, seed
        rng = np.random.default_rng(seed)
        names = sorted({row.image for row in rows})
        by_image = dict(zip(names, rng.integers(len(SIZES), size=len(names)), strict=True))
        self.sizes = np.array([SIZES[by_image[row.image]] for row in rows])
        self.grid = self.sizes[:, ::-1] // CELL
        words = [[len(part.split()) for part in (r.caption, r.subject, r.relation, r.object)] for r in rows]
        self.n_tokens = SYSTEM + self.grid.prod(1) + TEMPLATE + np.array(words)[:, 0]
        self.spans = self._spans(np.array(words))
        self.labels = np.array([row.label for row in rows])
        self.places = rng.uniform(0.15, 0.85, (len(rows), 2, 2))
        """(example, subject or object, x and y) centres of boxes, as shares of the image."""
        self.right = rng.random(len(rows)) < RIGHT_ANSWERS
        self.has_map = np.zeros(len(rows), bool)
        if not blank:
            self.has_map[np.linspace(0, len(rows) - 1, min(scale.maps, len(rows))).astype(int)] = True
        gain = np.exp(rng.normal(size=scale.hidden) * 0.8)
        gain[rng.choice(scale.hidden, OUTLIERS, replace=False)] *= 60
        self.gain = gain.astype(np.float32)
        self.mix = rng.normal(size=(32, scale.hidden)).astype(np.float32)
        self.directions = np.linalg.qr(rng.normal(size=(scale.hidden, 3)))[0].T.astype(np.float32)
        record = {"residual"} if blank else {"residual", "attention_rows", "attention_maps"}
        self.layout = StoreLayout(
            examples=len(rows), layers=scale.layers, hidden=scale.hidden, heads=scale.heads, tokens=int(self.n_tokens.max()),
            positions=POSITIONS, spans=SPANS, choices=("True", "False"), record=frozenset(record), thumbnail=(56, 56),
            computed_dtype="bfloat16",
        )  # fmt: skip

    def write(self, path: Path, progress: Callable[[int, int], None] = lambda done, of: None) -> None:
        """Create the store, or go on with it where it was left."""
        if not path.exists():
            self._create(path)
        with BlockWriter(path) as writer:
            pending = writer.pending()
            for number, block in enumerate(pending):
                writer.write(block, self.block(block))
                progress(number + 1, len(pending))

    def block(self, number: int) -> dict[str, np.ndarray]:
        """Arrays of a block as extraction hands them over."""
        members = self.layout.block_examples(number)
        rng = np.random.default_rng([self.seed, int(self.blank), number])
        arrays: dict[str, np.ndarray] = {}
        for spec in self.layout.arrays():
            if spec.when == "block":
                arrays[spec.name] = np.full(spec.block_shape(len(members)), spec.fill, spec.dtype)
        arrays["residual"] = self._residual(members, rng)
        arrays["status"][:] = 1
        arrays["thumbnail"][:] = rng.integers(60, 200, (len(members), 1, 1, 3))
        sign = np.where(self.labels[members.start : members.stop] == self.right[members.start : members.stop], 1.0, -1.0)
        arrays["answer_logits"][:] = np.stack([sign, -sign], 1) + 0.2 * rng.normal(size=(len(members), 2))
        if not self.blank:
            for k, example in enumerate(members):
                tokens = int(self.n_tokens[example])
                arrays["attention_rows"][:, k, :, :tokens] = self._rows(example, (self.scale.layers, self.scale.heads), rng)
                if self.has_map[example]:
                    arrays["attention_maps"][k, :, :tokens, :tokens] = self._maps(example, rng)
        return arrays

    def _residual(self, members: range, rng: np.random.Generator) -> np.ndarray:
        scale, n = self.scale, len(members)
        part = slice(members.start, members.stop)
        sign = np.where(self.labels[part], 1, -1).astype(np.float32)[:, None]
        place = (self.places[part, 0] - 0.5).astype(np.float32) * 6
        values = np.empty((scale.layers + 1, len(POSITIONS), n, scale.hidden), np.float32)
        noise = np.zeros((len(POSITIONS), n, scale.hidden), np.float32)
        for layer in range(scale.layers + 1):
            fresh = (
                rng.standard_normal(noise.shape, np.float32) + rng.standard_normal((*noise.shape[:2], len(self.mix)), np.float32) @ self.mix
            )
            noise = fresh if layer == 0 else 0.8 * noise + 0.6 * fresh
            values[layer] = noise
            if not self.blank and layer in TRUTH_LAYERS:
                values[layer, 0] += sign * self.directions[0]
            if not self.blank and layer >= LOCATION_FROM:
                values[layer, 1] += place @ self.directions[1:]
            values[layer] *= self.gain * np.float32(np.exp(0.1 * layer))
        return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    def _rows(self, example: int, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """(layer, head, token) weights whose sums on first token, image and text are SHARES."""
        tokens = int(self.n_tokens[example])
        weights = rng.standard_exponential((*shape, tokens), np.float32)
        start, stop = self.spans[example, SPANS.index("image")]
        weights[..., 0] = 0
        image = weights[..., start:stop]
        inside = image.sum(-1, keepdims=True)
        text = weights.sum(-1, keepdims=True) - inside
        weights *= SHARES["text"] / text
        image *= SHARES["image"] / SHARES["text"] * text / inside
        weights[..., 0] = SHARES["sink"]
        return weights

    def cells(self, example: int, which: int) -> np.ndarray:
        """Tokens of the image cells whose centre lies in the box of the subject (0) or the object (1)."""
        rows, columns = self.grid[example]
        x, y = self.places[example, which]
        near = [np.abs((np.arange(n) + 0.5) / n - at) < HALF for n, at in ((rows, y), (columns, x))]
        return SYSTEM + np.flatnonzero(np.outer(*near))

    def _maps(self, example: int, rng: np.random.Generator) -> np.ndarray:
        """(layer, query, key) packed causal maps, half of each row on the first token; the route is laid over that."""
        tokens = int(self.n_tokens[example])
        subject = self.cells(example, 0)
        weights = rng.standard_exponential((self.scale.layers, tokens, tokens), np.float32)
        weights *= np.tri(tokens, dtype=np.float32)
        weights[..., np.union1d(subject, self.cells(example, 1))] = 0
        weights[..., 0] += weights.sum(-1)
        weights /= weights.sum(-1, keepdims=True)
        weights[:, subject] *= 1 - ROUTE["kept"]
        weights[:, subject, subject] = ROUTE["kept"]
        for block in set(ROUTE_BLOCKS) & set(range(self.scale.layers)):
            final = weights[block, -1]
            final[-1] = 0
            final *= (1 - ROUTE["onto"] - ROUTE["stays"]) / final.sum()
            final[subject], final[-1] = ROUTE["onto"] / len(subject), ROUTE["stays"]
        return encode_maps(weights)

    def _spans(self, words: np.ndarray) -> np.ndarray:
        """(example, span, 2): system, image, question, caption with its three parts, last token; one word is one token."""
        image = np.full(len(self.rows), SYSTEM)
        caption = image + self.grid.prod(1) + TEMPLATE // 2
        spans = np.full((len(self.rows), len(SPANS), 2), -1, np.int64)

        def put(name: str, start: np.ndarray, stop: np.ndarray) -> None:
            spans[:, SPANS.index(name)] = np.stack([start, stop], 1)

        put("system", np.zeros_like(image), image)
        put("image", image, image + self.grid.prod(1))
        put("prompt", image + self.grid.prod(1), self.n_tokens)
        put("caption", caption, caption + words[:, 0])
        for name, number in (("subject", 1), ("relation", 2), ("object", 3)):
            before = np.array([len(r.caption[: getattr(r.parts, name)[0]].split()) for r in self.rows])
            put(name, caption + before, caption + before + words[:, number])
        put("final", self.n_tokens - 1, self.n_tokens)
        return spans

    def _create(self, path: Path) -> None:
        rows, n = self.rows, len(self.rows)
        table = pd.DataFrame(
            {
                "id": [r.id for r in rows], "image": [r.image for r in rows], "caption": [r.caption for r in rows],
                "relation": [r.relation for r in rows], "label": self.labels.astype(int), "subject": [r.subject for r in rows],
                "object": [r.object for r in rows], "split": [r.split for r in rows],
                "image_width": self.sizes[:, 0], "image_height": self.sizes[:, 1],
            }
        )  # fmt: skip
        for which, who in enumerate(("subject", "object")):
            low, high = (self.places[:, which] - HALF) * self.sizes, (self.places[:, which] + HALF) * self.sizes
            table = table.assign(**{f"{who}_x0": low[:, 0], f"{who}_y0": low[:, 1], f"{who}_x1": high[:, 0], f"{who}_y1": high[:, 1]})
        tokens = np.arange(self.layout.tokens)
        said = hashlib.sha256("\n".join(f"{r.id} {r.caption} {r.label}" for r in rows).encode()).hexdigest()
        provenance: dict[str, Any] = {
            "condition": "blank" if self.blank else "original", "model": {"name": "planted", "dtype": "bfloat16"},
            "data": {"examples": {"rows": said}}, "seed": self.seed,
        }  # fmt: skip
        create_store(
            path, self.layout, examples=table, spans=self.spans, token_ids=np.where(tokens < self.n_tokens[:, None], tokens % 1000, -1),
            vocabulary={k: f" t{k}" for k in range(1000)}, n_tokens=self.n_tokens, grid=self.grid,
            position_present=np.ones((n, len(POSITIONS)), bool), has_map=self.has_map, provenance=provenance,
        )  # fmt: skip
