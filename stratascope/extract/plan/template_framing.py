"""Tokenise the constant part of all prompts once. No torch.

A tokenizer first splits a text at its added tokens. A plain text between two of them, such as <|vision_end|> and <|im_end|>, therefore has
the same tokens as in the full prompt.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from tokenizers import Encoding, Tokenizer

from stratascope.datasets.captions import Interval

_TEXT = "Is it so?"


@dataclass(frozen=True)
class Frame:
    """The prompt around the user's text, for images of given sizes."""

    opening: str
    closing: str
    """The added tokens directly before and after the text."""
    head: np.ndarray
    tail: np.ndarray
    """(token,) int32, the image's placeholder expanded."""
    written_head: list[int]
    """The head with each run of image tokens as a single token."""
    spans: dict[str, Interval]
    """Spans of the image and the system turn, which are in the head."""

    def text(self, asked: str) -> str:
        """The user's text between both added tokens."""
        return f"{self.opening}{asked}{self.closing}"

    def written(self, encoded: Encoding) -> list[int] | None:
        """Token ids of the full prompt; None if the text's tokens are not between the two added ones."""
        ids = encoded.ids
        if len(ids) < 3 or ids[0] != self.written_head[-1] or ids[-1] != int(self.tail[0]):
            return None
        return [*self.written_head, *ids[1:-1], *self.tail.tolist()]

    def filled(self, encoded: Encoding, intervals: Mapping[str, Interval]) -> tuple[np.ndarray, dict[str, Interval | None]]:
        """Token ids of the full prompt, and its spans: those of the frame, of the text's `intervals`, and the final token."""
        # faster than converting the list with numpy
        ids = np.frombuffer(bytearray().join((self.head.data, array("i", encoded.ids[1:-1]), self.tail.data)), np.int32)
        shift, before = len(self.head) - 1, len(self.opening)
        spans: dict[str, Interval | None] = {**self.spans, "final": (len(ids) - 1, len(ids))}
        for name, (a, b) in intervals.items():
            found = tokens_within(encoded, before + a, before + b)
            spans[name] = None if found is None else (shift + found[0], shift + found[1])
        return ids, spans


def frame_of(
    before: str,
    after: str,
    lengths: Sequence[int],
    image_id: int,
    tokenizer: Tokenizer,
    encode: Callable[[str], Encoding],
    system: Interval | None,
    image_spans: Callable[[list[Interval]], dict[str, Interval]],
) -> Frame | None:
    """The frame of a prompt: `before`, the user's text, `after`.

    Parameters
    ----------
    before, after
        Text with the images as they are written.
    lengths
        Number of image tokens in each run, of all images.
    image_id
        Id of the image token.
    tokenizer, encode
        The tokenizer, and its encoding of a full prompt.
    system
        Characters of the system turn; None if there is none.
    image_spans
        Spans of the images from the intervals of their token runs.

    Returns
    -------
    Frame or None
        None if the text is not between added tokens, or an image or the system turn is not before it.
    """
    encoded = encode(f"{before}{_TEXT}{after}")
    opening, closing = encoded.char_to_token(len(before) - 1) if before else None, encoded.char_to_token(len(before) + len(_TEXT))
    if opening is None or closing is None or (system is not None and system[1] > len(before)):
        return None
    ids, added = encoded.ids, tokenizer.get_added_tokens_decoder()
    for token in (ids[opening], ids[closing]):
        known = added.get(token)
        if known is None or known.lstrip or known.rstrip or known.single_word or known.normalized:
            return None
    begin, end = (added[ids[k]].content for k in (opening, closing))
    runs = [k for k, token in enumerate(ids) if token == image_id]
    if not before.endswith(begin) or not after.startswith(end) or len(runs) != len(lengths) or max(runs) > opening:
        return None
    repeats = [1] * (opening + 1)
    for k, count in zip(runs, lengths, strict=True):
        repeats[k] = count
    at = [0, *accumulate(repeats)]
    spans = image_spans([(at[k], at[k + 1]) for k in runs])
    if system is not None:
        found = tokens_within(encoded, *system)
        if found is None or found[1] > opening:
            return None
        spans["system"] = (at[found[0]], at[found[1]])
    head, tail = np.repeat(np.array(ids[: opening + 1], np.int32), repeats), np.array(ids[closing:], np.int32)
    return Frame(begin, end, head, tail, ids[: opening + 1], spans)


def tokens_within(encoded: Encoding, a: int, b: int) -> Interval | None:
    """Tokens that share characters with a..b; None if there are none.

    The space before a word belongs to the token of that word. Several tokens may share one character.
    """
    if a >= b:
        return None
    token_at = encoded.char_to_token
    first, last = token_at(a), token_at(b - 1)
    if first is None:
        first = next((token for place in range(a + 1, b) if (token := token_at(place)) is not None), None)
        if first is None:
            return None
    if last is None:
        last = next((token for place in range(b - 2, a - 1, -1) if (token := token_at(place)) is not None), first)
    count = len(encoded)
    while last + 1 < count and (chars := encoded.token_to_chars(last + 1)) is not None and chars[0] < b and chars[1] > a:
        last += 1
    return first, last + 1
