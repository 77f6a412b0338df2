"""Pre-registered studies: plans and their digests, the band of a family, what is claimed and refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from planted import planted_store

from stratascope.cli import main
from stratascope.errors import InvalidInputError, NotRecordedError, UnwrittenBlockError
from stratascope.preregistration import StudyPlan, StudyStore, parse_plan, presets, read_plan
from stratascope.probe import Advantage, StudyResult, layer_curve, preregistered_study
from stratascope.probe.curve.family import family_bands
from stratascope.probe.preregistered.study_stores import expanded_positions
from stratascope.store import ActivationStore
from stratascope.store.maintenance.difference import diff_stores

PRESET = presets()["relation"]
PLAN = """
title = "Planted truth"
question = "Where is truth?"
metric = "auroc"
margin = 0.0
equivalence_margin = 0.2
draws = 300

[extraction]
prompt = "true-false"

[[stores]]
name = "original"
role = "original"

[[stores]]
name = "blank"
condition = "blank"

[[tasks]]
task = "truth"

[[probes]]
positions = ["relation", "final", "subject"]

[primary]
task = "truth"
position = "final"
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("margin = 0.0", "margn = 0.0", "found 'margn'; did you mean 'margin'?"),
        ('metric = "balanced_accuracy"', 'metric = "balanced"', "did you mean 'balanced_accuracy'?"),
        ('prompt = "where"', 'promt = "where"', r"\[extraction\]: expected keys among prompt, record, found 'promt'"),
        ('"final", "subject"', '"final", "relation"', "'relation', which .* does not name"),
        ('"final", "subject"', '"final", "subject+"', "found 'subject\\+'"),
        ('position = "final"', 'position = "finl"', "expected the primary position among final"),
        ("level = 0.95", 'level = "a"', "expected 'level' as a number, found 'a'"),
        ("folds = 5", "folds = true", "expected 'folds' as an integer, found True"),
        ("margin = 0.0", "margin = nan", "'margin' from 0"),
        ('role = "transfer"', 'role = "baseline"', "left and right are only exchanged"),
        ('role = "original"', 'role = "baseline"', "expected the role 'original'"),
        ('baseline = "all"', 'baseline = "mirror"', "expected a baseline in"),
        ('condition = "blank"', 'condition = "blnk"', "'condition' among original, blank"),
        ("margin = 0.0", "margin = 0.3", "'equivalence_margin' of at least the 'margin', found 0.05 and 0.3"),
        ("[[probes]]", "[[probes]]\nlayers = []", "expected layers from 0, each once, found none"),
        ("[[probes]]", "[[probes]]\nlayers = [3, 3]", "expected layers from 0, each once, found 3, 3"),
        ("[primary]", "[[primary]]", "expected 'primary' as a table"),
        ("title =", "title", "expected TOML"),
        ("[primary]", '[causal]\ntask = "relation"\npositions = ["final"]\ncontrols = 3\n\n[primary]', "at least 20 'controls'"),
        ("[primary]", '[causal]\ntask = "truth"\npositions = ["final"]\n\n[primary]', "the causal task among relation, found 'truth'"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(old: str, new: str, message: str) -> None:
    assert old in PRESET
    with pytest.raises(InvalidInputError, match=f"^PLAN.toml: .*{message}"):
        parse_plan(PRESET.replace(old, new, 1), "PLAN.toml")


def test_the_conditions_of_a_plan_are_those_of_an_extraction() -> None:
    from stratascope.extract.plan.images import CONDITIONS

    assert set(get_args(get_type_hints(StudyStore)["condition"])) == set(CONDITIONS)


def test_the_digest_covers_every_value_and_no_comment() -> None:
    plan = read_plan("relation")
    lines = [line.partition(" #")[0] for line in PRESET.splitlines() if line.strip() and not line.startswith("#")]
    head = sorted(line for line in lines[: lines.index("[extraction]")])
    assert parse_plan("\n".join([*head, *lines[len(head) :]])).digest == plan.digest
    text = json.dumps(json.loads(plan.canonical), sort_keys=True, separators=(",", ":"))
    assert text == plan.canonical
    changed = [
        replace(plan, seed=1),
        replace(plan, margin=0.01),
        replace(plan, question="Another?"),
        replace(plan, primary=replace(plan.primary, position="object")),
        replace(plan, stores=plan.stores[:2]),
        replace(plan, tasks=(replace(plan.tasks[0], only=("label=0",)),)),
    ]
    assert len({plan.digest, *(one.digest for one in changed)}) == 7


def advantages(rng: np.random.Generator, count: int, layers: int = 4, draws: int = 400) -> list[Advantage]:
    shared = rng.normal(0, 0.02, (draws, 1))
    return [
        Advantage.of(
            np.arange(layers),
            rng.normal(0, 0.02, layers),
            shared + rng.normal(0, 0.02, (draws, layers)),
            metric="r2",
            name="a",
            baseline="b",
        )
        for _ in range(count)
    ]


def curve_of(seed: int, ids: str) -> SimpleNamespace:
    return SimpleNamespace(attributes={"seed": seed}, examples=pd.DataFrame({"id": list(ids), "group": list(ids)}))


def test_the_band_of_a_family_is_the_largest_deviation_over_all_of_its_curves() -> None:
    """Against the definition with NumPy; curves of other examples share the error rate in proportion to their comparisons."""
    some = advantages(np.random.default_rng(0), 3)
    same = curve_of(0, "abc")
    joint = family_bands([same] * 3, some, level=0.9)
    draws = np.concatenate([one.draws for one in some], axis=1)
    critical = np.quantile((np.abs(draws - draws.mean(0)) / draws.std(0)).max(1), 0.9)
    for one, band in zip(some, joint, strict=True):
        np.testing.assert_allclose(band.high_simultaneous - one.table["value"], critical * one.draws.std(0))
    apart = family_bands([same, curve_of(0, "abd"), same], some, level=0.9)
    lone = np.abs(some[1].draws - some[1].draws.mean(0)) / some[1].draws.std(0)
    assert apart[1].critical == pytest.approx(np.quantile(lone.max(1), 1 - 0.1 / 3))
    assert apart[0].critical == apart[2].critical > joint[0].critical
    with pytest.raises(InvalidInputError, match="one metric, found auroc, r2"):
        family_bands([same] * 2, [some[0], replace(some[1], table=some[1].table.assign(metric="auroc"))], level=0.9)


@pytest.mark.slow
def test_of_noise_at_most_the_stated_share_of_families_claims_anything() -> None:
    """300 families of 6 curves in two sets of examples: 5 % +- 2.5 standard errors."""
    rng, wrong = np.random.default_rng(1), 0
    curves = [curve_of(0, "abc")] * 3 + [curve_of(0, "abd")] * 3
    for _ in range(300):
        some = []
        for spread in rng.normal(0, 0.02, (6, 1)):
            error = rng.normal(0, 0.02, 4)
            draws = rng.normal(0, 0.02, (300, 1)) + rng.normal(0, 0.02, (300, 4))
            some.append(Advantage.of(np.arange(4), spread + error, draws, metric="r2", name="a", baseline="b"))
        wrong += any((band.low_simultaneous > 0).any() for band in family_bands(curves, some, level=0.95))
    assert wrong <= 300 * (0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 300))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("study")
    for condition in ("original", "blank"):
        planted_store(place / f"{condition}.zarr", condition=condition, strength=3.0, examples=200)
    return place


