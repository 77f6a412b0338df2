"""Prompts: templates of the user's turn and answer choices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

from stratascope.datasets.captions import Interval, without_marks
from stratascope.datasets.example import LETTERS, Example
from stratascope.datasets.image_files import NUMBERED
from stratascope.errors import InvalidInputError

FIELD = re.compile(r"\{([A-Za-z_]\w*)\}")
"""A field of a template."""
PARTS = ("caption", "subject", "relation", "object")
"""Fields of every example; other fields are those of questions, or columns of the example's file."""
_OF_QUESTIONS = ("question", "full_question", "options", "letters")
_ASKED = ("question", "full_question")
"""Fields that a question fills, and no caption."""
MOST_OPTIONS = 10
"""Most lettered options of a question."""


@dataclass(frozen=True)
class Shot:
    """A turn of the user with the right answer, which the model sees before an example.

    >>> Shot(("a.png",), "True or false: The cat is on the car. Answer True or False.", "True").answer
    'True'
    """

    images: tuple[str, ...]
    """File names within the folder of images."""
    text: str
    """The user's text."""
    answer: str


@dataclass(frozen=True)
class Prompt:
    """Template of the user's turn after the image.

    The fields {caption}, {subject}, {relation} and {object} are filled from the example's caption, other fields from the column of that
    name. A template for questions has {question} or, for those published together with their options, {full_question}; {options} are the
    options, one a line, and {letters} their letters: "A, B, C". [subject]...[/subject] around a part of the text, or in a column, makes it
    the span `subject`; so do [relation] and [object].
    """

    name: str
    text: str
    choices: tuple[str, ...]
    """Answers whose logits are recorded at the final token, or whose log-probabilities if some have several tokens. Letters A, B, ... for
    questions with options."""
    answers: tuple[str, str] | None = None
    """Right choices for a false and a true caption; None if the prompt asks for one of the choices."""
    spans: Mapping[str, str] = field(default_factory=dict)
    """Span (`caption`, `subject`, `relation` or `object`) -> the field that is this span."""
    system: str | None = None
    """Text of the system turn, unless the settings have one; None: as the chat template has it."""
    image_after: bool = False
    """Whether the image follows the text in the user's turn."""
    option: str = "{letter}. {text}"
    """Form of one of the options."""
    separator: str = "\n"
    """Text between two options."""
    own_options: bool = False
    """Whether the answers are each question's own options in words; `choices` are then the letters that name them."""
    last: tuple[str, ...] = ()
    """Options that stay behind the others when the order is shuffled, such as "neither"."""
    most_letters: int = MOST_OPTIONS
    """{letters} names at most this many."""
    shots: tuple[Shot, ...] = ()
    """Few-shot turns before every example, in their order."""

    def __post_init__(self) -> None:
        if not FIELD.search(self.text):
            raise InvalidInputError(f"expected a field such as {{caption}} in the prompt, found {self.text!r}")
        for span, column in self.spans.items():
            if span not in PARTS or column not in self.columns:
                raise InvalidInputError(
                    f"expected spans of the prompt among {', '.join(PARTS)}, each with a field of its text, found {span} = {column!r}"
                )
        if len(self.choices) < 2 or len(set(self.choices)) != len(self.choices):
            raise InvalidInputError(f"expected at least two different answer choices, found {self.choices!r}")

    @cached_property
    def asks_question(self) -> bool:
        """Whether the template shows a question instead of parts of a caption."""
        return any(f"{{{name}}}" in self.text for name in _ASKED)

    def for_examples(self, examples: Iterable[Example]) -> Prompt:
        """The prompt with no more letters than the examples have options.

        >>> from stratascope.datasets import CaptionParts, Example
        >>> example = Example("1", "a.png", "Which?", "depth", 0, "test", CaptionParts(None, None, None), options=("left", "right"))
        >>> PROMPTS["letters"].for_examples([example]).choices
        ('A', 'B')
        """
        most = max((len(example.options) for example in examples), default=0)
        return replace(self, choices=self.choices[:most]) if most and self.lettered else self

    @property
    def lettered(self) -> bool:
        """Whether the answers are the letters of options."""
        return self.choices == LETTERS[: len(self.choices)]

    def fill(self, example: Example) -> FilledPrompt:
        """Fill the template for one example, or use the example's published question.

        Raises
        ------
        InvalidInputError
            If the prompt asks for the relation to an object that the example's caption does not have; a question is given to a prompt for
            captions, or a caption to one for questions; the template shows options that the question does not have, or a column that
            the example's row lacks.
        """
        if example.is_question or (self.asks_question and not any(name in example.extra for name in _ASKED)):
            self._check_question(example)
        elif example.question is not None and self.answers is None:
            asked = example.question
            stated = {"subject": asked.subject, "object": asked.object}
            return FilledPrompt(asked.text, {name: interval for name, interval in stated.items() if interval})
        elif self._named_parts and (lacking := [part for part in self._named_parts if getattr(example.parts, part) is None]):
            raise InvalidInputError(
                f"example {example.id}: expected a caption with {' and '.join(lacking)} for the prompt {self.name}, found "
                f"{example.caption!r}; choose " + ("four-way-photo, six-way-photo or true-false" if lacking == ["object"] else "true-false")
            )
        pieces: list[str] = []
        intervals: dict[str, Interval] = {}
        length = 0
        for fixed, name in self._fields[0]:
            value = self._value(example, name)
            start = length + len(fixed)
            intervals |= _intervals(example, name, value, start)
            for span in self._spans_of.get(name, ()):
                intervals[span] = (start, start + len(value))
            pieces += (fixed, value)
            length = start + len(value)
        text = "".join([*pieces, self._fields[1]])
        return _unmarked(example, text, intervals) if "[/" in text else FilledPrompt(text, intervals)

    def _check_question(self, example: Example) -> None:
        """Refuse an example that does not have what the template shows."""
        if not self.asks_question:
            raise InvalidInputError(
                f"example {example.id}: expected a caption for the prompt {self.name}, found the question {example.caption!r}; choose "
                f"{_named(prompt for prompt in PROMPTS.values() if prompt.asks_question)}"
            )
        if not example.is_question:
            raise InvalidInputError(
                f"example {example.id}: expected a question for the prompt {self.name}, found the caption {example.caption!r}; choose "
                f"{_named(prompt for prompt in PROMPTS.values() if not prompt.asks_question)}"
            )
        if bool(example.options) == bool(self.answers):
            wanted = f"without options for the prompt {self.name}" if self.answers else f"with options for the prompt {self.name}"
            fitting = (prompt for prompt in PROMPTS.values() if prompt.asks_question and bool(prompt.answers) != bool(self.answers))
            raise InvalidInputError(
                f"example {example.id}: expected a question {wanted}, found {len(example.options)} options; choose {_named(fitting)}"
            )
        if "{full_question}" in self.text and example.full_question is None:
            raise InvalidInputError(
                f"example {example.id}: expected the field full_question for the prompt {self.name}, found none; choose letters, which "
                "shows the question and its options"
            )

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the fields, in their order."""
        return tuple(name for _, name in self._fields[0])

    def values(self, example: Example) -> tuple[Any, ...]:
        """What an example has in the columns that the prompt reads besides `PARTS`."""
        return tuple(map(example.extra.get, self._own_columns)) if self._own_columns else ()

    @cached_property
    def _named_parts(self) -> tuple[str, ...]:
        """Those of subject and object that are fields."""
        return tuple(part for part in ("subject", "object") if part in self.columns)

    @cached_property
    def _own_columns(self) -> tuple[str, ...]:
        return tuple(name for name in self.columns if name not in PARTS)

    @cached_property
    def _spans_of(self) -> Mapping[str, list[str]]:
        """Field -> the spans that it is, besides its own."""
        return {column: [span for span, one in self.spans.items() if one == column] for column in self.spans.values()}

    def provenance(self) -> dict[str, Any]:
        """What a store keeps of the prompt besides name, text and answers; empty for the built-in ones."""
        shown = {} if self.name in PROMPTS else {key: getattr(self, key) for key in OPTION_KEYS if getattr(self, key) != _DEFAULTS[key]}
        return {
            **({"spans": dict(self.spans)} if self.spans else {}),
            **({"image": "after"} if self.image_after else {}),
            **({"shots": [{**asdict(shot), "images": list(shot.images)} for shot in self.shots]} if self.shots else {}),
            **{key: list(value) if isinstance(value, tuple) else value for key, value in shown.items()},
        }

    def shown_options(self, options: Iterable[str]) -> str:
        """Options as {options} shows them."""
        pairs = zip(LETTERS, options, strict=False)
        return self.separator.join(self.option.replace("{letter}", letter).replace("{text}", text) for letter, text in pairs)

    def _value(self, example: Example, name: str) -> str:
        if name not in PARTS and not (example.is_question and name in _OF_QUESTIONS):
            return _column(example, name)
        if name == "question":
            return example.caption
        if name == "options":
            return self.shown_options(example.options)
        if name == "letters":
            return ", ".join(LETTERS[: min(len(example.options), self.most_letters)])
        return str(getattr(example, name))

    @cached_property
    def _fields(self) -> tuple[list[tuple[str, str]], str]:
        """The text before each field with the field's name, and the text after the last one."""
        found, end = [], 0
        for match in FIELD.finditer(self.text):
            found.append((self.text[end : match.start()], match[1]))
            end = match.end()
        return found, self.text[end:]


