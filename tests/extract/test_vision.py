"""The vision tower's residual stream in raster order, against the tower's own outputs put in order by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stratascope.datasets.boxes import grid_cells  # noqa: E402
from stratascope.extract import plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.plan.images import open_image  # noqa: E402
from stratascope.extract.run.session import ExtractionSession  # noqa: E402
from stratascope.extract.run.vision_features import capturing_vision, vision_capture  # noqa: E402
from stratascope.store import ActivationStore  # noqa: E402
from tests.extract.families import build  # noqa: E402


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