@pytest.fixture(scope="module")
def done(folder: Path):
    plan = parse_plan(PLAN.replace(', "subject"', ""))
    return plan, preregistered_study(plan, folder, scheduler="synchronous")


@pytest.mark.slow
def test_a_planted_signal_is_claimed_in_its_layers_and_nowhere_else(done, folder: Path) -> None:
    plan, run = done
    result = run.result
    assert result.primary["detected"] == "layers 3-5"
    sentence = result.sentence
    assert sentence.startswith(
        "Truth at final is decodable in layers 3-5 (n = 200 examples of 100 images): its AUROC exceeds every baseline "
        "(chance, shuffled, embeddings, blank); largest advantage +0."
    )
    assert sentence.endswith("; 95 % simultaneous band over 48 comparisons: 2 curves, each with its baselines and layers.")
    secondary = result.claims.query("position == 'relation' and baseline == 'all'").iloc[0]
    assert secondary["detected"] == "no layer"
    claims = result.claims.copy()
    claims.loc[~claims["primary"], ["absent", "undecided"]] = ["layers 0-5", "no layer"]
    assert any(
        f"truth at relation: an advantage of {result.attributes['equivalence_margin']:g} or more is excluded in layers 0-5 (n = 199); "
        in line
        for line in replace(result, claims=claims).limits
    )
    assert result.deviations == ["truth at relation: 1 of 200 selected examples are excluded (1 without residual there)"]
    assert result.claims["position"].iloc[0] == "final", "the primary curve is first, whatever the order of the plan"
    # the same scores as a probe by itself, on the same folds
    curve = layer_curve(folder / "original.zarr", draws=300)
    over_chance = result.layers.query("position == 'final' and baseline == 'chance'")
    np.testing.assert_allclose(over_chance["value"] + 0.5, curve.rows("auroc")["value"])
    every = result.layers.query("position == 'final'").pivot(index="layer", columns="baseline", values="low_simultaneous")
    np.testing.assert_allclose(every["all"], every.drop(columns="all").min(axis=1))
    assert {result.attributes["study"] for result in run.results.values()} == {plan.digest} == {result.digest}
    assert parse_plan(result.attributes["plan"]).digest == result.digest


