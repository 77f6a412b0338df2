"""Run again, a demo makes what is missing or changed and nothing else, and no picture stays that is of something else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")

from stratascope.demo import run_demo
from stratascope.demo.stages import Stages
from stratascope.errors import InvalidInputError

SETTINGS = {"scenes": 160, "seed": 0}
OUTSIDE = {"settings": SETTINGS, "stages": {"a": {"of": ["0", 1], "files": {"../mine.png": ""}}}}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def made(stages: Stages, name: str, made_of: object, files: dict[str, str]) -> bool:
    """Whether a stage that writes `files` was made."""
    folder, was = stages.out / "results", []

    def make() -> None:
        was.append(name)
        for file, text in files.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(text)

    stages.make(name, made_of, folder, make)
    return bool(was)


def test_a_stage_is_made_again_where_it_or_what_it_is_of_has_changed(tmp_path: Path) -> None:
    files = {"a.png": "a", "a.zip": "z"}
    assert made(Stages(tmp_path, SETTINGS), "a", 1, files)
    assert not made(Stages(tmp_path, SETTINGS), "a", 1, files)
    assert made(Stages(tmp_path, SETTINGS), "a", 2, files)
    (tmp_path / "results" / "a.png").write_text("by hand")
    assert made(Stages(tmp_path, SETTINGS), "a", 2, files)
    (tmp_path / "results" / "a.zip").unlink()
    assert made(Stages(tmp_path, SETTINGS), "a", 2, files)
    assert contents(tmp_path / "results") == {"a.png": b"a", "a.zip": b"z"}


def test_what_a_stage_left_before_does_not_stay(tmp_path: Path) -> None:
    stages = Stages(tmp_path, SETTINGS)
    made(stages, "a", 1, {"a.png": "a", "prediction.png": "p"})
    made(stages, "gone", 1, {"gone.png": "g"})
    (tmp_path / "results" / "mine.png").write_text("mine")
    stages = Stages(tmp_path, SETTINGS)
    made(stages, "a", 2, {"a.png": "b"})
    stages.finish()
    assert contents(tmp_path / "results") == {"a.png": b"b", "mine.png": b"mine"}


def test_a_stage_that_is_stopped_is_made_again(tmp_path: Path) -> None:
    made(Stages(tmp_path, SETTINGS), "a", 1, {"a.png": "a"})

    def stopped() -> None:
        (tmp_path / "results" / "a.png").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path, SETTINGS).make("a", 2, tmp_path / "results", stopped)
    assert made(Stages(tmp_path, SETTINGS), "a", 1, {"a.png": "a"})


def test_layers_may_be_deleted(tmp_path: Path) -> None:
    files = {"a.png": "a", "layers/layer-0.zip": "0"}
    assert made(Stages(tmp_path, SETTINGS), "a", 1, files)
    shutil.rmtree(tmp_path / "results" / "layers")
    assert not made(Stages(tmp_path, SETTINGS), "a", 1, files)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"settings": 1, "stages": {}}', '{"settings": {}, "stages": {"a": 1}}', '{"stages": {}}', json.dumps(OUTSIDE)],
)
def test_a_list_of_stages_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "demo.json").write_text(content)
    with pytest.raises(InvalidInputError, match="expected the stages of a demo"):
        Stages(tmp_path, SETTINGS)


def test_other_settings_and_other_folders_are_refused_and_left_alone(demo: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*")}
    message = r"settings of this folder \(scenes 512, seed 0\), found scenes 512, seed 1; choose another folder"
    with pytest.raises(InvalidInputError, match=message):
        run_demo(demo, seed=1)
    assert {path: path.stat().st_mtime_ns for path in demo.rglob("*")} == before
    (tmp_path / "scenes").mkdir()
    with pytest.raises(InvalidInputError, match=r"found scenes without demo\.json"):
        run_demo(tmp_path)


@pytest.mark.slow
def test_run_again_only_what_is_missing_or_changed_is_made(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    shutil.copytree(demo, out)
    before = contents(out)
    results = out / "results"
    (results / "rollout.png").unlink()
    (results / "share.png").write_bytes((results / "overlap.png").read_bytes())
    monkeypatch.setattr("stratascope.extract.run.local_processes.extract_in_processes", None)
    monkeypatch.setattr("stratascope.probe.probe_study", None)
    monkeypatch.setattr("stratascope.analysis.faithfulness", None)
    steps: list[str] = []
    told: list[str] = []
    text = run_demo(out, on_step=steps.append, on_result=lambda result: told.append(f"after {len(steps)} steps: {result}"))
    assert len(told) == 1
    assert told[0].startswith("after 4 steps: \nAt the final token, the truth of the caption")
    assert "At the final token" not in text
    assert [step.endswith("finished before, kept") for step in steps] == [True, True, True, True, False]
    after = contents(out)
    assert {name: after[name] for name in before if name != "demo.json"} == {n: b for n, b in before.items() if n != "demo.json"}
    assert set(after) == set(before)


def test_results_of_other_stores_are_moved_out_of_the_way(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "demo"
    shutil.copytree(demo, out)
    known = json.loads((out / "demo.json").read_text())
    known["stages"]["original"]["of"][-1] = "0" * 64  # as if the store had been another one when its results were made
    (out / "demo.json").write_text(json.dumps(known))
    (out / "results" / "mine.png").write_bytes(b"mine")

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stratascope.demo._save_curves", stopped)
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, on_step=steps.append)
    assert not list((out / "results").glob("*"))
    assert (out / "results-before-1" / "mine.png").read_bytes() == b"mine"
    assert any("belongs to other stores: moved to" in step for step in steps)
