"""Command, files and report make the same claims, with the band of the whole run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import planted_store

from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.probe import Advantage, CurveSet, LayerCurve, probe_study
from stratascope.probe.curve.score_grid import ScoreGrid
from stratascope.probe.study.detection_by_size import detection_by_size
from stratascope.probe.study.probe_run import ProbeRun, run_probes
from stratascope.probe.study.request import ProbeRequest
from stratascope.report.blocks import Cited, Facts, Prose, Table
from stratascope.report.headline import headline, leading_curve
from stratascope.report.reproduction import provenance
from stratascope.report.result_set import ResultSet, gather_results
from stratascope.results.file import write_file
from stratascope.results.registry import load_result
from stratascope.store import ActivationStore

FAST = {"draws": 400, "strengths": (1e-2, 1e-1), "seed": 1}


def probed(folder: Path, store: ActivationStore, **request) -> tuple[ProbeRun, ResultSet, str]:
    """A run, its saved results, and the text of the report's headline."""
    done = run_probes(store, ProbeRequest(**{"settings": FAST, **request}))
    for name, result in done.results.items():
        result.save(folder / f"{name}.zarr.zip")
    results = gather_results([folder])
    return done, results, said(results)


def said(results: ResultSet) -> str:
    """Text of the headline's paragraphs."""
    parts = [block.words for block in headline(results) if isinstance(block, Prose)]
    return " ".join("".join(piece.text if isinstance(piece, Cited) else piece for piece in words) for words in parts)


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> tuple[ActivationStore, ActivationStore]:
    folder = tmp_path_factory.mktemp("claims")
    return tuple(ActivationStore.open(planted_store(folder / f"{c}.zarr", condition=c)) for c in ("original", "blank"))


@pytest.fixture(scope="module")
def run(stores, tmp_path_factory) -> tuple[ProbeRun, ResultSet, str, Path]:
    folder = tmp_path_factory.mktemp("run")
    found = probed(folder, stores[0], tasks=("truth", "relation"), controls=("shuffled",), baselines={"blank": stores[1]})
    return *found, folder


@pytest.mark.slow
def test_command_files_and_report_agree(run):
    done, results, text, folder = run
    lines = "\n".join(done.lines)
    every = Advantage.load(folder / "advantage-truth-final-over-all.zarr.zip")
    assert str(every.detected) == "layers 3-5"
    assert "all of these: detected in layers 3-5; advantage first above 0.03 in one of layers" in lines
    assert "The truth of the caption is detected at the final token in layers 3–5 (n = 400; above chance, shuffled labels, the embe" in text
    assert "It is still detected in the last layer." in text
    band = "95 % simultaneous band over 2 tasks x 2 positions x 6 layers"
    assert f"intervals and layers: {band}" in lines
    assert band in text
    curve = LayerCurve.load(folder / "probe-truth-final.zarr.zip")
    best = curve.rows().iloc[int(curve.rows()["value"].to_numpy().argmax())]
    ends = best["low_simultaneous"], best["high_simultaneous"]
    assert f"truth at final: AUROC {best['value']:.3f} [{ends[0]:.3f}, {ends[1]:.3f}] at layer {best['layer']}" in lines
    assert f"an AUROC of {best['value']:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]" in text
    assert "at the last token of the relation not detected; advantage of at least 0." in text
    assert "the caption states the label before the position: the relation in the caption at final, relation" in text
    assert leading_curve(results).title == "truth at final"


@pytest.mark.slow
def test_every_number_of_the_headline_stands_in_the_table_it_names(run):
    _, results, _, folder = run
    cited: list[Cited] = []
    for block in headline(results):
        words = [f.value for f in block.facts] + [p for f in block.facts for p in f.detail] if isinstance(block, Facts) else block.words
        cited += [piece for piece in words if isinstance(piece, Cited)]
    assert len(cited) > 20
    for one in cited:
        table = load_result(folder / one.source.file).tables[one.source.table.removeprefix("tables/")]
        numbers = np.concatenate([table[name].to_numpy(float) for name in table if table[name].dtype.kind in "if"])
        assert one.value == -1 or (numbers == float(one.value)).any(), one


@pytest.mark.slow
def test_the_family_is_every_score_and_advantage_of_the_run(run):
    done = run[0]
    rows, alone = [], []
    for curve in done.curves.plain:
        for name, advantage in done.curves.advantages_of(curve).items():
            if name != "all":
                spread = advantage.draws.std(axis=0)
                kept = spread > 1e-12
                rows.append(np.abs(advantage.draws - advantage.draws.mean(axis=0))[:, kept] / spread[kept])
                alone.append(float(np.quantile(rows[-1].max(axis=1), 0.95)))
    critical = float(np.quantile(np.concatenate(rows, axis=1).max(axis=1), 0.95))
    for curve in done.curves.plain:
        assert curve.attributes["family"]["critical"] == pytest.approx(critical, rel=1e-4)
        for advantage in done.curves.advantages_of(curve).values():
            assert advantage.bands.critical == pytest.approx(critical, rel=1e-4)
    assert critical > max(alone)


