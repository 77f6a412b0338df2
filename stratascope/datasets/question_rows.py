"""Questions in JSON lines or CSV: answered by yes or no, or by the letter of one of their options.

A row holds `image` (a name, or a list of several; or `image_1`, `image_2`, ...), `question` and `answer`; with `options`, a list of
texts, or texts in the fields `A`, `B`, ..., the answer is the letter of the right one ("B" or "(B)") or its text. POPE's published rows,
with `text` and `label` instead, are read as they are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stratascope.datasets.captions import CaptionParts, Interval, without_marks
from stratascope.datasets.example import LETTERS, Example
from stratascope.datasets.image_files import has_images, image_names, numbered_fields
from stratascope.datasets.table import Row, text_field
from stratascope.errors import InvalidInputError

FIELDS = ("image", "question", "options", "answer", "full_question", "relation", "subject", "object", "id", "split")
"""Fields of a row that have a meaning; other plain ones are kept unchanged."""
UNGROUPED = "question"
"""Relation of questions that name none."""

_ANSWERS = {"yes": 1, "no": 0}
_LETTER = re.compile(r"\(?([A-Z])\)?")
_PRESENCE = re.compile(r"Is there an? (?P<subject>.+?) in the (?:image|imange)\?")
"""POPE's question, in which one of the published files has a misspelling."""
_POPE = {"image", "text", "label"}


def are_question_rows(row: Row) -> bool:
    """Whether a row of JSON lines is a question about an image, in this form or in POPE's."""
    fields = row.fields
    return "caption" not in fields and (("question" in fields and has_images(fields)) or fields.keys() >= _POPE)


def question_example(row: Row, default_id: str, default_split: str, choices: Sequence[str] | None) -> Example:
    """The example of a question.

    Parameters
    ----------
    row
        In one of the two forms.
    default_id, default_split
        Of rows that name none.
    choices
        Letters of a prompt that asks for one of several options, or the options themselves; None for one that asks for yes or no.

    Raises
    ------
    InvalidInputError
        If a field is missing or of another kind, or the name of an image leads out of the folder; the question has no options for letters,
        more options than letters, or options for a
        prompt that asks for yes or no; or the answer is none of its options, or ambiguous.
    """
    fields = pope_question(row.fields) if "question" not in row.fields and row.fields.keys() >= _POPE else row.fields
    row = replace(row, fields=dict(fields))
    question, options = _text(row, "question"), _options(row)
    marked: dict[str, Interval] = {}
    if "[/" in question:
        try:
            question, marked, _ = without_marks(question)
        except InvalidInputError as error:
            raise InvalidInputError(f"{row.where}: {error}") from error
        if "relation" in marked:
            raise InvalidInputError(f"{row.where}: expected marks of subject and object in a question, found [relation] in {question!r}")
    _check_choices(row, options, choices)
    name, split, group = text_field(row, "id"), text_field(row, "split"), text_field(row, "relation")
    whole = None if fields.get("full_question") is None else _text(row, "full_question")
    subject, other = (marked.get(name) or _words(row, question, name) for name in ("subject", "object"))
    parts = CaptionParts(subject, None, other)
    try:
        image, *further = image_names(fields)
    except InvalidInputError as error:
        raise InvalidInputError(f"{row.where}: {error}") from error
    unkept = {*FIELDS, *_lettered(row), *numbered_fields(fields)}
    return Example(
        id=default_id if name is None else name,
        image=image,
        further_images=tuple(further),
        caption=question,
        relation=UNGROUPED if group is None else group,
        label=_label(row, options, choices),
        split=default_split if split is None else split,
        parts=parts,
        choices=tuple(choices or ())[: len(options)],  # all of them where they are words
        options=options,
        full_question=whole,
        extra={k: v for k, v in fields.items() if k not in unkept and isinstance(v, str | int | float | bool)},
    )