def test_a_study_is_saved_and_damaged_claims_are_refused(done, tmp_path: Path) -> None:
    from stratascope.errors import StoreError

    result = done[1].result
    result.save(tmp_path / "study.zarr.zip")
    again = StudyResult.load(tmp_path / "study.zarr.zip")
    assert again.summary() == result.summary()
    pd.testing.assert_frame_equal(again.claims, result.claims)
    for damaged in (
        replace(result, claims=result.claims.assign(primary=False)),
        replace(result, claims=result.claims.iloc[:-1]),
        replace(result, layers=result.layers.assign(verdict="perhaps")),
    ):
        damaged.save(tmp_path / "damaged.zarr.zip")
        with pytest.raises(StoreError, match="expected"):
            StudyResult.load(tmp_path / "damaged.zarr.zip")


@pytest.mark.slow
def test_without_a_signal_the_sentence_says_what_would_have_been_detected(folder: Path, tmp_path: Path) -> None:
    stores = {"original": planted_store(tmp_path / "original.zarr", onset=9, examples=200), "blank": folder / "blank.zarr"}
    opened = {name: ActivationStore.open(path) for name, path in stores.items()}
    result = preregistered_study(parse_plan(PLAN.replace(', "subject"', "")), opened, scheduler="synchronous").result
    least = result.primary["minimum_detectable_effect"]
    assert 0.2 < least < 0.5
    assert result.sentence.startswith(
        f"Truth at final is not detected in any layer (n = 200 examples of 100 images; an advantage of {least:.2f} would have been "
        "detected with 80 % power): its AUROC is not significantly above every baseline ("
    )


@pytest.mark.slow
def test_stores_that_are_not_as_planned_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    plan = parse_plan(PLAN)
    own = ActivationStore.open(folder / "original.zarr")

    def refused(error: type[Exception], message: str, plan: StudyPlan = plan, **stores: Path) -> None:
        opened = {name: ActivationStore.open(path) for name, path in stores.items()}
        with pytest.raises(error, match=message):
            preregistered_study(plan, {"original": own, **opened}, scheduler="synchronous")

    with pytest.raises(NotRecordedError, match=r"expected the store .*original\.zarr .*found none; .*extract --for"):
        preregistered_study(plan, tmp_path, scheduler="synchronous")
    refused(NotRecordedError, "found none for blank")
    refused(InvalidInputError, "for 'blank', found condition 'original', not 'blank'", blank=folder / "original.zarr")
    other = planted_store(tmp_path / "seed.zarr", condition="blank", examples=200, seed=1)
    refused(InvalidInputError, r"a store of the study \(blank\)", blank=other)
    short = planted_store(tmp_path / "short.zarr", condition="blank", examples=200, written=2)
    refused(UnwrittenBlockError, "found 2 of 4 blocks missing", blank=short)
    wide = planted_store(tmp_path / "wide.zarr", condition="blank", examples=200, hidden=16)
    refused(InvalidInputError, "found a difference in the layers", blank=wide)
    primary = parse_plan(PLAN.replace('position = "final"', 'position = "subject"'))
    refused(NotRecordedError, "residual at subject in every store, found none in original, blank", primary, blank=folder / "blank.zarr")
    unknown = parse_plan(PLAN.replace(', "subject"', "") + 'baseline = "blnk"')
    refused(InvalidInputError, "expected a primary baseline among all, chance, .*blank, found 'blnk'", unknown, blank=folder / "blank.zarr")