OPTION_KEYS = ("option", "separator", "last", "own_options")
"""How a prompt shows options."""
_DEFAULTS = {each.name: each.default for each in fields(Prompt)}


@dataclass(frozen=True)
class FilledPrompt:
    """Text of the user's turn, with the character intervals of caption (or question), subject, relation and object."""

    text: str
    intervals: dict[str, Interval]


def _column(example: Example, name: str) -> str:
    """Text of a column for a field of that name."""
    found = example.extra.get(name)
    if found is None and (name == "image" or name in NUMBERED):
        raise InvalidInputError(
            f"example {example.id}: expected a prompt without a place for the image, as all images stand before or after the text, found "
            f'the field {{{name}}}; leave it out, or set image = "after" in a file'
        )
    if found is None or (isinstance(found, float) and found != found):
        raise InvalidInputError(
            f"example {example.id}: expected a column {name!r} for the field {{{name}}} of the prompt, found "
            f"{', '.join((*PARTS, *example.extra))}; name one of these"
        )
    return str(found)


def _intervals(example: Example, name: str, value: str, start: int) -> dict[str, Interval]:
    """Intervals of a field whose value begins at `start`, and of the parts of the caption or question in it."""
    if name not in (*PARTS, *_ASKED) or (name in _ASKED and not example.is_question):
        return {}
    if name in ("subject", "relation", "object"):
        return {name: (start, start + len(value))}
    where = value.find(example.caption)
    if where < 0:  # a published question that is worded otherwise together with its options
        return {"caption": (start, start + len(value))}
    start += where
    said = example.parts
    parts = {"subject": said.subject, "relation": said.relation, "object": said.object}
    found = {part: (start + interval[0], start + interval[1]) for part, interval in parts.items() if interval is not None}
    return {"caption": (start, start + len(example.caption)), **found}