def pope_question(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a published row of POPE as those of a question.

    >>> pope_question({"question_id": 1, "image": "a.jpg", "text": "Is there a dog in the image?", "label": "no"})
    {'image': 'a.jpg', 'question': 'Is there a dog in the image?', 'answer': 'no', 'subject': 'dog', 'question_id': 1}
    """
    text = fields["text"]
    found = _PRESENCE.fullmatch(text) if isinstance(text, str) else None
    subject = {"subject": found["subject"]} if found else {}
    others = {name: value for name, value in fields.items() if name not in _POPE}
    return {"image": fields["image"], "question": text, "answer": fields["label"], **subject, **others}


def _text(row: Row, name: str) -> str:
    value = row.fields.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidInputError(
            f"{row.where}: expected text in field {name!r}, found {_shown(value)}; a question needs image, question and answer"
        )
    return value


def _lettered(row: Row) -> list[str]:
    """Fields A, B, ... that hold the options."""
    return [] if "options" in row.fields else [letter for letter in LETTERS if letter in row.fields]


def _options(row: Row) -> tuple[str, ...]:
    value, letters = row.fields.get("options"), _lettered(row)
    if value is None and not letters:
        return ()
    if letters != list(LETTERS[: len(letters)]):
        raise InvalidInputError(f"{row.where}: expected options in the fields A, B, ... without a gap, found {', '.join(letters)}")
    value = [row.fields[letter] for letter in letters] if letters else value
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise InvalidInputError(f"{row.where}: expected texts as options, found {_shown(value)}")
    if len(value) < 2:
        raise InvalidInputError(f"{row.where}: expected at least two options, found {_shown(value)}")
    return tuple(value)


def _check_choices(row: Row, options: tuple[str, ...], choices: Sequence[str] | None) -> None:
    if choices is None:
        if options:
            raise InvalidInputError(
                f"{row.where}: expected a question answered by yes or no, found one with {len(options)} options; choose a prompt for "
                "lettered options, such as letters"
            )
        return
    if not _are_letters(choices):
        if sorted(options) == sorted(choices):
            return
        raise InvalidInputError(
            f"{row.where}: expected a question whose options are the prompt's choices {', '.join(choices)}, found "
            + (f"the options {', '.join(options)}" if options else "one without options")
            + f"; choose {'a prompt for lettered options, such as letters' if options else 'pope'}"
        )
    if not options:
        raise InvalidInputError(
            f"{row.where}: expected a question with lettered options, found one without options; choose a prompt for yes or no, such as "
            "pope"
        )
    if len(options) > len(choices):
        raise InvalidInputError(
            f"{row.where}: expected at most {len(choices)} options, the prompt's letters up to {choices[-1]}, found {len(options)}"
        )


def _label(row: Row, options: tuple[str, ...], choices: Sequence[str] | None) -> int:
    """Number of the right answer among the choices, or the truth of yes."""
    if not options:
        return _yes_or_no(row)
    right = _right_option(row, options)
    assert choices is not None, "options come with choices"
    return right if _are_letters(choices) else list(choices).index(options[right])


def _are_letters(choices: Sequence[str]) -> bool:
    return tuple(choices) == LETTERS[: len(choices)]


def _right_option(row: Row, options: tuple[str, ...]) -> int:
    """Index of the right option, by its letter or its text."""
    answer = _text(row, "answer")
    letter, found = _LETTER.fullmatch(answer), {k for k, text in enumerate(options) if text == answer}
    if letter and LETTERS.index(letter[1]) < len(options):
        found.add(LETTERS.index(letter[1]))
    if len(found) != 1:
        raise InvalidInputError(
            f"{row.where}: expected an answer that is the letter or the text of one option of {_shown(list(options))}, found "
            f"{answer!r}, " + ("which is none of them" if not found else "which is several; write a letter in parentheses, such as (A)")
        )
    return found.pop()


def _yes_or_no(row: Row) -> int:
    value = row.fields.get("answer")
    if isinstance(value, bool):
        return int(value)
    found = _ANSWERS.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise InvalidInputError(
            f"{row.where}: expected the answer yes or no, found {_shown(value)}; a question with other answers needs options"
        )
    return found


def _words(row: Row, question: str, name: str) -> Interval | None:
    """Where the words of a field stand in the question."""
    if row.fields.get(name) is None:
        return None
    words = _text(row, name)
    found = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", question, re.IGNORECASE)
    if found is None:
        raise InvalidInputError(f"{row.where}: expected the {name} {words!r} in the question, found {question!r}; leave the field out")
    return found.span()


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False)[:160]


_ABOVE = re.compile(r"\bof the (?:above|others?)\b|\b\(?[A-J]\)?,? (?:and|or|nor|&) \(?[A-J]\b\)?", re.IGNORECASE)
"""Words of an option that refer to other options by their place."""


def shuffled_options(example: Example, seed: int, last: Collection[str] = ()) -> Example:
    """The question with its options in a random order; the label follows.

    The order depends on the seed and the example's id alone: that of the SHA-256 of `SEED/ID/NUMBER`, with the options numbered from 0.

    Parameters
    ----------
    example
        A question with options; another example is returned as it is.
    seed
        Of the order.
    last
        Options that stay behind the others, such as "neither".

    Raises
    ------
    InvalidInputError
        If an option refers to the others by their letters or as those above, and is not among `last`.

    Examples
    --------
    >>> from stratascope.datasets import CaptionParts
    >>> parts, options = CaptionParts(None, None, None), ("left", "right", "neither")
    >>> example = Example("1", "a.png", "Which?", "side", 1, "test", parts, choices=("A", "B", "C"), options=options)
    >>> shown = shuffled_options(example, 1, ("neither",))
    >>> shown.options, shown.option_order, shown.label
    (('right', 'left', 'neither'), 'BAC', 0)
    """
    placed = next((text for text in example.options if text not in last and _ABOVE.search(text)), None)
    if placed is not None:
        raise InvalidInputError(
            f"example {example.id}: expected options that keep their meaning in any order, found {placed!r}; name it as `last` in the "
            "prompt's file, or leave the order as published"
        )

    def rank(number: int) -> tuple[bool, str]:
        if example.options[number] in last:
            return True, f"{number:02d}"
        return False, hashlib.sha256(f"{seed}/{example.id}/{number}".encode()).hexdigest()

    order = sorted(range(len(example.options)), key=rank)
    return replace(
        example,
        options=tuple(example.options[number] for number in order),
        option_order="".join(LETTERS[number] for number in order),
        label=order.index(example.label) if example.lettered and example.label is not None else example.label,
    )
