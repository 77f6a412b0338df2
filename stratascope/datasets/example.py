"""One example of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from stratascope.datasets.boxes import Box
from stratascope.datasets.captions import CaptionParts, Interval

LETTERS = tuple(ascii_uppercase)
"""Letters of options, in their order."""


@dataclass(frozen=True)
class Question:
    """A published question and the character intervals of its parts."""

    text: str
    subject: Interval
    object: Interval | None
    """None for a question about one object."""


@dataclass(frozen=True)
class Example:
    """One image or several, one caption, one relation, one label."""

    id: str
    """Unique; the row's own `id`, as text, or file stem and line number."""
    image: str
    """File name within the folder of images."""
    caption: str
    """Caption or, where `parts` has no relation, a question."""
    relation: str
    """Relation that the caption states; of a question, the group by which answers are reported."""
    label: int | None
    """1 for a true and 0 for a false caption; with `choices`, the number of the right one; None where the file has no labels."""
    split: str
    """The row's own `split`, or the stem of its file."""
    parts: CaptionParts
    """Character intervals of subject, relation and object within the caption."""
    subject_box: Box | None = None
    object_box: Box | None = None
    """Gold box (x0, y0, x1, y1) in the image file's pixels, where it is known and unambiguous."""
    subject_instances: int | None = None
    object_instances: int | None = None
    """Number of boxes with that name in the image; None if no boxes were given or they do not list the image."""
    choices: tuple[str, ...] = ()
    """Answer choices that the label indexes; empty if the label is the caption's truth."""
    question: Question | None = None
    """The published wording, for prompts that ask for one of several choices; None: the prompt's template is filled."""
    options: tuple[str, ...] = ()
    """Texts of the options of a question, in the order in which they are shown."""
    option_order: str = ""
    """Published letter of each option as it is shown, such as "CAB"; empty for options in their published order."""
    full_question: str | None = None
    """The question as published together with its options, for prompts that show it word for word."""
    further_images: tuple[str, ...] = ()
    """Images after the first one, in the order in which the model sees them."""
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The row's other plain fields."""

    @property
    def images(self) -> tuple[str, ...]:
        """All images, in the order in which the model sees them."""
        return (self.image, *self.further_images)

    @property
    def is_question(self) -> bool:
        """Whether `caption` is a question, not a caption."""
        return self.parts.relation is None

    @property
    def lettered(self) -> bool:
        """Whether the label is the number of one of the options, not of a word that the prompt asks for."""
        return bool(self.options) and self.choices == LETTERS[: len(self.options)]

    @property
    def right_option(self) -> str | None:
        """Text of the right option; None without options or label."""
        if not self.options or self.label is None:
            return None
        return self.options[self.label] if self.lettered else self.choices[self.label]

    @property
    def subject(self) -> str:
        """Subject of the caption, in the caption's words; empty for a question whose subject is not known."""
        return self.caption[slice(*self.parts.subject)] if self.parts.subject else ""

    @property
    def object(self) -> str:
        """Object of the caption, in the caption's words; empty for a caption about one object."""
        return self.caption[slice(*self.parts.object)] if self.parts.object else ""
