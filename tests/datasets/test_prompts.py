import pytest

from stratascope.datasets import PROMPTS, Example, Prompt, split_caption
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
