"""How images become tokens, against the families' own processors at their real sizes, for images of every shape."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from stratascope.errors import InvalidInputError
from stratascope.extract.families.image_tokens import AnyResolution, CanvasTiles, CroppedSquare, SplitTiles
from stratascope.extract.plan.image_boxes import flipped, in_view, scaled

hf = pytest.importorskip("transformers")

SIZES = [(int(w), int(h)) for w, h in np.random.default_rng(0).integers(20, 2400, (400, 2))]
COMMON = [
    (640, 480),
    (480, 640),
    (500, 375),
    (333, 500),
    (640, 427),
    (336, 336),
    (448, 448),
    (512, 512),
    (364, 364),
    (1024, 768),
    (20, 1000),
]


def test_tiles_of_llava_next() -> None:
    pinpoints = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=pinpoints
    )
    own = hf.LlavaNextProcessor.__new__(hf.LlavaNextProcessor)  # its rule alone, without a tokenizer
    own.patch_size, own.num_additional_image_tokens, own.image_processor = 14, 1, images
    rule = AnyResolution("<image>", 336, 14, tuple(map(tuple, pinpoints)))
    for width, height in COMMON + SIZES:
        assert sum(rule.tokens(width, height).runs) == own._get_number_of_features(height, width, 336, 336) - 1
    assert rule.tokens(640, 480).grid == (24, 24)


def test_tiles_of_internvl() -> None:
    images = hf.GotOcr2ImageProcessor(size={"height": 448, "width": 448}, max_patches=12)
    rule = CanvasTiles("<IMG_CONTEXT>", 448, 16, 1, 12)
    for width, height in COMMON + SIZES:
        count = images.get_number_of_image_patches(height, width, {"crop_to_patches": True})
        found = rule.tokens(width, height)
        assert found.cut == (count,)
        assert sum(found.runs) == 256 * count
        assert found.cells == (256 * (count - 1), 256 * count)


@pytest.mark.parametrize(("longest", "split"), [(4 * 56, True), (3 * 56, True), (4096 * 2, True), (4 * 56, False)])
def test_tiles_of_idefics3(longest: int, split: bool) -> None:
    """By running the processor, which cuts otherwise than it says where it only counts."""
    images = hf.Idefics3ImageProcessor(size={"longest_edge": longest}, max_image_size={"longest_edge": 56}, do_image_splitting=split)
    rule = SplitTiles("<image>", 56, 2, longest, split)
    for width, height in [(64, 48), (48, 64), (100, 100), (20, 57), *((w // 20 + 8, h // 20 + 8) for w, h in SIZES[:40])]:
        if longest > 4096:  # the cap on the longer side; only counted, since such images are large
            rows, columns = rule.tiles(width * 100, height * 100)
            assert max(rows, columns) == -(-4096 // 56)
            continue
        made = images(images=[[Image.new("RGB", (width, height))]], return_row_col_info=True)
        assert rule.tiles(width, height) == (made["rows"][0][0], made["cols"][0][0])
        assert rule.tokens(width, height).cut == rule.tiles(width, height)


@pytest.mark.parametrize(("pad", "kind"), [(False, "CLIPImageProcessor"), (True, "LlavaImageProcessor")])
@pytest.mark.parametrize("size", [(640, 480), (333, 500), (336, 336), (900, 100)], ids=str)
def test_the_view_of_llava_is_what_its_processor_keeps(pad: bool, kind: str, size: tuple[int, int]) -> None:
    """Of an image whose colours are its coordinates, the corners of what is kept tell where the view lies."""
    width, height = size
    x, y = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    image = Image.fromarray(np.round(np.stack([255 * x, 255 * y, 0 * x + 255], -1)).astype(np.uint8))
    options = {"do_normalize": False, "do_rescale": False, "resample": Image.Resampling.BILINEAR, "image_mean": [0, 0, 0]}
    images = getattr(hf, kind)(size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112}, do_pad=pad, **options)
    seen = images(images=[image], return_tensors="np")["pixel_values"][0].astype(float)
    x0, y0, x1, y1 = CroppedSquare("<image>", 112, 112, 14, pad).tokens(width, height).view
    places_x, places_y = x0 + (np.arange(112) + 0.5) * (x1 - x0) / 112, y0 + (np.arange(112) + 0.5) * (y1 - y0) / 112
    step = max(width, height) / 112  # near its edge the image is blended with the padding
    in_x, in_y = (places_x > step) & (places_x < width - step), (places_y > step) & (places_y < height - step)
    inside = in_y[:, None] & in_x
    assert inside.sum() > 500
    np.testing.assert_allclose((np.broadcast_to(255 * places_x / width, inside.shape) - seen[0])[inside], 0, atol=2.5)
    np.testing.assert_allclose((np.broadcast_to(255 * places_y[:, None] / height, inside.shape) - seen[1])[inside], 0, atol=2.5)
    if pad:
        outside = (places_y < -step)[:, None] | (places_y > height + step)[:, None] | (places_x < -step) | (places_x > width + step)
        assert not seen[2][outside].any()


def test_a_crop_larger_than_the_resized_image_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="expected a crop of at most 112 pixels"):
        CroppedSquare("<image>", 112, 140, 14).tokens(300, 300)


def test_boxes_in_a_view() -> None:
    view = (80.0, 0.0, 560.0, 480.0)
    assert in_view((100, 10, 200, 20), view) == (20, 10, 120, 20)
    assert in_view((0, 10, 200, 20), view) == (0, 10, 120, 20)
    assert in_view((600, 10, 630, 20), view) is None
    assert flipped((10, 0, 30, 5), 100) == (70, 0, 90, 5)
    assert scaled((10, 0, 30, 5), (100, 10), (50, 20)) == (5, 0, 15, 10)
