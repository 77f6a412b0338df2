"""The whole path from a store to curves: planted signals are found, controls sit at chance, refusals say what to change."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from planted import planted_store
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from stratascope.errors import InvalidInputError, NotRecordedError, StoreError, TooFewExamplesError, UnwrittenBlockError
from stratascope.probe import (
    Advantage,
    LayerCurve,
    ProbeSettings,
    Task,
    calibration,
    codelength_by_layer,
    codelength_of,
    head_curves,
    layer_curve,
    online_codelength,
    plan_study,
    probe_study,
    transfer_matrix,
)
from stratascope.probe.solver.standardised_rows import Rows
from stratascope.probe.validation.cross_validation import classify
from stratascope.probe.validation.folds import grouped_folds
from stratascope.results.file import ResultFile
from stratascope.results.registry import load_result, save_result
from stratascope.store import ActivationStore


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    return ActivationStore.open(planted_store(tmp_path_factory.mktemp("probe") / "a.zarr", outlier=1e4))


@pytest.fixture(scope="module")
def blank(tmp_path_factory) -> ActivationStore:
    return ActivationStore.open(planted_store(tmp_path_factory.mktemp("probe") / "b.zarr", outlier=1e4, condition="blank"))


@pytest.fixture(scope="module")
def curves(store) -> dict[tuple[str, str | None], LayerCurve]:
    tasks = ("truth", "truth:shuffled", "truth:control", "relation", "relation:shuffled", "answer")
    return {(c.task, c.position): c for c in probe_study(store, tasks, draws=500)}


@pytest.mark.slow
def test_planted_truth_is_found_where_it_is(curves):
    curve = curves["truth", "final"]
    assert abs(curve.onset.layer - 3) <= 1
    assert curve.offset.layer is None
    assert (curve.rows("auroc")["value"].to_numpy()[3:] > 0.85).all()
    assert (curve.rows("auroc")["value"].to_numpy()[:3] < 0.62).all()
    assert (curve.folds["gap"] < 1e-5).all()


@pytest.mark.slow
def test_controls_sit_at_chance(curves):
    for name in ("truth:shuffled", "relation:shuffled"):
        for position in ("final", "relation"):
            curve = curves[name, position]
            assert curve.onset.layer is None
            assert (curve.rows().eval("low <= chance")).all()
    assert curves["truth", "relation"].onset.layer is None


@pytest.mark.slow
def test_a_control_task_is_learned_where_its_types_are(curves):
    """The relation is in the vectors at `relation`, so a random label a relation can be read there, and not at `final`."""
    assert curves["truth:control", "relation"].onset.layer == 0
    selectivity = curves["truth", "final"].difference(curves["truth:control", "final"], "accuracy")
    assert selectivity.table["value"].iloc[4] > 0.1
    assert selectivity.table["baseline"].iloc[0] == "truth:control"


@pytest.mark.slow
def test_relation_and_answer(curves):
    relation = curves["relation", "relation"]
    assert relation.classes == ("above", "below", "left of", "right of")
    assert relation.metric == "balanced_accuracy"
    assert (relation.rows()["value"] > 0.95).all()
    assert curves["answer", "final"].classes == ("True", "False")
    assert curves["answer", "final"].onset.layer in (2, 3, 4)
    assert len(relation.examples) == 399, "the last example lacks the position"


@pytest.mark.slow
def test_blank_images_are_a_paired_baseline(store, blank, tmp_path):
    curve, text_only = layer_curve(store, draws=500), layer_curve(blank, draws=500)
    advantage = curve.difference(text_only)
    assert abs(advantage.onset.layer - 3) <= 1
    assert advantage.table["baseline"].iloc[0].endswith("b.zarr")
    assert text_only.onset.layer is None
    advantage.save(tmp_path / "advantage.zip")
    back = Advantage.load(tmp_path / "advantage.zip")
    pd.testing.assert_frame_equal(back.table, advantage.table, check_dtype=False)
    assert (back.onset, back.offset) == (advantage.onset, advantage.offset)
    assert back.attributes["baseline"]["fingerprint"] == blank.fingerprint()
    events = load_result(tmp_path / "advantage.zip").tables["events"].set_index("kind")
    assert (events.loc["onset", "found"], events.loc["onset", "layer"]) == (True, advantage.onset.layer)
    assert (events.loc["offset", "found"], events.loc["offset", "layer"]) == (False, -1)
    with pytest.raises(InvalidInputError, match="same examples and seed"):
        curve.difference(layer_curve(blank, draws=500, seed=1))
    with pytest.raises(InvalidInputError, match="same layers"):
        curve.difference(layer_curve(blank, draws=500, layers=(0, 1)))


@pytest.mark.slow
def test_tables_are_tidy_and_predictions_out_of_fold(curves):
    curve = curves["truth", "final"]
    assert list(curve.table) == [
        "layer", "position", "task", "metric", "value", "low", "high", "low_simultaneous", "high_simultaneous", "chance", "at_edge",
    ]  # fmt: skip
    assert set(curve.table["metric"]) == {"accuracy", "balanced_accuracy", "auroc", "log_loss"}
    found = curve.predictions
    assert len(found) == 6 * 400
    accuracy = found.groupby("layer")["right"].mean()
    np.testing.assert_allclose(accuracy, curve.rows("accuracy")["value"])
    assert ((found["probability"] > 0.5) == found["right"]).all()
    assert pd.crosstab(curve.examples["group"], curve.examples["fold"]).gt(0).sum(axis=1).eq(1).all()
    bands = curve.rows()
    assert (bands["low_simultaneous"] <= bands["low"] + 0.01).all()


@pytest.mark.slow
def test_curves_survive_saving(curves, tmp_path):
    for key in (("truth", "final"), ("relation", "relation")):
        curve = curves[key]
        curve.save(tmp_path / "curve.zip")
        back = LayerCurve.load(tmp_path / "curve.zip")
        pd.testing.assert_frame_equal(back.table, curve.table, check_dtype=False)
        pd.testing.assert_frame_equal(back.predictions, curve.predictions, check_dtype=False)
        assert (back.task, back.position, back.classes) == (curve.task, curve.position, curve.classes)
        assert back.onset == curve.onset
        np.testing.assert_array_equal(back.directions, curve.directions)
        assert back.attributes["folds"] == 5
        assert back.difference(curve).onset.layer is None
    save_result(tmp_path / "other.zip", ResultFile(kind="rollout"))
    with pytest.raises(StoreError, match="expected a result of kind 'layer_curve', found 'rollout'"):
        LayerCurve.load(tmp_path / "other.zip")


@pytest.mark.slow
def test_an_optimum_at_the_edge_of_the_grid_is_noted(store, curves):
    assert curves["truth", "final"].notes == []
    low = layer_curve(store, strengths=(1e-6, 1e-5), layers=(1, 4), draws=200)
    assert len(low.notes) == 1
    assert "at layer" in low.notes[0]
    assert "4 the best inverse regularisation is the largest tried, C = 1e-05" in low.notes[0]
    assert low.rows().set_index("layer").loc[4, "at_edge"], "figures draw it hollow"


def test_the_default_grid_goes_on_while_the_loss_falls():
    """The label is the small difference of two columns that are nearly the same: weights have to be large."""
    rng = np.random.default_rng(0)
    y = np.arange(600) % 2
    first = rng.standard_normal(600)
    x = np.stack([first, first + 0.02 * (2 * y - 1 + 0.8 * rng.standard_normal(600))], axis=1)
    folds = grouped_folds(np.arange(600), y, folds=3)
    (found,) = classify(Rows(x, folds.of), y[None], folds, classes=2)
    assert np.isfinite(found.inner_loss[-1]).all(), "tried up to 1e3"
    loss = found.inner_loss.mean(axis=1)
    assert loss[-1] < 0.7 * loss[-2], "than at 100"
    assert found.at_edge.all(), "and even larger ones would score better"
    (short,) = classify(Rows(x, folds.of), y[None], folds, classes=2, strengths=(10, 100))
    assert len(short.inner_loss) == 2, "strengths that are given are all there is"
    assert short.at_edge.all()


@pytest.mark.slow
def test_directions_read_activations_as_recorded(store, curves):
    curve = curves["truth", "final"]
    x = store.read("residual", layer=4, position="final").astype(np.float64)
    logit = x @ curve.directions[4, 0].astype(np.float64) + curve.intercepts[4, 0]
    right = (logit > 0) == (curve.examples["label"] == 1)
    assert right.mean() > 0.8


@pytest.mark.slow
def test_a_plot_shows_curve_and_baselines(curves):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    ax = curves["truth", "final"].plot(baselines={"shuffled": curves["truth:shuffled", "final"]})
    assert [line.get_label() for line in ax.get_lines()][:2] == ["truth", "shuffled"]


def test_the_same_seed_gives_the_same_numbers(store):
    first, second = (layer_curve(store, layers=(2, 3), draws=200) for _ in range(2))
    pd.testing.assert_frame_equal(first.table, second.table)
    np.testing.assert_array_equal(first.logits, second.logits)


@pytest.mark.slow
def test_threads_and_processes_give_the_same_numbers(store):
    alone = layer_curve(store, layers=(2, 3), draws=200)
    for scheduler in ("threads", "processes"):
        other = layer_curve(store, layers=(2, 3), draws=200, scheduler=scheduler)
        pd.testing.assert_frame_equal(alone.table, other.table)
    with pytest.raises(InvalidInputError, match="expected a scheduler of synchronous, threads, processes"):
        layer_curve(store, layers=(2,), scheduler="slurm")


@pytest.mark.slow
def test_finished_layers_are_not_solved_again(store, tmp_path, monkeypatch):
    first = layer_curve(store, layers=(2, 3), draws=200, output=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    calls = []
    import stratascope.probe.study.study as study

    solve = study.run_layer
    monkeypatch.setattr(study, "run_layer", lambda task: calls.append(task.layer) or solve(task))
    again = layer_curve(store, layers=(2, 3, 4), draws=200, output=tmp_path)
    assert calls == [4]
    np.testing.assert_array_equal(first.logits, again.logits[:2])
    calls.clear()
    layer_curve(store, layers=(2,), draws=200, seed=1, output=tmp_path)
    assert calls == [2], "other folds are another result"
    next(tmp_path.glob("layer-003*")).write_bytes(b"damaged")
    calls.clear()
    layer_curve(store, layers=(2, 3), draws=200, output=tmp_path)
    assert calls == [3]
    monkeypatch.setattr("stratascope.probe.study.layer_cache.SOLVER_VERSION", 0)
    calls.clear()
    layer_curve(store, layers=(2,), draws=200, output=tmp_path)
    assert calls == [2], "what another version of the solver left is not read"


@pytest.mark.slow
def test_finished_codelengths_are_not_computed_again(store, tmp_path, monkeypatch):
    import stratascope.probe.study.codelength_study as of_study
    from stratascope.probe.study import layer_cache as finished

    calls, send = [], of_study._send_layer
    monkeypatch.setattr(of_study, "_send_layer", lambda task: calls.append(task.layer) or send(task))
    study = plan_study(store, ("truth", "relation", "truth:shuffled"), ("final",), layers=(2, 4))
    first = codelength_of(study, output=tmp_path)
    assert first.equals(codelength_of(study))
    calls.clear()
    assert first.equals(codelength_of(study, output=tmp_path))
    assert not calls
    codelength_by_layer(store, layers=(2,), seed=1, output=tmp_path)
    assert calls == [2], "another order of sending is another result"
    calls.clear()
    monkeypatch.setattr(finished, "SOLVER_VERSION", finished.SOLVER_VERSION + 1)
    codelength_of(study, output=tmp_path)
    assert sorted(calls) == [2, 4], "what an older solver left is not read"


def test_a_study_that_dies_goes_on_where_it_stood(store, tmp_path, monkeypatch):
    import stratascope.probe.study.study as study

    solve, calls = study.run_layer, []

    def fail_at_three(task):
        calls.append(task.layer)
        if task.layer == 3 and len(calls) < 4:
            raise RuntimeError("killed")
        return solve(task)

    monkeypatch.setattr(study, "run_layer", fail_at_three)
    with pytest.raises(RuntimeError, match="killed"):
        layer_curve(store, layers=(1, 3), draws=200, output=tmp_path, scheduler="synchronous")
    calls += [0, 0, 0]
    layer_curve(store, layers=(1, 3), draws=200, output=tmp_path, scheduler="synchronous")
    assert calls.count(1) == 1


def test_difference_in_means_is_a_second_opinion(store):
    curve = layer_curve(store, method="means", layers=(1, 4), draws=200)
    assert curve.value(4) > 0.85
    assert curve.value(1) < 0.62
    assert layer_curve(store, "relation", "relation", method="means", layers=(1,), draws=200).value(1) > 0.95


def test_any_column_values_by_id_and_own_tasks(store):
    curve = layer_curve(store, "subject", layers=(3,), draws=200)
    assert curve.classes == ("cat", "cup", "dog")
    ids = store.examples["id"]
    by_id = {i: ("odd" if label else "even") for i, label in zip(ids, store.examples["label"], strict=True)}
    own = layer_curve(store, "parity", layers=(4,), values={"parity": by_id}, draws=200)
    assert own.value(4) > 0.85
    task = Task("mine", store.examples["label"].to_numpy().astype(np.intp), ("a", "b"))
    np.testing.assert_array_equal(layer_curve(store, task, layers=(4,), draws=200).logits, own.logits)


def test_examples_without_a_row_of_their_own_take_no_part(store):
    ids = store.examples["id"][:150]
    curve = layer_curve(store, "parity", layers=(4,), values={"parity": dict(zip(ids, np.arange(150) % 2, strict=True))}, draws=200)
    assert curve.examples["id"].tolist() == ids.tolist()


def test_values_are_read_by_ridge(store):
    x = store.read("residual", layer=4, position="final")
    values = np.stack([x[:, 2], np.random.default_rng(0).standard_normal(400)], axis=1).astype(float)
    task = Task("coordinates", np.zeros(400, np.intp), (), values, ("planted", "noise"))
    curve = layer_curve(store, task, layers=(3, 4), draws=200)
    assert curve.metric == "r2"
    assert curve.value(4, "r2_planted") > 0.98
    assert curve.value(4, "r2_noise") < 0.05
    assert curve.rows("r2_noise")["low"].max() < 0.02
    assert set(curve.predictions) >= {"planted", "noise"}
    assert abs(curve.value(3, "r2_planted")) < 0.1


@pytest.mark.slow
def test_transfer_works_where_the_direction_is_the_same(store, blank):
    table = transfer_matrix(store, layers=(1, 3, 5)).set_index(["layer", "to_layer"])["value"]
    assert table[3, 5] > 0.85
    assert table[1, 5] < 0.75
    assert transfer_matrix(store, layers=(4,), to=blank, to_layers=(4,))["value"].iloc[0] < 0.6


@pytest.mark.slow
def test_codelength_and_calibration(store, curves):
    table = codelength_by_layer(store, layers=(1, 4)).set_index("layer")
    assert table.loc[1, "value"] == pytest.approx(1, abs=0.05)
    assert table.loc[4, "low"] > 1.3
    assert table.loc[4, "uniform_bits"] == 400
    assert table.loc[4, "value"] == pytest.approx(400 / table.loc[4, "bits"])
    reliable = calibration(curves["truth", "final"], bins=5)
    assert reliable.groupby("layer")["examples"].sum().eq(400).all()
    assert (reliable["error"] < 0.12).all()


@pytest.mark.slow
def test_codelengths_of_a_study_are_those_of_each_task_alone_whoever_computes_them(store):
    study = plan_study(store, ("truth", "truth:shuffled", "relation"), ("final", "relation"), layers=(2, 4))
    together = codelength_of(study)
    assert together.equals(codelength_of(study, scheduler="threads", workers=2))
    assert len(together) == 3 * 2 * 2
    alone = codelength_by_layer(store, "truth", "final", layers=(2, 4))
    mine = together[(together["task"] == "truth") & (together["position"] == "final")]
    np.testing.assert_allclose(mine["bits"], alone["bits"], rtol=1e-4)
    assert (together.loc[together["task"] == "truth:shuffled", "value"] < 1.1).all()


def test_a_task_of_values_or_a_probe_for_each_head_has_no_codelength(store, tmp_path):
    task = Task("coordinates", np.zeros(400, np.intp), (), np.arange(400.0)[:, None], ("x",))
    with pytest.raises(InvalidInputError, match="tasks of values: coordinates"):
        codelength_by_layer(store, task)
    heads = plan_study(planted_store(tmp_path / "h.zarr", heads=True), array="head_outputs", by_head=True)
    with pytest.raises(InvalidInputError, match="a probe for each head of head_outputs"):
        codelength_of(heads)


def test_a_codelength_is_what_scikit_learns_models_would_pay():
    """Every portion is sent with scikit-learn's probe of all portions before it."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 640)
    x = rng.standard_normal((640, 8)) * 3 + 1.5 * y[:, None] * (np.arange(8) == 2)
    place = np.random.default_rng(5).permutation(640)
    bits = 40 * np.log2(3)
    for start, end in pairwise((40, 80, 160, 320, 640)):
        train, test = place < start, (place >= start) & (place < end)
        scale = StandardScaler().fit(x[train])
        model = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000).fit(scale.transform(x[train]), y[train])
        bits -= np.log2(model.predict_proba(scale.transform(x[test]))[np.arange(test.sum()), y[test]]).sum()
    found = online_codelength(x, y, np.arange(640), classes=3, strengths=(0.1,), seed=5)
    assert found.bits == pytest.approx(bits, rel=1e-3)


