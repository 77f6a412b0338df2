"""The vision tower's residual stream in raster order, against the tower's own outputs put in order by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from stratascope.datasets.boxes import grid_cells  # noqa: E402
from stratascope.errors import CaptureError  # noqa: E402
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.families.general_family import family_of  # noqa: E402
from stratascope.extract.plan.extraction_plan import ExtractionPlan  # noqa: E402
from stratascope.extract.plan.images import open_image  # noqa: E402
from stratascope.extract.run.session import ExtractionSession  # noqa: E402
from stratascope.extract.run.vision_tower import CellRequest, capturing_vision, find_tower, tower_blocks, view_capture, vision_capture  # noqa: E402
from stratascope.store import ActivationStore  # noqa: E402
from tests.extract.families import FAMILIES, build  # noqa: E402
from tests.extract.saved import save  # noqa: E402


@torch.no_grad()
def test_the_last_layer_through_the_merger_is_the_towers_output_in_raster_order() -> None:
    """Every cell by itself: the merger applied to its four patches gives the row of `pooler_output`, which is in raster order."""
    tower = build("qwen2_5_vl", "sdpa").model.visual
    grid = torch.tensor([[1, 20, 26], [1, 8, 12]])
    pixels = torch.randn(20 * 26 + 8 * 12, 1176, generator=torch.Generator().manual_seed(1))
    kept = {}
    hook = tower.merger.register_forward_pre_hook(lambda module, args: kept.__setitem__("in", args[0].clone()))
    expected = tower(pixels, grid_thw=grid).pooler_output
    hook.remove()
    segments = [(0, np.array([k])) for k in range(10 * 13)] + [(1, np.array([k])) for k in range(4 * 6)]
    capture = vision_capture(tower, grid, segments)
    patches = kept["in"][capture.index].view(len(segments) * 4, -1)
    np.testing.assert_allclose(tower.merger(patches), expected, atol=1e-5)


@torch.no_grad()
def test_a_changed_patch_changes_its_own_cell_first() -> None:
    """With windows only, a patch can reach no farther than its window; in window order taken for raster it would."""
    tower = build("qwen2_5_vl", "sdpa").model.visual
    tower.fullatt_block_indexes = []
    rows, columns = 10, 13
    grid = torch.tensor([[1, 2 * rows, 2 * columns]])
    pixels = torch.randn(4 * rows * columns, 1176, generator=torch.Generator().manual_seed(1))
    changed = pixels.clone()
    cell = 4 * columns + 7
    changed[4 * cell + 2] += 3
    found = []
    for given in (pixels, changed):
        capture = vision_capture(tower, grid, [(0, np.array([k])) for k in range(rows * columns)])
        with capturing_vision(tower, capture):
            tower(given, grid_thw=grid)
        found.append(capture.residual)
    assert np.flatnonzero((found[0][0] - found[1][0]).abs().sum(-1) > 1e-6).tolist() == [cell]
    for layer in (1, 4):
        moved = np.flatnonzero((found[0][layer] - found[1][layer]).abs().sum(-1) > 1e-6)
        assert cell in moved
        assert (np.abs(moved // columns - 4) <= 1).all()
        assert (np.abs(moved % columns - 7) <= 1).all()


TOWERS = [name for name in FAMILIES if not name.startswith("qwen")]
"""Families with CLIP, SigLIP, InternViT and towers of their structure."""


@pytest.fixture(scope="module", params=TOWERS)
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ExtractionPlan:
    """One photo of a family whose tower holds patches by view."""
    folder = tmp_path_factory.mktemp(request.param)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 200, 3), np.uint8)).save(folder / "a.png")
    row = {"image": "a.png", "caption": "The cat is on the car.", "relation": "on", "label": 1, "split": "test"}
    (folder / "rows.jsonl").write_text(json.dumps(row))
    settings = ExtractionSettings(
        model=str(save(request.param, folder / "model")),
        examples=(folder / "rows.jsonl",),
        images=folder,
        record=("residual", "vision_residual", "vision_output"),
        device="cpu",
    )
    return plan_extraction(settings)


def _photo(plan: ExtractionPlan, cell: tuple[int, int] | None = None) -> Image.Image:
    """The plan's photo, with another colour in the middle of a cell."""
    image = open_image(plan.settings.images / plan.shown[0])
    if cell is not None:
        x0, y0, x1, y1 = plan.layouts[0].view
        rows, columns = plan.layouts[0].grid
        x, y = x0 + (cell[1] + 0.5) * (x1 - x0) / columns, y0 + (cell[0] + 0.5) * (y1 - y0) / rows
        image.paste((255, 0, 255), (round(x) - 1, round(y) - 1, round(x) + 2, round(y) + 2))
    return image


