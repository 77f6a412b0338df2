"""Changes in the vision tower, against stock transformers on a file of the changed image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from transformers import AutoImageProcessor, AutoModelForImageTextToText  # noqa: E402

from stratascope.errors import CaptureError, InvalidInputError  # noqa: E402
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.plan.plan_summary import plan_summary  # noqa: E402
from stratascope.extract.run.extraction import estimate_time  # noqa: E402
from stratascope.extract.run.session import ExtractionSession  # noqa: E402
from stratascope.extract.run.vision_change import painted_over  # noqa: E402
from stratascope.store import ActivationStore, StoreLayout  # noqa: E402
from tests.extract.saved import save  # noqa: E402

SIZES = {"qwen2_5_vl": (224, 168), "llava": (200, 150), "paligemma": (200, 150)}
"""(width, height) of the photo: for Qwen 8 x 6 cells, in windows of 2 x 2."""
BOXES = {"cat": (60.5, 20, 42, 50), "car": (120, 80, 40, 40)}
"""Object -> left, top, width, height."""


def _settings(family: str, folder: Path) -> ExtractionSettings:
    """A photo with boxes, and a tiny model of a family."""
    width, height = SIZES.get(family, (200, 150))
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(folder / "a.png")
    row = {"image": "a.png", "caption": "The cat is on the car.", "relation": "on", "label": 1, "split": "test"}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": width, "height": height}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(BOXES, 1)],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": k, "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
            for k, box in enumerate(BOXES.values(), 1)
        ],
    }
    (folder / "boxes.json").write_text(json.dumps(coco))
    return ExtractionSettings(
        model=str(save(family, folder / "model")),
        examples=(folder / "rows.jsonl",),
        images=folder,
        boxes=folder / "boxes.json",
        record=("vision_change",),
        device="cpu",
    )


@pytest.fixture(scope="module", params=SIZES)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ExtractionSettings, Path]:
    """A family, settings for one photo with boxes, and their store."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = _settings(request.param, folder)
    run_extraction(plan_extraction(settings), folder / "store.zarr")
    return request.param, settings, folder / "store.zarr"


def _changed_file(photo: Path, box: tuple[float, ...], path: Path) -> Path:
    """The photo with the pixels of a box in the mean colour of the others, pixel by pixel."""
    image = Image.open(photo).convert("RGB")
    x0, y0, x1, y1 = int(np.floor(box[0])), int(np.floor(box[1])), int(np.ceil(box[0] + box[2])), int(np.ceil(box[1] + box[3]))
    inside = {(x, y) for x in range(x0, x1) for y in range(y0, y1)}
    outside = [image.getpixel((x, y)) for x in range(image.width) for y in range(image.height) if (x, y) not in inside]
    colour = tuple(round(sum(channel) / len(outside)) for channel in zip(*outside, strict=True))
    for place in inside:
        image.putpixel(place, colour)
    image.save(path)
    return path


