"""Reading: the numbers that were written, in any order, lazily or not; never fill."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import birth, block_arrays, make_store, small_layout

from stratascope.errors import InvalidInputError, NotRecordedError, StoreError, UnwrittenBlockError
from stratascope.store import ActivationStore, BlockWriter

LAYOUT = small_layout()
KNOWN = birth(LAYOUT)
BLOCKS = [block_arrays(LAYOUT, KNOWN, b) for b in range(LAYOUT.blocks)]
FULL = {s.name: np.concatenate([b[s.name] for b in BLOCKS], s.example_axis) for s in LAYOUT.arrays() if s.when == "block"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return ActivationStore.open(make_store(tmp_path_factory.mktemp("read") / "a.zarr"))


@pytest.fixture(scope="module")
def partial(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return ActivationStore.open(make_store(tmp_path_factory.mktemp("read") / "b.zarr", blocks=[0, 2]))


def test_shapes_follow_what_was_asked(store):
    ok = store.available("residual")
    assert ok.tolist() == [True, False, True, True, True, False, True, True, True, True]
    assert store.read("residual", examples=ok).shape == (4, 4, 8, 8)
    assert store.read("residual", layer=2, position="final", examples=[0, 3]).shape == (2, 8)
    assert store.read("residual", layer=[2, 0], position=["image"], examples=0).shape == (2, 1, 8)
    assert store.read("attention_rows", layer=2, examples=[3, 7]).shape == (2, 2, 12)
    assert store.read("attention_rows", examples=[3, 7]).dtype == np.float32
    assert store.read("attention_mean", examples=4).shape == (3, 12)
    assert store.read("residual", examples=[]).shape == (4, 4, 0, 8)
    assert store.read("n_tokens").tolist() == KNOWN["n_tokens"].tolist()


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_selection_equals_numpy(store, data):
    name = data.draw(st.sampled_from(["residual", "attention_rows", "answer_logits", "status", "thumbnail"]))
    spec = LAYOUT.array(name)
    good = np.flatnonzero(store.available(name)).tolist()
    examples = data.draw(st.lists(st.sampled_from(good), max_size=12))
    expected, arguments = np.take(FULL[name], examples, spec.example_axis), {"examples": examples}
    if spec.position_dim:
        position = data.draw(st.lists(st.sampled_from(LAYOUT.positions), max_size=4))
        expected, arguments = np.take(expected, [LAYOUT.positions.index(p) for p in position], 1), {**arguments, "position": position}
    if spec.layer_dim:
        layer = data.draw(st.lists(st.sampled_from(LAYOUT.layers_of(spec.layer_dim)), max_size=5))
        expected, arguments = np.take(expected, np.array(layer, int), 0), {**arguments, "layer": layer}
    found = store.read(name, **arguments)
    assert found.dtype == (np.float32 if expected.dtype.kind == "f" else expected.dtype)
    np.testing.assert_array_equal(found, expected.astype(found.dtype))


def test_zarr_alone_reads_the_same(store):
    group = zarr.open_group(store.name, mode="r")
    for name, values in FULL.items():
        there = store.available(name)
        axis = LAYOUT.array(name).example_axis
        np.testing.assert_array_equal(np.compress(there, group[name][...], axis), np.compress(there, values, axis))


def test_xarray_alone_names_everything(store):
    xarray = pytest.importorskip("xarray")
    data = xarray.open_zarr(store.name)
    assert data.residual.dims == ("layer", "position", "example", "hidden")
    assert data.attention_rows.dims == ("attention_layer", "example", "head", "token")
    assert {"layer", "position", "example", "relation", "label"} <= set(data.coords)
    picked = data.residual.sel(layer=2, position="image", example="scene-00003")
    np.testing.assert_array_equal(picked.values, FULL["residual"][2, 1, 3])
    assert str(picked.relation.values) == KNOWN["examples"]["relation"][3]
    assert data.status.attrs["flag_meanings"].split()[1] == "recorded"


def test_unwritten_blocks_are_named(partial):
    assert partial.written.tolist() == [True, False, True]
    assert not partial.complete
    with pytest.raises(UnwrittenBlockError, match=r"1 not written yet: 1 \(of 3\)"):
        partial.read("residual", layer=0, position="final")
    with pytest.raises(UnwrittenBlockError, match="not written yet: 1"):
        partial.read("status")
    with pytest.raises(UnwrittenBlockError):
        partial.lazy("residual", layer=0, position="final", examples=[3, 4])
    assert partial.read("residual", layer=0, position="final", examples=partial.available("residual", "final")).shape == (6, 8)
    assert partial.status.tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 1, 1]
    assert partial.examples["status"].tolist() == partial.status.tolist()


def test_blocks_written_later_are_seen_when_opened_again(tmp_path):
    path = make_store(tmp_path / "a.zarr", blocks=[])
    before = ActivationStore.open(path)
    assert not before.written.any()
    with BlockWriter(path) as writer:
        writer.write(0, BLOCKS[0])
    assert not before.written.any()
    after = ActivationStore.open(path)
    assert after.written.tolist() == [True, False, False]
    assert before.fingerprint() != after.fingerprint()


def test_what_is_not_there_is_refused_with_what_is(store):
    with pytest.raises(NotRecordedError, match="it holds residual, attention_rows"):
        store.read("value_norms")
    with pytest.raises(NotRecordedError, match=r"found 4; it holds 0\.\.3"):
        store.read("residual", layer=4)
    with pytest.raises(NotRecordedError, match=r"it holds 0\.\.2"):
        store.read("attention_rows", layer=3)
    with pytest.raises(NotRecordedError, match="it holds final, image, subject, relation"):
        store.read("residual", position="object")
    with pytest.raises(NotRecordedError, match=r"lack a position.*: 1, 5; it holds 8 of 10"):
        store.read("residual", layer=1, position="subject")
    with pytest.raises(NotRecordedError, match=r"0\.\.9"):
        store.read("residual", examples=[10])
    with pytest.raises(NotRecordedError, match="have no map"):
        store.maps(3)
    with pytest.raises(NotRecordedError, match="ids are like scene-00000"):
        store.index_of("nobody")
    with pytest.raises(InvalidInputError, match="no position"):
        store.read("attention_rows", position="final")
    with pytest.raises(InvalidInputError, match="mask of 10"):
        store.read("residual", examples=[True, False])
    with pytest.raises(InvalidInputError, match="example numbers"):
        store.read("residual", examples=[0.5])
    with pytest.raises(InvalidInputError, match="no examples"):
        store.read("layer", examples=[0])
    with pytest.raises(NotRecordedError):
        store.read("residual", layer=True)


def test_tables_and_tokens(store):
    assert store.index_of("scene-00007") == 7
    assert store.examples.index.tolist() == list(range(10))
    assert store.examples["caption"][3] == "The cat is under the bed №3."
    assert store.spans["final"].tolist() == KNOWN["spans"][:, 2].tolist()
    words = [KNOWN["vocabulary"][int(t)] for t in KNOWN["token_ids"][4, : KNOWN["n_tokens"][4]]]
    assert store.tokens(4) == words
    np.testing.assert_array_equal(store.thumbnail(2), FULL["thumbnail"][2])
    assert store.grid.shape == (10, 2)


def test_maps_are_decoded(store):
    maps = store.maps(2)
    t = KNOWN["n_tokens"][2]
    assert maps.shape == (3, t, t)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-12)
    np.testing.assert_array_equal(store.maps(2, layers=1), maps[1])
    np.testing.assert_array_equal(store.maps(2, layers=[2, 0]), maps[[2, 0]])


def test_lazy_arrays_follow_files_and_pickle_as_an_address(store):
    good = np.flatnonzero(store.available("residual", "final"))
    lazy = store.lazy("residual", layer=[0, 2], position="final", examples=good)
    assert lazy.chunks == ((1, 1), (4, 3, 2), (8,))
    np.testing.assert_array_equal(lazy.compute(scheduler="threads"), store.read("residual", layer=[0, 2], position="final", examples=good))
    np.testing.assert_array_equal(
        lazy[1, ::3, 2:5].compute(), store.read("residual", layer=2, position="final", examples=good[::3])[:, 2:5]
    )
    again = pickle.loads(pickle.dumps(lazy))
    assert len(pickle.dumps(lazy)) < 20_000
    np.testing.assert_array_equal(again.compute(scheduler="sync"), lazy.compute(scheduler="sync"))
    assert pickle.loads(pickle.dumps(store)).fingerprint() == store.fingerprint()


def test_a_store_that_changed_behind_a_task_is_refused(tmp_path):
    path = make_store(tmp_path / "a.zarr", blocks=[0])
    task = pickle.dumps(ActivationStore.open(path))
    with BlockWriter(path) as writer:
        writer.write(1, BLOCKS[1])
    with pytest.raises(StoreError, match="start again"):
        pickle.loads(task)


def test_to_xarray_is_decoded_and_lazy(store, partial):
    pytest.importorskip("xarray")
    data = store.to_xarray()
    np.testing.assert_allclose(data.attention_maps.sel(example="scene-00002")[:, :5, :5].values, store.maps(2)[:, :5, :5], rtol=1e-6)
    assert np.isnan(data.attention_maps.sel(example="scene-00003").values).all()
    assert np.isnan(data.residual.sel(example="scene-00005", layer=1).values).all()
    np.testing.assert_array_equal(data.residual.sel(layer=1, position="final")[3].values, FULL["residual"][1, 0, 3])
    assert data.caption.dims == ("example",)
    lazy = partial.to_xarray()
    assert lazy.residual[1, 0, :4].values.shape == (4, 8)
    with pytest.raises(UnwrittenBlockError):
        lazy.residual[1, 0, 3:5].values  # noqa: B018 - computing is the point


def test_repr_says_what_there_is(store, partial):
    text = repr(store)
    assert "complete" in text
    assert "1 unreadable_image" in text
    assert "residual" in text
    assert "on disk" in text
    assert "2 blocks written" in repr(partial)
    assert "<table" in store._repr_html_()
    size = sum(p.stat().st_size for p in Path(store.name).rglob("*") if p.is_file())
    assert store.size_on_disk() == size


def test_fingerprint_ignores_when_but_not_what(tmp_path):
    base = ActivationStore.open(make_store(tmp_path / "a.zarr"))
    later = make_store(tmp_path / "b.zarr", LAYOUT)
    assert ActivationStore.open(later).fingerprint() == base.fingerprint()
    other = make_store(tmp_path / "c.zarr", small_layout(computed_dtype="float32"))
    assert ActivationStore.open(other).fingerprint() != base.fingerprint()
