"""Results files from strangers: metadata of gigabytes, deep nesting and tables that unpack to gigabytes are refused by the file's name."""

from __future__ import annotations

import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import numpy as np
import pandas as pd
import pytest
from edits import digested, result_of, rezipped, unpacked
from numcodecs import Zstd

from stratascope.errors import StoreError
from stratascope.report.viewer import result_index
from stratascope.report.viewer.files import files_of
from stratascope.results.file import ResultFile
from stratascope.results.registry import load_result, save_result
from stratascope.results.stored_result import results_in
from stratascope.store import copy_store
from stratascope.store.format.limits import MOST_METADATA


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small file of results, in a folder of its own."""
    (tmp_path / "results").mkdir()
    table = pd.DataFrame({"value": [0.5, 0.75, 1.0], "name": ["a", "b", "ü"]})
    arrays = {"x": (("example",), np.arange(12.0)), "names": (("example",), np.array(list("abcd"), object))}
    save_result(tmp_path / "results" / "a.zarr.zip", ResultFile("notes", {"curve": table}, arrays, {"task": "truth"}))
    return tmp_path / "results" / "a.zarr.zip"


def blanks(path: Path) -> None:
    """A zarr.json of 4 GB of blanks, of which the zip holds 4 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("zarr.json", "w", force_zip64=True) as member:
            for _ in range(64):
                member.write(b" " * (MOST_METADATA // 16))
        archive.getinfo("zarr.json").file_size = 4 << 30
        archive.writestr("more", b"")


def nested(depth: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        files = unpacked(path)
        root = json.loads(files["zarr.json"])
        root["attributes"]["attributes"]["note"] = "DEEP"
        text = json.dumps(root).replace('"DEEP"', "[" * depth + "]" * depth)
        rezipped(files | {"zarr.json": text.encode()}, path)

    return write


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (blanks, f"zarr.json: expected metadata of at most {MOST_METADATA >> 20} MB, found 4,294,967,296 bytes"),
        (nested(100), "zarr.json: expected JSON nested at most 64 deep"),
        (nested(100_000), "zarr.json: expected JSON nested at most 64 deep"),
    ],
    ids=["4 GB", "100 deep", "100,000 deep"],
)
def test_metadata_of_gigabytes_or_nested_deeply_are_refused(
    path: Path, store_path: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(path)
    tracemalloc.start()
    try:
        found = [
            result_of("view", str(store_path), "--results", str(path.parent), "--no-browser"),
            result_of("view", str(store_path), "--results", str(path.parent), "--export", str(path.parent / "page")),
            result_of("figure", "curves", str(path)),
            result_of("report", str(store_path), str(path)),
        ]
        for result in found:
            assert result.exit_code == 2
            assert str(path) in result.stderr
            assert words in result.stderr
        assert json.loads(result_index(path.parent)) == {"files": []}
        with pytest.raises(StoreError, match=r"a\.zarr\.zip"):
            load_result(path)
        with pytest.raises(StoreError, match=r"a\.zarr\.zip"):
            list(results_in(path.parent))
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert not (path.parent / "page").exists()


BOMBS = {
    "announces 8 GB": b"\x28\xb5\x2f\xfd\xe0" + (8 << 30).to_bytes(8, "little") + bytes(40),
    "is 128 MB of zeros": Zstd(3).encode(bytes(1 << 27)),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("key", ["tables/curve/name/c/0", "tables/curve/value/c/0", "arrays/x/c/0", "arrays/names/c/0"])
def test_a_chunk_that_unpacks_to_gigabytes_is_refused_unread(path: Path, key: str, bomb: str) -> None:
    data = BOMBS[bomb]
    files = unpacked(path) | {key: data + int(google_crc32c.value(data)).to_bytes(4, "little")}
    rezipped(digested(files), path)
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=rf"{key}: expected a file that unpacks to at most 67,108,864 bytes"):
            load_result(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rows", [-1, 2**62, "3", True, None])
def test_a_table_of_an_absurd_length_is_refused(path: Path, rows: object) -> None:
    files = unpacked(path)
    value = json.loads(files["tables/curve/zarr.json"])
    value["attributes"]["rows"] = rows
    rezipped(digested(files | {"tables/curve/zarr.json": json.dumps(value).encode()}), path)
    with pytest.raises(StoreError, match="table in group tables/curve, found: expected a number of rows"):
        load_result(path)


def test_a_zip_of_a_stores_folder_is_served_as_the_store(store_path: Path, tmp_path: Path) -> None:
    copy_store(store_path, tmp_path / "plain.zip", arrays=["answer_logits"])
    with zipfile.ZipFile(tmp_path / "folder.zip", "w") as archive:
        for key, data in unpacked(tmp_path / "plain.zip").items():
            archive.writestr(f"demo/a.zarr/{key}", data)
    found = files_of(tmp_path / "folder.zip").find("zarr.json")
    assert found is not None
    assert b"".join(found.read(0, found.size - 1)) == unpacked(tmp_path / "plain.zip")["zarr.json"]
