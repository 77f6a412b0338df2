"""A part of the examples, chosen by their values, gives the very numbers that a store of these examples alone gives."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_stores import attributed_store, planted_store
from click.testing import CliRunner

from stratascope.analysis import answer_confidence, answer_prediction, attention_overlap, attention_share, logit_attribution, rank_heads
from stratascope.analysis.sinks import PLACES
from stratascope.cli import main
from stratascope.errors import InvalidInputError
from stratascope.report.result_set import gather
from stratascope.results.file import ResultFile
from stratascope.results.registry import load_result, save_result
from stratascope.store import ActivationStore, chosen_examples, copy_store
from tests.completed import completed

ONLY = ("relation=left of",)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return planted_store(tmp_path_factory.mktemp("whole") / "whole.zarr")


@pytest.fixture(scope="module")
def part(whole: ActivationStore, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    numbers = np.flatnonzero(whole.examples["relation"] == "left of")
    path = tmp_path_factory.mktemp("part") / "part.zarr"
    copy_store(whole, path, examples=numbers.tolist())
    return ActivationStore.open(path)


def test_any_of_a_columns_values_and_all_of_the_columns(whole: ActivationStore) -> None:
    table = whole.examples
    both = chosen_examples(whole, ("relation=left of", "relation=under", "label=1"))
    np.testing.assert_array_equal(both, table["label"] == 1)
    one = chosen_examples(whole, ("relation=under", "label=0"))
    np.testing.assert_array_equal(one, (table["relation"] == "under") & (table["label"] == 0))
    assert chosen_examples(whole, ()).all()


@pytest.mark.slow
def test_a_part_is_a_store_of_its_examples_alone(whole: ActivationStore, part: ActivationStore) -> None:
    share, alone = attention_share(whole, only=ONLY), attention_share(part)
    for name in ("values", "tokens", "entropy", "sinks", "sink_counts"):
        np.testing.assert_array_equal(getattr(share, name), getattr(alone, name))
    overlap, apart = attention_overlap(whole, measure="lift", only=ONLY), attention_overlap(part, measure="lift")
    np.testing.assert_array_equal(overlap.values, apart.values)
    predicted, again = answer_prediction(whole, overlap), answer_prediction(part, apart)
    pd.testing.assert_frame_equal(predicted.table, again.table)
    assert predicted.baseline == again.baseline
    answers, those = answer_confidence(whole, only=ONLY), answer_confidence(part)
    pd.testing.assert_frame_equal(answers.table, those.table)
    assert answers.answers["id"].tolist() == those.answers["id"].tolist()
    for found in (share, overlap, predicted, answers):
        assert found.attributes["only"] == ["relation=left of"]
    assert alone.attributes["only"] == []
    ranked, same = rank_heads(overlap=overlap), rank_heads(overlap=apart)
    pd.testing.assert_frame_equal(ranked.table, same.table)
    assert ranked.attributes["only"] == ["relation=left of"]


@pytest.mark.slow
def test_attributions_of_a_part_carry_shares_of_its_own_variance(tmp_path: Path) -> None:
    whole = attributed_store(tmp_path / "whole.zarr")
    numbers = np.flatnonzero(whole.examples["label"] == 1)
    copy_store(whole, tmp_path / "part.zarr", examples=numbers)
    found, alone = logit_attribution(whole, only=("label=1",)), logit_attribution(ActivationStore.open(tmp_path / "part.zarr"))
    np.testing.assert_array_equal(found.examples, numbers)
    np.testing.assert_array_equal(found.carried, alone.carried)
    np.testing.assert_array_equal(found.parts, alone.parts)


def test_of_named_examples_those_that_are_chosen(whole: ActivationStore) -> None:
    assert attention_share(whole, [0, 1, 2, 3], only=("relation=under",)).examples.tolist() == [0, 3]
    with pytest.raises(InvalidInputError, match="expected examples of relation=under that attention_rows holds, found none of 2"):
        attention_share(whole, [1, 2], only=("relation=under",))


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (("relation",), "expected what is chosen as COLUMN=VALUE, found 'relation'"),
        (("colour=red",), "expected a column of the examples, found 'colour'"),
        (("relation=over",), "expected to choose by a value of relation, found 'over'; it has left of, under"),
        (("relation=under", "id=e1"), "expected examples of relation=under, id=e1, found none"),
        ("label=1", "expected a list of what is chosen, found the text 'label=1'"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(whole: ActivationStore, only, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        answer_confidence(whole, only=only)


def test_heads_are_ranked_by_scores_of_the_same_examples(whole: ActivationStore) -> None:
    grid = pd.DataFrame({"row": [f"head {h}" for h in range(4)] * 3, "layer": np.repeat(range(3), 4), "value": np.linspace(0.5, 0.9, 12)})
    probe = ResultFile("score_grid", {"table": grid}, {}, {"fingerprint": whole.fingerprint(), "array": "head_outputs", "only": []})
    with pytest.raises(InvalidInputError, match="expected scores of the same examples, found those of relation=left of and all examples"):
        rank_heads(overlap=attention_overlap(whole, measure="share", only=ONLY), probe=probe)


@pytest.mark.slow
def test_a_report_says_of_a_part_what_is_the_parts_and_mixes_it_with_nothing(whole: ActivationStore, tmp_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = CliRunner().invoke(main, [*arguments])
        assert done.exit_code == 0, done.output
        return done.output

    store, out = whole.name, str(tmp_path / "results")
    for command in ("answers", "share", "overlap", "heads"):
        said = run(command, store, "--only", ONLY[0], "--out", out)
        assert said.startswith("only relation=left of: 160 of 240 examples\n")
    report = tmp_path / "r.html"
    run("report", store, out, "-o", str(report))
    alone = report.read_text("utf-8")
    for command in ("answers", "share"):  # of all examples there is nothing yet
        assert f"<code>stratascope {command} {store}</code>" in alone
    for command in ("answers", "share", "overlap"):
        run(command, store, "--out", out)
    run("report", store, out, "-o", str(report))
    page = report.read_text("utf-8")
    found = gather(whole, [out])
    assert [f.name for f in found.of("attention_share")] == ["share.zarr.zip"]
    assert set(found.selections) == {ONLY}
    right = {name: load_result(tmp_path / "results" / f"{name}.zarr.zip").tables["confidence"]["accuracy"].iloc[0]
             for name in ("answers", "answers-relation-left-of")}  # fmt: skip
    headline, _, rest = page.partition('id="selections"')
    assert f"{100 * right['answers']:.1f} %" in headline
    assert "relation-left-of" not in headline
    assert "only relation=left of" in rest
    assert f"{100 * right['answers-relation-left-of']:.1f}" in rest
    assert f"stratascope share {Path(whole.name).name} --only 'relation=left of' --out results" in html.unescape(page)


def test_a_figure_is_of_all_examples_where_there_are_results_of_them(whole: ActivationStore, tmp_path: Path) -> None:
    part = attention_share(whole, only=ONLY)
    part.save(tmp_path / "share-a.zarr.zip")
    assert gather(whole, [tmp_path]).of("attention_share")[0].only == ONLY
    attention_share(whole).save(tmp_path / "share.zarr.zip")
    assert gather(whole, [tmp_path]).of("attention_share")[0].only == ()
    norm = completed(
        "attention_share", {}, {}, {"store": whole.fingerprint(), "weighing": "norm", "parts": part.parts, "places": list(PLACES)}
    )
    save_result(tmp_path / "share-0.zarr.zip", norm)
    assert [f.name for f in gather(whole, [tmp_path]).of("attention_share")] == ["share.zarr.zip", "share-0.zarr.zip"]


def test_a_relations_meta_category_chooses_though_it_is_no_column(store) -> None:
    from stratascope.store.io.example_filter import category_of

    wanted = store.examples["relation"].map(category_of) == "Topological"
    assert 0 < wanted.sum() < len(wanted)
    np.testing.assert_array_equal(chosen_examples(store, ("category=Topological",)), wanted)
    with pytest.raises(InvalidInputError, match="expected to choose by a value of category, found 'topological'; it has Projective, "):
        chosen_examples(store, ("category=topological",))
