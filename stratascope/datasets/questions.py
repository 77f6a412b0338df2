"""What's Up, COCO-spatial and GQA-spatial (Kamath et al. 2023) and the questions asked of them by AdaptVis (Chen et al. 2025).

A data set is a JSON list, in one of two forms: `{"image_path": ..., "caption_options": [right, wrong, ...]}` (controlled_images,
controlled_clevr) or `[image id, right, wrong]` (coco_qa_one_obj, coco_qa_two_obj, vg_qa_one_obj, vg_qa_two_obj); the first caption is
always the right one. A file of questions is JSON lines `{"id": row of the data set, "question": ..., "answer": ["Left"]}`; it names no
images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from stratascope.datasets.captions import CaptionParts, split_caption
from stratascope.datasets.example import Example, Question
from stratascope.datasets.image_files import has_images
from stratascope.datasets.table import Row, plain_text
from stratascope.errors import InvalidInputError

RELATIONS: dict[str, tuple[str, ...]] = {
    "to the right of": ("right",),
    "to the left of": ("left",),
    "in front of": ("front",),
    "in-front of": ("front",),
    "on top of": ("above", "top", "on"),
    "underneath": ("under", "below", "bottom"),
    "right of": ("right",),
    "left of": ("left",),
    "beneath": ("under", "below", "bottom"),
    "behind": ("behind",),
    "above": ("above", "top"),
    "below": ("below", "bottom", "under"),
    "under": ("under", "below", "bottom"),
    "on": ("on", "above", "top"),
}
"""Relation between two objects -> answers that mean it, the usual one first; longer relations come first."""

PLACES: dict[str, tuple[str, ...]] = {
    "left": ("left",),
    "right": ("right",),
    "top": ("top", "above"),
    "bottom": ("bottom", "below"),
    "front": ("front",),
    "back": ("behind",),
}
"""Place of a single object -> answers that mean it."""

_ONE_THING = re.compile(rf"\s+((?:on|at|in|to|toward|towards) the ({'|'.join(PLACES)})(?: side)?)[\s.]*$", re.IGNORECASE)
_OPENING = re.compile(r"\s*(?:an?|the)\s+(?:photo|picture|image)\s+of\s+(?:(?:an?|the|some)\s+)?|\s*(?:an?|the|some)\s+", re.IGNORECASE)
_ASKED = re.compile(
    r"where\s+(?:is|are)\s+(?:the\s+|an?\s+)?(?P<subject>.+?)\s+(?:in\s+relation\s+to\s+(?:the\s+|an?\s+)?(?P<object>.+?)|in\s+the\s+\w+)\s*\?",
    re.IGNORECASE,
)
_TURNS = re.compile(r"<image>|\b(?:USER|ASSISTANT):")
_SHOWN = 5


def parse_caption(caption: str) -> tuple[CaptionParts, str, tuple[str, ...]]:
    """Parse a caption of these data sets: subject, relation, object, and the answers that mean the relation.

    Raises
    ------
    InvalidInputError
        The caption names neither one of `RELATIONS` between two objects nor one of `PLACES`.
    """
    opening = _OPENING.match(caption)
    start = opening.end() if opening else 0
    alone = _ONE_THING.search(caption, start)
    if alone and alone.start() > start:
        return CaptionParts((start, alone.start()), alone.span(1), None), alone[1].lower(), PLACES[alone[2].lower()]
    for relation, answers in RELATIONS.items():
        try:
            parts = split_caption(caption, relation)
        except InvalidInputError:
            continue
        assert parts.subject is not None
        if start < parts.subject[1]:
            return replace(parts, subject=(start, parts.subject[1])), relation, answers
    raise InvalidInputError(
        f"expected a caption such as 'A mug to the left of a table' or 'A photo of a mug on the left', found {caption!r}"
    )


def load_captions(path: Path, text: str, choices: Sequence[str] | None) -> list[Example]:
    """Parse the rows of a data set into examples.

    With `choices` (multiple-choice prompt) each row becomes one example, with the right caption and the index of the right choice;
    otherwise each caption becomes one example: the first is true, the others are false.

    Raises
    ------
    InvalidInputError
        A row is invalid; the message names row and reason.
    """
    try:
        rows = plain_text(json.loads(text), text)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path}: expected JSON lines, or a JSON list of images and captions, found: {error}") from error
    if rows and isinstance(rows[0], dict) and {"image", "caption", "label"} <= set(rows[0]):
        raise InvalidInputError(
            f"{path}: expected examples one JSON object a line, found a list of them; write each row on a line of its own"
        )
    if not rows:
        raise InvalidInputError(f"{path}: expected a JSON list of images and captions, found an empty one")
    _check_file_names(path, rows)
    return [example for k, row in enumerate(rows) for example in _examples(path, k, row, choices)]


def _check_file_names(path: Path, rows: Sequence[Any]) -> None:
    """Refuse rows with different images of the same file name, because only the file name is kept."""
    first: dict[str, tuple[str, int]] = {}
    for k, row in enumerate(rows):
        image = row.get("image_path") if isinstance(row, dict) else None
        if isinstance(image, str):
            other, number = first.setdefault(PurePosixPath(image).name, (image, k))
            if PurePosixPath(other) != PurePosixPath(image):
                raise InvalidInputError(
                    f"{path}, row {k}: expected another file name than that of row {number}, because images are found by file name alone, "
                    f"found {image} and {other}; rename one of the two files"
                )


def _examples(path: Path, number: int, row: Any, choices: Sequence[str] | None) -> Iterator[Example]:
    where = f"{path}, row {number}"
    image, captions = _image_and_captions(where, path.stem.lower(), row)
    for rank, caption in enumerate(captions[:1] if choices else captions):
        try:
            parts, relation, answers = parse_caption(caption)
        except InvalidInputError as error:
            raise InvalidInputError(f"{where}: {error}") from error
        example = Example(
            id=f"{path.stem}-{number:06d}" if choices else f"{path.stem}-{number:06d}-{rank}",
            image=image,
            caption=caption,
            relation=relation,
            label=int(rank == 0),
            split=path.stem,
            parts=parts,
        )
        if choices:
            found = next((answer for answer in answers if answer in choices), None)
            if found is None:
                raise InvalidInputError(
                    f"{where}: expected a caption that means one of the prompt's choices {', '.join(choices)}, found {caption!r}; choose "
                    "another prompt"
                )
            example = replace(example, label=list(choices).index(found), choices=tuple(choices))
        yield example


def _image_and_captions(where: str, stem: str, row: Any) -> tuple[str, list[str]]:
    if isinstance(row, dict):
        path, captions = row.get("image_path"), row.get("caption_options")
        image = PurePosixPath(path).name if isinstance(path, str) else None
    elif isinstance(row, list) and len(row) > 1:
        number, captions = row[0], row[1:]
        plain = isinstance(number, int | str) and not isinstance(number, bool) and re.fullmatch(r"\w+", str(number), re.ASCII)
        if "coco" not in stem and "vg" not in stem:
            raise InvalidInputError(
                f"{where}: expected the file's published name, which begins with coco_ or vg_ and says how images are named, found {stem!r}"
            )
        image = (f"{str(number).zfill(12)}.jpg" if "coco" in stem else f"{number}.jpg") if plain else None
    else:
        image, captions = None, None
    if not image or not isinstance(captions, list) or len(captions) < 2 or not all(isinstance(c, str) and c.strip() for c in captions):
        raise InvalidInputError(
            f'{where}: expected {{"image_path": ..., "caption_options": [right, wrong, ...]}} or [image id, right, wrong], found '
            f"{json.dumps(row)[:160]}"
        )
    if len({" ".join(caption.lower().split()) for caption in captions}) < len(captions):
        raise InvalidInputError(f"{where}: expected different captions, found one twice: {captions}")
    return image, captions


def are_questions(row: Row) -> bool:
    """Whether a row of JSON lines is a question without an image."""
    return "question" in row.fields and not has_images(row.fields)


def add_questions(path: Path, rows: Sequence[Row], examples: Sequence[Example], choices: Sequence[str] | None) -> list[Example]:
    """Add the published questions of a file to the examples of a data set.

    Raises
    ------
    InvalidInputError
        If there is no data set before it, the prompt does not ask for one of several choices, a question is not of the known form, the
        numbers do not fit the data set, or answers disagree with its right captions.
    """
    if not choices:
        raise InvalidInputError(f"{path}: expected a prompt that asks for one of several choices, such as four-way, for these questions")
    if not examples or not examples[0].choices or examples[0].question is not None:
        raise InvalidInputError(
            f"{path}: expected the data set (such as controlled_images_dataset.json) right before these questions, which name no images"
        )
    asked: dict[int, Question] = {}
    wrong: list[str] = []
    for row in rows:
        number, question, answer = _question(row)
        if number in asked or not 0 <= number < len(examples):
            raise InvalidInputError(f"{row.where}: expected each of the data set's rows 0 to {len(examples) - 1} once, found id {number}")
        asked[number] = question
        meanings = {*RELATIONS.values(), *PLACES.values()}
        label = examples[number].label
        assert label is not None, "questions are labelled"
        right = choices[label]
        if answer != right and not any(answer in words and right in words for words in meanings):
            wrong.append(f"id {number} ({answer} instead of {right})")
    if wrong or len(asked) < len(examples):
        found = f"{len(wrong)} that do not: {', '.join(wrong[:_SHOWN])}" if wrong else f"{len(asked)} questions"
        raise InvalidInputError(
            f"{path}: expected {len(examples)} questions whose answers agree with the data set's right captions, found {found}; leave this "
            "file out, and the prompt's template asks the same"
        )
    return [replace(example, question=asked[k]) for k, example in enumerate(examples)]


def _question(row: Row) -> tuple[int, Question, str]:
    """Number, question and answer (lower case) of one row."""
    try:
        number, text, answer = (row.fields[name] for name in ("id", "question", "answer"))
        answer = answer[0] if isinstance(answer, list) else answer
        if type(number) is not int or not isinstance(text, str) or not isinstance(answer, str):
            raise TypeError("fields of another kind")
    except (KeyError, IndexError, TypeError) as error:
        raise InvalidInputError(
            f'{row.where}: expected {{"id": 0, "question": "...", "answer": ["Left"]}}, found: {type(error).__name__} {error}'
        ) from error
    text = " ".join(_TURNS.sub(" ", text).split())
    found = _ASKED.match(text)
    if found is None:
        raise InvalidInputError(
            f"{row.where}: expected 'Where is the S in relation to the O? ...' or 'Where is the S in the photo? ...', found {text!r}"
        )
    return number, Question(text, found.span("subject"), found.span("object") if found["object"] else None), answer.strip().lower()
