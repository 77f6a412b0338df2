"""Faithfulness on a store in which the right method is planted; correlations and intervals against scipy and by hand."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_stores import CELLS, GRID, HIDDEN, attributed_store, hidden
from scipy.stats import spearmanr

from stratascope.analysis import Faithfulness, faithfulness, weighted_rows
from stratascope.analysis.attention_maps import parse_window
from stratascope.analysis.faithfulness_table import leading_record, with_intervals
from stratascope.analysis.knockout_targets import kind_of_target, target_tokens
from stratascope.analysis.relevance import METHODS, few_blocks
from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.rank_correlation import rank_correlations
from stratascope.store import ActivationStore


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return attributed_store(tmp_path_factory.mktemp("hidden") / "a.zarr", noise=0.1, measured=40, estimated=True)


@pytest.fixture(scope="module")
def found(planted: ActivationStore) -> Faithfulness:
    return faithfulness(planted, draws=300)


@pytest.mark.slow
def test_the_planted_method_leads_and_chance_is_chance(found: Faithfulness) -> None:
    assert found.best["method"] == "attribution"
    assert found.best["ahead_low"] > 0
    rows = found.rows("cells", "final").set_index("method")
    assert rows.index[0] == "attribution"
    assert rows.loc["attribution", "low"] > rows.loc["attention", "high"] > 0
    assert rows.loc["norm", "correlation"] > rows.loc["attention", "correlation"]
    assert rows.loc["random", "low"] < 0 < rows.loc["random", "high"]
    assert rows.loc["attribution", "behind"] == 0
    assert set(rows["examples"]) == {40}
    assert set(rows["images"]) == {20}
    signed = found.rows("cells", "final", effect="signed")
    assert set(signed["method"]) == {"attribution", "carried", "estimate", "gradient"}
    assert signed["correlation"][0] > 0.7
    assert set(rows.index) == {method.name for method in METHODS}


def test_the_estimate_of_the_measured_effect_is_a_reference_and_never_ranked(found: Faithfulness) -> None:
    table = found.table
    assert set(table.loc[table["role"] == "reference", "method"]) == {"estimate"}
    estimates = table[(table["method"] == "estimate") & (table["effect"] == "size") & (table["window"] == "0-2")]
    assert estimates["correlation"].min() >= found.rows("cells", "final")["correlation"].iloc[0]  # it would lead
    assert estimates["behind"].isna().all()
    assert (found.by_setting["method"] != "estimate").all()
    assert found.by_setting["reference"].notna().all()
    assert found.leading_rows["role"].iloc[-1] == "reference"
    before = found.summary().split("highest in this setting")[0].splitlines()
    assert before[-1].endswith("estimated knockout effect (reference, not ranked: first-order estimate of the knockout effect)")


def test_the_leading_setting_is_fixed_beforehand_and_every_setting_is_listed(found: Faithfulness) -> None:
    assert [found.best[name] for name in ("targets", "mode", "window")] == ["spans", "later", "0-2"]
    settings = found.by_setting[["targets", "mode", "window"]].apply(tuple, axis=1).tolist()
    assert settings[0] == ("spans", "later", "0-2")
    assert sorted(settings) == sorted(product(("cells", "spans"), ("final", "later"), ("0-2", "0-0", "1-2")))
    table = found.table[(found.table["targets"] == "cells") & (found.table["mode"] == "final")]
    lead = leading_record(table)  # without spans and later tokens: the next in order, whatever the results
    assert (lead["targets"], lead["mode"], lead["window"]) == ("cells", "final", "0-2")


def test_a_method_without_scores_by_block_is_marked_in_windows(found: Faithfulness) -> None:
    rows = found.rows("spans", "later", "1-2").set_index("method")
    assert rows["blocks"].to_dict() == {method.name: {"window": "1-2", "all": "0-2", "none": ""}[method.blocks] for method in METHODS}
    assert {"rollout, all blocks", "flow, all blocks", "gradient times input, all blocks", "rollout", "flow"} <= set(rows["label"])
    whole = found.table[(found.table["window"] == "0-2") & (found.table["role"] != "baseline")]
    assert set(whole["blocks"]) == {"0-2"}


def test_the_random_baseline_is_the_mean_of_twenty_draws(planted: ActivationStore, found: Faithfulness) -> None:
    place = found.table.query("targets == 'spans' and mode == 'later' and window == '0-2' and method == 'random'").index[0]
    names = list(planted.layout.knockout_targets)
    spans = [k for k, name in enumerate(names) if kind_of_target(name) == "spans"]
    for k in (0, 39):
        effect = np.abs(planted.read("knockout", examples=k)[1, 0, spans])
        drawn = np.random.default_rng([0, k]).random((20, 3, len(names)))[:, 0, spans]
        assert found.correlations[place, k] == pytest.approx(np.mean([spearmanr(one, effect).statistic for one in drawn]))
    row = found.table.loc[place]
    assert row["low"] < 0 < row["high"]
    assert found.attributes["random_draws"] == 20


@pytest.mark.slow
def test_the_distance_from_the_highest_holds_for_all_pairs_at_once() -> None:
    """With equal methods, choosing the highest by result calls it better in no more than 5 % of the studies."""
    rng, wrong, pointwise = np.random.default_rng(0), 0, 0
    rows = pd.DataFrame({"targets": "cells", "mode": "final", "window": "0-1", "effect": "size", "role": "method"}, index=range(8))
    for seed in range(200):
        values = rng.normal(size=(8, 60))
        table = with_intervals(rows.copy(), values, np.arange(60), 0.95, 500, seed)
        wrong += bool((table["behind_low"] > 0).any())
        best, last = table["correlation"].idxmax(), table["correlation"].idxmin()
        difference = values[best] - values[last]
        pointwise += difference.mean() / (difference.std() / np.sqrt(60)) > 1.96
    assert wrong <= 19  # 5 % and three standard errors
    assert pointwise > 60


@pytest.mark.slow
def test_without_noise_the_planted_method_is_perfect_in_every_setting(tmp_path: Path) -> None:
    found = faithfulness(attributed_store(tmp_path / "exact.zarr", examples=16), methods=["attribution", "attention"], draws=50)
    right = found.table[found.table["method"] == "attribution"]
    # halves round: two groups may change places
    assert right["correlation"].min() > 0.99
    assert len(right) == 2 * 2 * 3 * 2
    assert found.attributes["missing"] == {}
    assert found.table.loc[found.table["method"] == "attention", "correlation"].max() < 0.9


def test_each_correlation_is_that_of_scipy(planted: ActivationStore, found: Faithfulness) -> None:
    effects = planted.read("knockout", examples=range(40))
    rows = weighted_rows(planted, np.arange(40))
    names = list(planted.layout.knockout_targets)
    cells = [names.index(name) for name in CELLS]
    place = found.table.query("targets == 'cells' and mode == 'later' and window == '1-2' and method == 'attention'").index[0]
    for k in (0, 17, 39):
        attention = rows[k, 1:3].mean((0, 1))[2 : 2 + GRID[0] * GRID[1]]
        expected = spearmanr(attention, np.abs(effects[k, 1, 2, cells])).statistic
        assert found.correlations[place, k] == pytest.approx(expected)


def test_scores_that_are_all_alike_rank_nothing_and_effects_that_are_alike_count_not() -> None:
    effects = np.array([[1.0, 2, 3, 4, np.nan], [5, 5, 5, 5, 5], [1, 2, 3, np.nan, np.nan], [1, 2, 3, 4, 5]])
    scores = np.array([[2.0, 2, 2, 2, 9], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    np.testing.assert_allclose(rank_correlations(scores, effects), [0, np.nan, np.nan, -1])


def test_the_bootstrap_draws_images_and_not_examples() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=50), 4)[None]
    together = Bootstrap(np.repeat(np.arange(50), 4)).mean_of_known(values).std()
    alone = Bootstrap(np.arange(200)).mean_of_known(values).std()
    assert together == pytest.approx(values[0, ::4].std() / np.sqrt(50), rel=0.1)
    assert alone == pytest.approx(together / 2, rel=0.1)


def test_targets_are_the_tokens_that_they_name(planted: ActivationStore) -> None:
    names = planted.layout.knockout_targets
    members = target_tokens(planted, 3, names)
    added = np.random.default_rng(0).normal(size=(3, 1, 1, members.shape[1]))
    expected = hidden(added, planted.layout)[0, 0, 0]
    np.testing.assert_allclose(members @ added.sum((0, 1, 2)), expected, atol=1e-12)
    parts = members[: len(HIDDEN) - 2]
    assert parts.sum(0).max() == 1
    assert members[:, -1].sum() == 0


@pytest.mark.slow
def test_cells_of_larger_images_are_grouped_evenly(store) -> None:
    members = target_tokens(store, 0, [f"cell_{r}_{c}" for r in range(6) for c in range(6)])
    assert (members.sum(1) == store.grid[0].prod() / 36).all()


@pytest.mark.slow
def test_faithfulness_loads_back_and_every_scheduler_gives_the_same(planted: ActivationStore, found: Faithfulness, tmp_path: Path) -> None:
    found.save(tmp_path / "f.zarr.zip")
    again = Faithfulness.load(tmp_path / "f.zarr.zip")
    np.testing.assert_array_equal(again.correlations, found.correlations)
    assert again.table.equals(found.table)
    assert again.attributes == found.attributes
    other = faithfulness(planted, draws=300, scheduler="threads")
    np.testing.assert_array_equal(other.correlations, found.correlations)


def test_what_cannot_be_compared_is_refused(store, planted: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(NotRecordedError, match="again with knockout in `record`"):
        faithfulness(store)
    with pytest.raises(InvalidInputError, match="methods of attention"):
        faithfulness(planted, methods=["chefer"])
    with pytest.raises(TooFewExamplesError, match="at least 8 images, found 1"):
        faithfulness(planted, [0, 1], methods=["attention"])
    with pytest.raises(TooFewExamplesError, match="--knockouts N"):
        faithfulness(planted, [60])
    with pytest.raises(InvalidInputError, match="window of blocks"):
        parse_window("1-9", 6)


def test_few_blocks_are_the_top_half_and_at_most_eight() -> None:
    assert [few_blocks(n) for n in (1, 6, 28)] == [(0, 1), (3, 6), (20, 28)]


@pytest.mark.slow
def test_the_command_names_the_best_method_first(planted: ActivationStore, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from stratascope.cli import main

    done = CliRunner().invoke(main, ["faithfulness", planted.name, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert "40 examples on 20 images" in lines[0]
    assert lines[1].endswith("token attribution")
    assert any(line.startswith("highest in this setting, which is fixed beforehand: token attribution") for line in lines)
    assert "8 settings with knockouts in windows of blocks" in done.output
    assert {p.name for p in tmp_path.iterdir()} == {"faithfulness.zarr.zip", "faithfulness.png"}
