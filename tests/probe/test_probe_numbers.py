"""Numeric columns as targets: ridge regression with R2 and Spearman curves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from planted import planted_store
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from stratascope.cli import main
from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.probe import LayerCurve, layer_curve, task_from_values
from stratascope.probe.curve.value_metrics import score_values, value_influences
from stratascope.probe.tasks.numeric_values import ColumnTypes
from stratascope.probe.tasks.value_files import read_values
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.rank_correlation import stratified_correlation
from stratascope.store import ActivationStore

FEW = {"layers": (0, 3), "draws": 200}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted_store(tmp_path_factory.mktemp("numbers") / "store", examples=160, boxes=True)


def drawn(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores and truths with ties, and folds of several sizes."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 8, n).astype(float)
    return np.round(truth + rng.normal(0, 2, n)), truth, rng.integers(0, 3, n)


def within_folds(scores: np.ndarray, truth: np.ndarray, folds: np.ndarray) -> float:
    return sum((folds == f).mean() * spearmanr(scores[folds == f], truth[folds == f])[0] for f in np.unique(folds))


@pytest.mark.parametrize("seed", range(4))
def test_the_stratified_correlation_is_scipys_within_folds(seed: int) -> None:
    scores, truth, folds = drawn(seed)
    value, influence = stratified_correlation(scores, truth, folds)
    assert value == pytest.approx(within_folds(scores, truth, folds))
    copies = 2000
    for example in range(0, 40, 7):
        counts = np.full(40, copies)
        counts[example] += 1
        more = within_folds(*(np.repeat(values, counts) for values in (scores, truth, folds)))
        assert influence[example] == pytest.approx((more - value) * copies, abs=1e-3)


def test_equal_predictions_rank_nothing() -> None:
    value, influence = stratified_correlation(np.ones(6), np.arange(6.0), np.array([0, 0, 0, 1, 1, 1]))
    assert value == 0
    assert not influence.any()


def test_resamples_of_the_correlation_spread_as_scipys_do() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=300)
    scores = truth + rng.normal(size=300)
    bootstrap = Bootstrap(np.arange(300), draws=2000, seed=1)
    _, draws = score_values(scores[None, None], truth[:, None], ("value",), bootstrap, np.zeros((1, 1)))
    exact = [spearmanr(*(np.repeat(v, w.astype(int)) for v in (scores, truth)))[0] for w in bootstrap.weights[:400]]
    assert draws["spearman"].std() == pytest.approx(np.std(exact), rel=0.08)
    assert np.corrcoef(draws["spearman"][:400, 0], exact)[0, 1] > 0.98


def test_scores_do_not_depend_on_the_unit() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(60, 1))
    predicted = (truth + rng.normal(size=(60, 1))).T[None]
    bootstrap = Bootstrap(np.arange(60), draws=200)
    own, draws = score_values(predicted, truth, ("value",), bootstrap, np.zeros((1, 1)))
    for unit in (1e-25, 1e25):
        other, more = score_values(unit * predicted, unit * truth, ("value",), bootstrap, np.zeros((1, 1)))
        for metric in ("r2", "spearman"):
            assert other[metric] == pytest.approx(own[metric])
            assert more[metric] == pytest.approx(draws[metric], rel=1e-3)
    assert value_influences(predicted[0], truth, ("value",), np.zeros(1))["r2"][0] == pytest.approx(r2_score(truth, predicted[0].T))


def test_a_column_with_fractions_is_solved_as_scikit_learn_does(boxed: Path) -> None:
    store = ActivationStore.open(boxed)
    curve = layer_curve(store, "subject_x0", "final", strengths=(0.1,), **FEW)
    assert (curve.targets, curve.classes, curve.metric) == (("value",), (), "r2")
    y, folds = store.examples["subject_x0"].to_numpy(), curve.examples["fold"].to_numpy()
    assert np.array_equal(curve.examples["value"], y)
    for layer in (0, 3):
        x, predicted = store.read("residual", layer=layer, position="final"), np.zeros(len(y))
        for fold in range(5):
            train, test = folds != fold, folds == fold
            scaler = StandardScaler().fit(x[train])
            predicted[test] = Ridge(alpha=10).fit(scaler.transform(x[train]), y[train]).predict(scaler.transform(x[test]))
        rows = curve.table[curve.table["layer"] == layer].set_index("metric")["value"]
        assert rows["r2"] == pytest.approx(r2_score(y, predicted), abs=1e-5)
        assert rows["spearman"] == pytest.approx(within_folds(predicted, y, folds), abs=1e-3)
    assert str(curve.difference().detected) == "layer 3"
    assert not list(layer_curve(store, "brightness", "final", **FEW).difference().detected)


def test_csv_and_json_lines_give_the_same_targets(tmp_path: Path) -> None:
    numbers = [0.5, 2, 1.25, 40]
    (tmp_path / "v.csv").write_text("id,value\n" + "".join(f"e{k},{v}\n" for k, v in enumerate(numbers)))
    (tmp_path / "v.jsonl").write_text("".join(json.dumps({"id": f"e{k}", "value": v}) + "\n" for k, v in enumerate(numbers)))
    for name in ("v.csv", "v.jsonl"):
        task = task_from_values("distance", list(read_values(tmp_path / name).values()))
        assert task.values is not None
        assert task.values[:, 0].tolist() == numbers


def test_whole_numbers_are_classes_until_there_are_many_or_the_user_says_otherwise() -> None:
    few, many = list(range(10)), list(range(11))
    assert task_from_values("n", few).values is None
    assert task_from_values("n", many).values is not None
    assert task_from_values("n", few, types=ColumnTypes(numeric=("n",))).values is not None
    assert len(task_from_values("n", many, types=ColumnTypes(categorical=("n",))).classes) == 11
    assert task_from_values("n", [True, False]).classes == ("False", "True")
    # the whole column decides, so that every position has the same kind of task
    assert task_from_values("n", many, np.arange(11) < 3).values is not None


@pytest.mark.parametrize(
    ("values", "types", "message"),
    [
        ([1.5, float("inf")], {}, "an infinite value \\(inf\\) at example 1"),
        ([1e9 + 1, 1e9 + 2.5], {}, "subtract their mean"),
        ([1e-40, 2e-40], {}, "choose another unit"),
        (["a", "b"], {"numeric": ("n",)}, "expected numbers in a column of `numeric`, found 'a'"),
        ([1.5, 2.0], {"categorical": ("n",)}, "expected classes, found fractions such as 1.5"),
        ([1.5, None], {}, "expected a value for every example, found 1 of 2 missing"),
    ],
)
def test_numbers_that_no_probe_could_predict_well_are_refused(values: list[object], types: dict[str, tuple[str]], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        task_from_values("n", values, types=ColumnTypes(**types))


def test_a_quantity_that_never_differs_is_refused() -> None:
    with pytest.raises(TooFewExamplesError, match="expected examples of different values, found the same value in all"):
        task_from_values("n", [0.5] * 5).among(np.ones(5, bool))
    with pytest.raises(InvalidInputError, match="found n in both"):
        ColumnTypes(numeric=("n",), categorical=("n",))


def test_the_command_probes_a_numeric_column(boxed: Path, tmp_path: Path) -> None:
    common = ["probe", str(boxed), "--positions", "final", "--layers", "0,3", "--out", str(tmp_path)]
    done = CliRunner().invoke(main, [*common, "--tasks", "subject_x0", "--controls", "shuffled"])
    assert done.exit_code == 0, done.output
    assert "subject_x0 at final: R² 0." in done.output
    assert "; Spearman correlation 0." in done.output
    assert "above all of these: detected in layer 3" in done.output
    curve = LayerCurve.load(next(tmp_path.glob("probe-subject_x0-final.zarr.zip")))
    assert set(curve.table["metric"]) == {"r2", "spearman"}
    assert (tmp_path / "probe-subject_x0.png").exists()
    table = pd.read_csv(tmp_path / "probe-subject_x0.csv")
    assert {"r2", "spearman"} <= set(table["metric"])
    ranked = CliRunner().invoke(main, [*common, "--tasks", "subject_x0", "--metric", "spearman"])
    assert "subject_x0 at final: Spearman correlation 0." in ranked.output
    refused = CliRunner().invoke(main, [*common, "--tasks", "truth", "--numeric", "brightness"])
    assert refused.exit_code == 2
    assert "expected --tasks with brightness, which --numeric names, found truth" in refused.output
