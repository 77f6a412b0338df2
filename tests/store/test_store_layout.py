"""Layouts: checked at birth, one table of arrays, estimates that hold."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from stores import birth, block_arrays, small_layout

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store import StoreLayout, encode_maps, estimate_sizes
from stratascope.store.format.shards import encode_file


def test_json_round_trip():
    layout = small_layout(kept_layers=(0, 2))
    assert StoreLayout.from_json(json.loads(json.dumps(layout.to_json()))) == layout


def test_fields_of_later_versions():
    values = small_layout().to_json()
    older = {k: v for k, v in values.items() if k not in ("vision_positions", "kept_layers")}
    assert StoreLayout.from_json(older) == small_layout()
    with pytest.raises(InvalidInputError, match="found more; upgrade"):
        StoreLayout.from_json({**values, "more": 1})
    with pytest.raises(InvalidInputError, match="expected examples"):
        StoreLayout.from_json({k: v for k, v in values.items() if k != "examples"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"examples": 0}, "examples: expected a whole number of at least 1, found 0"),
        ({"hidden": 2.5}, "hidden"),
        ({"positions": ()}, "positions: expected at least one name"),
        ({"positions": ("final", "final")}, "distinct"),
        ({"positions": "final"}, "distinct"),
        ({"record": {"residuals"}}, "residuals"),
        ({"computed_dtype": "int8"}, "int8"),
        ({"thumbnail": (0, 5)}, "thumbnail"),
        ({"record": {"head_outputs"}}, "head_dim"),
        ({"kept_layers": (2, 1)}, "kept_layers"),
        ({"kept_layers": (4,)}, "0..3"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(changes, words):
    with pytest.raises(InvalidInputError, match=words):
        small_layout(**changes)


def test_every_dimension_has_a_size_and_files_follow_blocks():
    layout = small_layout(
        record={"residual", "attention_rows", "attention_maps", "value_norms", "head_outputs", "head_logits", "vision_residual"},
        head_dim=4, vision_layers=2, vision_hidden=6, vision_positions=("image",), thumbnail=(6, 5),
    )  # fmt: skip
    names = {s.name for s in layout.arrays()}
    assert {"attention_mean", "vision_layer", "thumbnail", "status", "written", "head_logits"} <= names
    for spec in layout.arrays():
        assert spec.shape == tuple(layout.sizes[d] for d in spec.dims)
        if spec.by_block:
            file = spec.shard or spec.chunk
            assert file[spec.example_axis] == layout.block
            assert all(f % c == 0 for f, c in zip(file, spec.chunk, strict=True))


def test_arrays_that_are_not_recorded_are_named():
    with pytest.raises(NotRecordedError, match="it holds answer_logits, status"):
        small_layout(record=set(), thumbnail=None).array("residual")


def test_one_layer_taken_at_the_top_has_no_attention():
    layout = small_layout(kept_layers=(3,))
    assert layout.residual_layers == (3,)
    assert layout.attention_layers == ()
    assert "attention_rows" not in {s.name for s in layout.arrays()}


def _bfloat16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)


def _heavy_tailed(rng: np.random.Generator, examples: int, hidden: int, layer: int) -> np.ndarray:
    """(example, hidden) residuals as in Qwen2.5-VL: t-distributed, channels of different sizes, some of them outliers."""
    scale = np.exp(rng.normal(size=hidden) * 0.8) * 1.1**layer
    scale[rng.choice(hidden, 5, replace=False)] *= 60
    return ((rng.standard_t(6, (examples, hidden)) + rng.normal(size=hidden) * 0.7) * scale).astype(np.float32)


@pytest.mark.slow
def test_estimate_of_a_realistic_store_is_within_ten_percent(shared_maps):
    """7B-shaped: bfloat16 residuals with outliers, rows of real attention made sharper and flatter by head, real maps."""
    rng = np.random.default_rng(0)
    n, tokens = 8, 200
    layout = small_layout(
        n, layers=28, hidden=3584, heads=28, tokens=tokens, positions=("final", "image", "subject"), block=8, thumbnail=None,
        record={"residual", "attention_rows", "attention_maps"},
    )  # fmt: skip
    n_tokens = rng.integers(180, tokens + 1, n)
    has_map = np.arange(n) < 2
    table = estimate_sizes(layout, n_tokens, has_map).set_index("array")["estimated_bytes"]

    spec = layout.array("residual")
    size = 0
    for layer in range(29):  # one layer at a time: the real array would be large
        values = _bfloat16(np.stack([_heavy_tailed(rng, n, 3584, layer) for _ in range(3)]))
        values[1] = np.mean([_bfloat16(_heavy_tailed(rng, n, 3584, layer)) for _ in range(30)], axis=0, dtype=np.float32)
        if layer == 0:
            values[0] = values[0, 0]
            values[2] = values[2, rng.integers(0, 3, n)]
        one = small_layout(n, layers=28, hidden=3584, positions=("final", "image", "subject"), block=8, kept_layers=(layer,))
        size += sum(map(len, encode_file(one.array("residual"), values[None])))
    assert table["residual"] == pytest.approx(size, rel=0.1)

    rows = np.full((28, n, 28, tokens), np.nan, np.float16)
    maps = np.zeros((n, 28, tokens, tokens), np.uint8)
    for i, t in enumerate(n_tokens):
        for layer in range(28):
            weights = shared_maps[layer, -1, np.sort(np.r_[0, rng.choice(np.arange(1, 200), t - 1, replace=False)])]
            weights = weights * np.exp(rng.normal(size=(28, t)))
            rows[layer, i, :, :t] = weights / weights.sum(-1, keepdims=True)
        if has_map[i]:
            cut = shared_maps[:28, :t, :t]
            maps[i, :, :t, :t] = encode_maps(cut / cut.sum(-1, keepdims=True))
    for name, values in (("attention_rows", rows), ("attention_maps", maps)):
        spec = layout.array(name)
        assert table[name] == pytest.approx(sum(map(len, encode_file(spec, values))), rel=0.1)
    mean = np.moveaxis(rows.astype(np.float32).mean(2), 0, 1)
    assert table["attention_mean"] == pytest.approx(sum(map(len, encode_file(layout.array("attention_mean"), mean))), rel=0.1)


def test_pictures_are_estimated_from_a_sample():
    layout = small_layout(4)
    pictures = block_arrays(layout, birth(layout), 0)["thumbnail"]
    table = estimate_sizes(layout, thumbnails=pictures).set_index("array")
    size = sum(map(len, encode_file(layout.array("thumbnail"), pictures)))
    assert table["estimated_bytes"]["thumbnail"] == pytest.approx(size, rel=0.5)
    with pytest.raises(InvalidInputError, match="thumbnails"):
        estimate_sizes(layout, thumbnails=np.zeros((1, 2, 2, 3), np.uint8))
    with pytest.raises(InvalidInputError, match="n_tokens"):
        estimate_sizes(layout, n_tokens=np.ones(3))


def test_estimate_of_the_demo_is_within_ten_percent(store):
    """The built-in model on generated scenes, as `plan` prints it; answers and status are a few bytes."""
    pictures = np.stack([store.thumbnail(i) for i in range(16)])
    table = estimate_sizes(store.layout, store.n_tokens, store.has_map, store.position_present, pictures).set_index("array")[
        "estimated_bytes"
    ]
    sizes = {
        s.name: sum((Path(store.name) / s.key(b)).stat().st_size for b in range(store.layout.blocks))
        for s in store.layout.arrays() if s.by_block
    }  # fmt: skip
    for name, size in sizes.items():
        assert table[name] == pytest.approx(size, rel=0.1, abs=200), name
    assert table.sum() == pytest.approx(store.size_on_disk(), rel=0.1)
