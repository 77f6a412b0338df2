"""Stores and results with changed, cut or foreign bytes and metadata: the same numbers as before, or a refusal in one line."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from edits import changed_json, digested, result_of, rezipped, some, unpacked
from hypothesis import given
from hypothesis import strategies as st

from stratascope.errors import StoreError, StratascopeError
from stratascope.results.file import ResultFile
from stratascope.results.registry import load_result, save_result
from stratascope.store import ActivationStore
from stratascope.store.format.provenance import digest

FEW = some(60)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file of results."""
    table = pd.DataFrame({"layer": [0, 1, 2], "value": [0.5, 0.75, 1.0], "name": ["a", "b", "ü"]})
    path = tmp_path_factory.mktemp("results") / "whole.zarr.zip"
    arrays = {"x": (("example", "layer"), np.arange(12.0).reshape(4, 3)), "names": (("example",), np.array(list("abcd"), object))}
    save_result(path, ResultFile("notes", {"curve": table}, arrays, {"task": "truth", "seed": 3}))
    return path


def same(a: ResultFile, b: ResultFile) -> bool:
    tables = all(frame.equals(b.tables[name]) for name, frame in a.tables.items())
    arrays = all(np.array_equal(values, b.arrays[name][1]) for name, (_, values) in a.arrays.items())
    return tables and arrays and (a.kind, a.attributes, [*a.tables], [*a.arrays]) == (b.kind, b.attributes, [*b.tables], [*b.arrays])


