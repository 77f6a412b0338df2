"""Character intervals of subject, relation and object in a VSR caption."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from stratascope.errors import InvalidInputError

Interval = tuple[int, int]
"""Half-open interval of character indices."""

_ARTICLE = re.compile(r"\s*(?:(?:the|a|an|another|some)\s+)?", re.IGNORECASE)
_COPULA = re.compile(r"\s+(?:is|are|was|were|has|have)(?:\s+not)?\s*$", re.IGNORECASE)
_END = re.compile(r"[\s.!?]*$")


@dataclass(frozen=True)
class CaptionParts:
    """Character intervals of subject, relation and object in a caption, or of subject and object in a question."""

    subject: Interval | None
    """None for a question whose subject is not known."""
    relation: Interval | None
    """None for a question: it states no relation."""
    object: Interval | None
    """None for a caption or question about one object."""


_MARK = re.compile(r"\[(/?)(subject|relation|object)\]")


def without_marks(text: str) -> tuple[str, dict[str, Interval], list[Interval]]:
    """A text without the marks `[subject]...[/subject]`, `[relation]...[/relation]` and `[object]...[/object]`, and what they mark.

    Returns
    -------
    tuple
        The plain text; part -> interval in it; intervals of the marks in the given text.

    Raises
    ------
    InvalidInputError
        If a mark is not closed, is closed before it is opened, occurs twice, is inside another, or marks nothing.

    Examples
    --------
    >>> without_marks("Is the [object]cup[/object] red?")[:2]
    ('Is the cup red?', {'object': (7, 10)})
    """
    opened: dict[str, int] = {}
    found: dict[str, Interval] = {}
    marks: list[Interval] = []
    pieces, end, length = [], 0, 0
    for match in _MARK.finditer(text):
        pieces.append(text[end : match.start()])
        length, end = length + match.start() - end, match.end()
        marks.append(match.span())
        closes, part = match.groups()
        if not closes and part not in opened and len(opened) == len(found):
            opened[part] = length
        elif closes and part not in found and opened.get(part, length) < length:
            found[part] = (opened[part], length)
        else:
            break
    if set(opened) != set(found) or len(marks) != 2 * len(found):
        raise InvalidInputError(
            f"expected each of the marks [subject], [relation] and [object] at most once, closed behind some text as in "
            f"[subject]cup[/subject], found {text!r}"
        )
    return "".join([*pieces, text[end:]]), found, marks


def marked_caption(caption: str, relation: str) -> tuple[str, CaptionParts]:
    """A caption without its marks, and the parts that are marked; the relation may also be found by its words.

    Raises
    ------
    InvalidInputError
        If the marks are wrong, or the relation is neither marked nor in the caption.
    """
    plain, marked, _ = without_marks(caption)
    if not marked:
        return plain, split_caption(plain, relation)
    if "relation" in marked:
        return plain, CaptionParts(marked.get("subject"), marked["relation"], marked.get("object"))
    found = _whole_words(relation).search(plain) if relation.strip() else None
    if found is None:
        raise InvalidInputError(f"expected the relation {relation!r} in the caption, or marked in it, found {caption!r}")
    return plain, CaptionParts(marked.get("subject"), found.span(), marked.get("object"))


def written_caption(caption: str, relation: str, parts: CaptionParts) -> str:
    """A caption as a row holds it: with marks, unless `split_caption` finds the same parts.

    Examples
    --------
    >>> written_caption("Under it is a cup.", "under", CaptionParts((14, 17), (0, 5), None))
    '[relation]Under[/relation] it is a [subject]cup[/subject].'
    """
    try:
        if split_caption(caption, relation) == parts:
            return caption
    except InvalidInputError:
        pass
    for part, (a, b) in sorted(((part, span) for part, span in vars(parts).items() if span), key=lambda named: -named[1][0]):
        caption = f"{caption[:a]}[{part}]{caption[a:b]}[/{part}]{caption[b:]}"
    return caption


def split_caption(caption: str, relation: str) -> CaptionParts:
    """Split a caption into subject, relation and object.

    The relation must occur as whole words with a subject before and an object after it. Where it occurs more than once
    ("The person is on top of the dog on the bed."), the first place that leaves both is taken.

    Raises
    ------
    InvalidInputError
        If the relation does not occur so, or no subject or object is left.
    """
    if not relation.strip():
        raise InvalidInputError(f"expected a relation that occurs in the caption, found an empty one for {caption!r}")
    for match in _whole_words(relation).finditer(caption):
        before, after = caption[: match.start()].rstrip(), caption[match.end() :]
        copula = _COPULA.search(before)
        subject_end = copula.start() if copula else len(before)
        subject_start = _matched_end(_ARTICLE, before)
        object_start = match.end() + _matched_end(_ARTICLE, after)
        object_end = match.end() + _END.search(after).start()  # type: ignore[union-attr]
        if subject_start < subject_end and object_start < object_end:
            return CaptionParts((subject_start, subject_end), match.span(), (object_start, object_end))
    raise InvalidInputError(
        f"expected the caption to read 'SUBJECT {relation} OBJECT', found {caption!r}; correct the row's caption or relation"
    )


@lru_cache(maxsize=1024)
def _whole_words(relation: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(relation.strip())}(?!\w)", re.IGNORECASE)


def _matched_end(pattern: re.Pattern[str], text: str) -> int:
    match = pattern.match(text)
    return match.end() if match else 0
