"""Heads ranked by several scores, and the commands of overlap and heads, on stores with a planted head."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_stores import HEADS, LAYERS, TELLING, attributed_store, planted_store
from click.testing import CliRunner
from scipy.stats import spearmanr

from stratascope.analysis import AnswerPrediction, BoxOverlap, HeadRanking, attention_overlap, logit_attribution, rank_heads
from stratascope.analysis.head_agreement import head_agreement
from stratascope.analysis.head_ranking import probe_grid
from stratascope.cli import main
from stratascope.errors import InvalidInputError
from stratascope.results.file import ResultFile
from stratascope.results.registry import save_result
from stratascope.stats.rank_correlation import spearman_interval
from stratascope.store import ActivationStore
from tests.completed import completed


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return attributed_store(tmp_path_factory.mktemp("ranked") / "a.zarr")


def probe_result(store: ActivationStore) -> tuple[ResultFile, np.ndarray]:
    """A probe's scores by head, as a table of named rows."""
    grid = np.random.default_rng(4).random((LAYERS, HEADS))
    rows = [(f"head {h}", layer, "auroc", grid[layer, h]) for h in range(HEADS) for layer in range(LAYERS)]
    rows += [(f"head {h}", layer, "accuracy", 0.5) for h in range(HEADS) for layer in range(LAYERS)]
    table = pd.DataFrame(rows, columns=["row", "layer", "metric", "value"])
    about = {"task": "truth", "metric": "auroc", "array": "head_outputs", "fingerprint": store.fingerprint()}
    return completed("score_grid", {"table": table}, {}, about), grid


@pytest.mark.slow
def test_scores_ranks_and_agreement_are_those_written_out(planted: ActivationStore, tmp_path: Path) -> None:
    attribution, overlap = logit_attribution(planted), attention_overlap(planted, measure="lift")
    result, grid = probe_result(planted)
    found = rank_heads(attribution, overlap, result)
    np.testing.assert_allclose(found.grid("attribution"), attribution.carried)
    np.testing.assert_allclose(found.grid("overlap"), overlap.mean("both"))
    np.testing.assert_allclose(found.grid("probe"), grid)
    best = found.table.sort_values("attribution_rank").iloc[0]
    assert attribution.carried[int(best["layer"]), int(best["head"])] == attribution.carried.max()
    pair = found.agreement.query("first == 'attribution' and second == 'probe'").iloc[0]
    assert pair["spearman"] == pytest.approx(spearmanr(attribution.carried.ravel(), grid.ravel()).statistic)
    assert pair["low"] < pair["spearman"] < pair["high"]
    found.save(tmp_path / "h.zarr.zip")
    again = HeadRanking.load(tmp_path / "h.zarr.zip")
    assert again.table.equals(found.table)
    assert again.agreement.equals(found.agreement)
    assert again.attributes == found.attributes


def test_the_interval_of_a_rank_correlation_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    # Spearman's correlation of a bivariate normal of correlation .6
    truth = 6 / np.pi * np.arcsin(0.3)
    covered = 0
    for _ in range(400):
        pair = rng.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], 60)
        low, high = spearman_interval(spearmanr(*pair.T).statistic, 60)
        covered += low < truth < high
    assert 0.92 <= covered / 400 <= 0.98
    assert np.isnan(spearman_interval(0.5, 3)).all()


def test_one_score_ranks_and_agrees_with_nothing(planted: ActivationStore, tmp_path: Path) -> None:
    found = rank_heads(logit_attribution(planted))
    assert found.agreement.empty
    found.save(tmp_path / "h.zarr.zip")
    assert HeadRanking.load(tmp_path / "h.zarr.zip").agreement.empty


@pytest.mark.slow
def test_scores_that_do_not_belong_together_are_refused(planted: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="at least one score"):
        rank_heads()
    with pytest.raises(InvalidInputError, match="fused over heads"):
        rank_heads(overlap=BoxOverlap(np.zeros((1, LAYERS, 1, 3), np.float32), np.zeros(1, np.int64), {"heads": [-1]}))
    other = attention_overlap(planted_store(tmp_path / "other.zarr", examples=64), measure="share")
    with pytest.raises(InvalidInputError, match="of one store"):
        rank_heads(logit_attribution(planted), other)
    with pytest.raises(InvalidInputError, match="--array head_outputs"):
        probe_grid(ResultFile("layer_curve", {"table": pd.DataFrame({"layer": [0], "value": [1.0], "position": ["final"]})}))
    with pytest.raises(InvalidInputError, match=r"none of 7"):
        probe_grid(probe_result(planted)[0], [0, 7])


def test_agreement_needs_two_scores_of_one_shape() -> None:
    with pytest.raises(InvalidInputError, match="at least two"):
        head_agreement({"a": np.zeros((2, 2))})


@pytest.mark.slow
def test_the_command_finds_the_probe_among_the_results(planted: ActivationStore, tmp_path: Path) -> None:
    save_result(tmp_path / "grid-truth-heads.zarr.zip", probe_result(planted)[0])
    done = CliRunner().invoke(main, ["heads", planted.name, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "probe (auroc of a probe for truth)" in done.output
    assert "Spearman correlation of overlap and probe" in done.output
    assert HeadRanking.load(tmp_path / "heads.zarr.zip").attributes["scores"].keys() == {"attribution", "overlap", "probe"}
    assert (tmp_path / "heads.png").exists()


@pytest.mark.slow
def test_the_command_names_the_head_whose_look_predicts_a_right_answer(tmp_path: Path) -> None:
    store = planted_store(tmp_path / "p.zarr")
    done = CliRunner().invoke(main, ["overlap", store.name, "--out", str(tmp_path / "r")])
    assert done.exit_code == 0, done.output
    assert f"AUROC for a right answer: block {TELLING[0]} head {TELLING[1]}" in done.output
    assert "; best head significantly above the box geometry" in done.output
    assert AnswerPrediction.load(tmp_path / "r" / "prediction.zarr.zip").best["layer"] == TELLING[0]
    assert (tmp_path / "r" / "overlap.png").exists()


@pytest.mark.slow
def test_where_there_is_nothing_to_predict_the_overlap_is_still_told(planted: ActivationStore, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["overlap", planted.name, "--weighing", "norm", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "mean lift" in done.output
    assert BoxOverlap.load(tmp_path / "overlap-norm.zarr.zip").attributes["map"] == "norm"
