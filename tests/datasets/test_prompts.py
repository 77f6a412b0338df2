from dataclasses import replace
from pathlib import Path

import pytest

from stratascope.datasets import PROMPTS, Example, Prompt, split_caption
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
