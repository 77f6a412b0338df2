import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from stratascope.datasets import PROMPTS, Example, Prompt, load_examples, minimal_pairs, split_caption
from stratascope.datasets.captions import without_marks
from stratascope.datasets.own_prompts import find_prompt, stored_prompt
from stratascope.errors import InvalidInputError

EXAMPLE = Example("1", "a.png", "The cat is under the bed.", "under", True, "test", split_caption("The cat is under the bed.", "under"))


@pytest.mark.parametrize("prompt", [p for p in PROMPTS.values() if not p.asks_question], ids=lambda p: p.name)
def test_intervals_point_at_their_words(prompt: Prompt) -> None:
    filled = prompt.fill(EXAMPLE)
    words = {"caption": EXAMPLE.caption, "subject": "cat", "relation": "under", "object": "bed"}
    for name, (a, b) in filled.intervals.items():
        assert filled.text[a:b] == words[name]


def test_the_where_prompt_does_not_name_the_relation() -> None:
    filled = PROMPTS["where"].fill(EXAMPLE)
    assert "under" not in filled.text
    assert set(filled.intervals) == {"subject", "object"}


def test_a_prompt_without_a_field_or_choices_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="field"):
        Prompt("x", "Is it so?", ("a", "b"))
    with pytest.raises(InvalidInputError, match="two different"):
        Prompt("x", "{caption}", ("a",))


def test_a_text_is_a_prompt_with_its_answers() -> None:
    prompt = find_prompt("Is it true that {caption} Answer Yes or No.", ("Yes", "No"))
    assert (prompt.choices, prompt.answers) == (("Yes", "No"), ("No", "Yes"))
    assert find_prompt("yes-no") is PROMPTS["yes-no"]
    assert find_prompt("Where is the {subject}?", ("left", "right", "top")).answers is None


def test_fields_are_columns_and_spans_are_fields() -> None:
    example = replace(EXAMPLE, extra={"target": "red mug", "count": 3})
    prompt = Prompt("mine", "Of {count}, is the {target} here?", ("Yes", "No"), ("No", "Yes"), spans={"subject": "target"})
    filled = prompt.fill(example)
    assert filled.text == "Of 3, is the red mug here?"
    assert filled.text[slice(*filled.intervals["subject"])] == "red mug"
    assert set(filled.intervals) == {"subject"}
    assert prompt.values(example) == (3, "red mug")
    with pytest.raises(InvalidInputError, match=r"expected a column 'count' for the field \{count\} of the prompt, found caption, subject"):
        prompt.fill(EXAMPLE)


def test_a_prompt_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('text = "{target}?"\nchoices = ["a", "b", "c"]\nsystem = "Be brief."\nimage = "after"\n[spans]\nobject = "target"\n')
    prompt = find_prompt(str(path))
    assert (prompt.name, prompt.system, prompt.image_after, prompt.answers) == ("mine", "Be brief.", True, None)
    assert stored_prompt({"name": "mine", "text": prompt.text, "choices": {"a": 1, "b": 2, "c": 3}, **prompt.provenance()}) == replace(
        prompt, system=None
    )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("text = 3", "expected text to be a text, found 3"),
        ('text = "{caption}"', "expected text, and answers"),
        ('text = "{caption}"\nanswers = ["Yes"]', "expected two answers"),
        ('text = "{caption}"\nanswers = ["Yes", "No"]\nimage = "left"', "expected image to be before or after"),
        ('text = "{caption}"\nanswers = ["Yes", "No"]\nsize = 3', "expected the keys name, text"),
        ('text = "{caption}"\nanswers = ["Yes", "No"]\nname = "where"', "not one of the built-in prompts"),
        ('text = "{caption}"\nanswers = ["Yes", "No"]\n[spans]\nsubject = "target"', "found subject = 'target'"),
        ("text = ", "expected a readable prompt in TOML"),
    ],
)
def test_files_that_are_no_prompt_are_refused(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(InvalidInputError, match=found):
        find_prompt(str(tmp_path / "p.toml"))


def test_texts_that_are_no_prompt_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="expected `prompt` to be among true-false"):
        find_prompt("yes-now")
    with pytest.raises(InvalidInputError, match="expected `answers` for a prompt"):
        find_prompt("{caption}")
    with pytest.raises(InvalidInputError, match="leave `answers` out"):
        find_prompt("yes-no", ("Yes", "No"))
    with pytest.raises(InvalidInputError, match="readable prompt"):
        find_prompt("absent.toml")


WORDS = ("cup", "red cup", "left of", "tree", "the", "a", "ü ", "[x]")


@pytest.mark.parametrize("seed", range(20))
def test_marks_are_removed_and_name_what_they_enclose(seed: int) -> None:
    """Random texts with marks in random order: each span holds the words that were put into it."""
    draw = random.Random(seed)
    expected, pieces = {}, []
    for part in draw.sample(("subject", "relation", "object"), draw.randint(0, 3)):
        expected[part] = draw.choice(WORDS)
        pieces.append(f"[{part}]{expected[part]}[/{part}]")
    for _ in range(4):
        pieces.insert(draw.randint(0, len(pieces)), draw.choice(WORDS))
    marked = "".join(pieces)
    plain, spans, _ = without_marks(marked)
    assert plain == re.sub(r"\[/?(subject|relation|object)\]", "", marked)
    assert {part: plain[slice(*span)] for part, span in spans.items()} == expected


@pytest.mark.parametrize(
    "text",
    [
        "[subject]cup",
        "cup[/subject]",
        "[/subject]cup[subject]",
        "[subject][/subject]",
        "[subject]a[/subject] [subject]b[/subject]",
        "[subject]a [object]b[/object][/subject]",
    ],
)
def test_broken_marks_are_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="expected each of the marks"):
        without_marks(text)


