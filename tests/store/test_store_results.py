"""Result files: what goes in comes out, the same bytes every time, foreign files refused."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratascope.errors import InvalidInputError, StoreError
from stratascope.results.file import ResultFile
from stratascope.results.lazy_arrays import Arrays
from stratascope.results.registry import load_result, save_result
from stratascope.results.schema import ResultSchema, floats
from stratascope.store import ActivationStore


def example() -> ResultFile:
    table = pd.DataFrame(
        {
            "layer": [0, 1, 2],
            "metric": ["accuracy", None, "ü"],
            "value": [0.5, np.nan, 1.0],
            "good": [True, False, True],
            "a b/c": ["x", "y", ""],
        }
    )
    arrays = {
        "directions": (("layer", "hidden"), np.arange(6, dtype=np.float32).reshape(3, 2)),
        "names": (("hidden",), np.array(["left", "right"])),
        "nothing": (("row", "column"), np.zeros((0, 4))),
        "one": ((), np.array(3.5)),
    }
    return ResultFile("notes", {"table": table, "empty": table.iloc[:0]}, arrays, {"seed": 0, "tasks": ("truth",), "nested": {"x": None}})


def test_round_trip(tmp_path):
    save_result(tmp_path / "r.zip", example())
    found = load_result(tmp_path / "r.zip")
    assert found.kind == "notes"
    assert found.attributes == {"seed": 0, "tasks": ["truth"], "nested": {"x": None}}
    for name, table in example().tables.items():
        pd.testing.assert_frame_equal(found.tables[name], table.astype({"metric": "str", "a b/c": "str"}))
    for name, (dims, values) in example().arrays.items():
        assert found.arrays[name][0] == dims
        np.testing.assert_array_equal(found.arrays[name][1].astype(values.dtype), values)


def test_a_results_file_is_no_store_and_is_told_so(tmp_path):
    save_result(tmp_path / "a.zarr.zip", example())
    with pytest.raises(StoreError, match="expected a store, found a results file; give the store"):
        ActivationStore.open(tmp_path / "a.zarr.zip")


def test_the_same_result_is_the_same_bytes(tmp_path):
    save_result(tmp_path / "a.zip", example())
    save_result(tmp_path / "b.zip", load_result(tmp_path / "a.zip"))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_saving_again_replaces_whole(tmp_path, monkeypatch):
    save_result(tmp_path / "a.zip", example())
    before = (tmp_path / "a.zip").read_bytes()
    from stratascope.store.io import durable

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        save_result(tmp_path / "a.zip", ResultFile("other"))
    assert (tmp_path / "a.zip").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.slow
@given(
    numbers=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=5),
    words=st.lists(st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=5)), max_size=5),
)
@settings(max_examples=30, deadline=None)
def test_any_numbers_and_words(tmp_path_factory, numbers, words):
    n = min(len(numbers), len(words))
    table = pd.DataFrame({"number": np.array(numbers[:n], dtype=float), "word": np.array(words[:n], dtype=object)})
    path = tmp_path_factory.mktemp("r") / "r.zip"
    save_result(path, ResultFile("k", {"t": table}))
    found = load_result(path).tables["t"]
    np.testing.assert_array_equal(found["number"], table["number"])
    assert [None if pd.isna(w) else w for w in found["word"]] == words[:n]


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (ResultFile("k", {"t": pd.DataFrame({"a": [1]}, index=["x"])}), "reset_index"),
        (ResultFile("k", {"t": pd.DataFrame([[1, 2]], columns=["a", "a"])}), "distinct"),
        (ResultFile("k", {"t": pd.DataFrame({"a": [(1,)]})}), "'a': expected numbers"),
        (ResultFile("k", {}, {"a": (("x",), np.zeros((2, 2)))}), "2 dimension names"),
        (ResultFile("k", {}, {"a": (("x",), np.array([{}]))}), "numbers, truth values or text"),
        (ResultFile("k", {}, {}, {"a": object()}), "plain JSON"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path, result, words):
    with pytest.raises(InvalidInputError, match=words):
        save_result(tmp_path / "r.zip", result)
    assert not list(tmp_path.iterdir())


def test_foreign_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(StoreError, match="found nothing"):
        load_result(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(StoreError, match="another or a damaged file"):
        load_result(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(StoreError, match="zip of another kind"):
        load_result(tmp_path / "other.zip")
    save_result(tmp_path / "r.zip", example())
    data = (tmp_path / "r.zip").read_bytes()
    for at in range(200, len(data), len(data) // 60):
        spoiled = bytearray(data)
        spoiled[at] ^= 1
        (tmp_path / "s.zip").write_bytes(spoiled)
        try:
            found = load_result(tmp_path / "s.zip")
        except StoreError:
            continue
        save_result(tmp_path / "t.zip", found)  # dates and such carry nothing
        assert (tmp_path / "t.zip").read_bytes() == data
    (tmp_path / "s.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(StoreError):
        load_result(tmp_path / "s.zip")


@pytest.mark.parametrize(("change", "words"), [({"format": "x"}, "found format 'x'"), ({"format_version": 2}, "found 2; upgrade")])
def test_other_formats_and_versions_are_refused(tmp_path, change, words):
    save_result(tmp_path / "r.zip", example())
    with zipfile.ZipFile(tmp_path / "r.zip") as archive:
        files = {n: archive.read(n) for n in archive.namelist()}
    root = json.loads(files["zarr.json"])
    root["attributes"].update(change)
    files["zarr.json"] = json.dumps(root).encode()
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises(StoreError, match=words):
        load_result(tmp_path / "r.zip")


def test_a_result_says_what_it_consists_of_in_a_few_lines():
    said = repr(example()).splitlines()
    assert said[0] == f"ResultFile of kind {example().kind}"
    assert "  table                table of 3 rows: layer, metric, value, good, a b/c" in said
    assert "  directions           (layer, hidden) 3 x 2 float32" in said
    assert said[-1] == "  attributes: seed, tasks, nested"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dims"),
    [((3000, 6, 300), "example layer token"), ((6, 9, 20_000, 5), "layer head example part"), ((0, 3), "example part"), ((), "")],
)
def test_what_is_read_in_pieces_is_what_was_saved(shape, dims, tmp_path):
    values = np.random.default_rng(0).random(shape, dtype=np.float32)
    save_result(tmp_path / "r.zarr.zip", ResultFile("any", arrays={"x": (tuple(dims.split()), values)}))
    _, read = load_result(tmp_path / "r.zarr.zip").arrays["x"]
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)


def test_infinite_numbers_are_refused_and_unknown_ones_kept():
    schema = ResultSchema({}, arrays={"values": floats("example")})

    def said(*values: float) -> str | None:
        return schema.mismatch({}, {}, Arrays({"values": (("example",), np.array(values))}))

    assert said(0.5, np.nan) is None
    for value in (np.inf, -np.inf):
        assert (
            said(0.5, value)
            == f"expected finite numbers (NaN where unknown) in array 'values', found {min(value, 0.5)} to {max(value, 0.5)}"
        )
