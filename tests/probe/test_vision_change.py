"""Changes of image cells where an object is painted over: means by hand, and those of the built-in model's tower."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from stratascope.cli import main
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.probe import VisionChanges, vision_changes
from stratascope.probe.vision_change import _example_means
from stratascope.store import ActivationStore

CORNERS = ("x0", "y0", "x1", "y1")


def test_cells_in_both_boxes_and_changed_cells_outside_the_box_are_left_out() -> None:
    """A photo of 4 x 4 cells: columns 0 and 1 are the subject's, columns 1 and 2 the object's."""
    table = pd.DataFrame([{"id": "a", "image_width": 40, "image_height": 40}] * 2)
    for who, box in (("subject", (0, 0, 20, 40)), ("object", (10, 0, 30, 40))):
        for corner, value in zip(CORNERS, box, strict=True):
            table[f"{who}_{corner}"] = float(value)
    changes = np.full((2, 2, 3, 20), np.nan, np.float32)  # padded by 4 cells; the second example was not measured
    by_column = [[[1, 1, 0.5, 0], [4, 4, 2, 3], [5, 5, 2, 7]], [[0, 1, 1, 0], [1, 9, 9, 3], [2, 9, 9, 5]]]
    changes[0, :, :, :16] = np.tile(by_column, (1, 1, 4))
    changes[0, 0, :, 14] = (0, 6, 8)  # the subject's box leaves one cell of column 2 as it was
    store = SimpleNamespace(
        examples=table,
        provenance={},
        grid=np.array([[4, 4]] * 2),
        available=lambda array: np.ones(2, bool),
        read=lambda array, examples: changes[examples],
    )
    numbers, means = _example_means(store)
    assert numbers.tolist() == [0]
    np.testing.assert_allclose(
        means[0, 0].T, [[1, 4, 5], [0, 6, 8], [0, 3, 7]]
    )  # own: column 0; other: that one cell; background: column 3
    np.testing.assert_allclose(means[0, 1].T, [[1, 9, 9], [0, 1, 2], [0, 3, 5]])  # own: column 2; other: column 0; background: column 3


@pytest.fixture(scope="module")
def planned(settings):
    pytest.importorskip("torch")
    from stratascope.extract import plan_extraction

    return plan_extraction(dataclasses.replace(settings, limit=40, record=("vision_change",), positions=("final",), thumbnail=None))


@pytest.fixture(scope="module")
def changed(planned, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    from stratascope.extract import run_extraction

    path = tmp_path_factory.mktemp("changed") / "c.zarr"
    run_extraction(planned, path)
    return ActivationStore.open(path)


def test_the_command_says_how_far_each_object_spreads(planned, changed: ActivationStore, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["entanglement", changed.name, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "subject painted over: mean relative change of its own cells" in done.output
    assert "information about the object has spread to cells of the subject" in done.output
    assert (tmp_path / "vision-changes.png").exists()
    found = VisionChanges.load(tmp_path / "vision-changes.zarr.zip")
    own, other, background = (found.rows("subject", cells) for cells in ("own", "other", "background"))
    assert own["stage"].tolist() == ["tower"] * 4 + ["merged"]
    assert own["layer"].tolist() == [0, 1, 2, 3, 3]
    assert own["whole_image"].tolist() == [False, False, False, True, False]
    assert (other["value"].iloc[0], background["value"].iloc[0]) == (0, 0)  # the pixels of these cells did not change
    assert ((own["low"] < own["value"]) & (own["value"] < own["high"])).all()
    each = []
    for k in range(40):
        cells, others = (
            set((planned.position_tokens(k, f"{who}_box") - planned.layouts[k].spans["image"][0]).tolist()) for who in ("subject", "object")
        )
        if cells - others:  # one box may lie within the other
            each.append(changed.read("vision_change", examples=k)[0][:, sorted(cells - others)].mean(1))
    np.testing.assert_allclose(own["value"], np.mean(each, axis=0), rtol=1e-5)
    assert own["examples"].tolist() == [len(each)] * 5


def test_a_store_without_changes_is_refused_and_a_result_names_its_curves(store, changed: ActivationStore) -> None:
    with pytest.raises(
        NotRecordedError, match="expected vision_change in the store, found none; extract again with --record vision_change"
    ):
        vision_changes(store)
    found = vision_changes(changed, full_attention=(0,), draws=100)
    assert found.options == {"full_attention": [0], "draws": 100, "seed": 0, "level": 0.95}
    assert found.rows("object", "other")["whole_image"].tolist() == [False, True, False, False, False]
    with pytest.raises(InvalidInputError, match="expected a curve of the table, found subject, image"):
        found.rows("subject", "image")