def _unmarked(example: Example, text: str, intervals: Mapping[str, Interval]) -> FilledPrompt:
    """The prompt without marks such as [subject]; what they mark goes before a part of the caption with this name."""
    try:
        plain, marked, marks = without_marks(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"example {example.id}: {error}") from error

    def moved(place: int) -> int:
        return place - sum(min(b, place) - a for a, b in marks if a < place)

    shown = {name: (moved(a), moved(b)) for name, (a, b) in intervals.items()}
    return FilledPrompt(plain, {**shown, **marked})


def _named(prompts: Iterable[Prompt]) -> str:
    *names, last = (prompt.name for prompt in prompts)
    return f"{', '.join(names)} or {last}" if names else last


def _question(name: str, where: str, choices: str) -> Prompt:
    return Prompt(name, f"Where is the {{subject}} {where}? Answer with {choices}.", tuple(choices.replace(" or ", ", ").split(", ")))


_OPTIONS = LETTERS[:MOST_OPTIONS]
_NOTE = "Note: You only need to respond with {letters} without providing any additional information.\n"

PROMPTS: dict[str, Prompt] = {
    prompt.name: prompt
    for prompt in (
        Prompt("true-false", "True or false: {caption} Answer True or False.", ("True", "False"), ("False", "True")),
        Prompt("yes-no", "Does this caption describe the image? {caption} Answer Yes or No.", ("Yes", "No"), ("No", "Yes")),
        Prompt(
            "adaptvis-yes-no",
            "Determine whether the description about the spatial relationship is correct or not. Answer with yes or no: {caption}",
            ("Yes", "No"),
            ("No", "Yes"),
        ),
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
        Prompt("pope", "{question}\nAnswer the question using a single word or phrase.", ("Yes", "No"), ("No", "Yes")),
        Prompt("letters", "{question}\n{options}\nAnswer with the option's letter from the given choices directly.", _OPTIONS),
        Prompt(
            "vlmevalkit",
            "Question: {question}\nOptions:\n{options}\nPlease select the correct answer from the options above. \n",
            _OPTIONS,
        ),
        Prompt("embspatial", _NOTE + "{question}\n{options}", _OPTIONS, option="{letter}) {text}"),
        Prompt("blink", _NOTE + "{full_question}", _OPTIONS, most_letters=5),
        Prompt("spatialeval", "{full_question}\nAnswer:", _OPTIONS),
        Prompt("cv-bench", _NOTE + "\n{full_question}", _OPTIONS, most_letters=5),
    )
}
"""The built-in prompts by name. `true-false` is the default; `adaptvis-yes-no` is AdaptVis's for VSR; `where` and those after it do not
name the relation. The four-way and six-way ones are AdaptVis's for the data sets of What's Up: COCO-two, controlled_images,
controlled_clevr, VG-two, COCO-one, VG-one. Those from `pope` on show questions instead of captions: `pope` those answered by yes or no, the
others those with lettered options; `pope`, `embspatial`, `blink` and `cv-bench` have lmms-eval's wording, `vlmevalkit` has
VLMEvalKit's, `spatialeval` that of SpatialEval's program with `--completion`."""
