"""Questions about images: rows, prompts, right answers, and stores whose questions have different numbers of options."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import chisquare

from stratascope.datasets import PROMPTS, BoxIndex, Example, load_examples, minimal_pairs
from stratascope.datasets.own_prompts import find_prompt, stored_prompt
from stratascope.datasets.question_rows import shuffled_options
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
        (
            {"choices": ("left", "right")},
            "the prompt's choices left, right, found the options cup, key; choose a prompt for lettered",
        ),
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


def test_prompts_of_ones_own_ask_questions(tmp_path: Path) -> None:
    asking = find_prompt("Look. {question} Say yes or no.", ("Yes", "No"))
    pope = load_examples(written(tmp_path, POPE))[0]
    filled = asking.fill(pope)
    assert filled.text == "Look. Is there a snowboard in the image? Say yes or no."
    assert filled.text[slice(*filled.intervals["subject"])] == "snowboard"
    lettered = find_prompt("{question} {options}", ("A", "B", "C")).for_examples([one(tmp_path)])
    assert lettered.choices == ("A", "B")
    assert lettered.fill(one(tmp_path)).text == f"{MINE['question']} A. cup\nB. key"
    with pytest.raises(InvalidInputError, match="expected a caption for the prompt own, found the question"):
        find_prompt("{relation}?", ("Yes", "No")).fill(pope)
    with pytest.raises(InvalidInputError, match="expected a column 'level'"):
        find_prompt("{question} {level}", ("Yes", "No")).fill(pope)
    row = {"image": "a.png", "caption": "The cup is near the key.", "relation": "near", "label": 1, "question": "Is it?"}
    (stated,) = load_examples(written(tmp_path, [row]))
    assert asking.fill(stated).text == "Look. Is it? Say yes or no."


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


FOUR = {"image": "a.png", "question": "Where is the cup?", "options": ["left", "right", "above", "neither"], "answer": "above"}


def test_shuffled_options_keep_the_right_text(tmp_path: Path) -> None:
    """Every order of three options occurs equally often; the label names the same text; the order depends on seed and id alone."""
    rows = [{**FOUR, "id": f"q{k}", "answer": FOUR["options"][k % 4]} for k in range(600)]
    examples = load_examples(written(tmp_path, rows), choices=LETTERS)
    shown = [shuffled_options(example, 3, ("neither",)) for example in examples]
    assert [one.right_option for one in shown] == [row["answer"] for row in rows]
    assert [one.options[one.label] for one in shown] == [row["answer"] for row in rows]
    for example, one in zip(examples, shown, strict=True):
        assert one.options == tuple(example.options["ABCD".index(letter)] for letter in one.option_order)
    counts = Counter(one.option_order for one in shown)
    assert sorted(counts) == sorted("".join(order) + "D" for order in permutations("ABC"))
    assert chisquare(list(counts.values())).pvalue > 0.01
    assert [shuffled_options(example, 3, ("neither",)).option_order for example in examples[::-1]] == [o.option_order for o in shown[::-1]]
    assert [shuffled_options(example, 4, ("neither",)).option_order for example in examples] != [one.option_order for one in shown]
    text = PROMPTS["letters"].fill(shown[0]).text
    assert text.splitlines()[1:5] == [f"{letter}. {option}" for letter, option in zip("ABCD", shown[0].options, strict=True)]


@pytest.mark.parametrize("option", ["None of the above", "Both A and B", "neither (A) nor (B)", "one of the others"])
def test_options_that_refer_to_others_are_not_shuffled(tmp_path: Path, option: str) -> None:
    example = one(tmp_path, options=["left", "right", option], answer="left")
    with pytest.raises(InvalidInputError, match="expected options that keep their meaning in any order, found '"):
        shuffled_options(example, 0)
    assert shuffled_options(example, 0, (option,)).options[-1] == option


def test_options_in_words_are_the_choices_of_the_prompt(tmp_path: Path) -> None:
    file = tmp_path / "words.toml"
    file.write_text(
        'text = "{question} Answer {options}."\nchoices = ["left", "right", "neither"]\noption = "{text}"\nseparator = " or "\n'
        'last = ["neither"]\n'
    )
    asked = find_prompt(str(file))
    row = {**FOUR, "options": ["right", "left", "neither"], "answer": "B"}
    example = shuffled_options(one(tmp_path, choices=asked.choices, **row), 0, asked.last)
    assert (example.choices, example.label, example.right_option) == (asked.choices, 0, "left")
    assert asked.fill(example).text == f"Where is the cup? Answer {' or '.join(example.options)}."
    assert example.options[-1] == "neither"
    held = {"name": asked.name, "text": asked.text, "choices": dict.fromkeys(asked.choices, 1), "answers": list(asked.choices)}
    assert stored_prompt({**held, **asked.provenance()}) == asked
    with pytest.raises(InvalidInputError, match="expected a question whose options are the prompt's choices left, right, neither, found"):
        one(tmp_path, choices=asked.choices, **FOUR)


def test_a_third_answer_is_offered_beside_yes_and_no(tmp_path: Path) -> None:
    file = tmp_path / "third.toml"
    file.write_text('text = "{caption} Yes, No or Neither?"\nanswers = ["Yes", "No"]\nchoices = ["Yes", "No", "Neither"]\n')
    asked = find_prompt(str(file))
    assert (asked.choices, asked.answers) == (("Yes", "No", "Neither"), ("No", "Yes"))
    held = {"name": asked.name, "text": asked.text, "choices": dict.fromkeys(asked.choices, 1), "answers": ["No", "Yes"]}
    assert stored_prompt(held) == asked
    file.write_text('text = "{caption}"\nanswers = ["Yes", "No"]\nchoices = ["Yes", "Neither"]\n')
    with pytest.raises(InvalidInputError, match="expected answers that are among the choices"):
        find_prompt(str(file))


def test_stores_say_which_option_each_letter_was(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from stratascope.extract import plan_extraction
    from stratascope.extract.model_files import resolve_model
    from stratascope.extract.plan.intervention_plan import check_same_extraction, settings_of_store

    images, tokenizer = pictures(tmp_path, 2), resolve_model("demo").tokenizer
    rows = [{**FOUR, "image": f"{k % 2}.png", "options": FOUR["options"][: 3 + k % 2]} for k in range(8)]
    file = tmp_path / "own.toml"
    file.write_text('text = "{question}\\n{options}"\nchoices = "letters"\noption = "{letter}) {text}"\nlast = ["neither"]\n')
    store = extracted(tmp_path, rows, str(file), images, shuffle_options=5, record=("residual",))
    table = store.examples
    assert store.provenance["data"]["shuffle_options"] == 5
    assert table["option_order"].nunique() > 1
    for k, row in table.iterrows():
        letters = "ABCD"[: row["options"]]
        assert [row[f"option_{letter}"] for letter in letters] == [FOUR["options"]["ABCD".index(was)] for was in row["option_order"]]
        assert row[f"option_{'ABCD'[row['label']]}"] == row["right_option"] == "above"
        shown = "\n".join(f"{letter}) {row[f'option_{letter}']}" for letter in letters)
        ids = store.read("token_ids", examples=[k])[0]
        assert shown in tokenizer.decode(ids[ids >= 0].tolist())
    again = settings_of_store(store, data=(tmp_path / "rows.jsonl",), images=images, device="cpu")
    check_same_extraction(plan_extraction(again), store)
    with pytest.raises(InvalidInputError, match=r"expected a prompt that shows \{options\} for `shuffle_options`, found cv-bench"):
        replace(again, stored_prompt=None, prompt="cv-bench")
