"""Shares, entropy and sinks of the final token's attention, against sums written out and sinks that were planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from analysis_stores import HEADS, IMAGE, LAYERS, TOKENS, planted_store

from stratascope.analysis import AttentionShare, attention_share, find_sinks, row_entropy
from stratascope.analysis.sinks import PLACES, token_places
from stratascope.errors import InvalidInputError
from stratascope.store.format.prompt_parts import PARTS


def test_share_is_the_sum_over_each_part(store, plan) -> None:
    share = attention_share(store, [0, 7])
    np.testing.assert_allclose(share.values.sum(-1), 1, atol=1e-5)
    for row, example in enumerate((0, 7)):
        spans = plan.layouts[example].spans
        tokens = int(plan.token_counts[example])
        rows = store.read("attention_rows", examples=[example])[:, 0, :, :tokens]
        rows = rows / rows.sum(-1, keepdims=True)
        owner = np.array(["template"] * tokens, dtype=object)
        owner[slice(*spans["system"])] = "system"
        owner[slice(*spans["image"])] = "image"
        owner[slice(*spans["caption"])] = "caption_rest"
        for name in ("subject", "relation", "object"):
            owner[slice(*spans[name])] = name
        for k, part in enumerate(PARTS):
            np.testing.assert_allclose(share.values[row, ..., k], rows[..., owner == part].sum(-1), atol=1e-5)
            assert share.tokens[row, k] == pytest.approx((owner == part).mean())


def test_share_loads_back(store, tmp_path: Path) -> None:
    share = attention_share(store)
    share.save(tmp_path / "s.zarr.zip")
    again = AttentionShare.load(tmp_path / "s.zarr.zip")
    np.testing.assert_array_equal(share.values, again.values)
    for name in ("tokens", "examples", "entropy", "sinks", "sink_counts", "first_part"):
        np.testing.assert_array_equal(getattr(share, name), getattr(again, name))
    assert share.attributes == again.attributes


def test_every_scheduler_gives_the_same(store) -> None:
    chosen = [90, 2, 65, 3]
    one, other = attention_share(store, chosen), attention_share(store, chosen, scheduler="threads")
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.values, attention_share(store).values[chosen])
    with pytest.raises(InvalidInputError, match="somewhere"):
        attention_share(store, chosen, scheduler="somewhere")


def test_entropy_is_that_of_scipy_and_of_the_rows(store) -> None:
    from scipy.stats import entropy

    rows = store.read("attention_rows", examples=[5])[:, 0, :, : int(store.n_tokens[5])].astype(np.float64)
    np.testing.assert_allclose(attention_share(store, [5]).entropy[0], entropy(rows, axis=-1), atol=1e-4)
    even = np.full(50, 1 / 50)
    assert row_entropy(even) == pytest.approx(np.log(50))
    assert row_entropy(np.eye(4)).tolist() == [0, 0, 0, 0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("token", "place"), [(0, "first_token"), (IMAGE[0], "image_edge"), (IMAGE[0] + 6, "image_inside"), (25, "caption"), (31, None)]
)
def test_a_planted_sink_is_found_named_and_taken_out(tmp_path: Path, token: int, place: str | None) -> None:
    plain = attention_share(planted_store(tmp_path / "plain.zarr", examples=64))
    sunk = attention_share(planted_store(tmp_path / "sunk.zarr", examples=64, sink=(token, 0.7)))
    assert not plain.sink_counts.any()
    if place is None:  # what the final token gives to itself is drawn by no sink
        assert not sunk.sink_counts.any()
        return
    assert f"sinks at {place.replace('_', ' ')}: 1.00 per example, 100% of examples; 70.0% of the attention" in sunk.summary()
    assert "without sinks" in sunk.summary() if place in ("first_token", "image_edge") else "without" not in sunk.summary()
    assert "no sinks: no token takes 10 times its fair share" in plain.summary()
    table = sunk.sink_table().set_index("place")
    assert table["examples_with"].to_dict() == {name: float(name == place) for name in PLACES}
    assert table.loc[place, "attention"] == pytest.approx(0.7, abs=1e-3)
    if place == "caption":
        with pytest.raises(InvalidInputError, match="sinks in text stay"):
            sunk.without_sinks([place])
        return
    # what is left is in the proportions that it had, but for the sink's own small part
    part = "template" if token == 0 else "image"
    kept = [k for k, name in enumerate(PARTS) if name != part]
    left = sunk.without_sinks([place])
    np.testing.assert_allclose(left.sum(-1), 1, atol=1e-5)
    before = plain.values[..., kept] / plain.values[..., kept].sum(-1, keepdims=True)
    np.testing.assert_allclose(left[..., kept] / left[..., kept].sum(-1, keepdims=True), before, atol=2e-3)
    heads = sunk.head_table([place])
    assert len(heads) == LAYERS * HEADS * len(PARTS)
    assert heads["sinks"].to_numpy() == pytest.approx(0.7, abs=1e-3)
    row = heads.query("layer == 1 and head == 2 and part == 'image'").iloc[0]
    assert row["share"] == pytest.approx(sunk.values[:, 1, 2, PARTS.index("image")].mean(), rel=1e-5)
    assert row["share_without_sinks"] == pytest.approx(left[:, 1, 2, PARTS.index("image")].mean(), rel=1e-5)
    assert row["entropy"] == pytest.approx(sunk.entropy[:, 1, 2].mean(), rel=1e-5)


def test_places_of_tokens_written_out() -> None:
    places = token_places(np.array([14]), np.array([[1, 10]]), np.array([[3, 3]]), np.array([[11, 13]]), 16)[0]
    named = [PLACES[p] if p >= 0 else "" for p in places]
    edge, inside = "image_edge", "image_inside"
    assert named == ["first_token", edge, edge, edge, edge, inside, edge, edge, edge, edge, "other_text", "caption", "caption", "", "", ""]


def test_a_cell_is_a_sink_among_cells_and_a_word_among_all_tokens() -> None:
    places = token_places(np.array([TOKENS]), np.array([IMAGE]), np.array([[4, 5]]), np.array([[24, 29]]), TOKENS)
    attention = np.full((1, TOKENS), 1e-4)
    attention[0, IMAGE[0] + 7] = 1e-2  # little among all tokens, but nearly all that the image has
    attention[0, 24] = 0.2  # 6 times an even share
    attention[0, 30] = 1 - attention.sum()
    assert np.flatnonzero(find_sinks(attention, places)[0]).tolist() == [IMAGE[0] + 7, 30]
    with pytest.raises(InvalidInputError, match="more than 1 times"):
        find_sinks(attention, places, times=1)


@pytest.mark.slow
def test_where_a_sink_takes_all_nothing_is_said_of_the_rest(tmp_path: Path) -> None:
    share = attention_share(planted_store(tmp_path / "all.zarr", examples=64, sink=(0, 1.0)))
    assert np.isnan(share.without_sinks()).all()
    assert share.head_table()["share_without_sinks"].isna().all()
    assert "the sinks take all attention" in share.summary()
