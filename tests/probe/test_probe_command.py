"""`stratascope probe` on planted stores: what it says, which results and figures it leaves, what it refuses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from planted import planted_store

from stratascope.cli import main
from stratascope.probe import Advantage, LayerCurve, ScoreGrid, head_curves, layer_curve, probe_study
from stratascope.probe.curve import curve_figures
from stratascope.report.result_set import gather
from stratascope.results.registry import load_result
from stratascope.store import ActivationStore


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["probe", *map(str, arguments)])


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("command")
    options = {"heads": True, "vision": True, "boxes": True, "split": True}
    return planted_store(folder / "a.zarr", **options), planted_store(folder / "b.zarr", condition="blank", **options)


@pytest.fixture(scope="module")
def done(stores, tmp_path_factory) -> tuple[Result, Path]:
    out = tmp_path_factory.mktemp("results")
    controls = ("--controls", "shuffled,control", "--baseline", f"blank={stores[1]}")
    return run(stores[0], "--positions", "final,relation", *controls, "--transfer", "--strengths", "1e-3,1e-2,1e-1", "--out", out), out


@pytest.mark.slow
def test_it_says_what_it_takes_and_what_it_found(done):
    result, _ = done
    assert result.exit_code == 0, result.output
    assert "24 layer tasks of up to" in result.stderr
    said = result.stdout
    assert re.search(r"truth at final: AUROC [01]\.\d", said)
    assert "truth:shuffled at" not in said, "controls are told by what is above them"
    block = said.partition("truth at final")[2].partition("\nrelation at")[0]
    assert "all of these" in block
    assert "blank" in block
    assert "detected in layers 3-5" in block
    assert "truth at relation: AUROC" in said


@pytest.mark.slow
def test_every_result_is_there_and_reads_back(done):
    out = done[1]
    curve = LayerCurve.load(out / "probe-truth-final.zarr.zip")
    events = load_result(out / "probe-truth-final.zarr.zip").tables["events"]
    assert events["kind"].tolist() == ["onset", "peak", "offset"]
    peak = events.set_index("kind").loc["peak"]
    assert str(curve.peak.layer) in peak["candidates"].split(", ")
    over = {path.stem.partition("-over-")[2].removesuffix(".zarr") for path in out.glob("advantage-truth-final-over-*")}
    assert over == {"shuffled", "control", "embeddings", "blank", "all"}
    every = Advantage.load(out / "advantage-truth-final-over-all.zarr.zip")
    each = [Advantage.load(out / f"advantage-truth-final-over-{name}.zarr.zip").table["value"] for name in over - {"all"}]
    each.append(curve.difference().table["value"])
    np.testing.assert_allclose(every.table["value"], np.min(each, axis=0))
    assert every.onset.layer == 3
    grid = ScoreGrid.load(out / "positions-truth.zarr.zip")
    assert grid.matrix().shape == (2, 6)
    transfer = load_result(out / "transfer-truth-final.zarr.zip")
    assert len(transfer.tables["table"]) == 36
    confusion = load_result(out / "confusion-relation-final.zarr.zip")
    assert confusion.tables["table"]["count"].sum() == 400
    assert load_result(out / "probe-truth-final-by-relation.zarr.zip").kind == "accuracy_by"
    figures = {path.stem for path in out.glob("*.png")}
    assert figures == {
        "positions-truth", "probe-truth", "probe-truth-final-by-relation", "positions-relation", "probe-relation",
        "confusion-relation-final", "transfer-truth-final", "transfer-truth-relation", "transfer-relation-final",
        "transfer-relation-relation",
    }  # fmt: skip


@pytest.mark.slow
def test_all_scores_stand_in_one_table_for_other_programs(done):
    result, out = done
    assert f"table {out / 'probe-truth.csv'}" in result.stdout
    table = pd.read_csv(out / "probe-truth.csv")
    assert set(zip(table["store"], table["task"], strict=True)) == {
        ("a.zarr", "truth"), ("a.zarr", "truth:shuffled"), ("a.zarr", "truth:control"), ("blank", "truth")
    }  # fmt: skip
    assert set(table["position"]) == {"final", "relation"}
    curve = LayerCurve.load(out / "probe-truth-final.zarr.zip")
    mine = table[(table["store"] == "a.zarr") & (table["task"] == "truth") & (table["position"] == "final")]
    whole = mine[mine["fold"].isna()].set_index(["metric", "layer"]).sort_index()
    kept = curve.table.set_index(["metric", "layer"]).sort_index()
    columns = ["value", "low", "high", "low_simultaneous", "high_simultaneous", "chance"]
    np.testing.assert_allclose(whole[columns], kept.loc[whole.index, columns], rtol=1e-5)
    assert len(whole) == len(kept)
    folds = mine[mine["fold"].notna() & (mine["metric"] == "accuracy")].astype({"fold": int}).set_index(["layer", "fold"]).sort_index()
    right = curve.predictions.groupby(["layer", "fold"])["right"].mean()
    pd.testing.assert_series_equal(folds["value"], right, check_names=False, rtol=1e-5)
    assert len(folds) == len(curve.layers) * 5
    assert folds["strength"].isin([1e-3, 1e-2, 1e-1]).all()


@pytest.mark.slow
def test_a_figure_marks_the_layers_that_are_detected(stores, tmp_path, monkeypatch):
    marked = {}
    drawn = curve_figures.draw_curve_panel

    def spy(*arguments, **named):
        marked[named["title"]] = named["detected"]
        return drawn(*arguments, **named)

    monkeypatch.setattr(curve_figures, "draw_curve_panel", spy)
    assert run(stores[0], "--tasks", "relation", "--positions", "final,relation", "--out", tmp_path).exit_code == 0
    assert set(marked) == {"final", "relation"}
    for position, found in marked.items():
        assert found == list(Advantage.load(tmp_path / f"advantage-relation-{position}-over-all.zarr.zip").detected)


@pytest.mark.slow
def test_a_probe_for_each_head(stores, tmp_path):
    result = run(stores[0], "--array", "head_outputs", "--tasks", "truth", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "truth            2 of 10 heads above chance in AUROC" in result.stdout
    assert "head 1 of block" in result.stdout
    grid = ScoreGrid.load(tmp_path / "heads-truth.zarr.zip")
    assert set(grid.table[grid.table["found"]]["row"]) == {"head 1"}
    assert (tmp_path / "heads-truth.png").exists()
    assert run(stores[0], "--array", "head_outputs", "--transfer", "--out", tmp_path).exit_code == 2


@pytest.mark.slow
def test_other_arrays_splits_and_values(stores, tmp_path):
    store = ActivationStore.open(stores[0])
    table = pd.DataFrame({"id": store.examples["id"], "value": np.where(store.examples["label"] == 1, "yes", "no")})
    table.to_csv(tmp_path / "mine.csv", index=False)
    options = ("--split", "train,test", "--method", "means", "--metric", "balanced_accuracy", "--margin", "0.05")
    mine = ("--tasks", "mine", "--values", f"mine={tmp_path / 'mine.csv'}")
    result = run(stores[0], "--array", "vision_residual", *mine, *options, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "mine at image: balanced accuracy" in result.stdout
    assert "0 of 100 test examples (0%) share their image" in result.stdout
    some = run(
        stores[0], "--tasks", "truth", "--only", "relation=above", "--positions", "final", "--layers", "4,5", "--out", tmp_path / "some"
    )
    assert some.exit_code == 0, some.output
    curve = LayerCurve.load(tmp_path / "some" / "probe-truth-relation-above-final.zarr.zip")
    assert curve.task == "truth (relation=above)"
    assert list(curve.attributes["only"]) == ["relation=above"]
    assert len(curve.examples) == (store.examples["relation"] == "above").sum()
    assert "it has above, below" in run(stores[0], "--only", "relation=over", "--out", tmp_path).stderr
    (tmp_path / "bad.csv").write_text("name,value\na,1\n")
    refused = run(stores[0], "--tasks", "x", "--values", f"x={tmp_path / 'bad.csv'}", "--out", tmp_path)
    assert refused.exit_code == 2
    assert "expected columns id and value, found name, value" in refused.stderr
    assert run(stores[0], "--values", "x", "--out", tmp_path).exit_code == 2


@pytest.mark.slow
def test_a_choice_of_examples_is_told_and_never_mixed_with_all(stores, tmp_path):
    """Its curve, controls and advantages have names of their own, which the report keeps apart; values of one column are a union."""
    store = ActivationStore.open(stores[0])
    asked = ("--tasks", "truth", "--positions", "final", "--layers", "4,5", "--controls", "shuffled", "--out", tmp_path)
    assert run(stores[0], *asked).exit_code == 0
    both = run(stores[0], *asked, "--only", "relation=above", "--only", "relation=below")
    assert both.exit_code == 0, both.output
    assert "truth (relation=above, relation=below) at final" in both.stdout
    assert f"figure {tmp_path / 'probe-truth-relation-above-relation-below.png'}" in both.stdout
    findings = gather(store, [tmp_path])
    whole, some = findings.curves
    assert [whole.task, some.task] == ["truth", "truth (relation=above, relation=below)"]
    assert len(some.table("examples")) == store.examples["relation"].isin(["above", "below"]).sum()
    for curve in (whole, some):
        assert [c.task for c in findings.controls_of(curve)] == [f"{curve.task}:shuffled"]
        assert findings.saved_advantages(curve)
        assert {a.task for a in findings.saved_advantages(curve)} == {curve.task}


def test_a_baseline_of_other_examples_is_refused(stores, tmp_path):
    other = planted_store(tmp_path / "c.zarr", examples=120)
    refused = run(stores[0], "--tasks", "truth", "--positions", "final", "--baseline", other, "--out", tmp_path)
    assert refused.exit_code == 2
    assert "found 120 in" in refused.stderr
    assert "extract the same examples again" in refused.stderr


def test_what_is_given_in_vain_is_refused(stores, tmp_path):
    store = ActivationStore.open(stores[0])
    pd.DataFrame({"id": store.examples["id"], "value": "a"}).to_csv(tmp_path / "mine.csv", index=False)
    mine = ("--values", f"mine={tmp_path / 'mine.csv'}")
    for options, told in (
        (mine, "expected --tasks with mine"),
        (("--tasks", "truth", "--values", f"truth={tmp_path / 'mine.csv'}"), "a task of every store"),
        (("--tasks", "truth", "--metric", "f1"), "expected --metric of accuracy"),
        (("--tasks", "relation", "--metric", "r2"), "found 'r2'"),
        (("--by", "nope"), "--by: expected a column of the examples, found 'nope'"),
    ):
        refused = run(stores[0], *options, "--out", tmp_path)
        assert refused.exit_code == 2
        assert told in refused.stderr


def test_values_of_no_example_are_named_and_refused_where_none_is(stores, tmp_path):
    ids = [*ActivationStore.open(stores[0]).examples["id"], "zzz", "scenes-9999"]
    pd.DataFrame({"id": ids, "value": ["a", "b"] * (len(ids) // 2)}).to_csv(tmp_path / "mine.csv", index=False)
    asked = ("--tasks", "mine", "--positions", "final", "--layers", "4", "--out", tmp_path)
    said = run(stores[0], *asked, "--values", f"mine={tmp_path / 'mine.csv'}")
    assert said.exit_code == 0, said.output
    assert f"mine: 2 of {len(ids)} ids are not in this store: zzz, scenes-9999\n" in said.stdout
    pd.DataFrame({"id": ["zzz", "yyy"], "value": ["a", "b"]}).to_csv(tmp_path / "other.csv", index=False)
    refused = run(stores[0], *asked, "--values", f"mine={tmp_path / 'other.csv'}")
    assert refused.exit_code == 2
    assert "found ids yyy, zzz" in refused.stderr


@pytest.mark.slow
def test_too_few_of_a_class_are_told_what_would_do_and_that_does(stores, tmp_path):
    ids = ActivationStore.open(stores[0]).examples["id"]
    asked = ("--tasks", "mine", "--positions", "final", "--layers", "4", "--out", tmp_path, "--values", f"mine={tmp_path / 'mine.csv'}")
    for count, way in ((32, ("--minimum", "16", "--folds", "3")), (60, ("--minimum", "15"))):
        values = ["a" if k % (2 if count == 32 else 4) else "b" for k in range(count)]
        pd.DataFrame({"id": ids[:count], "value": values}).to_csv(tmp_path / "mine.csv", index=False)
        refused = run(stores[0], *asked)
        assert refused.exit_code == 2
        assert "two classes of 20 examples or more (--minimum), 50 together (10 for each of 5 folds)" in refused.stderr
        assert all(" ".join(way[k : k + 2]) in refused.stderr for k in range(0, len(way), 2))
        done = run(stores[0], *asked, *way)
        assert done.exit_code == 0, done.output


def test_a_layer_that_is_not_there_is_refused_before_anything_is_said_of_costs(stores, tmp_path):
    refused = run(stores[0], "--tasks", "truth", "--layers", "99", "--out", tmp_path)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("stratascope: residual: expected layers that the store holds, found 99; it holds 0..")
    plain = run(stores[0], "--tasks", "truth", "--positions", "final", "--array", "head_outputs", "--layers", "0", "--out", tmp_path)
    assert plain.exit_code == 2
    assert "expected no position, because it is an array by attention_layer, example, head" in plain.stderr


def test_examples_without_a_value_take_no_part(stores, tmp_path):
    store = ActivationStore.open(stores[0])
    some = pd.DataFrame({"id": store.examples["id"], "value": np.where(store.examples["label"] == 1, "yes", "no")})
    some.loc[::4, "value"] = None
    some.iloc[: len(some) - 10].to_csv(tmp_path / "mine.csv", index=False)
    known = int(some.iloc[: len(some) - 10]["value"].notna().sum())
    options = ("--tasks", "mine", "--values", f"mine={tmp_path / 'mine.csv'}", "--positions", "final", "--layers", "5", "--out", tmp_path)
    result = run(stores[0], *options)
    assert result.exit_code == 0, result.output
    assert f"mine: {len(some) - known} of {len(some)} examples have no value and are excluded" in result.stdout
    assert len(LayerCurve.load(tmp_path / "probe-mine-final.zarr.zip").examples) == known


@pytest.mark.slow
def test_the_same_command_goes_on_where_it_stopped(stores, tmp_path, monkeypatch):
    chosen = (stores[0], "--tasks", "truth", "--positions", "final", "--scheduler", "synchronous", "--out", tmp_path)
    assert run(*chosen, "--layers", "1-3").exit_code == 0
    import stratascope.probe.study.study as study

    calls, solve = [], study.run_layer
    monkeypatch.setattr(study, "run_layer", lambda task: calls.append(task.layer) or solve(task))
    assert run(*chosen).exit_code == 0
    assert sorted(calls) == [0, 4, 5]


@pytest.mark.slow
def test_a_grid_of_noise_is_rarely_found(tmp_path):
    """One band over all cells: what single bands would find among 40 noisy curves, it does not."""
    store = ActivationStore.open(planted_store(tmp_path / "n.zarr", onset=9, hidden=8, examples=200))
    curves = [layer_curve(store, "truth:shuffled", seed=seed, draws=200, strengths=(1e-2,)) for seed in range(12)]
    grid = ScoreGrid.of(curves)
    assert grid.table["found"].sum() == 0
    assert (grid.table["low_simultaneous"] < grid.table["low"]).all()
    assert grid.best().empty


def test_heads_have_one_band(stores):
    curves = head_curves(stores[0], draws=300)
    grid = ScoreGrid.of(curves)
    own = pd.concat([curve.rows() for curve in curves], ignore_index=True)
    assert (grid.table["low_simultaneous"] <= own["low_simultaneous"] + 1e-9).mean() > 0.8
    assert grid.best(1)["row"].item() == "head 1"


def test_over_all_refuses_what_cannot_be_compared(stores):
    truth, relation = probe_study(stores[0], ("truth", "relation"), ("final",), layers=(2, 3), draws=200)
    from stratascope.errors import InvalidInputError

    with pytest.raises(InvalidInputError, match="advantages of one curve"):
        Advantage.over_all([truth.difference(), relation.difference()])
    with pytest.raises(InvalidInputError, match="found none"):
        Advantage.over_all([])
    with pytest.raises(InvalidInputError, match=r"expected a layer of \[2, 3\], found 0"):
        truth.difference_from_layer(0)
    base = truth.difference_from_layer(2)
    assert base.table["value"].iloc[0] == 0
    assert base.table["baseline"].iloc[0] == "layer 2"


@pytest.mark.slow
def test_codelengths_and_calibration_are_said_saved_and_drawn(stores, tmp_path):
    options = ("--positions", "final,relation", "--tasks", "truth,geometry", "--controls", "shuffled", "--strengths", "1e-2,1e-1")
    said = run(stores[0], *options, "--baseline", stores[1], "--measures", "mdl,calibration", "--out", tmp_path)
    assert said.exit_code == 0, said.output
    assert "truth at final: expected calibration error 0." in said.output
    assert "bits per label at layer" in said.output
    table = load_result(tmp_path / "codelength-truth-final.zarr.zip", "codelength").tables["table"]
    assert set(zip(table["store"], table["task"], strict=True)) == {("", "truth"), ("", "truth:shuffled"), ("blank", "truth")}
    own = table[(table["store"] == "") & (table["task"] == "truth")].set_index("layer")["value"]
    assert own[4] > 1.3 > own[1]
    bins = load_result(tmp_path / "calibration-truth-final.zarr.zip", "calibration").tables["table"]
    assert bins.groupby("layer")["examples"].sum().eq(400).all()
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert {"calibration-truth.png", "codelength-truth.png"} <= drawn
    assert not {name for name in drawn if name.startswith(("calibration-geometry", "codelength-geometry"))}
    for name in ("codelength", "calibration"):
        figure = CliRunner().invoke(main, ["figure", name, str(tmp_path), "--position", "relation", "-o", str(tmp_path / "f.svg")])
        assert figure.exit_code == 0, figure.output


@pytest.mark.parametrize(("options", "message"), [
    (("--measures", "mdl,entropy"), "expected --measures among mdl, calibration, sizes, found 'entropy'"),
    (("--metric", "f1"), "expected --metric of accuracy, auroc, balanced_accuracy, log_loss, found 'f1'"),
    (("--measures", "mdl", "--array", "head_outputs"), "leave --measures out"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_anything_is_solved(stores, tmp_path, options, message):
    said = run(stores[0], *options, "--out", tmp_path)
    assert said.exit_code == 2
    assert message in said.output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_probes_are_tested_at_another_position_and_in_another_store(stores, tmp_path):
    mirror = planted_store(tmp_path / "m.zarr", condition="mirror", heads=True, vision=True, boxes=True, split=True)
    options = (
        "--positions",
        "final",
        "--tasks",
        "truth",
        "--strengths",
        "1e-2,1e-1",
        "--layers",
        "1,4",
        "--transfer-to",
        "relation,mirror",
    )
    said = run(stores[0], *options, "--baseline", mirror, "--out", tmp_path / "r")
    assert said.exit_code == 0, said.output
    for name in ("relation", "mirror"):
        table = load_result(tmp_path / "r" / f"transfer-truth-final-to-{name}.zarr.zip", "transfer")
        assert table.attributes["to"] == name
        score = table.tables["table"].set_index(["layer", "to_layer"])["value"]
        assert score[4, 4] < 0.65, "only the final token of the original images has it"
        assert (tmp_path / "r" / f"transfer-truth-final-to-{name}.png").exists()
    assert not (tmp_path / "r" / "transfer-truth-final.zarr.zip").exists()
    refused = run(stores[0], *options[:-1], "blank", "--out", tmp_path / "s")
    assert "expected --transfer-to with a position or the name of a baseline, found 'blank'; there are final, relation" in refused.output
