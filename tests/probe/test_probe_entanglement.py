"""The vision tower's entanglement, on the built-in model: places are there after the block that sees the whole image, and not before."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from stratascope.cli import main
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.probe import Entanglement, entanglement
from stratascope.probe.vision_tower import known_blocks
from stratascope.store import ActivationStore


@pytest.fixture(scope="module")
def seen(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    pytest.importorskip("torch")
    from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction

    path = tmp_path_factory.mktemp("seen") / "v.zarr"
    files = {"examples": (scenes / "scenes.jsonl",), "images": scenes / "images", "boxes": scenes / "instances.json"}
    run_extraction(
        plan_extraction(ExtractionSettings(model="demo", **files, device="cpu", record=("vision_residual", "vision_output"))), path
    )
    return ActivationStore.open(path)


@pytest.mark.slow
def test_a_things_place_is_in_its_cells_after_the_block_that_sees_the_whole_image(seen: ActivationStore, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["entanglement", seen.name, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = Entanglement.load(tmp_path / "entanglement.zarr.zip")
    assert found.attributes["full_attention"] == [2]
    for position in ("subject_box", "object_box"):
        own, other = (found.rows(position, what).set_index("layer") for what in ("own place", "other's place"))
        assert own["stage"].tolist() == ["tower"] * 4 + ["merged"]
        assert own["value"].iloc[:3].max() < 0.1
        assert own["low"].iloc[3] > 0.5
        assert own["value"].iloc[4] > 0.5
        assert other["value"].max() < 0.2
    whole = found.table[found.table["whole_image"]]
    assert set(zip(whole["stage"], whole["layer"], strict=True)) == {("tower", 3)}
    assert "at block 2, which attends to the whole image" in done.output
    # 96 scenes are too few for every relation: said, not failed
    assert "relation not probed" in done.output
    assert (tmp_path / "entanglement.png").exists()


@pytest.mark.slow
def test_a_store_says_which_blocks_see_the_whole_image_and_of_older_ones_the_family_does(seen: ActivationStore) -> None:
    assert seen.provenance["vision"] == {"full_attention": [2]}
    older = {"model": {"family": "qwen2_5_vl"}}
    for tower, blocks in ((32, (7, 15, 23, 31)), (3, ())):
        assert known_blocks(SimpleNamespace(provenance=older, layout=SimpleNamespace(vision_layers=tower))) == blocks
    # a tower without such blocks is not taken for one that says nothing
    said = {**older, "vision": {"full_attention": []}}
    assert known_blocks(SimpleNamespace(provenance=said, layout=SimpleNamespace(vision_layers=32))) == ()


@pytest.mark.slow
def test_without_the_tower_it_is_refused(store, seen: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(NotRecordedError, match="--record vision_residual"):
        entanglement(store)
    with pytest.raises(InvalidInputError, match="expected a curve"):
        Entanglement.load(_saved(seen, tmp_path)).rows("image", "own place")


def _saved(store: ActivationStore, folder: Path) -> Path:
    entanglement(store).save(folder / "e.zarr.zip")
    return folder / "e.zarr.zip"