def test_a_changed_cell_changes_the_entry_of_the_tower_at_that_cell_alone(planned: ExtractionPlan) -> None:
    session = ExtractionSession(planned, batch_tokens=1)
    (rows, columns), tower = planned.layouts[0].grid, family_of(planned.source).tower
    cells = CellRequest([np.array([k]) for k in range(rows * columns)], (rows, columns), tower)

    def residual(cell: tuple[int, int] | None = None) -> torch.Tensor:
        return session.model.features(session.prepare(_photo(planned, cell)), cells).vision

    before = residual()
    for cell in ((0, 0), (rows - 1, columns - 1), (rows // 2, 0), (0, columns // 2)):
        moved = (residual(cell) - before).abs().amax(-1) > 1e-5
        assert np.flatnonzero(moved[0]).tolist() == [cell[0] * columns + cell[1]]
        assert moved[-1].all()


def test_layers_of_the_tower_are_the_hidden_states_of_transformers_without_the_class_token(planned: ExtractionPlan, tmp_path: Path) -> None:
    run_extraction(planned, tmp_path / "vision.zarr")
    store = ActivationStore.open(tmp_path / "vision.zarr")
    session = ExtractionSession(planned, batch_tokens=1)
    pixels = session.prepare(_photo(planned)).tensors["pixel_values"]
    pixels = pixels.reshape(-1, *pixels.shape[-3:])
    tower = find_tower(session.model.model)
    with torch.inference_mode():
        states = tower(pixels, output_hidden_states=True).hidden_states
    view = -1 if family_of(planned.source).tower == "last" else 0
    side = pixels.shape[-1] // 14
    assert states[0].shape[1] - side**2 == (1 if planned.source.config["model_type"] in ("llava", "llava_next", "internvl") else 0)
    patches = torch.stack([state[view, -(side**2) :] for state in states]).numpy()
    np.testing.assert_allclose(store.read("vision_residual", position="image", examples=[0])[:, 0], patches.mean(1), atol=1e-4)
    rows, columns = planned.layouts[0].grid
    merge = side // rows
    for name, chosen in grid_cells(rows, columns).items():
        inside = np.zeros((side, side), bool)
        for cell in chosen:
            row, column = divmod(int(cell), columns)
            inside[row * merge : (row + 1) * merge, column * merge : (column + 1) * merge] = True
        stored = store.read("vision_residual", position=name, examples=[0])[:, 0]
        np.testing.assert_allclose(stored, patches[:, inside.ravel()].mean(1), atol=1e-4)


def test_a_tower_of_another_structure_is_refused_by_name() -> None:
    tower = build("llava", "sdpa").model.vision_tower
    request = CellRequest([np.arange(4)], (2, 2), "first")
    with pytest.raises(CaptureError, match=r"the same number for each of 3 x 3 cells, found 4 x 4 in CLIPVisionModel"):
        view_capture(tower, torch.zeros(1, 3, 56, 56), dataclasses.replace(request, grid=(3, 3)))
    with pytest.raises(CaptureError, match="expected 17 tokens of each view"):
        view_capture(tower, torch.zeros(1, 3, 56, 56), request).pool(0, torch.zeros(1, 20, 32))
    with pytest.raises(CaptureError, match="expected a vision tower over merged patches, found CLIPVisionModel"):
        vision_capture(tower, torch.tensor([[1, 4, 4]]), [(0, np.arange(2))])
    tower.config.num_hidden_layers = 5
    with pytest.raises(CaptureError, match="expected one list of 5 equal blocks in the vision tower CLIPVisionModel, found 0"):
        tower_blocks(tower)


def test_stored_vision_residuals_are_means_over_the_cells(settings, tmp_path: Path) -> None:
    plan = plan_extraction(dataclasses.replace(settings, limit=6, record=("residual", "vision_residual")))
    run_extraction(plan, tmp_path / "vision.zarr")
    store = ActivationStore.open(tmp_path / "vision.zarr")
    session = ExtractionSession(plan, batch_tokens=1)
    tower = session.model.model.model.visual
    for k in (0, 5):
        pixels, grid = session.model.prepare([open_image(plan.settings.images / plan.examples[k].image)]).tensors.values()
        capture = vision_capture(tower, grid, [(0, np.array([cell])) for cell in range(36)])
        with torch.inference_mode(), capturing_vision(tower, capture):
            tower(pixels, grid)
        cells = torch.stack([capture.residual[layer] for layer in sorted(capture.residual)]).numpy()
        for position, chosen in (
            ("image", np.arange(36)),
            ("subject_box", plan.position_tokens(k, "subject_box") - plan.layouts[k].spans["image"][0]),
            ("grid_1_2", grid_cells(6, 6)["grid_1_2"]),
        ):
            stored = store.read("vision_residual", position=position, examples=[k])[:, 0]
            np.testing.assert_allclose(stored, cells[:, chosen].mean(1), atol=1e-4)


def test_the_vision_output_is_the_mergers_in_raster_order(settings, tmp_path: Path) -> None:
    """Against `pooler_output`, which is in raster order; at `image` it is the residual stream's layer 0."""
    plan = plan_extraction(dataclasses.replace(settings, limit=3, record=("residual", "vision_output")))
    run_extraction(plan, tmp_path / "merged.zarr")
    store = ActivationStore.open(tmp_path / "merged.zarr")
    session = ExtractionSession(plan, batch_tokens=1)
    for k in range(3):
        with torch.inference_mode():
            image = open_image(plan.settings.images / plan.examples[k].image)
            merged = session.model.model.model.visual(*session.model.prepare([image]).tensors.values()).pooler_output
        for position, cells in plan.vision_cells(k).items():
            stored = store.read("vision_output", position=position, examples=[k])[0]
            np.testing.assert_allclose(stored, merged[cells].mean(0), atol=1e-5)
        np.testing.assert_allclose(store.read("residual", layer=0, position="image", examples=[k])[0], merged.mean(0), atol=1e-5)
    assert len(plan.vision_cells(0)) == 19


def test_sixteenths_cover_the_image_once() -> None:
    parts = grid_cells(17, 23)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(17 * 23))
    assert grid_cells(6, 6)["grid_0_0"].tolist() == [0, 1, 6, 7][: len(grid_cells(6, 6)["grid_0_0"])]
    assert all(len(cells) for cells in grid_cells(2, 3).values())
