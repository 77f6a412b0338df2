"""Photos that are not as they were annotated or planned, on the whole way from files to numbers."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

pytest.importorskip("torch")

from stratascope.analysis import attention_overlap, pointing
from stratascope.cli import main
from stratascope.datasets import BoxIndex, write_scenes
from stratascope.errors import InvalidInputError
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction
from stratascope.extract.plan.plan_summary import plan_summary
from stratascope.extract.run.inputs import load_image, shown_image
from stratascope.store import STATUS_CODES, ActivationStore, verify
from stratascope.store.format.prompt_parts import shown_boxes

COUNT = 12
RECORD = ("residual", "attention_rows")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve scenes of 168 x 168 pixels with boxes."""
    folder = tmp_path_factory.mktemp("drawn")
    write_scenes(folder, COUNT, seed=3)
    return folder


@pytest.fixture
def data(drawn: Path, tmp_path: Path) -> Path:
    """A copy of them to spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "data"))


def settings(data: Path, **changes: object) -> ExtractionSettings:
    chosen = ExtractionSettings(
        "demo", (data / "scenes.jsonl",), data / "images", data / "instances.json", device="cpu", record=RECORD, thumbnail=None
    )
    return dataclasses.replace(chosen, **changes)  # type: ignore[arg-type]


def images(data: Path) -> list[Path]:
    return sorted((data / "images").iterdir())


def resize(path: Path, width: int, height: int) -> None:
    with Image.open(path) as image:
        image.convert("RGB").resize((width, height), Image.Resampling.NEAREST).save(path)


def turn(path: Path, orientation: int) -> None:
    """The same pixels with an EXIF orientation."""
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = orientation
        image.convert("RGB").save(path, exif=exif)


def restate(data: Path, scale: float) -> Path:
    """The boxes as annotated on images `scale` times as large."""
    content = json.loads((data / "instances.json").read_text())
    for image in content["images"]:
        image["width"], image["height"] = image["width"] * scale, image["height"] * scale
    for row in content["annotations"]:
        row["bbox"] = [v * scale for v in row["bbox"]]
    path = data / "restated.json"
    path.write_text(json.dumps(content))
    return path


def extracted(data: Path, out: str, **changes: object) -> ActivationStore:
    path = data.parent / out
    run_extraction(plan_extraction(settings(data, **changes)), path)
    return ActivationStore.open(path)


@pytest.mark.slow
def test_photos_of_twice_the_annotated_size_give_the_same_boxes_and_overlaps(data: Path) -> None:
    """FAULTS 1: overlap is a property of the scene, not of the photo's resolution."""
    plain = extracted(data, "plain.zarr")
    with Image.open(images(data)[0]) as image:
        width, height = image.size
    for path in images(data):
        resize(path, 2 * width, 2 * height)
    plan = plan_extraction(settings(data, max_pixels=width * height))
    assert f"boxes      of {COUNT} images: scaled {COUNT}, the others as annotated" in plan_summary(plan)
    assert plan.provenance["data"]["box_alignment"] == {"scaled": COUNT}
    large = extracted(data, "large.zarr", max_pixels=width * height)
    np.testing.assert_allclose(shown_boxes(large), shown_boxes(plain), rtol=1e-12)
    assert np.array_equal(large.examples["subject_x1"], 2 * plain.examples["subject_x1"], equal_nan=True)
    a, b = (attention_overlap(store, measure="lift").mean() for store in (plain, large))
    assert np.unravel_index(np.nanargmax(a), a.shape) == np.unravel_index(np.nanargmax(b), b.shape)
    np.testing.assert_allclose(a, b, atol=0.1)  # the same picture once it is resized back, but for resampling


@pytest.mark.slow
def test_a_file_of_boxes_at_another_size_points_as_the_same_boxes_do(drawn: Path, data: Path) -> None:
    """FAULTS 2."""
    store = extracted(data, "s.zarr", record=("residual", "attention_rows", "value_norms"))
    plain = pointing(store, BoxIndex.from_coco(drawn / "instances.json"), methods=("attention",))
    doubled = pointing(store, BoxIndex.from_coco(restate(data, 2)), methods=("attention",))
    assert doubled.table.equals(plain.table)
    assert doubled.attributes["box_alignment"] == {"scaled": COUNT}
    assert "box_alignment" not in plain.attributes
    wide = json.loads((data / "instances.json").read_text())
    for image in wide["images"]:
        image["width"] *= 2
    (data / "wide.json").write_text(json.dumps(wide))
    with pytest.raises(InvalidInputError, match=r"boxes are annotated on 336 x 168 pixels, the photo has 168 x 168"):
        pointing(store, BoxIndex.from_coco(data / "wide.json"), methods=("attention",))
    given = ["--boxes", str(data / "wide.json"), "--out", str(data / "out")]
    result = CliRunner().invoke(main, ["pointing", str(data.parent / "s.zarr"), *given])
    assert result.exit_code == 2
    assert "336 x 168" in result.stderr
    for image in wide["images"][1:]:
        image["width"] //= 2
    (data / "one.json").write_text(json.dumps(wide))
    one = pointing(store, BoxIndex.from_coco(data / "one.json"), methods=("attention",))
    assert list(one.attributes["box_alignment"]["refused"]) == [wide["images"][0]["file_name"]]
    assert set(one.examples) == set(plain.examples) - {0}
    assert f"left out: 1 images with boxes that do not fit their photo: {wide['images'][0]['file_name']}: boxes are" in one.summary()