def test_a_marked_template_names_the_spans_of_its_fields() -> None:
    """Marks around fields and fixed words, a column with marks of its own, and a caption whose parts move with them."""
    caption = "The cat is under the bed."
    row = {"thing": "red cup", "landmark": "the old [object]tree[/object]"}
    example = Example("1", "a.png", caption, "under", 1, "t", split_caption(caption, "under"), extra=row)
    asked = Prompt("m", "Is the [subject]{thing}[/subject] [relation]left of[/relation] {landmark}? {caption}", ("Yes", "No"))
    filled = asked.fill(example)
    assert filled.text == f"Is the red cup left of the old tree? {caption}"
    assert {name: filled.text[slice(*span)] for name, span in filled.intervals.items()} == {
        "subject": "red cup",
        "relation": "left of",
        "object": "tree",
        "caption": caption,
    }
    spanned = replace(asked, text="{landmark}: {thing}", spans={"subject": "landmark"})
    filled = spanned.fill(example)
    assert {name: filled.text[slice(*span)] for name, span in filled.intervals.items()} == {"subject": "the old tree", "object": "tree"}
    broken = replace(example, extra={"thing": "cup[/subject]"})
    with pytest.raises(InvalidInputError, match="example 1: expected each of the marks"):
        replace(asked, text="{thing}").fill(broken)


def test_marked_captions_need_no_usual_form(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "caption": "Under [object]the bed[/object] sleeps the [subject]cat[/subject].", "relation": "under", "label": 1},
        {"image": "a.png", "caption": "There [relation]lies[/relation] a [subject]cat[/subject].", "relation": "presence", "label": 1},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    first, second = load_examples(tmp_path / "rows.jsonl")
    assert (first.caption, first.subject, first.object) == ("Under the bed sleeps the cat.", "cat", "the bed")
    assert first.caption[slice(*first.parts.relation)] == "Under"
    assert (second.subject, second.parts.object, second.is_question) == ("cat", None, False)
    assert set(PROMPTS["true-false"].fill(second).intervals) == {"caption", "subject", "relation"}
    with pytest.raises(InvalidInputError, match=r"expected a caption with object for the prompt four-way, found 'There lies"):
        PROMPTS["four-way"].fill(second)
    question = {"image": "a.png", "question": "Is the [subject]cat[/subject] asleep?", "answer": "yes"}
    (tmp_path / "q.jsonl").write_text(json.dumps(question))
    (asked,) = load_examples(tmp_path / "q.jsonl")
    assert (asked.caption, asked.subject, asked.object, asked.is_question) == ("Is the cat asleep?", "cat", "", True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    report = minimal_pairs(tmp_path / "rows.jsonl", tmp_path, tmp_path / "pairs")
    pairs = load_examples(tmp_path / "pairs" / "pairs.jsonl")
    assert [(pair.caption, pair.parts) for pair in pairs] == [(first.caption, first.parts)] * 2
    assert report.excluded["swapped"] == {"the caption is not of the form SUBJECT RELATION OBJECT": 1}
    rows[0]["caption"] = "Below [object]the bed[/object]."
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(InvalidInputError, match="expected the relation 'under' in the caption, or marked in it"):
        load_examples(tmp_path / "rows.jsonl")


def test_few_shot_turns_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "few.toml"
    path.write_text(
        'text = "{question}\\n{options}\\nAnswer with {letters}."\nchoices = "letters"\n'
        '[[shots]]\nimage = "a.png"\nquestion = "Which?"\noptions = ["cup", "key"]\nanswer = "B"\n'
        '[[shots]]\nimage = ["a.png", "b.png"]\nquestion = "Where?"\noptions = "none"\nletters = "C"\nanswer = "C"\n'
        '[[shots]]\nquestion = "Why?"\noptions = ["a", "b"]\nanswer = "A"\n'
    )
    prompt = find_prompt(str(path))
    assert [(shot.images, shot.text, shot.answer) for shot in prompt.shots] == [
        (("a.png",), "Which?\nA. cup\nB. key\nAnswer with A, B.", "B"),
        (("a.png", "b.png"), "Where?\nnone\nAnswer with C.", "C"),
        ((), "Why?\nA. a\nB. b\nAnswer with A, B.", "A"),
    ]
    held = {"name": prompt.name, "text": prompt.text, "choices": dict.fromkeys(prompt.choices), "answers": None, **prompt.provenance()}
    assert stored_prompt(json.loads(json.dumps(held))) == prompt


@pytest.mark.parametrize(
    ("shot", "reason"),
    [
        ('shots = ["a"]', "expected shots to be tables, each after [[shots]], found ['a']"),
        ('[[shots]]\ncaption = "It is so."', "expected shot 1 to have an answer among Yes, No, found None"),
        ('[[shots]]\ncaption = "It is so."\nanswer = "yes"', "expected shot 1 to have an answer among Yes, No, found 'yes'"),
        (
            '[[shots]]\nimage = "a.png"\nanswer = "Yes"',
            "the fields of the prompt, with image and answer besides, found none for caption",
        ),
        ('[[shots]]\ncaption = "x"\nimages = "a.png"\nanswer = "Yes"', "with image and answer besides, found images"),
        ('[[shots]]\ncaption = "x"\nimage = "../a.png"\nanswer = "Yes"', "within the folder of images, found '../a.png'"),
    ],
)
def test_few_shot_turns_that_do_not_fit_the_prompt_are_refused(tmp_path: Path, shot: str, reason: str) -> None:
    path = tmp_path / "few.toml"
    path.write_text(f'text = "{{caption}}?"\nanswers = ["Yes", "No"]\n{shot}\n')
    with pytest.raises(InvalidInputError) as caught:
        find_prompt(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert reason in str(caught.value)
