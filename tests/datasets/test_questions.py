"""What's Up's data sets and AdaptVis's questions: who is where, which answer is right, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stratascope.datasets import PROMPTS, load_examples
from stratascope.datasets.questions import parse_caption
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.extract import ExtractionSettings, plan_extraction

CONTROLLED = [
    {
        "image_path": f"data/controlled_images/beer-bottle_{place}_armchair.jpeg",
        "caption_options": [f"A beer bottle {relation} a armchair" for relation in (right, *(r for r in RELATIONS if r != right))],
    }
    for RELATIONS in [("on", "under", "to the left of", "to the right of")]
    for place, right in zip(("on", "under", "left_of", "right_of"), RELATIONS, strict=True)
]
ANSWERS = ("On", "Under", "Left", "Right")
OFFERED = "left, right, on or under"


def written(folder: Path, name: str, rows: Any, lines: bool = False) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) if lines else json.dumps(rows))
    return path


def questions(folder: Path, answers: tuple[str, ...] = ANSWERS, name: str = "questions.jsonl") -> Path:
    rows = [
        {"id": k, "question": f"<image>\nUSER:  Where is the beer bottle in relation to the armchair? Answer with {OFFERED}.\nASSISTANT:"}
        | {"answer": [answer]}
        for k, answer in enumerate(answers)
    ]
    return written(folder, name, rows, lines=True)


@pytest.mark.parametrize(
    ("caption", "subject", "relation", "thing", "answer"),
    [
        ("A beer bottle on a armchair", "beer bottle", "on", "armchair", "on"),
        ("A mug to the left of a cup", "mug", "to the left of", "cup", "left"),
        ("A bowl in-front of a can.", "bowl", "in-front of", "can", "front"),
        ("A bowl in front of a can", "bowl", "in front of", "can", "front"),
        ("A photo of a dining table to the right of a refrigerator", "dining table", "to the right of", "refrigerator", "right"),
        ("A photo of a bottle of orange juice under a chair", "bottle of orange juice", "under", "chair", "under"),
        ("A photo of the woman on top of an elephant", "woman", "on top of", "elephant", "above"),
        ("A photo of a bench on the left", "bench", "on the left", "", "left"),
        ("A photo of a tv at the bottom.", "tv", "at the bottom", "", "bottom"),
    ],
)
def test_captions_are_taken_apart(caption: str, subject: str, relation: str, thing: str, answer: str) -> None:
    parts, found, answers = parse_caption(caption)
    assert caption[slice(*parts.subject)] == subject
    assert caption[slice(*parts.relation)].lower() == relation == found
    assert (caption[slice(*parts.object)] if parts.object else "") == thing
    assert answers[0] == answer


def test_a_row_is_one_question_or_a_true_and_several_false_captions(tmp_path: Path) -> None:
    path = written(tmp_path, "controlled_images_dataset.json", CONTROLLED)
    asked = load_examples(path, choices=PROMPTS["four-way-on-under"].choices)
    assert [example.label for example in asked] == [2, 3, 0, 1]
    assert [example.choices[example.label] for example in asked] == ["on", "under", "left", "right"]
    assert asked[0].image == "beer-bottle_on_armchair.jpeg"
    assert asked[0].id == "controlled_images_dataset-000000"
    stated = load_examples(path)
    assert [example.label for example in stated] == [1, 0, 0, 0] * 4
    assert {example.relation for example in stated if example.label} == {"on", "under", "to the left of", "to the right of"}
    assert stated[0].choices == ()


def test_images_are_named_as_coco_and_visual_genome_name_them(tmp_path: Path) -> None:
    rows = [[139, "A photo of a tv above a chair", "A photo of a tv below a chair"]]
    assert load_examples(written(tmp_path, "coco_qa_two_obj.json", rows))[0].image == "000000000139.jpg"
    assert load_examples(written(tmp_path, "vg_qa_two_obj.json", rows))[0].image == "139.jpg"
    with pytest.raises(InvalidInputError, match="published name"):
        load_examples(written(tmp_path, "mine.json", rows))


@pytest.mark.parametrize(
    ("prompt", "captions", "text"),
    [
        ("four-way", ("A photo of a tv above a chair", "A photo of a tv below a chair"), "left, right, above or below"),
        ("four-way-photo", ("A photo of a tv on the top", "A photo of a tv on the bottom"), "left, right, top or bottom"),
        ("six-way", ("A photo of a tv in front of a chair", "A tv behind a chair"), "left, right, front, behind, above or below"),
        ("six-way-photo", ("A photo of a tv on the left", "A photo of a tv on the right"), "left, right, front, behind, top or bottom"),
        ("four-way-front-behind", ("A tv behind a chair", "A tv in-front of a chair"), "left, right, front or behind"),
    ],
)
def test_the_prompts_ask_what_the_published_questions_ask(tmp_path: Path, prompt: str, captions: tuple[str, str], text: str) -> None:
    chosen = PROMPTS[prompt]
    (example,) = load_examples(written(tmp_path, "vg_qa.json", [[1, *captions]]), choices=chosen.choices)
    where = "in relation to the chair" if "chair" in captions[0] else "in the photo"
    filled = chosen.fill(example)
    assert filled.text == f"Where is the tv {where}? Answer with {text}."
    assert {name: filled.text[slice(*interval)] for name, interval in filled.intervals.items()} == (
        {"subject": "tv", "object": "chair"} if "chair" in captions[0] else {"subject": "tv"}
    )


def test_published_questions_replace_the_template(tmp_path: Path) -> None:
    chosen = PROMPTS["four-way-on-under"]
    data = written(tmp_path, "controlled_images_dataset.json", CONTROLLED)
    rows = load_examples([data, questions(tmp_path)], choices=chosen.choices)
    assert len(rows) == 4
    filled = chosen.fill(rows[1])
    assert filled.text == f"Where is the beer bottle in relation to the armchair? Answer with {OFFERED}."
    assert [filled.text[slice(*filled.intervals[name])] for name in ("subject", "object")] == ["beer bottle", "armchair"]
    assert [row.label for row in rows] == [2, 3, 0, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder, data: [questions(folder)], "right before these questions"),
        (lambda folder, data: [data, questions(folder, ANSWERS[:2])], "found 2 questions"),
        (lambda folder, data: [data, questions(folder, ("On", "Under", "Left", "Left"))], r"1 that do not: id 3 \(left instead of right\)"),
        (lambda folder, data: [data, questions(folder, (*ANSWERS, "On"))], "rows 0 to 3 once, found id 4"),
        (lambda folder, data: [data, questions(folder), questions(folder, name="q2.jsonl")], "right before these questions"),
    ],
)
def test_questions_that_do_not_fit_are_refused(tmp_path: Path, make: Any, message: str) -> None:
    data = written(tmp_path, "controlled_images_dataset.json", CONTROLLED)
    with pytest.raises(InvalidInputError, match=message):
        load_examples(make(tmp_path, data), choices=PROMPTS["four-way-on-under"].choices)
    with pytest.raises(InvalidInputError, match="asks for one of several choices"):
        load_examples([data, questions(tmp_path)])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "found an empty one"),
        ([7], "caption_options"),
        ([[1, "A tv above a chair"]], "caption_options"),
        ([["../1", "A tv above a chair", "A tv below a chair"]], "caption_options"),
        ([[True, "A tv above a chair", "A tv below a chair"]], "caption_options"),
        ([[1, "A tv above a chair", "A TV above a  chair"]], "one twice"),
        ([[1, "A tv sings", "A tv above a chair"]], "row 0: expected a caption such as"),
        ([[1, "A tv on the left", "A tv on the right"]], "means one of the prompt's choices|a caption with object"),
        ([[1, "A tv inside a chair", "A tv below a chair"]], "expected a caption such as"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, rows: Any, message: str) -> None:
    chosen = PROMPTS["four-way"]
    with pytest.raises(InvalidInputError, match=message):
        [chosen.fill(row) for row in load_examples(written(tmp_path, "vg.json", rows), choices=chosen.choices)]


@pytest.mark.slow
def test_a_store_of_questions_knows_which_answers_are_right(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from stratascope.analysis.model_answers import answer_confidence, answers_right
    from stratascope.extract import run_extraction
    from stratascope.probe.tasks.task import find_task
    from stratascope.store import ActivationStore

    relations = ("above", "below", "to the left of", "to the right of")
    rows = [
        [f"{k}", f"A photo of a star {relations[k % 4]} a moon", f"A photo of a star {relations[(k + 1) % 4]} a moon"] for k in range(8)
    ]
    images = tmp_path / "images"
    images.mkdir()
    for k in range(8):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(images / f"{k}.jpg")
    settings = ExtractionSettings(
        model="demo",
        examples=(written(tmp_path, "vg_qa_two_obj.json", rows),),
        images=images,
        prompt="four-way",
        record=("residual",),
        device="cpu",
    )
    run_extraction(plan_extraction(settings), tmp_path / "q.zarr")
    store = ActivationStore.open(tmp_path / "q.zarr")
    assert store.examples["label"].tolist() == [2, 3, 0, 1] * 2
    assert store.provenance["prompt"]["answers"] == ["left", "right", "above", "below"]
    every = np.arange(8)
    logits = store.read("answer_logits", examples=every)
    np.testing.assert_array_equal(answers_right(store, every), logits.argmax(-1) == np.array([2, 3, 0, 1] * 2))
    assert answer_confidence(store).table["examples"].iloc[0] == 8
    task, _ = find_task(store, "choice", np.ones(8, bool))
    assert [task.classes[code] for code in task.codes] == ["above", "below", "left", "right"] * 2
    with pytest.raises(NotRecordedError, match="right choices; probe the task 'choice'"):
        find_task(store, "truth", np.ones(8, bool))


def test_captions_with_a_truth_leave_a_question_without_a_known_answer(scenes: Path) -> None:
    settings = ExtractionSettings(
        model="demo", examples=(scenes / "scenes.jsonl",), images=scenes / "images", prompt="four-way", device="cpu"
    )
    plan = plan_extraction(settings)
    assert plan.provenance["prompt"]["answers"] is None
    assert "labels" not in plan.provenance["data"]


def test_two_images_of_one_file_name_are_refused(tmp_path: Path) -> None:
    rows = [{**CONTROLLED[0], "image_path": f"{folder}/0.jpeg"} for folder in ("a", "a", "b")]
    with pytest.raises(InvalidInputError, match=r"row 2: expected another file name than that of row 0, .* found b/0\.jpeg and a/0\.jpeg"):
        load_examples(written(tmp_path, "controlled_images_dataset.json", rows))
