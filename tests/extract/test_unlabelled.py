"""Examples without labels: everything works that needs none, and the rest says so."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stratascope import analysis
from stratascope.analysis.example_images import label_text
from stratascope.commands.next_step import next_step
from stratascope.datasets.examples import describe, load_examples
from stratascope.datasets.pairs import variant_of
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.probe import layer_curve
from stratascope.store import ActivationStore, label_kind

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def unlabelled(scenes: Path, settings, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    """Scenes of a CSV table without labels, with the horizontal distance of the two objects."""
    from stratascope.extract import plan_extraction, run_extraction

    folder = tmp_path_factory.mktemp("unlabelled")
    boxes = {example.id: (example.subject_box, example.object_box) for example in plan_extraction(settings).examples}
    with (folder / "scenes.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "caption", "relation", "distance"])
        writer.writeheader()
        for (subject, thing), line in zip(boxes.values(), (scenes / "scenes.jsonl").read_text().splitlines(), strict=True):
            row = json.loads(line)
            known = {name: row[name] for name in ("image", "caption", "relation")}
            writer.writerow(known | {"distance": abs(subject[0] - thing[0]) + 0.5 if subject and thing else 0.25})
    run_extraction(plan_extraction(replace(settings, examples=(folder / "scenes.csv",), boxes=None)), folder / "store.zarr")
    return ActivationStore.open(folder / "store.zarr")


@pytest.mark.slow
def test_a_numeric_column_is_probed_without_any_label(unlabelled: ActivationStore) -> None:
    assert label_kind(unlabelled.provenance) == "none"
    assert set(unlabelled.examples["label"]) == {-1}
    curve = layer_curve(unlabelled, "distance", "final", layers=(0, 4), draws=200)
    assert curve.targets == ("value",)
    assert np.array_equal(curve.examples["value"], unlabelled.examples["distance"])
    assert next_step(unlabelled, "a.zarr") == "next: stratascope probe a.zarr --tasks COLUMN --positions final"


@pytest.mark.slow
def test_what_needs_labels_says_so(unlabelled: ActivationStore) -> None:
    for task in ("truth", "choice"):
        with pytest.raises(NotRecordedError, match=f"task '{task}': expected a store of labelled examples, found none with a label"):
            layer_curve(unlabelled, task)
    with pytest.raises(NotRecordedError, match="found examples without labels; give every row a label"):
        analysis.answer_confidence(unlabelled)
    assert label_text(unlabelled, 0) == "unknown"
    assert analysis.explain_example(unlabelled, 0).attributes["right"] is None


def test_rows_without_labels_are_described_and_have_no_variants(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "caption": "The cat is under the bed.", "relation": "under"}] * 2
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = load_examples(tmp_path / "t.jsonl")
    assert [example.label for example in examples] == [None, None]
    assert describe(examples).startswith("2 examples on 1 images, 1 relations; no labels")
    assert variant_of(examples[0], "mirrored").reason == "the caption has no label"
    (tmp_path / "u.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[0] | {"label": 1}) + "\n")
    with pytest.raises(InvalidInputError, match=r"u\.jsonl, line 1: expected a label in every row or in none, found none in 1 of 2"):
        load_examples(tmp_path / "u.jsonl")
