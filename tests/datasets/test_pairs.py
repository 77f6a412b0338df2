"""Minimal pairs: labels against the geometry of scenes and boxes, images and boxes against pixels, captions word by word."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image, ImageOps

from stratascope.cli import main
from stratascope.datasets import RELATIONS, load_examples, minimal_pairs, write_scenes
from stratascope.datasets.boxes import BoxIndex
from stratascope.datasets.captions import split_caption
from stratascope.datasets.example import Example
from stratascope.datasets.pairs import VARIANTS, mirrored_name, variant_of
from stratascope.datasets.relations import relation_of
from stratascope.datasets.scenes import EXCLUSIVE, FAR, NEAR, SIZE, Thing, exclusive_relation, gap, sample_scene
from stratascope.errors import InvalidInputError
from stratascope.extract.plan.images import decode_image
from stratascope.store.io.example_filter import CATEGORIES

SCENES = 150


def example(caption: str, relation: str, label: int = 1) -> Example:
    return Example("e", "a.png", caption, relation, label, "test", split_caption(caption, relation))


def holds(relation: str, a: Thing, b: Thing) -> bool:
    """Whether a relation is true in the plane of a scene."""
    if relation in ("near", "far from"):
        return gap(a, b) <= NEAR if relation == "near" else gap(a, b) >= FAR
    return exclusive_relation(a, b) == {"contains": "surrounding"}.get(relation, relation)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pairs")
    rows = write_scenes(folder / "scenes", SCENES, seed=5)
    boxes = folder / "scenes" / "instances.json"
    minimal_pairs(rows, folder / "scenes" / "images", folder / "pairs", boxes=boxes, variants=VARIANTS)
    return folder / "scenes", folder / "pairs"


def test_labels_are_those_of_the_geometry(written: tuple[Path, Path]) -> None:
    found = load_examples(written[1] / "pairs.jsonl")
    counts = dict.fromkeys(("original", *VARIANTS), 0)
    for one in found:
        number = int(one.image.split("_")[1].split(".")[0])
        things = {thing.kind: thing for thing in sample_scene(np.random.default_rng([5, number]))}
        variant = one.extra["variant"]
        if variant == "mirrored":
            things = {kind: replace(thing, x=SIZE - thing.x) for kind, thing in things.items()}
        assert holds(one.relation, things[one.subject], things[one.object]) == bool(one.label), one
        counts[str(variant)] += 1
    assert min(counts.values()) > 50
    assert len({one.extra["pair"] for one in found}) == counts["original"]


def test_a_false_caption_of_an_asymmetric_relation_is_not_flipped() -> None:
    """In scenes, a label flipped regardless would be wrong for most of these captions."""
    wrong, total = 0, 0
    for number in range(200):
        things = sample_scene(np.random.default_rng([9, number]))
        for a in things:
            for b in things:
                for relation in EXCLUSIVE if a is not b and exclusive_relation(a, b) else ():
                    if not holds(relation, a, b):
                        said = example(f"The {a.kind} is {relation} the {b.kind}.", relation, 0)
                        assert variant_of(said, "swapped").example is None
                        wrong += not holds(relation, b, a)
                        total += 1
    assert wrong / total > 0.5


PREDICATES: dict[str, Callable[[np.ndarray, np.ndarray], bool]] = {
    "left of": lambda a, b: a[0, 1] < b[0, 0],
    "right of": lambda a, b: a[0, 0] > b[0, 1],
    "above": lambda a, b: a[1, 1] < b[1, 0],
    "below": lambda a, b: a[1, 0] > b[1, 1],
    "over": lambda a, b: a[1, 1] < b[1, 0],
    "under": lambda a, b: a[1, 0] > b[1, 1],
    "in front of": lambda a, b: a[2, 1] < b[2, 0],
    "behind": lambda a, b: a[2, 0] > b[2, 1],
    "inside": lambda a, b: bool((a[:, 0] > b[:, 0]).all() and (a[:, 1] < b[:, 1]).all()),
    "within": lambda a, b: bool((a[:, 0] > b[:, 0]).all() and (a[:, 1] < b[:, 1]).all()),
    "contains": lambda a, b: bool((a[:, 0] < b[:, 0]).all() and (a[:, 1] > b[:, 1]).all()),
    "surrounding": lambda a, b: bool((a[:, 0] < b[:, 0]).all() and (a[:, 1] > b[:, 1]).all()),
    "enclosed by": lambda a, b: bool((a[:, 0] > b[:, 0]).all() and (a[:, 1] < b[:, 1]).all()),
    "near": lambda a, b: bool(np.abs(a.mean(1) - b.mean(1)).max() < 0.5),
    "far from": lambda a, b: bool(np.abs(a.mean(1) - b.mean(1)).max() > 0.8),
    "touching": lambda a, b: bool((a[:, 0] <= b[:, 1]).all() and (b[:, 0] <= a[:, 1]).all()),
}
"""On boxes in space, (axis: right, down, away; ends)."""


@pytest.mark.parametrize("name", PREDICATES)
def test_the_table_agrees_with_boxes_in_space(name: str) -> None:
    rng = np.random.default_rng(1)
    relation, true = RELATIONS[name], PREDICATES[name]
    both = one = moved = 0
    for _ in range(3000):
        size = np.exp(rng.uniform(-3, 0.3, (2, 3, 1)))
        centre = rng.uniform(0, 3, (2, 3, 1)) * (1 if rng.random() < 0.5 else 0.1)
        a, b = np.concatenate([centre - size, centre + size], 2)
        flipped = [np.concatenate([-box[:1, ::-1], box[1:]]) for box in (a, b)]
        first, second = true(a, b), true(b, a)
        both, one = both + (first and second), one + (first != second)
        if relation.inverse:
            assert PREDICATES[relation.inverse](b, a) == first
        moved += true(*flipped) != first
    assert one + both > 20
    assert (both == 0) == (relation.swap == "asymmetric")
    assert (one == 0) == (relation.swap == "symmetric")
    assert (moved > 0) == relation.lateral


def test_the_table_has_every_relation_of_vsr_and_consistent_inverses() -> None:
    for listed in CATEGORIES.values():
        for name in listed.split(", "):
            assert relation_of(name) is not None, name
    for name, relation in RELATIONS.items():
        if relation.inverse:
            assert RELATIONS[relation.inverse].swap == relation.swap, name
        if relation.lateral:
            assert RELATIONS[relation.inverse].inverse == name
            assert relation.swap == "asymmetric"
            assert {"left", "right"} & set(name.split())


@pytest.mark.parametrize(
    ("caption", "relation", "variant", "expected"),
    [
        ("The cat is under the bed.", "under", "swapped", "The bed is under the cat."),
        ("An apple is near a cup.", "near", "swapped", "A cup is near an apple."),
        ("Cat next to the bed", "next to", "swapped", "Bed next to the cat"),
        ("The hot dog is left of the dining table.", "left of", "inverse", "The dining table is right of the hot dog."),
        ("The bag contains the cat.", "contains", "inverse", "The cat is inside the bag."),
        ("The cat is in the bag.", "in", "inverse", "The bag contains the cat."),
    ],
)
def test_captions(caption: str, relation: str, variant: str, expected: str) -> None:
    found = variant_of(example(caption, relation), variant).example
    assert found is not None
    assert found.caption == expected
    assert found.subject.lower() == example(caption, relation).object.lower()


@pytest.mark.parametrize(
    ("caption", "relation", "label", "variant", "reason"),
    [
        ("The cat is facing the bed.", "facing", 1, "swapped", "neither symmetric nor asymmetric"),
        ("The cat is juggling the bed.", "juggling", 1, "swapped", "not in the table"),
        ("The cat is juggling the bed.", "juggling", 1, "mirrored", "not in the table"),
        ("The cat is under the cat.", "under", 1, "swapped", "same name"),
        ("The cats are near the bed.", "near", 1, "swapped", "plural"),
        ("The cat is not near the bed.", "near", 1, "swapped", "negated"),
        ("The cat is left of the bed.", "left of", 0, "mirrored", "false caption about left or right"),
        ("The left shoe is near the bed.", "near", 1, "mirrored", "names left or right"),
        ("The cat is on the bed.", "on", 1, "inverse", "no relation of the table"),
    ],
)
def test_where_the_label_does_not_follow_there_is_no_variant(caption: str, relation: str, label: int, variant: str, reason: str) -> None:
    found = variant_of(example(caption, relation, label), variant)
    assert found.example is None
    assert reason in found.reason


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, form, **options)  # type: ignore[arg-type]
    return file.getvalue()


def test_mirror_images_are_mirrored_pixel_by_pixel(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    files = {
        "a.jpg": saved(rgb, "JPEG", exif=turned),
        "b.png": saved(Image.fromarray(rng.integers(0, 256, (20, 30, 4), np.uint8)), "PNG"),
        "c.png": saved(Image.fromarray(rng.integers(0, 65536, (20, 30), np.uint16)), "PNG"),
        "d.gif": saved(rgb.quantize(8), "GIF", transparency=3),
        "e.jpg": saved(rgb.convert("CMYK"), "JPEG"),
        "in/a.jpg": saved(rgb, "JPEG"),
    }
    (tmp_path / "photos" / "in").mkdir(parents=True)
    rows = []
    for name, data in files.items():
        (tmp_path / "photos" / name).write_bytes(data)
        rows.append({"image": name, "caption": "The cat is near the bed.", "relation": "near", "label": 1})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    minimal_pairs(tmp_path / "rows.jsonl", tmp_path / "photos", tmp_path / "out")
    for name, data in files.items():
        assert (tmp_path / "out" / "images" / name).read_bytes() == data
        mirrored = decode_image((tmp_path / "out" / "images" / mirrored_name(name)).read_bytes()).image
        np.testing.assert_array_equal(np.asarray(mirrored), np.asarray(ImageOps.mirror(decode_image(data).image)), err_msg=name)


def test_boxes_are_mirrored_with_the_pixels(written: tuple[Path, Path], tmp_path: Path) -> None:
    """A red rectangle in a photo that its EXIF orientation turns, annotated on the pixels as stored."""
    pixels = np.full((40, 60, 3), 255, np.uint8)
    pixels[5:15, 10:40] = (255, 0, 0)
    turned = Image.Exif()
    turned[0x0112] = 6
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(saved(Image.fromarray(pixels), "PNG", exif=turned))
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"image": "a.png", "caption": "The cat is near the bed.", "relation": "near", "label": 1})
    )
    boxes = {
        "images": [{"id": 1, "file_name": "a.png", "width": 60, "height": 40}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 5, 30, 10]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    minimal_pairs(tmp_path / "rows.jsonl", tmp_path / "photos", tmp_path / "out", boxes=tmp_path / "boxes.json")
    name = mirrored_name("a.png")
    mirrored = np.asarray(decode_image((tmp_path / "out" / "images" / name).read_bytes()).image)
    rows, columns = np.nonzero(mirrored[..., 1] == 0)
    expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert BoxIndex.from_coco(tmp_path / "out" / "instances.json").match(name, "cat") == expected
    before, after = (BoxIndex.from_coco(folder / "instances.json") for folder in written)
    lines = (written[1] / "pairs.jsonl").read_text().splitlines()
    image = next(row["image"] for row in map(json.loads, lines) if row["variant"] == "mirrored").removesuffix(".mirrored.png")
    for kind, ((x0, y0, x1, y1),) in before.by_category(image).items():
        np.testing.assert_allclose(after.match(image, kind), (x0, y0, x1, y1))
        np.testing.assert_allclose(after.match(mirrored_name(image), kind), (SIZE - x1, y0, SIZE - x0, y1))


def test_the_command_writes_a_data_set_and_counts_what_it_leaves_out(written: tuple[Path, Path], tmp_path: Path) -> None:
    arguments = ["pairs", str(written[0] / "scenes.jsonl"), "--images", str(written[0] / "images"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert f"of {SCENES} examples have a variant: swapped" in done.output
    assert "a false caption of an asymmetric relation can be true or false" in done.output
    rows = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert {row["variant"] for row in rows} == {"original", "swapped", "mirrored"}
    again = CliRunner().invoke(main, ["pairs", str(tmp_path / "out" / "pairs.jsonl"), *arguments[2:-1], str(tmp_path / "more")])
    assert again.exit_code == 2
    assert "found the column 'pair' already" in again.output
    wrong = CliRunner().invoke(main, [*arguments, "--variants", "turned"])
    assert wrong.exit_code == 2
    assert "expected --variants of swapped, mirrored, inverse, found turned" in wrong.output


def test_originals_are_never_overwritten(written: tuple[Path, Path]) -> None:
    with pytest.raises(InvalidInputError, match="another folder than that of the images"):
        minimal_pairs(written[0] / "scenes.jsonl", written[0] / "images", written[0])
