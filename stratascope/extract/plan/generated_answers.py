"""Generated answers: tokens that end a turn, and which answer choice a text names. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from stratascope.errors import InvalidInputError
from stratascope.extract.model_files import ModelSource

UNPARSED = -1
"""Number of the choice of a text that names none, or several."""
DEFAULT_ANSWERS = 8
"""Generated tokens whose residual stream is saved by default, at most."""

_OPENING = r"""[\s"'“‘(\[*`_]*"""
_CLOSING = r"""\s*(?:$|[.,;:!)\]"'”’*`_\n])"""
_STATED = r"\banswer(?:\s+is\s*:?|\s*:)"
_DENIED = re.compile(r"(?:\b(?:not|never|neither|nor|cannot)|n['’]t)\s+(?:\w+\s+)?$", re.IGNORECASE)
_COMMON = frozenset({"no"})
"""Choices that are also words of a sentence on something else."""


def end_of_turn(source: ModelSource) -> tuple[int, ...]:
    """Token ids at which transformers stops to generate, from `generation_config.json` or `config.json`; ascending, empty if none.

    Raises
    ------
    InvalidInputError
        If `generation_config.json` cannot be read.
    """
    path, own = source.folder / "generation_config.json", {}
    if path.exists():
        try:
            own = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{source.name}: expected a readable {path}, found: {error}") from error
    for found in (own, source.config, source.config.get("text_config")):
        ends = found.get("eos_token_id") if isinstance(found, dict) else None
        if ends is not None:
            return tuple(sorted({int(end) for end in (ends if isinstance(ends, list) else [ends])}))
    return ()


def parse_answer(text: str, choices: Sequence[str]) -> int:
    """Number of the choice that a generated text gives as its answer; `UNPARSED` where it cannot be told.

    Reasoning up to `</think>` does not count, and a text that ends within it has no answer. Then the first of these decides: the last
    "answer is" or "answer:" with a choice; a choice with which the text begins, unless other words follow it and name another choice; the
    only choice that the text names, unless it is denied ("not true"). Single letters count as upper-case letters, and neither they nor
    "no" count within a sentence.

    Parameters
    ----------
    text
        The generated text, without special tokens.
    choices
        Answer choices that the example offers.

    Examples
    --------
    >>> [parse_answer(text, ("True", "False")) for text in ("True.", "I think that this is false", "It is not true.", "True or false?")]
    [0, 1, -1, -1]
    >>> parse_answer("<think>Yes? The dog is left of it.</think> The answer is (B).", ("A", "B"))
    1
    """
    _, closed, after = text.rpartition("</think>")
    if not closed and "<think>" in text:
        return UNPARSED
    answer = after if closed else text
    numbers = {_key(choice): k for k, choice in enumerate(choices)}
    words = "|".join(_pattern(choice) for choice in sorted(choices, key=len, reverse=True))
    stated = re.findall(rf"(?i:{_STATED}){_OPENING}(?:(?i:option|choice)\s+)?({words})(?!\w)", answer)
    if stated:
        return numbers[_key(stated[-1])]
    named = list(re.finditer(rf"(?<!\w)({words})(?!\w)", answer))
    if begun := re.match(rf"{_OPENING}({words})(?!\w)", answer):
        first = _key(begun[1])
        if re.match(_CLOSING, answer[begun.end() :]) or (len(first) > 1 and {_key(match[1]) for match in named} == {first}):
            return numbers[first]
    counted = [match for match in named if len(match[1]) > 1 and match[1].casefold() not in _COMMON]
    if len({_key(match[1]) for match in counted}) != 1 or any(_DENIED.search(answer[: match.start()]) for match in counted):
        return UNPARSED
    return numbers[_key(counted[0][1])]


def _key(choice: str) -> str:
    """What is equal for two ways to write a choice."""
    return choice if len(choice) == 1 else " ".join(choice.split()).casefold()


def _pattern(choice: str) -> str:
    """A regular expression for a choice: letters as they are, words in either case."""
    words = r"\s+".join(map(re.escape, choice.split()))
    return words if len(choice) == 1 else f"(?i:{words})"


def generation_provenance(tokens: int, ends: Sequence[int]) -> dict[str, Any]:
    """How tokens were generated, for the provenance; empty if none were."""
    method = "greedy, by the model's own logits, without penalties"
    return {"generation": {"tokens": tokens, "end": list(ends), "method": method}} if tokens else {}
