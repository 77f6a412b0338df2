"""A start that fails leaves nothing that would stand in the way of the corrected command."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from stratascope.cli import main
from stratascope.errors import CaptureError, InvalidInputError, StoreError
from stratascope.extract import ExtractionSettings, plan_extraction
from stratascope.store import STATUS_CODES, ActivationStore

torch = pytest.importorskip("torch")

from stratascope.extract import run_extraction  # noqa: E402
from stratascope.extract.run.model import CaptureModel  # noqa: E402


@pytest.fixture
def wrong_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    real = CaptureModel.readout
    monkeypatch.setattr(CaptureModel, "readout", lambda self, residual, ids: real(self, residual[:, ::-1].copy(), ids))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_device_that_is_not_here_and_then_one_that_is(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    words = ["extract", "--model", "demo", "--examples", str(scenes / "scenes.jsonl"), "--images", str(scenes / "images"), "--limit", "2"]
    words += ["--record", "residual", "--out", str(out)]
    refused = CliRunner().invoke(main, [*words, "--device", "cuda"])
    assert refused.exit_code == 2
    assert "expected a CUDA device for --device cuda, found none; set --device to cpu" in refused.stderr
    assert not list(tmp_path.iterdir())
    done = CliRunner().invoke(main, [*words, "--device", "cpu"])
    assert done.exit_code == 0, done.output
    assert ActivationStore.open(out).complete


def scenes_with_bad_images(folder: Path, bad: range) -> ExtractionSettings:
    from stratascope.datasets import write_scenes

    rows = write_scenes(folder / "scenes", 6, seed=0)
    for k in bad:
        os.truncate(folder / "scenes" / "images" / f"scene_{k:06d}.png", 900)
    return ExtractionSettings(model="demo", examples=(rows,), images=folder / "scenes" / "images", block=2, record=("residual",))


@pytest.mark.usefixtures("wrong_capture")
def test_blocks_without_a_readable_image_do_not_create_the_store_before_the_model_answers(tmp_path: Path) -> None:
    plan = plan_extraction(scenes_with_bad_images(tmp_path, range(4)))
    with pytest.raises(CaptureError):
        run_extraction(plan, tmp_path / "s.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_blocks_without_a_readable_image_are_written_all_the_same(tmp_path: Path) -> None:
    run_extraction(plan_extraction(scenes_with_bad_images(tmp_path, range(4))), tmp_path / "s.zarr")
    assert ActivationStore.open(tmp_path / "s.zarr").status.tolist() == [STATUS_CODES["unreadable_image"]] * 4 + [1, 1]
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidInputError, match="expected at least one readable image, found none of 6"):
        plan_extraction(scenes_with_bad_images(tmp_path / "none", range(6)))


def test_a_shard_without_blocks_creates_nothing_and_says_so(scenes: Path, tmp_path: Path) -> None:
    words = ["extract", "--model", "demo", "--examples", str(scenes / "scenes.jsonl"), "--images", str(scenes / "images"), "--limit", "2"]
    said = CliRunner().invoke(main, [*words, "--device", "cpu", "--shard", "1/2", "--out", str(tmp_path / "s.zarr")])
    assert said.exit_code == 0, said.output
    assert "nothing to do for shard 1/2: the store has 1 blocks, none of them its own" in said.output
    assert not list(tmp_path.iterdir())


def test_a_place_where_nothing_can_be_created_is_refused_before_the_model_is_loaded(settings, tmp_path: Path, monkeypatch) -> None:
    plan = plan_extraction(dataclasses.replace(settings, limit=2))
    monkeypatch.setattr(CaptureModel, "__init__", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"expected to create the store in the folder .*file, found a file; choose another path"):
        run_extraction(plan, tmp_path / "file" / "s.zarr")
    if hasattr(os, "geteuid") and os.geteuid() != 0:  # nothing is forbidden to root
        tmp_path.chmod(0o500)
        with pytest.raises(StoreError, match="found one without permission to write"):
            run_extraction(plan, tmp_path / "s.zarr")
        tmp_path.chmod(0o700)
