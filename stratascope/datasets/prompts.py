"""Prompts as data: the user's text around the caption, and the words that count as answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stratascope.datasets.captions import Interval
from stratascope.datasets.examples import Example
from stratascope.errors import InvalidInputError

_FIELD = re.compile(r"\{(caption|subject|relation|object)\}")


@dataclass(frozen=True)
class Prompt:
    """A template of the user's turn, after the image.

    The fields {caption}, {subject}, {relation} and {object} are filled from the example.
    """

    name: str
    text: str
    choices: tuple[str, ...]
    """Answers whose logits are recorded at the final token; each must be one token."""
    answers: tuple[str, str] | None = None
    """Which choice is right for a false and for a true caption, where the prompt asks that."""

    def __post_init__(self) -> None:
        if not _FIELD.search(self.text):
            raise InvalidInputError(f"expected a field such as {{caption}} in the prompt, found {self.text!r}")
        if len(self.choices) < 2 or len(set(self.choices)) != len(self.choices):
            raise InvalidInputError(f"expected at least two different answer choices, found {self.choices!r}")

    def fill(self, example: Example) -> FilledPrompt:
        """The text for one example, and where its parts stand in it."""
        pieces: list[str] = []
        intervals: dict[str, Interval] = {}
        length, end = 0, 0
        values = {"caption": example.caption, "subject": example.subject, "relation": example.relation, "object": example.object}
        for match in _FIELD.finditer(self.text):
            fixed, value = self.text[end : match.start()], values[match[1]]
            start = length + len(fixed)
            intervals[match[1]] = (start, start + len(value))
            if match[1] == "caption":
                for part in ("subject", "relation", "object"):
                    a, b = getattr(example.parts, part)
                    intervals[part] = (start + a, start + b)
            pieces += [fixed, value]
            length, end = start + len(value), match.end()
        return FilledPrompt("".join([*pieces, self.text[end:]]), intervals)


@dataclass(frozen=True)
class FilledPrompt:
    """Text of one example's user turn and the character intervals of caption, subject, relation and object in it."""

    text: str
    intervals: dict[str, Interval]


PROMPTS: dict[str, Prompt] = {
    prompt.name: prompt
    for prompt in (
        Prompt("true-false", "True or false: {caption} Answer True or False.", ("True", "False"), ("False", "True")),
        Prompt("yes-no", "Does this caption describe the image? {caption} Answer Yes or No.", ("Yes", "No"), ("No", "Yes")),
        Prompt(
            "where",
            "Where is the {subject} in relation to the {object}?",
            ("left", "right", "above", "below", "inside"),
        ),
        Prompt(
            "four-way",
            "Where is the {subject} in relation to the {object}? Answer with left, right, above or below.",
            ("left", "right", "above", "below"),
        ),
        Prompt(
            "four-way-on-under",
            "Where is the {subject} in relation to the {object}? Answer with left, right, on or under.",
            ("left", "right", "on", "under"),
        ),
    )
}
"""The built-in prompts by name. `true-false` is the default; `where` and the four-way ones (WhatsUp's and COCO-two's choices) do
not name the relation."""
