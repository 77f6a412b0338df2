"""Prompts of one's own: text or file, fields from columns, spans, system text, the image after the text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

from stratascope.errors import InvalidInputError, ProvenanceMismatchError
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.intervention_plan import check_same_extraction, settings_of_store
from stratascope.store import ActivationStore

TEXT = "Is it true that {caption} It is {weather}. Answer Yes or No."


@pytest.fixture
def asked(settings: ExtractionSettings, tmp_path: Path) -> ExtractionSettings:
    """Eight scenes; two rows share a caption and an image and differ in a column."""
    rows = [json.loads(line) for line in settings.examples[0].read_text().splitlines()[:8]]
    rows[1] = {**rows[1], **{key: rows[0][key] for key in ("image", "caption", "relation", "label")}}
    for k, row in enumerate(rows):
        row |= {"id": f"r{k}", "weather": "sunny" if k % 2 else "raining", "thing": f"thing {k}"}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return replace(settings, examples=(tmp_path / "rows.jsonl",), boxes=None, prompt=TEXT, answers=("Yes", "No"), record=("residual",))


def _words(plan: ExtractionPlan, k: int) -> dict[str, str]:
    layout = plan.layouts[k]
    return {name: plan.tokenizer.tokenizer.decode(layout.ids[a:b].tolist()).strip() for name, (a, b) in layout.spans.items()}


def test_columns_fill_the_prompt_of_each_row(asked: ExtractionSettings) -> None:
    plan = plan_extraction(asked)
    for k, example in enumerate(plan.examples):
        weather = "sunny" if k % 2 else "raining"
        assert _words(plan, k)["prompt"] == f"Is it true that {example.caption} It is {weather}. Answer Yes or No."
        assert _words(plan, k)["caption"] == example.caption
    held = plan.provenance["prompt"]
    assert (held["name"], held["text"], held["answers"]) == ("own", TEXT, ["No", "Yes"])


def test_an_extraction_with_the_image_after_the_text_agrees_with_the_processor(asked: ExtractionSettings, tmp_path: Path) -> None:
    file = tmp_path / "thing.toml"
    file.write_text(
        'text = "Is the {thing} here?"\nanswers = ["Yes", "No"]\nsystem = "Be brief."\nimage = "after"\n[spans]\nsubject = "thing"\n'
    )
    settings = replace(asked, prompt=str(file), answers=None)
    plan = plan_extraction(settings)
    for k in range(len(plan.examples)):
        words, spans = _words(plan, k), plan.layouts[k].spans
        assert (words["subject"], words["system"]) == (f"thing {k}", "Be brief.")
        assert spans["prompt"][1] <= spans["image"][0]
    assert plan.store.positions == ("final", "image", "subject")
    run_extraction(plan, tmp_path / "thing.zarr")  # compares the first batch with the processor
    store = ActivationStore.open(tmp_path / "thing.zarr")
    again = settings_of_store(store, data=settings.examples, images=settings.images, device="cpu")
    assert again.asked == replace(settings.asked, system=None)
    check_same_extraction(plan_extraction(again), store)
    with pytest.raises(ProvenanceMismatchError, match=r"prompt\.text"):
        check_same_extraction(plan_extraction(replace(settings, prompt="yes-no")), store)


def test_marks_in_the_prompt_are_positions(asked: ExtractionSettings, tmp_path: Path) -> None:
    marked = replace(asked, prompt="Is the [subject]{thing}[/subject] under the [object]red cup[/object]?")
    plan = plan_extraction(marked)
    for k in range(len(plan.examples)):
        words = _words(plan, k)
        assert (words["subject"], words["object"]) == (f"thing {k}", "red cup")
        assert words["prompt"] == f"Is the thing {k} under the red cup?"
    assert plan.store.positions == ("final", "image", "subject", "object")
    run_extraction(plan, tmp_path / "marked.zarr")  # compares the first batch with the processor
    store = ActivationStore.open(tmp_path / "marked.zarr")
    check_same_extraction(plan_extraction(settings_of_store(store, data=marked.examples, images=marked.images, device="cpu")), store)
    with pytest.raises(InvalidInputError, match="expected an example with position 'relation', found none"):
        plan_extraction(replace(marked, positions=("relation",)))


def test_positions_that_the_prompt_does_not_have_are_refused(asked: ExtractionSettings) -> None:
    bare = replace(asked, prompt="Is it {weather}?", positions=("final", "subject"))
    with pytest.raises(InvalidInputError, match="expected an example with position 'subject', found none"):
        plan_extraction(bare)
    with pytest.raises(InvalidInputError, match=r"example r0: expected a column 'colour' for the field \{colour\}"):
        plan_extraction(replace(asked, prompt="Is it {colour}?"))
    with pytest.raises(InvalidInputError, match="expected each answer to be known tokens of demo behind those of the prompt, found ''"):
        plan_extraction(replace(asked, answers=("", "No")))