@torch.no_grad()
def _stock_states(family: str, folder: Path, photo: Path) -> list[np.ndarray]:
    """(cell, width) states after each block and of the output of the stock model, by its own processor."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    made = AutoImageProcessor.from_pretrained(folder)(images=[Image.open(photo)], return_tensors="pt")
    pooled = model.get_image_features(**made, return_dict=True).pooler_output
    pooled = torch.cat([each.reshape(-1, each.shape[-1]) for each in pooled]).numpy()
    if not family.startswith("qwen"):
        states = model.model.vision_tower(made["pixel_values"], output_hidden_states=True).hidden_states
        side = int(states[0].shape[1] ** 0.5)
        assert len(pooled) == side**2  # a cell is a patch
        return [*(state[0, -(side**2) :].numpy() for state in states), pooled]
    seen: list[torch.Tensor] = []
    blocks = model.model.visual.blocks
    hooks = [block.register_forward_pre_hook(lambda module, args, kwargs: seen.append(args[0]), with_kwargs=True) for block in blocks]
    hooks.append(blocks[-1].register_forward_hook(lambda module, args, output: seen.append(output)))
    model.model.visual(made["pixel_values"], grid_thw=made["image_grid_thw"])
    for hook in hooks:
        hook.remove()
    ordered = [8 * (2 * a + c) + 2 * b + d for a in range(3) for b in range(4) for c in range(2) for d in range(2)]
    return [*(state.view(48, 4, -1).mean(1)[np.argsort(ordered)].numpy() for state in seen), pooled]


def test_stored_changes_are_those_of_the_stock_model_on_a_file_of_the_changed_image(recorded, tmp_path: Path) -> None:
    family, settings, path = recorded
    store = ActivationStore.open(path)
    stored = store.read("vision_change", examples=[0])[0]
    before = _stock_states(family, Path(settings.model), settings.images / "a.png")
    assert stored.shape == (2, len(before), len(before[0]))
    for k, box in enumerate(BOXES.values()):
        after = _stock_states(family, Path(settings.model), _changed_file(settings.images / "a.png", box, tmp_path / f"{k}.png"))
        expected = [np.linalg.norm(b - a, axis=1) / np.linalg.norm(a, axis=1) for a, b in zip(before, after, strict=True)]
        np.testing.assert_allclose(stored[k], expected, rtol=1e-3, atol=1e-4)
        assert stored[k, 0].max() > 0.1


def test_cells_of_windows_that_the_box_does_not_touch_do_not_move_before_the_first_block_over_the_whole_image(recorded) -> None:
    family, _, path = recorded
    changes = ActivationStore.open(path).read("vision_change", examples=[0])[0]
    if not family.startswith("qwen"):
        assert (changes[:, 0] == 0).any(1).all()  # patches are embedded alone,
        assert (changes[:, 1:] > 0).all()  # and every block attends to all
        return
    row, column = np.divmod(np.arange(48), 8)
    for k, (left, top, width, height) in enumerate(BOXES.values()):
        columns = [int(left) // 56, int(np.ceil(left + width) - 1) // 56]
        rows = [int(top) // 56, int(np.ceil(top + height) - 1) // 56]
        touched = (row // 2 >= rows[0]) & (row // 2 <= rows[1]) & (column // 2 >= columns[0]) & (column // 2 <= columns[1])
        assert 0 < touched.sum() < 48
        assert (changes[k, :2][:, ~touched] == 0).all()  # block 0 attends within windows
        assert (changes[k, 1][touched] > 0).all()
        assert (changes[k, 2:] > 0).all()  # block 1 attends to the whole image


def test_a_plan_states_passes_and_bytes_and_a_store_without_changes_says_nothing_of_them(recorded, tmp_path: Path) -> None:
    _, settings, path = recorded
    plan = plan_extraction(settings)
    assert "changes    of 1 examples in the vision tower: 3 more passes of it" in plan_summary(plan)
    found = plan.estimate.set_index("array").loc["vision_change", "estimated_bytes"]
    files = sum(file.stat().st_size for file in (path / "vision_change").rglob("0") if file.is_file())
    assert 0.8 < found / files < 1.3
    assert ActivationStore.open(path).provenance["changes"] == 128
    timing = estimate_time(plan, timed=True, batch_tokens=8192)
    assert {stage.name: stage.work for stage in timing.stages}["vision changes"] == 1
    without = plan_extraction(dataclasses.replace(settings, record=("residual",)))
    assert "changes" not in without.provenance
    assert not {name for name in without.store.to_json() if name.startswith("change")}
    assert StoreLayout.from_json(plan.store.to_json()) == plan.store
    assert "vision_change" not in plan_extraction(dataclasses.replace(settings, changes=0)).store.record


def test_what_has_no_boxes_cells_or_tower_is_refused_by_name(recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    _, settings, _ = recorded
    with pytest.raises(InvalidInputError, match="expected gold boxes of subject and object for vision_change, found none; set `boxes`"):
        plan_extraction(dataclasses.replace(settings, boxes=None))
    for condition in ("blank", "shuffled-image"):
        with pytest.raises(InvalidInputError, match=f"for vision_change, found `condition` {condition}"):
            dataclasses.replace(settings, condition=condition)
    with pytest.raises(InvalidInputError, match="patch-shuffle"):
        dataclasses.replace(settings, condition="patch-shuffle")
    with pytest.raises(InvalidInputError, match="expected `changes` to be 0 or more"):
        dataclasses.replace(settings, changes=-1)
    plan = plan_extraction(settings)
    session = ExtractionSession(plan, batch_tokens=1)
    span = plan.layouts[0].spans["image"]
    ids = np.delete(plan.layouts[0].ids, span[1] - 1)
    monkeypatch.setitem(vars(plan), "layouts", [dataclasses.replace(plan.layouts[0], ids=ids)])
    with pytest.raises(CaptureError, match=r"image tokens of the vision tower, as the prompt has, found .*; leave vision_change out"):
        session.vision_changes(0)


def test_a_mirrored_image_has_its_box_mirrored_and_a_box_over_everything_has_no_colour_outside(recorded, tmp_path: Path) -> None:
    family, settings, path = recorded
    image = Image.open(settings.images / "a.png").convert("RGB")
    assert painted_over(image, (-1, 0, image.width, image.height + 0.5)) is None
    if family != "llava":
        return
    run_extraction(plan_extraction(dataclasses.replace(settings, condition="mirror")), tmp_path / "mirror.zarr")
    changes, own = (ActivationStore.open(p).read("vision_change", examples=[0])[0, :, 0] > 1e-6 for p in (tmp_path / "mirror.zarr", path))
    side = int(own.shape[1] ** 0.5)
    np.testing.assert_array_equal(changes.reshape(2, side, side), own.reshape(2, side, side)[:, :, ::-1])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava_next", "idefics3", "gemma3", "qwen3_vl"])
def test_changes_of_the_output_are_those_of_what_enters_the_decoder_at_each_cell(family: str, tmp_path: Path) -> None:
    """Of tiled photos, too: layer 0 of the decoder at the tokens of single cells, on the photo and on a file of the changed one."""
    settings = dataclasses.replace(_settings(family, tmp_path), record=("residual", "vision_change"), positions=("final", "cells"))
    photo, inputs = settings.images / "a.png", []
    original = photo.read_bytes()
    for k, box in enumerate([None, *BOXES.values()]):
        photo.write_bytes(original)
        if box is not None:
            _changed_file(photo, box, photo)
        run_extraction(plan_extraction(settings), tmp_path / f"{k}.zarr")
        store = ActivationStore.open(tmp_path / f"{k}.zarr")
        cells = [f"cell_{row}_{column}" for row in range(store.grid[0, 0]) for column in range(store.grid[0, 1])]
        inputs.append(store.read("residual", layer=0, positions=cells, examples=0))
    expected = [np.linalg.norm(after - inputs[0], axis=1) / np.linalg.norm(inputs[0], axis=1) for after in inputs[1:]]
    stored = ActivationStore.open(tmp_path / "0.zarr").read("vision_change", examples=0)[:, -1]
    np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-4)
    assert np.ptp(stored) > 0.01