@pytest.mark.slow
def test_boxes_of_the_stored_pixels_turn_with_the_photo(data: Path) -> None:
    """FAULTS 3: a photo as phones write it, its boxes drawn on the pixels as stored."""
    content = json.loads((data / "instances.json").read_text())
    for image in content["images"]:  # stored 240 wide, so that its sides tell which way it was annotated
        image["width"] = 240
    for row in content["annotations"]:
        row["bbox"][0] *= 240 / 168
        row["bbox"][2] *= 240 / 168
    (data / "instances.json").write_text(json.dumps(content))
    for path in images(data):
        resize(path, 240, 168)
    plain = shown_boxes(extracted(data, "plain.zarr"))
    for path in images(data):
        turn(path, 6)
    store = extracted(data, "turned.zarr")
    assert set(store.examples["exif_orientation"]) == {6}
    assert set(zip(store.examples["image_width"], store.examples["image_height"], strict=True)) == {(168, 240)}
    x0, y0, x1, y1 = np.moveaxis(plain, -1, 0)
    np.testing.assert_allclose(shown_boxes(store), np.stack([1 - y1, x0, 1 - y0, x1], -1), atol=1e-12)
    plan = plan_extraction(settings(data))
    assert f"rotated by EXIF orientation {COUNT}" in plan_summary(plan)
    assert f"boxes      of {COUNT} images: turned {COUNT}" in plan_summary(plan)


def test_refused_boxes_are_named_counted_and_leave_no_cell(data: Path) -> None:
    """A square photo that is turned does not tell whether it was annotated before or after; another has boxes from 0 to 1."""
    first, second = images(data)[:2]
    turn(first, 6)
    resize(second, 300, 168)
    plan = plan_extraction(settings(data))
    text = plan_summary(plan)
    assert f"boxes      of {COUNT} images: refused 2, the others as annotated" in text
    assert f"boxes refused: {first.name}: the photo is turned by its EXIF orientation 6" in text
    assert f"boxes refused: {second.name}: boxes are annotated on 168 x 168 pixels, the photo has 300 x 168" in text
    for k, example in enumerate(plan.examples):
        if example.image in (first.name, second.name):
            assert plan.shown_box(k, "subject") is None
            assert plan.shown_box(k, "object") is None
    with pytest.raises(InvalidInputError, match=f"2 of {COUNT} images whose boxes do not: {first.name}"):
        plan_extraction(settings(data, strict=True))


def test_a_file_whose_boxes_fit_no_photo_is_refused(data: Path) -> None:
    content = json.loads((data / "instances.json").read_text())
    for row in content["annotations"]:
        row["bbox"] = [v / 168 for v in row["bbox"]]
    (data / "instances.json").write_text(json.dumps(content))
    with pytest.raises(InvalidInputError, match=r"shares of width and height \(0\.\.1\); multiply them by both"):
        plan_extraction(settings(data))


@pytest.mark.slow
def test_boxes_beyond_their_images_in_a_store_are_refused(data: Path) -> None:
    """As a store has them that was made before sizes were compared."""
    plan = plan_extraction(settings(data))
    twice = [dataclasses.replace(e, subject_box=(1, 1, 300, 300)) if k == 4 else e for k, e in enumerate(plan.examples)]
    run_extraction(dataclasses.replace(plan, examples=twice), data.parent / "old.zarr")
    result = CliRunner().invoke(main, ["overlap", str(data.parent / "old.zarr"), "--out", str(data / "out")])
    assert result.exit_code == 2
    assert f"first {plan.examples[4].id} with {plan.examples[4].image} of 168 x 168 pixels" in result.stderr


