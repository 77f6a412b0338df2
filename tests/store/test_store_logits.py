"""Arrays of the answer's logits and of knockouts: whole numbers, gaps, names along their axes."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.errors import InvalidInputError
from stratascope.store import ActivationStore, BlockWriter, copy_store, create_store, diff_stores, verify
from tests.store.stores import birth, small_layout

RECORD = {"head_logits", "mlp_logits", "embedding_logits", "form_logits", "top_tokens", "top_logits", "knockout"}
NAMES = {
    "answer_forms": ("True", " True", "False"),
    "knockout_modes": ("final", "later"),
    "knockout_windows": ("0-2", "0-1", "1-2"),
    "knockout_targets": ("image", "subject", "cell_0_0"),
}


def layout(**changes):
    return small_layout(record=RECORD, thumbnail=None, ranks=5, **{**NAMES, **changes})


def arrays_of(made, known, block: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(block)
    n = len(made.block_examples(block))
    arrays = {
        spec.name: rng.integers(0, 40, spec.block_shape(n)) if spec.dtype == "int32" else rng.normal(size=spec.block_shape(n)).astype("f4")
        for spec in made.arrays()
        if spec.when == "block"
    }
    arrays["status"] = np.array([2 if k == 5 else 1 for k in made.block_examples(block)], np.uint8)
    arrays["knockout"][0] = np.nan  # not chosen
    arrays["knockout"][1:, ..., 1] = np.nan  # the target is absent
    return arrays


def written(path, made):
    known = birth(made)
    create_store(path, made, **known)
    with BlockWriter(path) as writer:
        for block in range(made.blocks):
            writer.write(block, arrays_of(made, known, block))
    return ActivationStore.open(path)


def test_what_is_written_is_read_with_its_gaps(tmp_path) -> None:
    made = layout()
    store = written(tmp_path / "s.zarr", made)
    there = store.available("knockout")
    assert np.flatnonzero(~there).tolist() == [5]
    effects = store.read("knockout", examples=there)
    expected = np.concatenate([arrays_of(made, None, block)["knockout"] for block in range(made.blocks)])
    np.testing.assert_array_equal(effects, expected[there])
    assert np.isnan(effects[0]).all()
    assert store.read("knockout_window").tolist() == list(NAMES["knockout_windows"])
    assert store.read("embedding_logits", examples=3).shape == ()
    tokens = store.read("top_tokens", examples=there)
    assert tokens.dtype == np.int32
    assert (tokens >= 0).all()
    assert verify(tmp_path / "s.zarr").ok
    dataset = store.to_xarray()
    assert dataset["knockout"].sel(knockout_target="image", knockout_mode="later", knockout_window="0-1").shape == (10,)
    assert dataset["top_tokens"].values[5].tolist() == [-1] * 5


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("knockout", np.inf, "knockout: expected finite numbers, found inf at example 2"),
        ("top_tokens", -1, "top_tokens: expected numbers of at least 0, found -1"),
        ("embedding_logits", np.nan, "embedding_logits: expected finite numbers, found nan at example 2"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, name: str, value: float, words: str) -> None:
    made = layout()
    known = birth(made)
    create_store(tmp_path / "s.zarr", made, **known)
    arrays = arrays_of(made, known, 0)
    arrays[name][2] = value
    with BlockWriter(tmp_path / "s.zarr") as writer, pytest.raises(InvalidInputError, match=words):
        writer.write(0, arrays)


def test_a_copy_takes_names_with_their_arrays_and_leaves_them_without(tmp_path) -> None:
    written(tmp_path / "s.zarr", layout())
    copy_store(tmp_path / "s.zarr", tmp_path / "k.zarr", arrays=["knockout"], examples=[1, 2, 7])
    copy = ActivationStore.open(tmp_path / "k.zarr")
    held = {spec.name for spec in copy.layout.arrays()}
    assert {"knockout", "knockout_target", "answer_logits"} <= held
    assert not held & {"form_logits", "answer_form", "top_tokens"}
    assert verify(tmp_path / "k.zarr").ok


def test_stores_are_compared_by_the_names_of_targets(tmp_path) -> None:
    """The same targets in another order hold the same numbers at other places."""
    written(tmp_path / "a.zarr", layout())
    made = layout(knockout_targets=("cell_0_0", "subject", "image"))
    known = birth(made)
    create_store(tmp_path / "b.zarr", made, **known)
    with BlockWriter(tmp_path / "b.zarr") as writer:
        for block in range(made.blocks):
            arrays = arrays_of(layout(), known, block)
            arrays["knockout"] = arrays["knockout"][..., ::-1]
            writer.write(block, arrays)
    numbers = diff_stores(tmp_path / "a.zarr", tmp_path / "b.zarr").numbers.set_index("array")
    assert numbers.loc["knockout", "different"] == 0
    assert numbers.loc["knockout", "values"] == 10 * 2 * 3 * 3


@pytest.mark.parametrize(("record", "field"), [("knockout", "knockout_targets"), ("form_logits", "answer_forms"), ("top_tokens", "ranks")])
def test_names_that_an_array_needs_are_asked_for(record: str, field: str) -> None:
    with pytest.raises(InvalidInputError, match=field):
        small_layout(record={record})
