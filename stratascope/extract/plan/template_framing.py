"""What is the same in the prompts of all examples, tokenised once. No torch.

A tokenizer cuts a text at its added tokens before anything else. Where the user's plain text stands between two of them, such as
<|vision_end|> and <|im_end|>, it has the same tokens alone between these two as in the whole prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from tokenizers import Encoding, Tokenizer

from stratascope.datasets.captions import Interval
from stratascope.extract.families.patch_grid import ImageTokens

_TEXT = "Is it so?"


@dataclass(frozen=True)
class Frame:
    """The prompt around a user's text, for one size of image."""

    opening: str
    closing: str
    """The added tokens right before and right after the text."""
    head: np.ndarray
    tail: np.ndarray
    """(token,) int32, the image's placeholder expanded."""
    written_head: list[int]
    """The head as it is tokenised: each run of image tokens is one of them."""
    spans: dict[str, Interval]
    """Of the image and the system turn, which are in the head."""

    def text(self, asked: str) -> str:
        """What is tokenised for a user's text."""
        return f"{self.opening}{asked}{self.closing}"

    def written(self, encoded: Encoding) -> list[int] | None:
        """All token ids of the prompt as it is written; None where the text's tokens are not between the two added ones."""
        ids = encoded.ids
        if len(ids) < 3 or ids[0] != self.written_head[-1] or ids[-1] != int(self.tail[0]):
            return None
        return [*self.written_head, *ids[1:-1], *self.tail.tolist()]


def frame_of(
    before: str,
    after: str,
    image: ImageTokens,
    image_id: int,
    tokenizer: Tokenizer,
    encode: Callable[[str], Encoding],
    system: Interval | None,
    image_spans: Callable[[list[Interval]], dict[str, Interval]],
) -> Frame | None:
    """The frame of a prompt that reads `before`, the user's text, `after`.

    Parameters
    ----------
    before, after
        With the image as it is written.
    image
        Its tokens.
    image_id
        The token that stands for them.
    tokenizer, encode
        The tokenizer, and how it encodes a whole prompt.
    system
        Characters of the system turn; None where there is none.
    image_spans
        The spans of an image by the intervals of its runs of tokens.

    Returns
    -------
    Frame or None
        None where the text does not stand between added tokens that cut it off, or the image or the system turn not before it.
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
    if not before.endswith(begin) or not after.startswith(end) or len(runs) != len(image.runs) or max(runs) > opening:
        return None
    repeats = [1] * (opening + 1)
    for k, count in zip(runs, image.runs, strict=True):
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
    """Tokens that share characters with a..b; None where there are none.

    The blank before a word belongs to the word's token, and none to the one before. Several tokens may share one character.
    """
    first = next((token for place in range(a, b) if (token := encoded.char_to_token(place)) is not None), None)
    if first is None:
        return None
    last, count = first, len(encoded)
    for place in range(b - 1, a - 1, -1):
        if (token := encoded.char_to_token(place)) is not None:
            last = token
            break
    while last + 1 < count and (chars := encoded.token_to_chars(last + 1)) is not None and chars[0] < b and chars[1] > a:
        last += 1
    return first, last + 1