def unharmed(path: Path, whole: ResultFile) -> None:
    try:
        found = load_result(path)
    except StoreError:
        return
    assert same(whole, found)


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_flipped_bits_in_results_are_noticed_or_harmless(
    data: st.DataObject, saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole, content = load_result(saved), bytearray(saved.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "flipped.zarr.zip"
    path.write_bytes(content)
    unharmed(path, whole)


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_cut_and_lengthened_results_are_noticed_or_harmless(
    data: st.DataObject, saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = saved.read_bytes()
    path = tmp_path_factory.getbasetemp() / "cut.zarr.zip"
    start = data.draw(st.integers(0, 20) | st.just(0))
    path.write_bytes(content[start : data.draw(st.integers(0, len(content)))] + data.draw(st.binary(max_size=30)))
    unharmed(path, load_result(saved))


@pytest.mark.slow
@FEW
@given(data=st.data())
def test_results_with_changed_metadata_are_noticed_or_harmless(
    data: st.DataObject, saved: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Zips whose checksums are right, as an editor would leave them: the digest over all of it tells."""
    files = unpacked(saved)
    name = data.draw(st.sampled_from(sorted(name for name in files if name.endswith("zarr.json"))))
    files[name] = json.dumps(changed_json(json.loads(files[name]), data)).encode()
    unharmed(rezipped(files, tmp_path_factory.getbasetemp() / "edited.zarr.zip"), load_result(saved))


def edited(saved: Path, path: Path, name: str, change: Callable[[Any], None]) -> Path:
    """A result with one JSON file changed, and the digest that it then has."""
    files = unpacked(saved)
    value = json.loads(files[name])
    change(value)
    files[name] = json.dumps(value).encode()
    return rezipped(digested(files), path)


def test_a_result_without_a_digest_is_refused_and_one_with_the_digest_of_the_format_is_read(saved: Path, tmp_path: Path) -> None:
    files = unpacked(saved)
    root = json.loads(files["zarr.json"])
    del root["attributes"]["digest"]
    bare = {**files, "zarr.json": json.dumps(root).encode()}
    with pytest.raises(StoreError, match="was changed since"):
        load_result(rezipped(bare, tmp_path / "bare.zarr.zip"))
    assert same(load_result(rezipped(digested(bare), tmp_path / "again.zarr.zip")), load_result(saved))


@pytest.mark.parametrize("size", [10**9, 10**12, 2**62])
@pytest.mark.parametrize("array", ["arrays/x", "arrays/names", "tables/curve/value", "tables/curve/name"])
def test_an_absurd_size_is_refused_before_anything_is_allocated(saved: Path, tmp_path: Path, array: str, size: int) -> None:
    def enlarge(value: Any) -> None:
        value["shape"][0] = size

    def enlarge_chunks(value: Any) -> None:
        enlarge(value)
        value["chunk_grid"]["configuration"]["chunk_shape"][0] = size

    for change in (enlarge, enlarge_chunks):
        path = edited(saved, tmp_path / "large.zarr.zip", f"{array}/zarr.json", change)
        tracemalloc.start()
        try:
            with pytest.raises(StoreError):
                load_result(path)
            assert tracemalloc.get_traced_memory()[1] < 50e6
        finally:
            tracemalloc.stop()


@pytest.mark.slow
def test_a_zip_that_unpacks_to_far_more_than_it_is_is_refused_unread(saved: Path, tmp_path: Path) -> None:
    files = unpacked(saved)
    squeezed = rezipped(files, tmp_path / "squeezed.zarr.zip", zipfile.ZIP_DEFLATED)
    assert same(load_result(saved), load_result(squeezed)), "a zip that somebody packed again is read"
    bomb = rezipped(files | {"arrays/x/c/9/9": bytes(1 << 29)}, tmp_path / "bomb.zarr.zip", zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(StoreError, match="unpacks to 536,"):
        load_result(bomb)
    assert result_of("figure", "curves", str(bomb)).exit_code == 2


def test_arrays_that_were_swapped_are_noticed(saved: Path, tmp_path: Path) -> None:
    """Both whole, each under the other's name, all checksums right."""
    files = unpacked(saved)
    value, layer = "tables/curve/value/c/0", "tables/curve/layer/c/0"
    files[value], files[layer] = files[layer], files[value]
    with pytest.raises(StoreError, match="was changed since"):
        load_result(rezipped(files, tmp_path / "swapped.zarr.zip"))


FOREIGN = {
    "empty.zip": b"",
    "text.zip": b"results",
    "end.zip": b"PK\x05\x06" + bytes(18),
    "picture.png": bytes.fromhex("89504e470d0a1a0a"),
    "page.html": b"<!DOCTYPE html>",
}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files and folders that are no stores and no results."""
    folder = tmp_path_factory.mktemp("foreign")
    for name, content in FOREIGN.items():
        (folder / name).write_bytes(content)
    with zipfile.ZipFile(folder / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    import zarr

    zarr.create_group(folder / "group.zarr").create_array("x", data=np.zeros(3))
    (folder / "nothing").mkdir()
    (folder / "broken.zarr").mkdir()
    (folder / "broken.zarr" / "zarr.json").write_text("{")
    return [*sorted(folder.iterdir()), folder / "absent.zarr", Path("a" * 300)]


READING = ["info", "verify", "answers", "share", "rollout", "flow", "attribution", "faithfulness", "report", "view"]


def test_foreign_files_are_refused_by_every_command_that_reads(foreign: list[Path], tmp_path: Path) -> None:
    for path in foreign:
        text = str(path)
        for command in READING:
            out = ["--no-browser"] if command == "view" else [] if command in ("info", "verify") else ["--out", str(tmp_path / "out")]
            if command == "report":
                out = ["-o", str(tmp_path / "out.html")]
            assert result_of(command, text, *out).exit_code == 2, (command, text)
        assert result_of("copy", text, str(tmp_path / "copy.zarr")).exit_code == 2
        assert result_of("diff", text, text).exit_code == 2
        assert result_of("probe", text, "--out", str(tmp_path / "out")).exit_code == 2
        with pytest.raises(StratascopeError):
            load_result(path)


@pytest.fixture(scope="module")
def small(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of few examples and layers."""
    path = tmp_path_factory.mktemp("small") / "small.zarr"
    words = ["--examples", "0-5", "--layers", "0,5", "--arrays", "residual,attention_rows,attention_maps,answer_logits"]
    assert result_of("copy", str(store_path), str(path), *words).exit_code == 0
    return path


def numbers(store: ActivationStore) -> list[Any]:
    """Everything that analyses read of a store."""
    rows = [store.read("residual", layer=5), store.read("attention_rows", layer=5), store.read("answer_logits"), store.maps(1)]
    table = store.examples.to_json()
    return [*rows, table, store.spans, store.n_tokens, store.grid, store.vocabulary, store.position_present]


@pytest.fixture(scope="module")
def whole(small: Path) -> list[Any]:
    return numbers(ActivationStore.open(small))


@pytest.mark.slow
@pytest.mark.parametrize("size", [10**9, 10**12, 2**62])
@pytest.mark.parametrize("array", ["n_tokens", "spans", "examples/caption", "vocabulary/text", "residual"])
def test_a_store_of_an_absurd_size_is_refused_before_anything_is_allocated(small: Path, array: str, size: int) -> None:
    """As the root's consolidated metadata say it, which is what is read."""
    file = small / "zarr.json"
    before = file.read_text()
    root = json.loads(before)
    found = root["consolidated_metadata"]["metadata"][array]
    found["shape"][0] = size
    try:
        for chunk in (found["chunk_grid"]["configuration"]["chunk_shape"][0], size):
            found["chunk_grid"]["configuration"]["chunk_shape"][0] = chunk
            file.write_text(json.dumps(root))
            tracemalloc.start()
            for command in ("info", "verify", "answers"):
                assert result_of(command, str(small)).exit_code in (0, 1, 2)
            assert tracemalloc.get_traced_memory()[1] < 200e6
            tracemalloc.stop()
    finally:
        file.write_text(before)
        tracemalloc.stop()


@pytest.mark.slow
@some(30)
@given(data=st.data())
def test_stores_with_changed_metadata_give_the_same_numbers_or_none(data: st.DataObject, small: Path, whole: list[Any]) -> None:
    file = data.draw(st.sampled_from(sorted(small.rglob("zarr.json")) + [small / "zarr.json"] * 8))
    before = file.read_text()
    file.write_text(json.dumps(changed_json(json.loads(before), data)))
    try:
        with suppress(StratascopeError):
            for a, b in zip(whole, numbers(ActivationStore.open(small)), strict=True):
                np.testing.assert_equal(b, a)
        result_of("info", str(small))
    finally:
        file.write_text(before)


COMMANDS = (
    ["info"],
    ["verify"],
    ["answers"],
    ["share"],
    ["rollout", "--examples", "0"],
    ["flow", "--examples", "0", "--window", "4-5"],
    ["overlap"],
    ["probe", "--tasks", "truth", "--positions", "final", "--layers", "0", "--folds", "2", "--strengths", "0.01"],
)


@pytest.mark.slow
@some(60)
@given(data=st.data())
def test_stores_with_changed_attributes_and_the_digest_they_then_have(data: st.DataObject, small: Path, tmp_path_factory: Any) -> None:
    """Layout and provenance as another program might write them: every command that reads them ends, and says why in one line if badly."""
    file, out = small / "zarr.json", str(tmp_path_factory.getbasetemp() / "out")
    before = file.read_text()
    root = json.loads(before)
    held = root["attributes"]
    part = data.draw(st.sampled_from(["layout", "provenance", "provenance", "taken", "known"]))
    held[part] = changed_json(held[part], data)
    if data.draw(st.integers(0, 9)) == 0:
        del held[part]
    held["digest"] = digest({name: value for name, value in held.items() if name != "digest"})
    file.write_text(json.dumps(root))
    try:
        name, *options = data.draw(st.sampled_from(COMMANDS))
        result_of(name, str(small), *options, *([] if name in ("info", "verify") else ["--out", out]))
    finally:
        file.write_text(before)
