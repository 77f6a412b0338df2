"""Prompts: templates of the user's turn and answer choices."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from stratascope.datasets.captions import Interval
from stratascope.datasets.example import Example
from stratascope.errors import InvalidInputError

_FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
PARTS = ("caption", "subject", "relation", "object")
"""Fields of every example; other fields are columns of its file."""


@dataclass(frozen=True)
class Prompt:
    """Template of the user's turn after the image.

    The fields {caption}, {subject}, {relation} and {object} are filled from the example, other fields from the column of that name.
    """

    name: str
    text: str
    choices: tuple[str, ...]
    """Answers whose logits are recorded at the final token; each must be one token."""
    answers: tuple[str, str] | None = None
    """Right choices for a false and a true caption; None if the prompt asks for one of the choices."""
    spans: Mapping[str, str] = field(default_factory=dict)
    """Span (`caption`, `subject`, `relation` or `object`) -> the field that is this span."""
    system: str | None = None
    """Text of the system turn, unless the settings have one; None: as the chat template has it."""
    image_after: bool = False
    """Whether the image follows the text in the user's turn."""

    def __post_init__(self) -> None:
        if not _FIELD.search(self.text):
            raise InvalidInputError(f"expected a field such as {{caption}} in the prompt, found {self.text!r}")
        for span, column in self.spans.items():
            if span not in PARTS or column not in self.columns:
                raise InvalidInputError(
                    f"expected spans of the prompt among {', '.join(PARTS)}, each with a field of its text, found {span} = {column!r}"
                )
        if len(self.choices) < 2 or len(set(self.choices)) != len(self.choices):
            raise InvalidInputError(f"expected at least two different answer choices, found {self.choices!r}")

    def fill(self, example: Example) -> FilledPrompt:
        """Fill the template for one example, or use the example's published question.

        Raises
        ------
        InvalidInputError
            If the prompt asks for the relation to an object that the example's caption does not have, or for a column that its row lacks.
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
            value = _value(example, name)
            start = length + len(fixed)
            for span in (name, *(span for span, column in self.spans.items() if column == name)):
                if span in PARTS:
                    intervals[span] = (start, start + len(value))
            if name == "caption":
                said = example.parts
                for part, interval in (("subject", said.subject), ("relation", said.relation), ("object", said.object)):
                    if interval is not None:
                        intervals[part] = (start + interval[0], start + interval[1])
            pieces += (fixed, value)
            length = start + len(value)
        return FilledPrompt("".join([*pieces, self._fields[1]]), intervals)

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the fields, in their order."""
        return tuple(name for _, name in self._fields[0])

    def values(self, example: Example) -> tuple[Any, ...]:
        """What an example has in the columns that the prompt reads besides `PARTS`."""
        return tuple(example.extra.get(name) for name in self.columns if name not in PARTS)

    def provenance(self) -> dict[str, Any]:
        """What a store keeps of the prompt besides name, text and answers; empty for the built-in ones."""
        return {**({"spans": dict(self.spans)} if self.spans else {}), **({"image": "after"} if self.image_after else {})}

    @cached_property
    def _fields(self) -> tuple[list[tuple[str, str]], str]:
        """The text before each field with the field's name, and the text after the last one."""
        found, end = [], 0
        for match in _FIELD.finditer(self.text):
            found.append((self.text[end : match.start()], match[1]))
            end = match.end()
        return found, self.text[end:]


def _value(example: Example, name: str) -> str:
    if name in PARTS:
        return str(getattr(example, name))
    found = example.extra.get(name)
    if found is None or (isinstance(found, float) and found != found):
        raise InvalidInputError(
            f"example {example.id}: expected a column {name!r} for the field {{{name}}} of the prompt, found "
            f"{', '.join((*PARTS, *example.extra))}; name one of these"
        )
    return str(found)


@dataclass(frozen=True)
class FilledPrompt:
    """Text of the user's turn, with the character intervals of caption, subject, relation and object."""

    text: str
    intervals: dict[str, Interval]


OWN = "own"
"""Name of a prompt that is given as text."""
_KEYS = ("name", "text", "answers", "choices", "spans", "system", "image")
_DUPLICATE = "expected the answers of the prompt {}, which has its own, left out, found {}; leave `answers` out"


