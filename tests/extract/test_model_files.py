"""Every file of a model's folder that can change a number is part of a store's provenance."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from stratascope.errors import InvalidInputError, ProvenanceMismatchError
from stratascope.extract import file_digests as model_files
from stratascope.extract import plan_extraction
from stratascope.extract.file_digests import file_digest
from stratascope.extract.model_files import ModelSource, resolve_model
from stratascope.extract.plan.store_contents import store_contents
from stratascope.store import create_store
from stratascope.store.format.provenance import check_agreement, same_model_files

pytest.importorskip("torch")

from stratascope.extract import run_extraction

OLD_FILES = ("tokenizer.json", "model.safetensors", "chat_template")
"""What Stratascope 0.1 kept of a folder."""


@pytest.fixture(scope="module")
def begun(settings, tmp_path_factory: pytest.TempPathFactory):
    """A model's folder, the settings that name it, and a store whose first shard it filled."""
    folder = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(resolve_model("demo").folder, folder)
    chosen = dataclasses.replace(settings, model=str(folder), limit=4, block=2, record=("residual",))
    out = tmp_path_factory.mktemp("begun") / "s.zarr"
    run_extraction(plan_extraction(chosen), out, rank=0, of=2)
    return folder, chosen, out


def edited(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def flipped(path: Path) -> None:
    """One bit of the last weight, the size as it was."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rope(path: Path) -> None:
    config = json.loads(path.read_text())
    config["text_config"]["rope_parameters"]["rope_theta"] = 5e5
    path.write_text(json.dumps(config))


CHANGES: list[tuple[str, Callable[[Path], object]]] = [
    ("config.json", rope),
    ("generation_config.json", lambda path: edited(path, temperature=0.5)),
    ("processor_config.json", lambda path: edited(path, note="x")),
    ("preprocessor_config.json", lambda path: path.write_text('{"image_mean": [0, 0, 0]}')),
    ("video_preprocessor_config.json", lambda path: path.write_text("{}")),
    ("tokenizer.json", lambda path: path.write_text(path.read_text() + "\n")),
    ("tokenizer_config.json", lambda path: edited(path, add_bos_token=False)),
    ("special_tokens_map.json", lambda path: path.write_text("{}")),
    ("added_tokens.json", lambda path: path.write_text("{}")),
    ("merges.txt", lambda path: path.write_text("a b\n")),
    ("tokenizer.model", lambda path: path.write_bytes(b"x")),
    ("chat_template.jinja", lambda path: path.write_text(path.read_text() + "{# a remark #}")),
    ("chat_template.json", lambda path: path.write_text('{"chat_template": "x"}')),
    ("additional_chat_templates/tools.jinja", lambda path: path.write_text("x")),
    ("model.safetensors", flipped),
    ("pytorch_model.bin", lambda path: path.write_bytes(b"x")),
    ("pytorch_model.bin.index.json", lambda path: path.write_text('{"weight_map": {}}')),
    ("adapter_model.safetensors", lambda path: path.write_bytes(b"x")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[name for name, _ in CHANGES])
def test_a_file_that_changes_between_shards_is_refused_by_name(begun, name: str, change: Callable[[Path], object]) -> None:
    folder, settings, out = begun
    path = folder / name
    before = path.read_bytes() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    try:
        change(path)
        with pytest.raises(ProvenanceMismatchError, match=rf"model\.files\.{name.replace('.', '[.]')}: the store has \S+, now [0-9a-f]+"):
            run_extraction(plan_extraction(settings), out, rank=1, of=2)
    finally:
        path.unlink() if before is None else path.write_bytes(before)
        if path.parent != folder:
            path.parent.rmdir()


def test_the_other_shard_of_an_unchanged_folder_goes_on(begun, tmp_path: Path) -> None:
    folder, settings, out = begun
    (folder / "README.md").write_text("what changes no number")
    shutil.copytree(out, tmp_path / "s.zarr")
    report = run_extraction(plan_extraction(settings), tmp_path / "s.zarr", rank=1, of=2)
    assert report.written_examples == 2
    files = plan_extraction(settings).provenance["model"]["files"]
    assert files["config.json"] == hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    assert "README.md" not in files


def test_a_folder_with_pytorch_weights_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(resolve_model("demo").folder, folder)
    (folder / "model.safetensors").unlink()
    source = ModelSource("the model", folder)
    assert not source.weights_here
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "parts/second"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"first")
    assert not source.weights_here
    (folder / "parts").mkdir()
    (folder / "parts" / "second").write_bytes(b"second")
    assert source.weights_here
    digests = source.digests()
    assert digests["pytorch_model-00001-of-00002.bin"] == hashlib.sha256(b"first").hexdigest()
    assert digests["parts/second"] == hashlib.sha256(b"second").hexdigest(), "an index may name any file"
    assert "pytorch_model.bin.index.json" in digests
    drawn = source.digests(weights=False)
    assert drawn.keys() == {name for name in digests if not name.startswith(("pytorch_model", "parts"))}


def test_files_that_change_between_planning_and_loading_are_refused(begun, tmp_path: Path) -> None:
    folder, settings, _ = begun
    plan, path = plan_extraction(settings), folder / "generation_config.json"
    before = path.read_bytes()
    try:
        edited(path, temperature=0.5)
        with pytest.raises(InvalidInputError, match=r"as they were when planning, found generation_config\.json changed"):
            run_extraction(plan, tmp_path / "s.zarr")
    finally:
        path.write_bytes(before)
    assert not (tmp_path / "s.zarr").exists()


def test_a_store_of_0_1_is_refused_with_the_reason(begun, tmp_path: Path) -> None:
    _, settings, _ = begun
    plan = plan_extraction(settings)
    from stratascope.extract.run.extraction import run_provenance

    whole = {**plan.provenance, **run_provenance(plan, None)}
    model = {name: value for name, value in whole["model"].items() if name != "quantization"}
    old = {**whole, "model": {**model, "files": {name: model["files"][name] for name in OLD_FILES}}}
    create_store(tmp_path / "s.zarr", plan.store, **{**store_contents(plan), "provenance": old})
    with pytest.raises(
        ProvenanceMismatchError, match=r"all of the model's files, found one that Stratascope .* kept none of .*config\.json"
    ):
        run_extraction(plan, tmp_path / "s.zarr")
    hub = {**old, "model": {**old["model"], "files": {"tokenizer.json": "1", "chat_template": "2"}}}
    check_agreement(hub, {**hub, "model": {**hub["model"], "quantization": None}})  # a model of the Hub goes on


TEXT = {"config.json": "1", "processor_config.json": "2"}
WHOLE = {**TEXT, "a.safetensors": "3"}
OLD = {"tokenizer.json": "4", "a.safetensors": "3"}


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ({"files": WHOLE}, {"files": WHOLE}, True),
        ({"files": WHOLE}, {"files": {**WHOLE, "config.json": "5"}}, False),
        ({"files": WHOLE}, {"files": {**WHOLE, "pytorch_model.bin": "5"}}, False),
        ({"files": WHOLE}, {"files": TEXT, "untrained": 0}, True),
        ({"files": WHOLE}, {"files": {**TEXT, "config.json": "5"}, "untrained": 0}, False),
        ({"files": TEXT, "untrained": 0}, {"files": TEXT, "untrained": 1}, True),
        ({"files": WHOLE}, {"files": OLD}, True),
        ({"files": {**WHOLE, "a.safetensors": "5"}}, {"files": OLD}, False),
        ({"files": OLD}, {"files": {"tokenizer.json": "4", "config.json": "1"}, "untrained": 0}, True),
        ({"files": OLD}, {"files": {"tokenizer.json": "5", "config.json": "1"}, "untrained": 0}, False),
        ({}, {"files": None}, True),
    ],
)
def test_which_models_are_of_the_same_files(a, b, same: bool) -> None:
    assert same_model_files(a, b) is same_model_files(b, a) is same


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that were hashed; a cache of its own, in which files of any size and age are kept."""
    names: list[str] = []
    real = hashlib.file_digest

    def counted(file, kind):
        names.append(Path(file.name).name)
        return real(file, kind)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(model_files, "KEPT_FROM", 4)
    monkeypatch.setattr(model_files, "SETTLED", -1.0)
    monkeypatch.setattr(model_files.hashlib, "file_digest", counted)
    return names


def test_a_large_file_is_hashed_once(hashed: list[str], tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    assert file_digest(path) == file_digest(path) == hashlib.sha256(b"first").hexdigest()
    assert hashed == ["weights"]


def test_another_file_of_the_same_name_size_and_time_is_hashed_again(hashed: list[str], tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    state = path.stat()
    file_digest(path)
    path.write_bytes(b"other")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file_digest(path) == hashlib.sha256(b"other").hexdigest()
    (tmp_path / "third").write_bytes(b"third")
    os.replace(tmp_path / "third", path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file_digest(path) == hashlib.sha256(b"third").hexdigest()


def test_small_and_fresh_files_are_never_kept(hashed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, fresh = tmp_path / "small", tmp_path / "fresh"
    small.write_bytes(b"1")
    fresh.write_bytes(b"12345")
    monkeypatch.setattr(model_files, "SETTLED", 3600.0)
    for path in (small, small, fresh, fresh):
        file_digest(path)
    assert hashed == ["small", "small", "fresh", "fresh"]
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_is_damaged_or_cannot_be_written_changes_nothing(hashed: list[str], tmp_path: Path) -> None:
    path, cache = tmp_path / "weights", tmp_path / "cache"
    path.write_bytes(b"first")
    right = file_digest(path)
    (kept,) = (cache / "stratascope" / "digests").iterdir()
    for text in ("", "[]", '{"file": {}, "sha256": "0"}', kept.read_text().replace(right, "0")):
        kept.write_text(text)
        assert file_digest(path) == right
    shutil.rmtree(cache)
    cache.write_text("a file where the folder should be")
    assert file_digest(path) == right


def test_a_file_that_grows_while_it_is_hashed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "weights", hashlib.file_digest
    path.write_bytes(b"first")

    def growing(file, kind):
        with path.open("ab") as more:
            more.write(b"more")
        return real(file, kind)

    monkeypatch.setattr(model_files.hashlib, "file_digest", growing)
    with pytest.raises(InvalidInputError, match="weights: expected a file that does not change while it is read, found it changed"):
        file_digest(path)


@pytest.mark.parametrize("model", ["demo", "folder"])
def test_a_revision_of_what_is_not_on_the_hub_is_refused(tmp_path: Path, model: str) -> None:
    name = "demo" if model == "demo" else str(tmp_path)
    with pytest.raises(
        InvalidInputError, match=r"expected `revision` with a model of the Hub, found 'main' with the .*leave `revision` out"
    ):
        resolve_model(name, revision="main")
