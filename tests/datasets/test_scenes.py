import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image

from stratascope.datasets import BoxIndex, load_examples, write_scenes
from stratascope.datasets.scenes import RELATIONS, SIZE, Thing, askable, exclusive_relation, sample_scene, sample_statement


def test_scenes_are_written_in_vsr_form(scenes: Path) -> None:
    boxes = BoxIndex.from_coco(scenes / "instances.json")
    examples = load_examples(scenes / "scenes.jsonl", boxes)
    assert len(examples) == 96
    assert all(example.subject_box and example.object_box for example in examples)
    assert {example.relation for example in examples} <= set(RELATIONS)
    with Image.open(scenes / "images" / examples[0].image) as image:
        assert image.size == (SIZE, SIZE)


def test_the_same_seed_gives_the_same_bytes_and_a_longer_run_starts_with_the_shorter(tmp_path: Path) -> None:
    for name, count in (("a", 5), ("b", 5), ("c", 8)):
        write_scenes(tmp_path / name, count, seed=3)
    a, b, c = ((tmp_path / name / "scenes.jsonl").read_text() for name in "abc")
    assert a == b
    assert c.startswith(a)
    for k in range(5):
        name = f"images/scene_{k:06d}.png"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    assert (tmp_path / "a" / "instances.json").read_bytes() == (tmp_path / "b" / "instances.json").read_bytes()


def test_labels_are_what_the_geometry_says() -> None:
    """The label recomputed from centres and radii alone, by rules written out again."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        things = sample_scene(rng)
        statement = sample_statement(things, rng)
        a, b = things[statement.subject], things[statement.object]
        dx, dy, gap = a.x - b.x, a.y - b.y, np.hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius
        nested = np.hypot(dx, dy) < max(a.radius, b.radius)
        truth = {
            "left of": not nested and dx < 0 and abs(dx) > abs(dy),
            "right of": not nested and dx > 0 and abs(dx) > abs(dy),
            "above": not nested and dy < 0 and abs(dy) > abs(dx),
            "below": not nested and dy > 0 and abs(dy) > abs(dx),
            "inside": nested and a.radius < b.radius,
            "surrounding": nested and a.radius > b.radius,
            "near": not nested and gap < 30,
            "far from": not nested and gap > 40,
        }
        assert truth[statement.relation] == statement.label


def test_the_label_is_a_fair_coin_given_relation_and_given_kinds() -> None:
    rng = np.random.default_rng(1)
    by_relation: dict[str, list[int]] = defaultdict(list)
    by_subject: dict[str, list[int]] = defaultdict(list)
    for _ in range(6000):
        things = sample_scene(rng)
        statement = sample_statement(things, rng)
        by_relation[statement.relation].append(statement.label)
        by_subject[things[statement.subject].kind].append(statement.label)
    for labels in (*by_relation.values(), *by_subject.values()):
        assert abs(np.mean(labels) - 0.5) < 4 * 0.5 / np.sqrt(len(labels))


def test_diagonal_pairs_are_never_asked() -> None:
    assert exclusive_relation(Thing("star", 50, 50, 10), Thing("moon", 90, 90, 10)) is None
    assert "left of" not in askable([Thing("star", 50, 50, 10), Thing("moon", 90, 90, 10)])


def test_boxes_enclose_what_is_drawn(scenes: Path) -> None:
    """Pixels that differ from the ground lie within the boxes, and each box holds some."""
    data = json.loads((scenes / "instances.json").read_text())
    boxes = defaultdict(list)
    for row in data["annotations"]:
        boxes[row["image_id"]].append(row["bbox"])
    counts: Counter[bool] = Counter()
    for image in data["images"][:20]:
        pixels = np.asarray(Image.open(scenes / "images" / image["file_name"])).astype(int)
        drawn = np.abs(pixels - np.median(pixels, axis=(0, 1))).max(-1) > 40
        covered = np.zeros_like(drawn)
        for x, y, w, h in boxes[image["id"]]:
            covered[int(y) : int(np.ceil(y + h)) + 1, int(x) : int(np.ceil(x + w)) + 1] = True
            counts[bool(drawn[int(y) : int(y + h), int(x) : int(x + w)].mean() > 0.15)] += 1
        assert not (drawn & ~covered).any()
    assert counts[False] == 0