@pytest.mark.slow
def test_rare_labels_give_one_verdict(tmp_path):
    """Nine of ten examples are of one class: accuracy cannot exceed its chance level where the AUROC is far above."""
    store = ActivationStore.open(planted_store(tmp_path / "a.zarr", strength=3))
    rare = (store.examples["label"] == 1) & (np.random.default_rng(0).random(400) < 0.2)
    values = {"rare": dict(zip(store.examples["id"], np.where(rare, "yes", "no"), strict=True))}
    done, _, text = probed(tmp_path, store, tasks=("rare",), values=values, positions=("final",))
    curve = LayerCurve.load(tmp_path / "probe-rare-final.zarr.zip")
    assert curve.metric == "auroc"
    assert not curve.difference(metric="accuracy").detected
    assert curve.detected
    where = str(Advantage.load(tmp_path / "advantage-rare-final-over-all.zarr.zip").detected)
    assert f"detected in {where}" in "\n".join(done.lines)
    assert f"in {where.replace('-', '–')} (n = 400" in text
    assert {name: grid.attributes["metric"] for name, grid in done.results.items() if name.startswith("positions")} == {}
    assert "accuracy" not in text
    assert "accuracy" not in "\n".join(done.lines)


@pytest.mark.slow
def test_the_best_position_leads_and_a_margin_reaches_every_file(stores, tmp_path):
    store = stores[0]
    side = store.examples["relation"].isin(("left of", "above"))
    values = {"side": dict(zip(store.examples["id"], side.map({True: "yes", False: "no"}), strict=True))}
    done, results, text = probed(
        tmp_path, store, tasks=("side",), values=values, layers=(1, 3), controls=("shuffled",), margin=0.1, equivalence_margin=0.2
    )
    assert leading_curve(results).position == "relation"
    assert "is detected by more than 0.1 at the last token of the relation in layers" in text
    assert "at the final token not detected" in text
    assert "above shuffled: detected by more than 0.1 in layers 1-3" in "\n".join(done.lines)
    for name in ("probe-side-relation", "advantage-side-relation-over-all"):
        events = load_result(tmp_path / f"{name}.zarr.zip").tables["events"]
        assert set(events.loc[events["kind"] != "peak", "margin"]) == {0.1}
        assert set(events.loc[events["kind"] != "peak", "equivalence_margin"]) == {0.2}


@pytest.mark.slow
def test_a_null_result_gives_its_number_and_the_detectable_effect(tmp_path):
    store = ActivationStore.open(planted_store(tmp_path / "a.zarr", examples=60, onset=9, layers=2))
    done, results, text = probed(tmp_path, store, tasks=("truth",), positions=("final",))
    facts = next(block for block in provenance(store, results) if isinstance(block, Table))
    assert ["model", "planted"] in facts.rows, "a writer of its own may record the model as text"
    found = re.search(
        r"not detected \(n = 60; AUROC of at least (0\.\d\d) would have been detected with 80 % power\)", "\n".join(done.lines)
    )
    assert found, done.lines
    assert 0.7 < float(found[1]) < 0.95
    assert "any layer (n = 60; not even the best possible advantage of 0.5 would have been detected with 80 % power; above chance" in text
    one, _, text = probed(tmp_path / "one", store, tasks=("truth",), positions=("final",), layers=(1,))
    assert "is not detected at the final token in the only layer probed, layer 1 (n = 60; " in text
    assert re.search(r"above chance: not detected, by [+-]0\.\d{3} \[-0\.\d{3}, 0\.\d{3}\] \(n = 60; AUROC of at", "\n".join(one.lines))


def test_null_results_of_grids_and_sizes_give_what_would_have_been_detected(tmp_path):
    """The band over all cells of a grid is wider than that of a curve, and so is its effect."""
    store = ActivationStore.open(planted_store(tmp_path / "a.zarr", onset=9, layers=2))
    curves = probe_study(store, ("truth",), ("final", "relation"), **FAST)
    grid = ScoreGrid.of(curves)
    least = grid.table["minimum_detectable_effect"].max()
    count = min(len(curve.examples) for curve in curves)
    said = f"0 of 6 cells above chance in AUROC: none (n = {count}; AUROC of at least {0.5 + least:.2f} would have been detected with 80 %"
    assert said in grid.summary()
    assert least > max(curve.difference().minimum_detectable_effect.max() for curve in curves)
    found = detection_by_size(store, sizes=(60,), subsets=2, scheduler="synchronous", **FAST)
    assert re.search(r"n = 60: not detected \(AUROC of at least 0\.\d\d would have been with 80 % power\) in most of 2", found.summary())
    few = replace(found, table=found.table.assign(minimum_detectable_effect=0.6))
    assert "not detected (not even the best possible AUROC would have been with 80 % power)" in few.summary()


