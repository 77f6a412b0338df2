"""Generated scenes in VSR's format: two to four objects, with true and false captions about two of them.

The label is a fair coin by construction, whatever one knows of the text or of the image alone: kinds are exchangeable, a
relation is asked of a scene only if the scene holds both a pair for which it is true and a pair for which it is false, and
the label is drawn before the pair.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from stratascope.datasets.scene_shapes import KINDS, SHAPES, Brush
from stratascope.errors import InvalidInputError

SIZE = 168
"""Width and height of a scene's image in pixels: 6 x 6 merged cells of 28 pixels."""

EXCLUSIVE = ("left of", "right of", "above", "below", "inside", "surrounding")
"""Mutually exclusive relations of an ordered pair."""

RELATIONS = (*EXCLUSIVE, "near", "far from")
DOMINANCE = 1.5
"""A pair is left/right/above/below only if its offset along that axis is this many times the other offset."""
NEAR, FAR = 18.0, 56.0
"""Largest gap in pixels of a near pair and smallest gap of a far one; pairs in between get no caption."""


@dataclass(frozen=True)
class Thing:
    """One object: its name, centre and radius in pixels."""

    kind: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Statement:
    """A caption in VSR's wording about two objects of a scene, and its label."""

    subject: int
    relation: str
    object: int
    label: bool

    def caption(self, things: list[Thing]) -> str:
        """Text of the caption, given the objects of the scene."""
        return f"The {things[self.subject].kind} is {self.relation} the {things[self.object].kind}."


def sample_things(rng: np.random.Generator, inside_share: float = 0.3, near_share: float = 0.4) -> list[Thing]:
    """Sample two to four different objects; in `inside_share` of scenes the second is inside the (large) first."""
    for _ in range(1000):
        kinds = [str(kind) for kind in rng.permutation(KINDS)]
        count = int(rng.integers(2, 5))
        things: list[Thing] = []
        if rng.random() < inside_share:
            things = _nested_pair(kinds, rng)
        while len(things) < count:
            beside = bool(things) and rng.random() < near_share
            thing = _place(kinds[len(things)], things, beside, rng)
            if thing is None:
                break
            things.append(thing)
        if len(things) >= count:
            return [things[k] for k in rng.permutation(len(things))]
    raise AssertionError("no scene fits: the sizes of things and image do not go together")


def _nested_pair(kinds: list[str], rng: np.random.Generator) -> list[Thing]:
    outer_radius, inner_radius = rng.uniform(28, 34), rng.uniform(9, 11)
    margin = 1.05 * outer_radius
    x, y = rng.uniform(margin, SIZE - margin, 2)
    angle, distance = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.35 * (outer_radius - inner_radius))
    outer = Thing(kinds[0], float(x), float(y), float(outer_radius))
    return [outer, Thing(kinds[1], float(x + distance * math.cos(angle)), float(y + distance * math.sin(angle)), float(inner_radius))]


def _place(kind: str, things: list[Thing], beside: bool, rng: np.random.Generator) -> Thing | None:
    for _ in range(60):
        radius = rng.uniform(11, 19)
        low, high = 1.08 * radius, SIZE - 1.08 * radius
        if beside:
            other = things[int(rng.integers(len(things)))]
            reach = 1.12 * (radius + other.radius) + rng.uniform(4, 10)
            angle = rng.uniform(0, 2 * math.pi)
            x, y = other.x + reach * math.cos(angle), other.y + reach * math.sin(angle)
        else:
            x, y = rng.uniform(low, high, 2)
        clear = all(math.hypot(x - t.x, y - t.y) > 1.12 * (radius + t.radius) + 3 for t in things)
        if clear and low <= x <= high and low <= y <= high:
            return Thing(kind, float(x), float(y), float(radius))
    return None


def exclusive_relation(a: Thing, b: Thing) -> str | None:
    """The relation in `EXCLUSIVE` of a to b; None for a diagonal pair."""
    dx, dy = a.x - b.x, a.y - b.y
    distance = math.hypot(dx, dy)
    if distance < b.radius and a.radius < b.radius:
        return "inside"
    if distance < a.radius and b.radius < a.radius:
        return "surrounding"
    if abs(dx) >= DOMINANCE * abs(dy):
        return "left of" if dx < 0 else "right of"
    if abs(dy) >= DOMINANCE * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def gap(a: Thing, b: Thing) -> float:
    """Pixels between the two circles around a and b."""
    return math.hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius


def askable(things: list[Thing]) -> dict[str, dict[bool, list[tuple[int, int]]]]:
    """Relation -> label -> ordered pairs of clear-cut statements; only relations that have both labels in this scene."""
    pairs: dict[str, dict[bool, list[tuple[int, int]]]] = {r: {True: [], False: []} for r in RELATIONS}
    for i, a in enumerate(things):
        for j, b in enumerate(things):
            if i == j:
                continue
            held = exclusive_relation(a, b)
            if held is not None:
                for relation in EXCLUSIVE:
                    pairs[relation][relation == held].append((i, j))
            if held not in ("inside", "surrounding") and not NEAR < gap(a, b) < FAR:
                pairs["near"][gap(a, b) <= NEAR].append((i, j))
                pairs["far from"][gap(a, b) >= FAR].append((i, j))
    return {relation: by_label for relation, by_label in pairs.items() if by_label[True] and by_label[False]}


def sample_statement(things: list[Thing], rng: np.random.Generator) -> Statement:
    """Sample a statement about a scene: relation, label by a fair coin, then a pair with that label."""
    pairs = askable(things)
    relation = list(pairs)[int(rng.integers(len(pairs)))]
    label = bool(rng.integers(2))
    candidates = pairs[relation][label]
    i, j = candidates[int(rng.integers(len(candidates)))]
    return Statement(i, relation, j, label)


def sample_scene(rng: np.random.Generator) -> list[Thing]:
    """Sample a scene with at least one relation that has both labels."""
    while True:
        things = sample_things(rng)
        if askable(things):
            return things


def render(things: list[Thing], rng: np.random.Generator, oversampling: int = 2) -> np.ndarray:
    """Render a scene as (168, 168, 3) uint8: larger objects first, slight noise in background, colours and pixels."""
    side = SIZE * oversampling
    ground = np.clip(rng.uniform(212, 250) + rng.uniform(-8, 8, 3), 0, 255)
    canvas = Image.new("RGB", (side, side), tuple(int(v) for v in ground))
    draw = ImageDraw.Draw(canvas)
    for thing in sorted(things, key=lambda t: -t.radius):
        colour, form = SHAPES[thing.kind]
        r, g, b = (int(v) for v in np.clip(np.array(colour) + rng.uniform(-10, 10, 3), 0, 255))
        form(Brush(draw, thing.x * oversampling, thing.y * oversampling, thing.radius * oversampling, (r, g, b)))
    pixels = np.asarray(canvas.reduce(oversampling)).astype(np.int16)
    pixels = pixels + rng.integers(-5, 6, pixels.shape, dtype=np.int16)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def bounding_box(thing: Thing) -> list[float]:
    """COCO's [x, y, width, height] in pixels, measured on the drawn shape."""
    scale, side = 4, 4 * SIZE
    mask = Image.new("RGB", (side, side))
    SHAPES[thing.kind][1](Brush(ImageDraw.Draw(mask), thing.x * scale, thing.y * scale, thing.radius * scale, (255, 255, 255)))
    bounds = mask.getbbox()
    assert bounds is not None, "a thing lies within its image"
    left, top, right, bottom = (v / scale for v in bounds)
    return [left, top, right - left, bottom - top]


def write_scenes(folder: Path, count: int, *, seed: int, captions_per_scene: int = 1) -> Path:
    """Write generated scenes in VSR's format.

    The folder then holds `scenes.jsonl` (rows with image, caption, label, relation), `images/*.png` and `instances.json`
    (boxes in COCO's instances format). The same seed gives the same bytes; a longer run starts with the shorter one.

    Parameters
    ----------
    folder
        Output folder; created if it does not exist.
    count
        Number of scenes.
    seed
        Seed of all random choices.
    captions_per_scene
        Number of captions per scene.

    Returns
    -------
    pathlib.Path
        The JSONL file.

    Raises
    ------
    InvalidInputError
        If `count` or `captions_per_scene` is below one.
    """
    if count < 1 or captions_per_scene < 1:
        raise InvalidInputError(f"expected at least one scene and one caption, found {count} and {captions_per_scene}")
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        things = sample_scene(rng)
        name = f"scene_{k:06d}.png"
        Image.fromarray(render(things, rng)).save(folder / "images" / name)
        images.append({"id": k, "file_name": name, "width": SIZE, "height": SIZE})
        for thing in things:
            box = bounding_box(thing)
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": k,
                    "category_id": KINDS.index(thing.kind),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
        asked: set[tuple[int, str, int]] = set()
        for _ in range(captions_per_scene):
            statement = sample_statement(things, rng)
            key = (statement.subject, statement.relation, statement.object)
            if key in asked:
                continue
            asked.add(key)
            rows.append(
                {"image": name, "caption": statement.caption(things), "label": int(statement.label), "relation": statement.relation}
            )
    categories = [{"id": k, "name": kind} for k, kind in enumerate(KINDS)]
    (folder / "instances.json").write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    path = folder / "scenes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
