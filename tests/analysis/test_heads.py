"""Norm-based and token attribution against sums written out; rankings of heads against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from stratascope.analysis import head_agreement, head_ranking, norm_attention, token_attribution
from stratascope.errors import InvalidInputError


def one_layer(seed: int = 0) -> dict[str, np.ndarray]:
    """A layer of grouped-query attention: 4 heads on 2 groups of values, 9 keys, of which the last two are padding."""
    rng = np.random.default_rng(seed)
    rows = np.full((4, 9), np.nan)
    rows[:, :7] = rng.dirichlet(np.ones(7), 4)
    return {"rows": rows, "values": rng.normal(size=(2, 9, 5)), "output": rng.normal(size=(4, 5, 12)), "direction": rng.normal(size=12)}


def test_norm_attention_is_the_norm_of_what_each_key_alone_makes_a_head_write() -> None:
    layer = one_layer()
    norms = np.stack([np.linalg.norm(layer["values"][h // 2] @ layer["output"][h], axis=-1) for h in range(4)])
    found = norm_attention(layer["rows"], norms, normalised=False)
    for h in range(4):
        for key in range(7):
            written = layer["rows"][h, key] * layer["values"][h // 2, key] @ layer["output"][h]
            assert found[h, key] == pytest.approx(np.linalg.norm(written))
    assert np.isnan(found[:, 7:]).all()
    scaled = norm_attention(layer["rows"], norms)
    np.testing.assert_allclose(np.nansum(scaled, -1), 1)
    np.testing.assert_allclose(scaled[:, :7] / scaled[:, :1], found[:, :7] / found[:, :1])


def test_a_sink_with_a_small_value_loses_its_weight() -> None:
    np.testing.assert_allclose(norm_attention([0.9, 0.05, 0.05], [0.01, 1, 1]), [0.009 / 0.109, 0.05 / 0.109, 0.05 / 0.109])
    assert norm_attention([0.5, 0.5], [0, 0]).tolist() == [0, 0]


def test_token_attributions_add_up_to_the_head_s() -> None:
    layer = one_layer(1)
    along = np.stack([layer["values"][h // 2] @ layer["output"][h] @ layer["direction"] for h in range(4)])
    found = token_attribution(layer["rows"], along)
    for h in range(4):
        output = np.nan_to_num(layer["rows"][h]) @ layer["values"][h // 2] @ layer["output"][h]
        assert np.nansum(found[h]) == pytest.approx(output @ layer["direction"])


@pytest.mark.parametrize(
    ("norms", "message"), [(np.ones((2, 3)), r"shape \(3,\)"), (np.array([1, -1, 1]), "at least 0"), (np.array([1, np.nan, 1]), "NaN")]
)
def test_norms_that_do_not_fit_are_refused(norms: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        norm_attention(np.array([0.2, 0.3, 0.5]), norms)


def test_ranking_puts_the_head_first_that_leads_in_every_score() -> None:
    rng = np.random.default_rng(0)
    scores = {"overlap": rng.random((3, 4)), "attribution": rng.random((3, 4))}
    for value in scores.values():
        value[2, 1] = 2
    scores["probe"] = scores["overlap"].copy()
    scores["probe"][0, 0] = np.nan
    table = head_ranking(scores, layers=[5, 6, 9])
    assert table.loc[0, ["layer", "head", "mean_rank"]].tolist() == [9, 1, 1.0]
    assert table["mean_rank"].is_monotonic_increasing
    row = table.set_index(["layer", "head"]).loc[(5, 0)]
    assert np.isnan(row["probe_rank"])
    assert row["overlap_rank"] == 12 - np.argsort(np.argsort(scores["overlap"].ravel()))[0]


def test_agreement_is_scipy_s_spearman_over_heads_that_have_both() -> None:
    rng = np.random.default_rng(2)
    first = rng.random((4, 5))
    scores = {"a": first, "b": np.round(first + 0.3 * rng.random((4, 5)), 1), "c": -first}
    scores["b"][1, 1] = np.nan
    table = head_agreement(scores).set_index(["first", "second"])
    known = ~np.isnan(scores["b"])
    assert table.loc[("a", "b"), "spearman"] == pytest.approx(spearmanr(first[known], scores["b"][known]).statistic)
    assert table.loc[("a", "b"), "heads"] == 19
    assert table.loc[("a", "c"), "spearman"] == pytest.approx(-1)
    assert table.loc[("a", "c"), "shared_tenth"] == 0
    with pytest.raises(InvalidInputError, match="at least two"):
        head_agreement({"a": first})
    with pytest.raises(InvalidInputError, match="one shape"):
        head_ranking({"a": first, "b": first[:2]})