def test_more_data_compress_better():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 3000)
    x = rng.standard_normal((3000, 10)) + 0.5 * y[:, None]
    few = online_codelength(x[:500], y[:500], np.arange(500), classes=2)
    many = online_codelength(x, y, np.arange(3000), classes=2)
    assert 1 < few.compression < many.compression


def test_official_split_is_one_test_set(tmp_path):
    store = ActivationStore.open(planted_store(tmp_path / "s.zarr", split=True))
    curve = layer_curve(store, split=("train", "test"), layers=(4,), draws=200)
    assert len(curve.examples) == 100
    assert len(curve.folds) == 1
    assert curve.attributes["leakage"] == 0
    assert curve.attributes["leakage_text"].startswith("0 of 100 test examples (0%) share their image")
    assert curve.value(4) > 0.8


def test_refusals_say_what_to_change(store, tmp_path):
    with pytest.raises(TooFewExamplesError, match=r"at least 50 examples.*found 14"):
        layer_curve(store, examples=np.arange(14), minimum=1)
    with pytest.raises(TooFewExamplesError, match=r"20 examples or more \(`minimum`\), 50 together .* extract at least 16 more examples"):
        layer_curve(store, examples=np.arange(14))
    with pytest.raises(NotRecordedError, match="found 'colour'; columns are"):
        layer_curve(store, "colour")
    with pytest.raises(InvalidInputError, match="control of shuffled, control"):
        layer_curve(store, "truth:random")
    with pytest.raises(InvalidInputError, match=r"fractions.*bin them"):
        layer_curve(store, "brightness", categorical=("brightness",))
    with pytest.raises(InvalidInputError, match=r"by example id such as 'e00000', found none.*among 1 such as 'photo-1'"):
        layer_curve(store, "part", values={"part": {"photo-1": "a"}})
    with pytest.raises(NotRecordedError, match="boxes"):
        layer_curve(store, "geometry")
    with pytest.raises(NotRecordedError, match="position"):
        layer_curve(store, position="subject")
    with pytest.raises(NotRecordedError, match="layer"):
        layer_curve(store, layers=(77,))
    with pytest.raises(InvalidInputError, match="settings of array, folds"):
        layer_curve(store, fold=5)
    with pytest.raises(InvalidInputError, match="column of the examples to group by"):
        layer_curve(store, groups="photo")
    with pytest.raises(InvalidInputError, match="strengths above 0"):
        layer_curve(store, strengths=(0.0, 1.0))
    half = ActivationStore.open(planted_store(tmp_path / "half.zarr", written=3))
    with pytest.raises(UnwrittenBlockError, match=r"4 of 7 blocks unwritten.*examples="):
        layer_curve(half)
    assert len(layer_curve(half, examples=half.available("residual", "final"), layers=(4,), draws=200).examples) == 192