def test_a_study_of_one_layer_says_nothing_about_others(stores, tmp_path):
    _, results, text = probed(tmp_path, stores[0], tasks=("truth",), positions=("final",), layers=(4,), controls=("shuffled",))
    assert re.match(
        r"The truth of the caption is detected at the final token in layer 4 \(n = 400; [^)]*\)\. The probe, at layer 4, has an AUROC", text
    )
    assert re.search(r"With shuffled labels the same probe scores 0\.\d\d\. At layer 4 the advantage", text)
    for other in ("last layer", "first above", "best probe", "all layers", "each layer", "any layer"):
        assert other not in text, other
    facts = next(block for block in headline(results) if isinstance(block, Facts))
    assert [fact.label for fact in facts.facts[:2]] == ["layer detected (n = 400): truth at the final token", "AUROC of the probe, layer 4"]


@pytest.mark.slow
def test_the_lowest_log_loss_is_the_best(tmp_path):
    """With rare labels and little regularisation the first layers lose more than chance, the layers with the signal less."""
    store = ActivationStore.open(planted_store(tmp_path / "a.zarr", strength=2.0))
    done, _, text = probed(tmp_path, store, tasks=("truth",), positions=("final",), metric="log_loss")
    values = done.curves.plain[0].rows("log_loss").set_index("layer")["value"]
    best = int(values.idxmin())
    assert best != int(values.idxmax())
    lines = "\n".join(done.lines)
    assert f"truth at final: log loss {values[best]:.3f} [" in lines
    assert f"at layer {best}" in done.lines[1]
    assert re.search(r"above chance: detected in layers 3-5; log loss first below 0\.68", lines)
    assert f"The best probe, at layer {best}, has a log loss of {values[best]:.2f}" in text


@pytest.mark.parametrize(("margin", "within"), [(np.nan, None), (-0.1, None), (2.0, None), (0.1, 0.05), (0.0, np.inf)])
def test_margins_without_meaning_are_refused_before_any_probe_is_trained(margin, within):
    with pytest.raises(InvalidInputError, match="expected a `margin` of at least 0, below 1, and an `equivalence_margin` that is not"):
        ProbeRequest(margin=margin, equivalence_margin=within)


def test_one_draw_of_a_control_is_noted(stores):
    few = {**FAST, "control_draws": 1, "draws": 100}
    done = run_probes(stores[0], ProbeRequest(tasks=("truth",), positions=("final",), controls=("shuffled",), layers=(1, 3), settings=few))
    assert any("note: intervals over shuffled leave out the variance between draws of the labels" in line for line in done.lines)


@pytest.mark.slow
def test_detection_by_size_refits_on_subsets(stores):
    store = stores[0]
    found = detection_by_size(store, sizes=(100, 400), subsets=2, layers=(1, 4), scheduler="synchronous", **FAST)
    table = found.table.set_index(["size", "subset", "layer"])
    whole = probe_study(store, ("truth",), ("final",), layers=(1, 4), **FAST)[0]
    np.testing.assert_allclose(table.loc[(400, 0), "value"], whole.rows()["value"])
    assert table.loc[(400, 0), "detected"].tolist() == [layer in whole.detected.layers for layer in (1, 4)]
    small, large = (table.loc[(size, 0), "minimum_detectable_effect"].median() for size in (100, 400))
    assert small / large == pytest.approx(2, rel=0.3), "four times the examples: half the standard error"
    assert found.by_size()["first"].tolist() == [4, 4]
    assert "n = 100: layer 4 in most of 2 subsets; n = 400: layer 4" in found.summary()
    again = detection_by_size(store, sizes=(100, 400), subsets=2, layers=(1, 4), **FAST)
    np.testing.assert_array_equal(found.table["value"], again.table["value"])


def test_default_sizes_leave_out_those_with_too_few_examples_of_a_class(stores):
    given = {"layers": (1,), "subsets": 2, "minimum": 60, "scheduler": "synchronous", **FAST}
    with pytest.raises(TooFewExamplesError, match=r"100 examples: .*leave this size out"):
        detection_by_size(stores[0], sizes=(100, 400), **given)
    assert sorted(set(detection_by_size(stores[0], **given).table["size"])) == [200, 400]


@pytest.mark.slow
def test_old_files_without_claims_are_read(stores, tmp_path):
    """As version 0.1 wrote them: no margins, chance or detectable effects."""
    curves = CurveSet(probe_study(stores[0], ("truth", "truth:shuffled"), ("final",), **FAST))
    advantage = curves.advantages_of(curves.plain[0])["shuffled"]
    new = ("margin", "equivalence_margin", "examples", "chance", "family")
    file = advantage.contents()
    old = replace(file, attributes={name: value for name, value in file.attributes.items() if name not in new})
    old.tables["table"] = old.tables["table"].drop(columns="minimum_detectable_effect")
    old.tables["events"] = old.tables["events"].drop(columns=["equivalence_margin", "decided", "minimum_detectable_effect"])
    write_file(tmp_path / "a.zarr.zip", old)
    back = Advantage.load(tmp_path / "a.zarr.zip")
    assert back.detected == advantage.detected
    np.testing.assert_allclose(back.minimum_detectable_effect, advantage.minimum_detectable_effect)
