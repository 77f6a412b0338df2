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
