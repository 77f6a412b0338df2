"""Which example is patched into which: the same id in another store, or the other variants of a pair."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stratascope.causal.patching import pair_sources, patch_refusals, same_ids
from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError

MODEL = {"files": {"model.safetensors": "ab"}, "dtype": "float32"}


def stood_in(table: dict[str, Any], *, lacking: tuple[int, ...] = (), prompt: str = "True or false: {caption}") -> Any:
    """What patching reads of a store; the residual stream of example k is k everywhere, its logits are (k, 0)."""
    examples = pd.DataFrame(table)
    usable = ~np.isin(np.arange(len(examples)), lacking)

    def read(array: str, *, examples: Any, layers: Any = (), position: str = "") -> Any:
        if array == "answer_logits":
            return np.stack([np.asarray(examples, float), np.zeros(len(examples))], 1)
        return np.full((len(layers), 4), float(examples))

    layout = SimpleNamespace(record={"residual"}, hidden=4, choices=("True", "False"))
    provenance = {"model": MODEL, "prompt": {"text": prompt}}
    return SimpleNamespace(name="a.zarr", examples=examples, layout=layout, provenance=provenance, read=read, available=lambda *_: usable)


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
    vectors = sources["swapped"].vectors(ids.index("5-original"), ("final", "object"), (0, 2, 4))
    assert vectors.shape == (2, 3, 4)
    assert (vectors == ids.index("5-swapped")).all()
    assert np.isnan(sources["swapped"].vectors(0, ("final",), (0,))).all()
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
    with pytest.raises(InvalidInputError, match="found image, object_box"):
        patch_refusals(("final", "image", "final+object_box"))
