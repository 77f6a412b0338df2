"""Prompts: templates of the user's turn and answer choices."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from stratascope.datasets.captions import Interval
from stratascope.datasets.example import Example
from stratascope.errors import InvalidInputError

_FIELD = re.compile(r"\{(caption|subject|relation|object)\}")


@dataclass(frozen=True)
class Prompt:
    """Template of the user's turn after the image.

    The fields {caption}, {subject}, {relation} and {object} are filled from the example.
    """

    name: str
    text: str
    choices: tuple[str, ...]
    """Answers whose logits are recorded at the final token; each must be one token."""
    answers: tuple[str, str] | None = None
    """Right choices for a false and a true caption; None if the prompt asks for one of the choices."""

    def __post_init__(self) -> None:
        if not _FIELD.search(self.text):
            raise InvalidInputError(f"expected a field such as {{caption}} in the prompt, found {self.text!r}")
        if len(self.choices) < 2 or len(set(self.choices)) != len(self.choices):
            raise InvalidInputError(f"expected at least two different answer choices, found {self.choices!r}")

    def fill(self, example: Example) -> FilledPrompt:
        """Fill the template for one example, or use the example's published question.

        Raises
        ------
        InvalidInputError
            If the prompt asks for the relation to an object that the example's caption does not have.
        """
        if example.question is not None and self.answers is None:
            asked = example.question
            stated = {"subject": asked.subject, "object": asked.object}
            return FilledPrompt(asked.text, {name: interval for name, interval in stated.items() if interval})
        if "{object}" in self.text and example.parts.object is None:
            raise InvalidInputError(
                f"example {example.id}: expected a caption about two objects for the prompt {self.name}, found {example.caption!r}; choose "
                "four-way-photo, six-way-photo or true-false"
            )
        pieces: list[str] = []
        intervals: dict[str, Interval] = {}
        length = 0
        for fixed, name in self._fields[0]:
            value: str = getattr(example, name)
            start = length + len(fixed)
            intervals[name] = (start, start + len(value))
            if name == "caption":
                said = example.parts
                for part, interval in (("subject", said.subject), ("relation", said.relation), ("object", said.object)):
                    if interval is not None:
                        intervals[part] = (start + interval[0], start + interval[1])
            pieces += (fixed, value)
            length = start + len(value)
        return FilledPrompt("".join([*pieces, self._fields[1]]), intervals)

    @cached_property
    def _fields(self) -> tuple[list[tuple[str, str]], str]:
        """The text before each field with the field's name, and the text after the last one."""
        found, end = [], 0
        for match in _FIELD.finditer(self.text):
            found.append((self.text[end : match.start()], match[1]))
            end = match.end()
        return found, self.text[end:]


@dataclass(frozen=True)
class FilledPrompt:
    """Text of the user's turn, with the character intervals of caption, subject, relation and object."""

    text: str
    intervals: dict[str, Interval]


def _question(name: str, where: str, choices: str) -> Prompt:
    return Prompt(name, f"Where is the {{subject}} {where}? Answer with {choices}.", tuple(choices.replace(" or ", ", ").split(", ")))


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
        _question("four-way", "in relation to the {object}", "left, right, above or below"),
        _question("four-way-on-under", "in relation to the {object}", "left, right, on or under"),
        _question("four-way-front-behind", "in relation to the {object}", "left, right, front or behind"),
        _question("six-way", "in relation to the {object}", "left, right, front, behind, above or below"),
        _question("four-way-photo", "in the photo", "left, right, top or bottom"),
        _question("six-way-photo", "in the photo", "left, right, front, behind, top or bottom"),
    )
}
"""The built-in prompts by name. `true-false` is the default; `where` and those after it do not name the relation. The four-way and
six-way ones are AdaptVis's for the data sets of What's Up: COCO-two, controlled_images, controlled_clevr, VG-two, COCO-one, VG-one."""
