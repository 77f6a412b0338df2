"""Large arrays of a results file stay in it until they are asked for, and are then what was checked, or refused."""

from __future__ import annotations

import tracemalloc
import zipfile

import numpy as np
import pytest

from stratascope.errors import StoreError
from stratascope.results.file import ResultFile
from stratascope.results.lazy_arrays import HELD_BYTES, OnFile
from stratascope.results.registry import load_result, save_result

LAYERS = 24
EXAMPLES = HELD_BYTES // (LAYERS * 16 * 4) * 4


def large(seed: int = 0) -> ResultFile:
    rng = np.random.default_rng(seed)
    values = rng.random((LAYERS, EXAMPLES, 16), dtype=np.float32)
    values[:, ::5] = np.nan
    values[3, :, 2] = np.nan
    arrays = {
        "large": (("layer", "example", "head"), values),
        "example": (("example",), np.arange(EXAMPLES)),
        "flat": (("row",), values.ravel()),
    }
    return ResultFile("notes", {}, arrays, {"seed": seed})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "large.zarr.zip"
    save_result(path, large())
    return path


def test_they_are_what_was_saved_each_time_they_are_asked_for(saved):
    found, given = load_result(saved), large()
    assert isinstance(found.arrays.held["large"][1], OnFile)
    assert isinstance(found.arrays.held["example"][1], np.ndarray)
    assert list(found.arrays) == sorted(given.arrays)
    assert len(found.arrays) == 3
    assert "large" in found.arrays
    assert "absent" not in found.arrays
    for _ in range(2):
        for name, (dims, values) in found.arrays.items():
            assert dims == given.arrays[name][0]
            assert values.dtype == given.arrays[name][1].dtype
            np.testing.assert_array_equal(values, given.arrays[name][1])
    with pytest.raises(KeyError):
        found.arrays["absent"]
    assert repr(found) == repr(ResultFile(given.kind, {}, dict(sorted(given.arrays.items())), given.attributes))


def test_neither_loading_nor_a_mean_holds_all_of_them(saved):
    nbytes = large().arrays["large"][1].nbytes
    tracemalloc.start()
    found = load_result(saved)
    before = tracemalloc.get_traced_memory()[0]
    means, counts = found.known_means("large")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert before < nbytes / 8
    assert held < nbytes / 8
    values = large().arrays["large"][1].astype(np.float64)
    np.testing.assert_array_equal(counts, np.isfinite(values).sum(1))
    assert np.isnan(means[3, 2])
    np.testing.assert_allclose(means[:3], np.nanmean(values[:3], axis=1), rtol=1e-12)
    np.testing.assert_array_equal(load_result(saved).known_means("large", "layer")[1], np.isfinite(values).sum(0))


def test_a_mean_is_the_same_from_a_file_and_from_memory(saved):
    for one, other in zip(load_result(saved).known_means("large"), large().known_means("large"), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


def test_what_was_written_anew_cut_off_or_removed_since_is_refused(saved, tmp_path):
    path = tmp_path / "a.zarr.zip"
    path.write_bytes(saved.read_bytes())
    found = load_result(path)
    save_result(path, large(1))
    with pytest.raises(
        StoreError, match=r"a\.zarr\.zip: expected the file as it was when it was opened, found: other bytes in .*; open it"
    ):
        found.arrays["large"]
    path.write_bytes(saved.read_bytes()[:-1000])
    with pytest.raises(StoreError, match="expected the file as it was when it was opened"):
        found.known_means("large")
    path.unlink()
    with pytest.raises(StoreError, match="expected the file as it was when it was opened"):
        found.arrays["flat"]
    assert found.arrays["example"][1][-1] == EXAMPLES - 1  # small ones are held
    path.write_bytes(saved.read_bytes())
    np.testing.assert_array_equal(found.arrays["large"][1], large().arrays["large"][1])


def test_one_bit_changed_since_is_refused_even_with_the_checksums_of_the_zip_made_anew(saved, tmp_path):
    path = tmp_path / "a.zarr.zip"
    path.write_bytes(saved.read_bytes())
    found = load_result(path)
    with zipfile.ZipFile(saved) as given, zipfile.ZipFile(path, "w") as changed:
        for name in given.namelist():
            data = bytearray(given.read(name))
            if name.startswith("arrays/large/c/"):
                data[len(data) // 2] ^= 1
            changed.writestr(name, bytes(data))
    with pytest.raises(StoreError, match="found: other bytes in arrays/large/c/"):
        found.arrays["large"]
    with pytest.raises(StoreError, match="expected what was written, found that it was changed since"):
        load_result(path)


def test_a_result_read_from_a_file_can_be_written_over_it(tmp_path):
    path = tmp_path / "a.zarr.zip"
    save_result(path, large())
    before = path.read_bytes()
    save_result(path, load_result(path))
    assert path.read_bytes() == before
