"""Questions about images: rows, prompts, right answers, and stores whose questions have different numbers of options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stratascope.datasets import PROMPTS, BoxIndex, Example, load_examples, minimal_pairs
from stratascope.errors import InvalidInputError

LETTERS = PROMPTS["letters"].choices
POPE = [
    {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?", "label": "yes"},
    {"question_id": 2, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a dining table in the image?", "label": "no"},
    {"question_id": 3, "image": "COCO_val2014_000000210789.jpg", "text": "Is there an orange in the imange?", "label": "no"},
]
"""As in coco_pope_random.json; newer files also have `image_id`."""
MINE = {"image": "a.png", "question": "Which is nearer, the cup or the key?", "options": ["cup", "key"], "answer": "B"}


def written(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one(folder: Path, *, choices: tuple[str, ...] | None = LETTERS, **changed: Any) -> Example:
    row = {name: value for name, value in {**MINE, **changed}.items() if value is not None}
    return load_examples(written(folder, [row]), choices=choices)[0]


def test_pope_loads_as_published(tmp_path: Path) -> None:
    examples = load_examples(written(tmp_path, POPE, "coco_pope_random.json"))
    assert [example.label for example in examples] == [1, 0, 0]
    assert [example.subject for example in examples] == ["snowboard", "dining table", "orange"]
    assert [example.image for example in examples] == [row["image"] for row in POPE]
    assert {example.split for example in examples} == {"coco_pope_random"}
    assert examples[0].extra["question_id"] == 1
    filled = PROMPTS["pope"].fill(examples[1])
    assert filled.text == "Is there a dining table in the image?\nAnswer the question using a single word or phrase."
    assert {name: filled.text[slice(*span)] for name, span in filled.intervals.items()} == {
        "caption": "Is there a dining table in the image?",
        "subject": "dining table",
    }
    boxes = tmp_path / "instances.json"
    photo = {"id": 1, "file_name": POPE[0]["image"], "width": 64, "height": 48}
    named = {"images": [photo], "categories": [{"id": 7, "name": "snowboard"}]}
    boxes.write_text(json.dumps({**named, "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]}]}))
    boxed = load_examples(tmp_path / "coco_pope_random.json", BoxIndex.from_coco(boxes))
    assert [(example.subject_box, example.subject_instances) for example in boxed] == [((1, 2, 4, 6), 1), (None, 0), (None, None)]


def test_questions_show_their_options_by_letter(tmp_path: Path) -> None:
    example = one(tmp_path, subject="cup", object="key", relation="depth", full_question=f"{MINE['question']} (A) cup (B) key")
    assert (example.label, example.choices, example.options, example.relation) == (1, ("A", "B"), ("cup", "key"), "depth")
    shown = {name: PROMPTS[name].fill(example) for name in ("letters", "embspatial", "blink", "cv-bench")}
    note = "Note: You only need to respond with A, B without providing any additional information.\n"
    assert {name: filled.text for name, filled in shown.items()} == {
        "letters": f"{MINE['question']}\nA. cup\nB. key\nAnswer with the option's letter from the given choices directly.",
        "embspatial": f"{note}{MINE['question']}\nA) cup\nB) key",
        "blink": f"{note}{MINE['question']} (A) cup (B) key",
        "cv-bench": f"{note}\n{MINE['question']} (A) cup (B) key",
    }
    for filled in shown.values():
        words = {name: filled.text[slice(*span)] for name, span in filled.intervals.items()}
        assert words == {"caption": MINE["question"], "subject": "cup", "object": "key"}


def test_the_letters_named_are_those_of_lmms_eval(tmp_path: Path) -> None:
    example = one(tmp_path, options=list("stuvwx"), answer="(F)", full_question="How many?")
    assert PROMPTS["cv-bench"].fill(example).text.startswith("Note: You only need to respond with A, B, C, D, E without")
    assert PROMPTS["cv-bench"].for_examples([example, one(tmp_path)]).choices == tuple("ABCDEF")


@pytest.mark.parametrize(
    ("options", "answer", "label"),
    [
        (["cup", "key"], "(A)", 0),
        (["cup", "key"], "key", 1),
        (["A", "B"], "A", 0),
        (["B", "A"], "(A)", 0),
        (["1", "2", "3"], "3", 2),
    ],
)
def test_answers_are_letters_or_texts(tmp_path: Path, options: list[str], answer: str, label: int) -> None:
    assert one(tmp_path, options=options, answer=answer).label == label


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"answer": "C"}, "which is none of them"),
        ({"options": ["B", "A"], "answer": "A"}, "which is several"),
        ({"options": ["key", "key"], "answer": "key"}, "which is several"),
        ({"options": ["key"]}, "at least two options"),
        ({"options": "cup, key"}, "expected texts as options"),
        ({"options": None, "A": "cup", "C": "key"}, "fields A, B, ... without a gap, found A, C"),
        ({"options": None, "A": "cup", "B": 7}, "expected texts as options"),
        ({"options": [f"{k}" for k in range(11)]}, "at most 10 options"),
        ({"options": None}, "found one without options; choose a prompt for yes or no, such as pope"),
        ({"options": None, "answer": "maybe", "choices": None}, "expected the answer yes or no"),
        ({"choices": None}, "found one with 2 options; choose a prompt for lettered options"),
        ({"choices": ("left", "right")}, "asks for left, right; choose a prompt for lettered options"),
        ({"subject": "dog"}, "expected the subject 'dog' in the question"),
        ({"image": "../a.png"}, "a.png"),
        ({"image": 7}, "expected text in field 'image', found 7"),
        ({"answer": None}, "expected text in field 'answer', found none"),
    ],
)
def test_broken_questions_are_named(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as refused:
        one(tmp_path, **changed)
    assert "rows.jsonl, line 1" in str(refused.value)


def test_prompts_refuse_examples_that_they_cannot_show(tmp_path: Path) -> None:
    asked, pope = one(tmp_path), load_examples(written(tmp_path, POPE))[0]
    caption = {"image": "a.png", "caption": "The cup is near the key.", "relation": "near", "label": 1}
    (stated,) = load_examples(written(tmp_path, [caption]))
    for prompt, example, message in (
        ("true-false", pope, "expected a caption for the prompt true-false, found the question .* choose pope, letters"),
        ("pope", stated, "expected a question for the prompt pope, found the caption .* choose true-false"),
        ("letters", pope, "expected a question with options .* found 0 options; choose pope"),
        ("pope", asked, "expected a question without options .* found 2 options; choose letters"),
        ("cv-bench", asked, "expected the field full_question"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            PROMPTS[prompt].fill(example)
    both = written(tmp_path, [caption], "captions.jsonl"), written(tmp_path, POPE, "pope.json")
    with pytest.raises(InvalidInputError, match="captions or questions, found both"):
        load_examples(both)
    with pytest.raises(InvalidInputError, match="found the question"):
        minimal_pairs([both[1]], tmp_path, tmp_path / "pairs")


def test_options_may_be_in_columns(tmp_path: Path) -> None:
    table = tmp_path / "mine.csv"
    table.write_text("image,question,A,B,C,answer,relation,level\n0.png,Which?,01,2,,2,depth,1\n1.png,Who?,cup,key,moon,C,near,2\n")
    first, second = load_examples(table, choices=LETTERS)
    assert (first.id, first.options, first.label, first.choices) == ("mine-000001", ("01", "2"), 1, ("A", "B"))
    assert (second.options, second.label, second.relation) == (("cup", "key", "moon"), 2, "near")
    assert (first.extra, second.extra) == ({"level": 1}, {"level": 2})
    rows = written(tmp_path, [{"image": "a.png", "question": "Which?", "A": "cup", "B": "key", "answer": "key"}])
    assert load_examples(rows, choices=LETTERS)[0].options == ("cup", "key")
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption,relation,label,A,answer\na.png,A cup on a plate,on,1,3,4\n")
    assert load_examples(captions)[0].extra == {"A": 3, "answer": 4}
    yes = tmp_path / "yes.csv"
    yes.write_text("image,question,answer\n0.png,Is it?,Yes\n1.png,Was it?,no\n")
    assert [example.label for example in load_examples(yes)] == [1, 0]


def test_a_question_may_have_the_columns_of_pope(tmp_path: Path) -> None:
    example = one(tmp_path, text="a page", label="yes")
    assert (example.caption, example.label, example.extra) == (MINE["question"], 1, {"text": "a page", "label": "yes"})


def test_a_caption_may_have_a_column_question(tmp_path: Path) -> None:
    row = {"image": "a.png", "caption": "The cup is near the key.", "relation": "near", "label": 1, "question": "Is it?"}
    (example,) = load_examples(written(tmp_path, [row]))
    assert (example.is_question, example.extra) == (False, {"question": "Is it?"})


def pictures(folder: Path, count: int) -> Path:
    (folder / "images").mkdir()
    for k in range(count):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (56, 56, 3), dtype=np.uint8)).save(folder / "images" / f"{k}.png")
    return folder / "images"


def extracted(folder: Path, rows: list[Any], prompt: str, images: Path, **more: Any) -> Any:
    from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction
    from stratascope.store import ActivationStore

    found = {"model": "demo", "examples": (written(folder, rows),), "images": images, "prompt": prompt, "device": "cpu"}
    settings = ExtractionSettings(**{**found, "record": ("residual", "top_tokens"), **more})  # type: ignore[arg-type]
    run_extraction(plan_extraction(settings), folder / "q.zarr")
    return ActivationStore.open(folder / "q.zarr")


def generated(text: str, image: Path) -> tuple[int, np.ndarray]:
    """The first token that transformers generates for a text and an image, and its logits."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from stratascope.extract.model_files import resolve_model

    folder = resolve_model("demo").folder
    processor = AutoProcessor.from_pretrained(folder)
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
    with Image.open(image) as opened, torch.no_grad():
        inputs = processor(text=[prompt], images=[opened.convert("RGB")], return_tensors="pt")
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        made = model.generate(**inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return int(made.sequences[0, -1]), made.logits[0][0].numpy()


@pytest.mark.slow
def test_answers_to_pope_are_scored_as_published(tmp_path: Path) -> None:
    """Precision, recall and F1 against scikit-learn; answers and likeliest tokens against transformers' own generation."""
    pytest.importorskip("torch")
    from sklearn.metrics import precision_recall_fscore_support

    from stratascope.analysis import answer_confidence
    from stratascope.store import stored_readout

    images, things = pictures(tmp_path, 6), ("star", "cup", "key", "fish", "house", "tree", "bell", "moon")
    rows = [
        {"question_id": k, "image": f"{k % 6}.png", "text": f"Is there a {thing} in the image?", "label": "yes" if k % 3 else "no"}
        for k, thing in enumerate(things * 3)
    ]
    store = extracted(tmp_path, rows, "pope", images)
    assert set(store.positions) >= {"final", "subject"}
    assert not (stored_readout(store).words["kind"] == "relation").any()
    result = answer_confidence(store)
    found, true = result.answers["answer"].to_numpy() == "Yes", np.array([row["label"] == "yes" for row in rows])
    whole = result.table.iloc[0]
    expected = precision_recall_fscore_support(true, found, average="binary", zero_division=np.nan)[:3]
    np.testing.assert_allclose(whole[["precision", "recall", "f1"]].to_numpy(float), expected)
    assert whole["said_yes"] == found.mean()
    assert whole["accuracy"] == (found == true).mean()
    assert f"F1 {whole['f1']:.1%}" in result.summary()
    first = []
    for k in (0, 1, 2):
        token, logits = generated(f"{rows[k]['text']}\nAnswer the question using a single word or phrase.", images / rows[k]["image"])
        ids = store.provenance["prompt"]["choices"]
        np.testing.assert_allclose(store.read("answer_logits", examples=k), logits[[ids["Yes"], ids["No"]]], atol=1e-4)
        assert store.read("top_tokens", examples=k)[0] == token
        first.append(store.vocabulary[token].strip().lower() == result.answers["answer"][k].lower())
    np.testing.assert_array_equal(answer_confidence(store, [0, 1, 2]).table["first_token"].iloc[0], np.mean(first))


@pytest.mark.slow
def test_only_offered_letters_are_answers(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from stratascope.analysis import answer_confidence, explain_example, logit_lens
    from stratascope.analysis.model_answers import answers_right
    from stratascope.probe.tasks.task import find_task

    images = pictures(tmp_path, 4)
    rows = [
        {"image": f"{k % 4}.png", "question": f"Which is it, number {k}?", "options": list("pqrstu"[: 2 + k % 5]), "answer": "AB"[k % 2]}
        for k in range(12)
    ]
    store = extracted(tmp_path, rows, "letters", images, record=("residual",))
    assert store.layout.choices == tuple("ABCDEF")
    assert store.provenance["prompt"]["answers"] == list("ABCDEF")
    assert store.examples["options"].tolist() == [2 + k % 5 for k in range(12)]
    assert store.examples["right_option"].tolist() == ["pq"[k % 2] for k in range(12)]
    every, right = np.arange(12), np.array([k % 2 for k in range(12)])
    logits = store.read("answer_logits", examples=every)
    answers = np.array([row[: 2 + k % 5].argmax() for k, row in enumerate(logits)])
    assert (answers != logits.argmax(-1)).any(), "some letter that is not offered has the highest logit"
    np.testing.assert_array_equal(answers_right(store, every), answers == right)
    result = answer_confidence(store)
    assert result.answers["answer"].tolist() == ["ABCDEF"[k] for k in answers]
    assert "f1" not in result.table
    shares = [np.exp(row[: 2 + k % 5] - row[: 2 + k % 5].max()) for k, row in enumerate(logits.astype(float))]
    np.testing.assert_allclose(result.answers["confidence"], [(share / share.sum()).max() for share in shares], rtol=1e-5)
    assert np.isfinite(result.answers["margin"]).all()
    grouped = answer_confidence(store, together="image")
    assert (grouped.table["groups"].iloc[0], grouped.file_name) == (4, "answers-together-image")
    assert grouped.table["all_right"].iloc[0] == (answers == right).reshape(3, 4).all(0).mean()
    assert "of 4 groups with the same image" in grouped.summary()
    assert grouped.options["together"] == "image"
    with pytest.raises(InvalidInputError, match="expected a column of the examples, found 'circle'"):
        answer_confidence(store, together="circle")
    task, _ = find_task(store, "answer", np.ones(12, bool))
    np.testing.assert_array_equal(task.codes, answers)
    lens = logit_lens(store)
    assert (lens.attributes["relations"], lens.attributes["without_word"]) == ([], [])
    last = lens.table
    assert last[last["measure"] == "answer"]["value"].iloc[-1] == pytest.approx((answers == right).mean())
    explained = explain_example(store, 0)
    assert explained.answers["choice"].tolist() == ["A", "B"]
    assert explained.answers["probability"].sum() == pytest.approx(1)
