"""Words of the captions that the built-in model never saw."""

from __future__ import annotations

import re
from collections import Counter

from stratascope.extract.model_files import BUILT_IN
from stratascope.extract.plan.extraction_plan import ExtractionPlan

_WORD = re.compile(r"[^\W\d_]+")
MOST_SHOWN = 8
_AT_ONCE = 10_000
"""Captions whose words are counted together."""


def unknown_words(plan: ExtractionPlan) -> list[str]:
    """Words of the captions that are no token of the built-in model, by frequency; none for other models, whose tokens are parts of words.

    Parameters
    ----------
    plan
        Of the extraction.
    """
    if plan.source.name != BUILT_IN:
        return []
    written: Counter[str] = Counter()
    for first in range(0, len(plan.examples), _AT_ONCE):
        written.update(" ".join(example.caption for example in plan.examples[first : first + _AT_ONCE]).split())
    counts: Counter[str] = Counter()
    for piece, count in written.items():
        for word in _WORD.findall(piece):
            counts[word.lower()] += count
    tokenizer = plan.tokenizer.tokenizer

    def known(word: str) -> bool:
        return any(len(tokenizer.encode(form, add_special_tokens=False).ids) == 1 for form in (f" {word}", word))

    return [word for word, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0])) if not known(word)]


def vocabulary_notes(plan: ExtractionPlan) -> list[str]:
    """A warning where captions have words that the built-in model does not know; else none."""
    words = unknown_words(plan)
    if not words:
        return []
    shown = ", ".join(f"'{word}'" for word in words[:MOST_SHOWN])
    more = f" and {len(words) - MOST_SHOWN:,} more" if len(words) > MOST_SHOWN else ""
    verb = "are" if len(words) > 1 else "is"
    return [f"words      {shown}{more} {verb} not in the demo model's vocabulary: it saw them in no training scene"]