@pytest.mark.slow
def test_the_command_writes_results_figure_and_report_of_the_plan(folder: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(f'{PLAN}\n[causal]\ntask = "truth"\npositions = ["final"]\n')
    found = CliRunner().invoke(main, ["study", str(plan), str(folder), "--out", str(tmp_path / "out"), "--scheduler", "synchronous"])
    assert found.exit_code == 0, found.output
    assert "Truth at final is decodable in layers 3-5" in found.stdout
    assert "no example has the position subject: its curves are missing" in found.stdout
    page = (tmp_path / "out" / "study.html").read_text()
    assert read_plan(plan).digest in page
    assert "no example has the position subject" in page
    assert "stratascope intervene original.zarr results --task truth --positions final --kinds erase --controls 20 --examples 128" in page
    assert (tmp_path / "out" / "study.png").exists()
    again = CliRunner().invoke(main, ["study", "--preset", "relation", "--write", str(tmp_path / "new.toml")])
    assert again.stdout == f"plan {tmp_path / 'new.toml'}, digest {read_plan('relation').digest}\n"
    assert (tmp_path / "new.toml").read_text() == PRESET
    for words, message in (
        (["study", "--preset", "relation", "--write", str(plan)], "expected a new file for the plan"),
        (["study", "--preset", "relation"], "expected the folder of the study's stores"),
        (["study"], "expected PLAN.toml and DIR, or --preset, found 0 arguments"),
        (["plan", "--for", str(plan), "--prompt", "where", "--model", "demo", "--examples", str(plan)], "the plan of the study alone"),
    ):
        refused = CliRunner().invoke(main, words)
        assert refused.exit_code == 2
        assert message in refused.stderr


def test_groups_of_positions_are_those_that_the_store_holds() -> None:
    store = SimpleNamespace(layout=SimpleNamespace(positions=("final", "subject_0", "cell_0_0", "cell_0_1", "object_box")))
    assert expanded_positions(store, ("cells", "final", "cells")) == ("cell_0_0", "cell_0_1", "final")
    assert expanded_positions(store, ("tokens",)) == ("subject_0",)
    assert expanded_positions(SimpleNamespace(layout=SimpleNamespace(positions=("final",))), ("cells",)) == ("cells",)


@pytest.mark.slow
def test_from_generated_scenes_to_the_sentence(tmp_path: Path) -> None:
    """`extract --for` makes the stores that `extract` makes; permuted relations are not detected."""
    pytest.importorskip("torch")
    from stratascope.datasets import write_scenes

    write_scenes(tmp_path, 160, seed=3)
    rows = [json.loads(line) for line in (tmp_path / "scenes.jsonl").read_text().splitlines()]
    mixed = np.random.default_rng(0).permutation(len(rows))
    for row, k in zip(rows, mixed, strict=True):
        row["permuted"] = rows[k]["relation"]
    (tmp_path / "scenes.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    first, last = PRESET.index("positions = ["), PRESET.index("[primary]")
    text = PRESET[:first] + 'positions = ["object"]\n\n' + PRESET[last:]
    text = text.replace('position = "final"', 'position = "object"').replace("draws = 2000", "draws = 500")
    text = text.replace("[[tasks]]", '[[tasks]]\ntask = "permuted"\n\n[[tasks]]', 1)
    (tmp_path / "plan.toml").write_text(text)
    files = ["--model", "demo", "--examples", str(tmp_path / "scenes.jsonl"), "--images", str(tmp_path / "images")]

    def ran(*words: object) -> str:
        found = CliRunner().invoke(main, [str(word) for word in words])
        assert found.exit_code == 0, found.output
        return found.stdout

    stores = tmp_path / "stores"
    assert "untrained          untrained" in ran("plan", "--for", tmp_path / "plan.toml", *files)
    ran("extract", "--for", tmp_path / "plan.toml", *files, "--out", stores)
    assert ran("extract", "--for", tmp_path / "plan.toml", *files, "--out", stores).count("nothing left to do") == 4
    plain = ["--prompt", "where", "--record", "residual", "--positions", "object", "--untrained"]
    ran("extract", *files, *plain, "--out", tmp_path / "untrained.zarr")
    made, by_hand = ActivationStore.open(stores / "untrained.zarr"), ActivationStore.open(tmp_path / "untrained.zarr")
    assert (diff_stores(made, by_hand).numbers["different"] == 0).all()
    shown = ran("study", tmp_path / "plan.toml", stores)
    assert "Relation (label=1) at object is decodable in layers" in shown
    # chance decides whether this n excludes the equivalence margin in every layer; a detected layer would be a false claim
    assert re.search(r"permuted at object: (not detected|an advantage of 0.05 or more is excluded in layers 0-6) \(n = 157", shown)
    assert "tested on mirror (labels unchanged): relation (label=1) at object" in shown
    ran("report", stores / "original.zarr", "-o", tmp_path / "report.html")
    assert "Pre-registered study" in (tmp_path / "report.html").read_text()
