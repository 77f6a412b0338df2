"""Answers as tokens: words of the vocabulary, and the tokens that an answer adds to a prompt. No torch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from tokenizers import Encoding, Tokenizer

from stratascope.errors import InvalidInputError

ANSWER_FORMS = tuple(blank + word for word in ("True", "False", "Yes", "No") for blank in ("", " "))

ANSWER_LOGITS = {"precision": "float32", "read_from": "final norm and unembedding of the residual stream after the last block"}
"""How logits of answers and top tokens are computed, for the provenance. Stores without it hold the model's own logits."""

SUMMED = "log-probability of the answer's tokens after the prompt, summed"
"""`score` of the provenance where answers have several tokens: what `answer_logits` then holds."""

ABSENT = float(np.finfo(np.float32).min)
"""Stored score of a choice that an example does not offer: its probability is 0."""

BLANKS = ("Ġ", "▁", " ")
"""How tokenizers write a leading space."""


def answer_forms(tokenizer: Tokenizer) -> dict[str, int]:
    """`ANSWER_FORMS` that are one token of the vocabulary -> token id.

    They are looked up, not encoded, because sentencepiece adds a leading space to "True".
    """
    found: dict[str, int] = {}
    for form in ANSWER_FORMS:
        written = [blank + form[1:] for blank in BLANKS] if form.startswith(" ") else [form]
        ids = [tokenizer.token_to_id(text) for text in written]
        known = [int(i) for i in ids if i is not None]
        if known:
            found[form] = known[0]
    return found


def tokens_after(prompt: str, gap: str, answer: str, encode: Callable[[str], Encoding], unknown: str | None, name: str) -> tuple[int, ...]:
    """The tokens that an answer adds to a prompt.

    Parameters
    ----------
    prompt, gap, answer
        Texts; `gap` stands between the other two.
    encode
        Encoding of a full prompt.
    unknown
        The token for unknown words, if there is one.
    name
        Of the model, for messages.

    Raises
    ------
    InvalidInputError
        If the answer adds no token, changes those of the prompt, or has words that the tokenizer does not know.
    """
    before, encoded = encode(prompt).ids, encode(f"{prompt}{gap}{answer}")
    added = encoded.tokens[len(before) :]
    if encoded.ids[: len(before)] != before or not added or unknown in added:
        common = next((k for k, (a, b) in enumerate(zip(before, encoded.ids, strict=False)) if a != b), len(before))
        raise InvalidInputError(
            f"expected each answer to be known tokens of {name} behind those of the prompt, found {answer!r} = {encoded.tokens[common:]} "
            f"after {prompt[-22:]!r}; choose other answer words"
        )
    return tuple(int(token) for token in encoded.ids[len(before) :])


def scored_rows(answers: tuple[tuple[int, ...], ...]) -> dict[tuple[int, ...], list[int]]:
    """Texts to append to a prompt so that each answer's tokens can be scored -> the numbers of the answers that each serves.

    An answer's last token is not needed as input. An answer that begins another one shares its row.

    Parameters
    ----------
    answers
        Tokens of each answer.

    Examples
    --------
    >>> scored_rows(((5,), (7, 8, 9), (7, 8), (6, 1)))
    {(7, 8): [0, 1, 2], (6,): [3]}
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for number in sorted(range(len(answers)), key=lambda k: (-len(answers[k]), k)):
        needed = answers[number][:-1]
        row = next((each for each in rows if each[: len(needed)] == needed), needed)
        rows.setdefault(row, []).append(number)
    return {row: sorted(numbers) for row, numbers in rows.items()}


def token_texts(tokenizer: Tokenizer, used: np.ndarray | None) -> dict[int, str]:
    """Token id -> text with its leading space, for the ids `used` or the whole vocabulary."""
    ids = sorted(tokenizer.get_vocab(with_added_tokens=True).values()) if used is None else [int(t) for t in used]
    texts = tokenizer.decode_batch([[t] for t in ids], skip_special_tokens=False)
    blank = BLANKS[1]  # of SentencePiece; decoding a single token removes it
    raw = [tokenizer.id_to_token(t) or "" for t in ids]
    return {t: written.replace(blank, " ") if blank in written else text for t, written, text in zip(ids, raw, texts, strict=True)}