@pytest.mark.slow
def test_images_that_cannot_be_recorded_fail_by_name_and_the_rest_goes_on(data: Path) -> None:
    """FAULTS 14, 27 and HEIC."""
    long, pipe, heic = images(data)[:3]
    Image.new("RGB", (2300, 10)).save(long)
    pipe.unlink()
    os.mkfifo(pipe)
    heic.write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    options = ["--examples", str(data / "scenes.jsonl"), "--images", str(data / "images"), "--boxes", str(data / "instances.json")]
    planned = CliRunner().invoke(main, ["plan", "--model", "demo", *options])
    assert planned.exit_code == 0
    assert f"3 of {COUNT} examples cannot be used" in planned.stdout
    plan = plan_extraction(settings(data))
    report = run_extraction(plan, data.parent / "s.zarr")
    reasons = {plan.examples[k].image: reason for k, reason in plan.failed.items()}
    assert "2300 x 10 pixels, an aspect ratio beyond 200" in reasons[long.name]
    assert "is not a regular file but a named pipe" in reasons[pipe.name]
    assert "HEIC is not read; convert the image to JPEG or PNG" in reasons[heic.name]
    assert sorted(report.failed.values()) == sorted(reasons.values())
    store = ActivationStore.open(data.parent / "s.zarr")
    assert (store.status == STATUS_CODES["recorded"]).sum() == COUNT - 3
    assert (store.status == STATUS_CODES["unreadable_image"]).sum() == 3
    assert np.isfinite(shown_boxes(store)).all((1, 2)).sum() <= COUNT - 3


def test_a_shape_that_the_model_does_not_take_fails_alone(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stratascope.extract.families.image_tokens import PatchGrid

    monkeypatch.setattr(PatchGrid, "_most_aspect", 2)
    path = images(data)[5]
    resize(path, 400, 100)
    plan = plan_extraction(settings(data, boxes=None))
    assert [plan.examples[k].image for k in plan.failed] == [path.name]
    assert f"{path}: expected an image of aspect ratio at most 2, found 400 x 100" in next(iter(plan.failed.values()))
    with pytest.raises(InvalidInputError, match=rf"example {plan.examples[5].id}: .*aspect ratio at most 2"):
        plan_extraction(settings(data, boxes=None, strict=True))


def test_images_that_all_fail_are_refused(data: Path) -> None:
    for path in images(data):
        path.write_bytes(b"GIF89a")
    with pytest.raises(InvalidInputError, match=rf"at least one readable image, found none of {COUNT}: .*cannot be decoded"):
        plan_extraction(settings(data))


@pytest.mark.slow
def test_an_image_replaced_after_planning_is_refused_by_its_hash(data: Path) -> None:
    """FAULTS 43: another picture of the same size."""
    plan = plan_extraction(settings(data))
    replaced = images(data)[4]
    shutil.copy(images(data)[7], replaced)
    report = run_extraction(plan, data.parent / "s.zarr")
    ((example, reason),) = report.failed.items()
    assert example == plan.examples[4].id
    assert f"{replaced} was replaced after planning: expected the file with SHA-256 {plan.facts[replaced.name].sha256[:12]}" in reason
    store = ActivationStore.open(data.parent / "s.zarr")
    assert store.status.tolist() == [1] * 4 + [STATUS_CODES["image_mismatch"]] + [1] * (COUNT - 5)
    with pytest.raises(InvalidInputError, match="was replaced after planning"):
        shown_image(plan, replaced.name)
    replaced.unlink()
    loaded = load_image(plan, 4, None)
    assert loaded.problem is not None
    assert "could be read during planning and cannot be read now" in loaded.problem[0]


@pytest.mark.slow
def test_verifying_images_never_leaves_their_folder(data: Path) -> None:
    """A stranger's store may name any file, and a pipe would hold the check for ever."""
    store = data.parent / "s.zarr"
    plan = plan_extraction(settings(data))
    outside, pipe = "../secret.txt", "pipe.png"
    names = {0: outside, 1: str(data / "secret.txt"), 2: pipe}
    (data / "secret.txt").write_text("secret")
    os.mkfifo(data / "images" / pipe)
    rows = [dataclasses.replace(e, image=names.get(k, e.image)) for k, e in enumerate(plan.examples)]
    facts = {**plan.facts, **{names[k]: plan.facts[plan.examples[k].image] for k in names}}
    run_extraction(dataclasses.replace(plan, examples=rows, facts=facts), store)
    found = verify(store, images=data / "images").problems
    assert set(found["file"]) == set(names.values())
    told = dict(zip(found["file"], found["problem"], strict=True))
    assert "within the folder of images" in told[outside]
    assert "within the folder of images" in told[names[1]]
    assert "not a regular file but a named pipe" in told[pipe]


def test_a_stated_size_stretches_boxes_for_the_plan_alone(data: Path) -> None:
    plan = plan_extraction(settings(data, images=None, image_size=(336, 84)))
    plain = plan_extraction(settings(data))
    for a, b in zip(plan.examples, plain.examples, strict=True):
        if b.subject_box is not None:
            assert a.subject_box == (2 * b.subject_box[0], b.subject_box[1] / 2, 2 * b.subject_box[2], b.subject_box[3] / 2)