def find_prompt(prompt: str, answers: Sequence[str] | None = None) -> Prompt:
    """A built-in prompt by name, one from a TOML file, or a text with fields.

    Parameters
    ----------
    prompt
        Name, path that ends in .toml, or text such as "Is it true that {caption} Answer Yes or No.".
    answers
        Answers of a text: the one to a true caption, then that to a false one; more than two are choices without a right one.

    Raises
    ------
    InvalidInputError
        If it is none of these, a file cannot be read or has unknown keys, or answers are missing or given twice.

    Examples
    --------
    >>> find_prompt("Is it true that {caption} Answer Yes or No.", ("Yes", "No")).answers
    ('No', 'Yes')
    """
    given = ", ".join(answers or ())
    if prompt in PROMPTS:
        if answers:
            raise InvalidInputError(_DUPLICATE.format(prompt, given))
        return PROMPTS[prompt]
    if prompt.endswith(".toml"):
        if answers:
            raise InvalidInputError(_DUPLICATE.format(prompt, given))
        return _read_prompt(prompt)
    if not _FIELD.search(prompt):
        raise InvalidInputError(
            f"expected `prompt` to be among {', '.join(PROMPTS)}, a file that ends in .toml, or a text with a field such as {{caption}}, "
            f"found {prompt!r}"
        )
    if not answers:
        raise InvalidInputError(f"expected `answers` for a prompt of one's own, such as Yes,No, found none for {prompt!r}")
    return _with_answers(OWN, prompt, tuple(answers))


def _with_answers(name: str, text: str, answers: tuple[str, ...], **more: Any) -> Prompt:
    return Prompt(name, text, answers, (answers[1], answers[0]) if len(answers) == 2 else None, **more)


def _read_prompt(path: str) -> Prompt:
    try:
        found = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path}: expected a readable prompt in TOML, found: {error}") from error
    unknown = sorted(set(found) - set(_KEYS))
    if unknown:
        raise InvalidInputError(f"{path}: expected the keys {', '.join(_KEYS)}, found {', '.join(unknown)}")
    kinds = {"name": str, "text": str, "answers": list, "choices": list, "spans": dict, "system": str, "image": str}
    for key, value in found.items():
        if not isinstance(value, kinds[key]) or (isinstance(value, list) and not all(isinstance(each, str) for each in value)):
            raise InvalidInputError(f"{path}: expected {key} to be {_KINDS[kinds[key]]}, found {value!r}")
    if "text" not in found or ("answers" in found) == ("choices" in found):
        raise InvalidInputError(f"{path}: expected text and one of answers (to a true and a false caption) and choices, found others")
    if "answers" in found and len(found["answers"]) != 2:
        raise InvalidInputError(f"{path}: expected two answers, to a true and to a false caption, found {found['answers']}; use choices")
    if found.get("image", "before") not in ("before", "after"):
        raise InvalidInputError(f"{path}: expected image to be before or after (the text), found {found['image']!r}")
    more = {
        "spans": found.get("spans", {}),
        "system": found.get("system"),
        "image_after": found.get("image") == "after",
    }
    name = found.get("name", Path(path).stem)
    if name in PROMPTS:
        raise InvalidInputError(f"{path}: expected a name that is not one of the built-in prompts, found {name!r}; set name in the file")
    try:
        if "answers" in found:
            return _with_answers(name, found["text"], tuple(found["answers"]), **more)
        return Prompt(name, found["text"], tuple(found["choices"]), **more)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from error


_KINDS = {str: "a text", list: "a list of texts", dict: "a table"}


def stored_prompt(held: Mapping[str, Any]) -> Prompt | None:
    """The prompt of a store from `prompt` of its provenance, if it is not one of the built-in ones.

    Examples
    --------
    >>> stored_prompt({"name": "yes-no"}) is None
    True
    """
    name, text, choices, answers = (held.get(key) for key in ("name", "text", "choices", "answers"))
    if name in PROMPTS or not isinstance(text, str) or not choices:
        return None
    pair = (str(answers[0]), str(answers[1])) if isinstance(answers, list) and len(choices) == len(answers) == 2 else None
    return Prompt(str(name), text, tuple(choices), pair, held.get("spans") or {}, None, held.get("image") == "after")


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
