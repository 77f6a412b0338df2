"""Boxes of an annotated image on the photo at hand: the box stays on the thing, or is refused."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from stratascope.datasets.box_alignment import align_boxes, align_image
from stratascope.datasets.boxes import Box, BoxIndex
from stratascope.errors import InvalidInputError
from stratascope.extract.plan.images import decode_image

RED = (220, 30, 30)
SIDES = st.integers(40, 240)


def drawn(size: tuple[int, int], box: Box) -> Image.Image:
    """White, with a red rectangle that fills the box."""
    image = Image.new("RGB", size, "white")
    image.paste(RED, tuple(round(v) for v in box))
    return image


def saved(image: Image.Image, orientation: int, kind: str) -> bytes:
    """The file's bytes, with an EXIF orientation that Pillow writes."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = BytesIO()
    image.save(data, kind, exif=exif)
    return data.getvalue()


def seen(image: Image.Image) -> Box:
    """The box that a reader of pixels finds: where the picture is red."""
    red = np.asarray(image, int)[..., 1] < 140
    y, x = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
    return float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[tuple[int, int], Box]:
    """A size, and a box within it that is large enough to survive resizing."""
    width, height = draw(SIDES), draw(SIDES)
    x0, y0 = draw(st.integers(0, width - 20)), draw(st.integers(0, height - 20))
    return (width, height), (x0, y0, draw(st.integers(x0 + 20, width)), draw(st.integers(y0 + 20, height)))


@settings(max_examples=150, deadline=None)
@given(scenes(), st.integers(1, 8), st.sampled_from([0.5, 0.75, 1, 1.5, 2, 3]), st.sampled_from(["PNG", "JPEG", "TIFF"]), st.booleans())
def test_a_box_stays_on_what_is_drawn_at_any_size_and_orientation(scene, orientation: int, scale: float, kind: str, upright: bool) -> None:
    """Annotated before or after turning, and at another size: the aligned box is where the thing is, or it is refused as ambiguous."""
    size, box = scene
    photo = drawn(size, box)
    photo = photo.resize((max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), Image.Resampling.BOX)
    found = decode_image(saved(photo, orientation, kind))
    assert found.orientation == orientation
    if upright:  # annotated on the upright photo at its full size
        size, box = found.image.size, seen(found.image)
    alignment = align_boxes(size, found.image.size, found.orientation)
    aligned = alignment.apply(box)
    if aligned is None:
        swaps = orientation >= 5
        ratio = size[0] / size[1]
        assert orientation != 1
        assert "EXIF orientation" in alignment.reason
        assert not swaps or abs(ratio - 1) < 0.06, "only nearly square photos leave it open"
        return
    assert np.abs(np.subtract(aligned, seen(found.image))).max() <= 1 + scale


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_boxes_of_another_aspect_ratio_are_refused(a: int, b: int, c: int, d: int) -> None:
    assume(abs(a * d / (b * c) - 1) > 0.06)
    alignment = align_boxes((a, b), (c, d))
    assert alignment.case == "refused"
    assert alignment.reason == f"boxes are annotated on {a} x {b} pixels, the photo has {c} x {d}"
    assert alignment.apply((0, 0, 1, 1)) is None


@pytest.mark.parametrize(
    ("annotated", "photo", "orientation", "case"),
    [
        ((640, 427), (640, 427), 1, "unchanged"),
        ((640, 427), (320, 213), 1, "scaled"),
        ((640, 427), (1280, 854), 1, "scaled"),
        ((640, 480), (480, 640), 6, "turned"),
        ((1280, 960), (480, 640), 8, "turned"),
        ((480, 640), (480, 640), 6, "unchanged"),
        ((480, 640), (640, 480), 1, "refused"),
        ((640, 480), (640, 480), 3, "refused"),
        ((168, 168), (168, 168), 6, "refused"),
        ((640, 480), (500, 400), 1, "refused"),
    ],
)
def test_which_case_a_pair_of_sizes_is(annotated, photo, orientation: int, case: str) -> None:
    assert align_boxes(annotated, photo, orientation).case == case


def coco(path: Path, size: tuple[float, float], bbox: list[float]) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": bbox}],
    }
    path.write_text(json.dumps(content))
    return path


def test_boxes_in_shares_of_the_image_are_refused_or_scaled_never_taken_for_pixels(tmp_path: Path) -> None:
    stated_in_pixels = BoxIndex.from_coco(coco(tmp_path / "a.json", (640, 480), [0.25, 0.5, 0.5, 0.25]))
    alignment = align_image(stated_in_pixels, "a.jpg", (640, 480))
    assert alignment is not None
    assert alignment.case == "refused"
    assert "shares of width and height (0..1)" in alignment.reason
    unit = BoxIndex.from_coco(coco(tmp_path / "b.json", (1, 1), [0.25, 0.5, 0.5, 0.25]))
    alignment = align_image(unit, "a.jpg", (200, 200))
    assert alignment is not None
    assert alignment.apply(unit.instances("a.jpg", "cat")[0]) == (50, 100, 150, 150)


@pytest.mark.parametrize("side", [0, -640, float("nan"), float("inf")])
def test_a_size_that_is_none_is_refused(tmp_path: Path, side: float) -> None:
    with pytest.raises(InvalidInputError, match=r"found: image a\.jpg with width"):
        BoxIndex.from_coco(coco(tmp_path / "a.json", (side, 480), [1, 2, 3, 4]))
