"""What a researcher tries first in a shell: indexing by name, lengths, layers and positions under both names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stores import make_store

import stratascope.store
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.probe.study.study import layers_of
from stratascope.store import ActivationStore, copy_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return ActivationStore.open(make_store(tmp_path_factory.mktemp("indexing") / "a.zarr"))


def test_length_layers_positions_and_arrays(store: ActivationStore) -> None:
    assert len(store) == 10
    assert store.layers == (0, 1, 2, 3)
    assert store.positions == ("final", "image", "subject", "relation")
    assert store.arrays == tuple(s.name for s in store.layout.arrays() if s.by_block)
    assert "residual" in store
    assert "caption" in store
    assert "nothing" not in store
    assert 0 not in store
    with pytest.raises(TypeError, match="not iterable"):
        iter(store)  # type: ignore[call-overload]


@pytest.mark.parametrize("layer", [2, np.int64(2), [2, 0], np.array([2, 0]), range(2), None])
def test_layer_and_layers_are_one_parameter(store: ActivationStore, layer: object) -> None:
    ok = np.flatnonzero(store.available("residual"))
    expected = store.read("residual", layer=layer, examples=ok)
    np.testing.assert_array_equal(store.read("residual", layers=layer, examples=ok), expected)
    np.testing.assert_array_equal(store.lazy("residual", layers=layer, examples=ok).compute(), expected)
    np.testing.assert_array_equal(store.maps(0, layers=layer), store.maps(0, layer=layer))
    np.testing.assert_array_equal(store.maps(0, layer), store.maps(0, layer=layer))


def test_position_and_positions_are_one_parameter(store: ActivationStore) -> None:
    for position in ("image", ["relation", "final"]):
        expected = store.read("residual", position=position, examples=[0, 3])
        np.testing.assert_array_equal(store.read("residual", positions=position, examples=[0, 3]), expected)
        np.testing.assert_array_equal(store.lazy("residual", positions=position, examples=[0, 3]).compute(), expected)
        assert store.available("residual", positions=position).tolist() == store.available("residual", position).tolist()


def test_both_names_at_once_are_refused(store: ActivationStore) -> None:
    with pytest.raises(InvalidInputError, match=r"expected layer or layers, found both: 1 and \[2\]"):
        store.read("residual", layer=1, layers=[2])
    with pytest.raises(InvalidInputError, match="position or positions"):
        store.lazy("residual", position="final", positions="image")
    with pytest.raises(InvalidInputError, match="layer or layers"):
        store.maps(0, 1, layer=1)


def test_one_layer_and_one_position_of_a_copy(store: ActivationStore, tmp_path: Path) -> None:
    copy_store(store, tmp_path / "copy.zarr", arrays="residual", layers=2, positions="final")
    copy = ActivationStore.open(tmp_path / "copy.zarr")
    assert (copy.layers, copy.positions, copy.arrays) == ((2,), ("final",), ("residual", "answer_logits", "status"))
    np.testing.assert_array_equal(
        copy.read("residual", examples=[0])[0, 0], store.read("residual", layer=2, position="final", examples=[0])
    )


def test_one_layer_of_a_probe(store: ActivationStore) -> None:
    assert layers_of(store, "residual", 2) == layers_of(store, "residual", np.int64(2)) == layers_of(store, "residual", [2]) == [2]


@pytest.mark.parametrize("name", ["residual", "attention_rows", "attention_maps", "answer_logits", "n_tokens", "spans", "label", "caption"])
def test_indexing_by_name_equals_the_dataset(store: ActivationStore, name: str) -> None:
    xarray = pytest.importorskip("xarray")
    found, expected = store[name], store.to_xarray()[name]
    xarray.testing.assert_identical(found.compute(), expected.compute())


def test_indexing_equals_reading(store: ActivationStore) -> None:
    pytest.importorskip("xarray")
    ok = store.available("residual", "subject")
    found = store["residual"].sel(layer=2, position="subject")
    assert found.dims == ("example", "hidden")
    np.testing.assert_array_equal(found[ok], store.read("residual", layer=2, position="subject", examples=ok))
    assert np.isnan(found[~ok]).all()
    assert store["relation"].values.tolist() == store.examples["relation"].tolist()


def test_indexing_by_another_name_lists_the_names(store: ActivationStore) -> None:
    with pytest.raises(NotRecordedError, match=r"found 'nothing'; arrays: residual, .*; columns: id, image"):
        store["nothing"]
    with pytest.raises(NotRecordedError, match="found 0; arrays"):
        store[0]  # type: ignore[index]


@pytest.mark.parametrize("name", ["ResultFile", "load_result", "save_result"])
def test_names_that_moved_to_results_warn(name: str) -> None:
    with pytest.warns(DeprecationWarning, match=rf"stratascope\.store\.{name} is now stratascope\.results\."):
        assert getattr(stratascope.store, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        stratascope.store.nothing  # noqa: B018