def test_planted_stores_are_stores(store: ActivationStore, tmp_path: Path):
    assert store.complete
    assert store.provenance["condition"] == "original"


def test_signatures_show_every_setting_with_the_default_of_the_command_line(store):
    from stratascope.commands.probe import probe_command
    from stratascope.probe.study.probe_run import run_probes
    from stratascope.probe.study.request import ProbeRequest

    options = {option.name: option.default for option in probe_command.params}
    for function in (layer_curve, probe_study, plan_study, head_curves, transfer_matrix, codelength_by_layer):
        parameters = signature(function).parameters
        assert not [name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_KEYWORD]
        for field in fields(ProbeSettings):
            default = parameters[field.name].default
            assert default == ("head_outputs" if (function, field.name) == (head_curves, "array") else field.default)
    for field in ("seed", "folds", "minimum", "method", "groups"):
        assert options[field] == signature(layer_curve).parameters[field].default
    shared = [signature(function).parameters["scheduler"].default for function in (layer_curve, run_probes)]
    assert {options["scheduler"]} == set(shared)
    assert ProbeRequest().tasks == signature(probe_study).parameters["tasks"].default


def test_one_layer_is_given_as_a_number(store):
    (one,), (several,) = (plan_study(store, ("truth",), ("final",), layers=layers).layers for layers in (np.int64(3), [3]))
    assert one == several == 3
