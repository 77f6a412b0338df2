"""Where results are looked for and put, however a store is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from stratascope.results.locations import beside, results_folders


@pytest.mark.parametrize("store", ["run.zarr", "run.zarr/", "./run.zarr", "run.zip", "deep/../run.zarr"])
def test_results_lie_beside_a_store(store: str) -> None:
    own, shared = results_folders(store)
    assert own.resolve() == Path("run-results").resolve()
    assert shared.resolve() == Path("results").resolve()


@pytest.mark.parametrize("store", [".", "./", "inner/..", "../run.zarr"])
def test_a_store_named_from_within_is_the_same_store(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.zarr" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "run.zarr")
    assert [folder.resolve() for folder in results_folders(store)] == [tmp_path / "run-results", tmp_path / "results"]
    assert beside(store, "-report.html").resolve() == tmp_path / "run-report.html"


@pytest.mark.parametrize("store", ["https://host/some/run.zarr", "s3://bucket/run.zarr/"])
def test_results_of_an_address_lie_in_the_working_folder(store: str) -> None:
    assert results_folders(store) == [Path("run-results")]
