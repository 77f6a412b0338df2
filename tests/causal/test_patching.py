"""Which example is patched into which: the same id in another store, or the other variants of a pair."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stratascope.causal.patching import PatchSource, pair_sources, patch_layers, same_ids
from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError

MODEL = {"files": {"model.safetensors": "ab"}, "dtype": "float32"}


def stood_in(
    table: dict[str, Any], *, lacking: tuple[int, ...] = (), prompt: str = "True or false: {caption}", wide: tuple[int, ...] = ()
) -> Any:
    """What patching reads of a store; the residual stream of example k is k everywhere, its logits are (k, 0).

    Image token t of example k, the t-th of the image that starts at token 3, is 100 k + t. Examples `wide` have 2 x 3 of them, others
    2 x 2; the second example has none.
    """
    examples = pd.DataFrame(table)
    usable = ~np.isin(np.arange(len(examples)), lacking)

    def read(array: str, *, examples: Any, layers: Any = (), position: str = "") -> Any:
        if array == "answer_logits":
            return np.stack([np.asarray(examples, float), np.zeros(len(examples))], 1)
        if array == "patch_residual":
            return np.tile((100.0 * examples + np.arange(6))[:, None], (len(layers), 1, 4))
        return np.full((len(layers), 4), float(examples))

    count = len(examples)
    grid = np.where(np.isin(np.arange(count), wide)[:, None], (2, 3), (2, 2))
    layout = SimpleNamespace(record={"residual", "patch_residual"}, hidden=4, choices=("True", "False"), layers_of=lambda name: (0, 4))
    provenance = {"model": MODEL, "prompt": {"text": prompt}}
    return SimpleNamespace(
        name="a.zarr", examples=examples, layout=layout, provenance=provenance, read=read, available=lambda *_: usable, grid=grid,
        patch_counts=grid.prod(1) * (np.arange(count) != 1), layers=(0, 2, 4), spans={"image": np.tile((3, 7), (count, 1))},
    )  # fmt: skip


def test_variants_of_a_pair_are_patched_into_each_other_in_both_directions() -> None:
    rows = [(f"{k}-{v}", str(k), v) for k in range(12) for v in ("original", "swapped", "mirrored") if (k, v) != (3, "mirrored")]
    store = stood_in(dict(zip(("id", "pair", "variant"), map(list, zip(*rows, strict=True)), strict=True)), lacking=(1,))
    sources = {source.name: source for source in pair_sources(store)}
    ids = store.examples["id"].tolist()
    of = {name: {a: ids[k] for a, k in zip(ids, source.of, strict=True) if k >= 0} for name, source in sources.items()}
    assert of["swapped"]["5-original"] == "5-swapped"
    assert of["original"]["5-swapped"] == "5-original"
    assert of["mirrored"]["5-swapped"] == "5-mirrored"
    assert "5-swapped" not in of["swapped"], "none is patched with itself"
    assert "3-original" not in of["mirrored"], "which pair 3 lacks"
    assert "0-original" not in of["swapped"], "whose residual stream was not recorded"
    tokens = {"final": np.array([9]), "object": np.array([5])}
    vectors = sources["swapped"].vectors(ids.index("5-original"), tokens, (0, 2, 4))
    assert {name: rows.shape for name, rows in vectors.items()} == {"final": (3, 1, 4), "object": (3, 1, 4)}
    assert all((rows == ids.index("5-swapped")).all() for rows in vectors.values())
    assert np.isnan(sources["swapped"].vectors(0, tokens, (0,))["final"]).all()
    assert np.isnan(sources["swapped"].vectors(ids.index("5-original"), {"object": None}, (0,))["object"]).all()
    logits = sources["swapped"].answer_logits(np.array([0, ids.index("5-original")]))
    assert np.isnan(logits[0]).all()
    assert logits[1].tolist() == [ids.index("5-swapped"), 0]


def test_ids_lead_to_the_same_example_in_another_order() -> None:
    target, source = (stood_in({"id": names}) for names in ([f"e{k}" for k in range(20)], [f"e{k}" for k in range(25, 4, -1)]))
    of = same_ids("mirror", target, source).of
    assert of[:5].tolist() == [-1] * 5
    assert [source.examples["id"][k] for k in of[5:]] == [f"e{k}" for k in range(5, 20)]


def test_refusals() -> None:
    target = stood_in({"id": [f"e{k}" for k in range(20)]})
    with pytest.raises(InvalidInputError, match=r"found others \(prompt.text differ\)"):
        same_ids("mirror", target, stood_in({"id": [f"e{k}" for k in range(20)]}, prompt="Yes or no: {caption}"))
    with pytest.raises(TooFewExamplesError, match="at least 10 pairs, found 2"):
        same_ids("mirror", target, stood_in({"id": ["e1", "e2"]}))
    with pytest.raises(NotRecordedError, match="columns pair and variant, found id"):
        pair_sources(target)
    twice = stood_in({"id": list("abcd"), "pair": list("0011"), "variant": ["original", "original", "original", "swapped"]})
    with pytest.raises(InvalidInputError, match="several 'original' in pair '0'"):
        pair_sources(twice)


def test_image_tokens_come_from_the_same_places_of_the_source_at_its_recorded_layers() -> None:
    """Example 0 has no source with image tokens, 2 one with more of them."""
    store = stood_in({"id": [f"e{k}" for k in range(16)]})
    source = PatchSource("next", store, stood_in({"id": [f"e{k}" for k in range(16)]}, wide=(3,)), (np.arange(16) + 1) % 16)
    assert source.held(("image",))[[0, 1, 2, 3]].tolist() == [False, True, False, True]
    assert source.held(("final",)).all()
    tokens = {"object_box": np.array([4, 6]), "final": np.array([9])}
    found = source.vectors(5, tokens, (0, 4))
    assert found["object_box"][:, :, 0].tolist() == [[601, 603], [601, 603]]
    assert found["final"][:, :, 0].tolist() == [[6], [6]]
    assert np.isnan(source.vectors(2, tokens, (0, 4))["object_box"]).all()
    assert not np.isnan(source.vectors(2, tokens, (0, 4))["final"]).any()
    every = np.arange(16)
    assert patch_layers(source, [("final",)], every, (0, 2, 4), None) == [0, 2, 4]
    assert patch_layers(source, [("final", "cell_0_1"), ("final",)], every, (0, 2, 4), None) == [0, 4]
    with pytest.raises(
        NotRecordedError, match=r"'next', image: expected all image tokens at layers 2, found them at 0, 4; extract it again"
    ):
        patch_layers(source, [("image",)], every, (0, 2, 4), (2, 4))
    with pytest.raises(
        NotRecordedError, match="at least 10 examples of the task, found 9, and 1 whose images have other numbers of tokens"
    ):
        patch_layers(source, [("subject_box",)], every[:11], (0, 2, 4), None)
    with pytest.raises(InvalidInputError, match="found caption_mean, object_mean: the store holds the mean"):
        patch_layers(source, [("final",), ("caption_mean", "object_mean")], every, (0, 2, 4), None)
