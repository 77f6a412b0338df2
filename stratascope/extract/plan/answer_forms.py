"""Answer words as tokens, with and without a leading space. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ANSWER_FORMS = tuple(blank + word for word in ("True", "False", "Yes", "No") for blank in ("", " "))

ANSWER_LOGITS = {"precision": "float32", "read_from": "final norm and unembedding of the residual stream after the last block"}
"""How logits of answers and top tokens are computed, for the provenance. Stores without it hold the model's own logits."""

_BLANKS = ("Ġ", "▁", " ")


def answer_forms(tokenizer: Tokenizer) -> dict[str, int]:
    """`ANSWER_FORMS` that are one token of the vocabulary -> token id.

    They are looked up, not encoded, because sentencepiece adds a leading space to "True".
    """
    found: dict[str, int] = {}
    for form in ANSWER_FORMS:
        written = [blank + form[1:] for blank in _BLANKS] if form.startswith(" ") else [form]
        ids = [tokenizer.token_to_id(text) for text in written]
        known = [int(i) for i in ids if i is not None]
        if known:
            found[form] = known[0]
    return found


def token_texts(tokenizer: Tokenizer, used: np.ndarray | None) -> dict[int, str]:
    """Token id -> text with its leading space, for the ids `used` or the whole vocabulary."""
    ids = sorted(tokenizer.get_vocab(with_added_tokens=True).values()) if used is None else [int(t) for t in used]
    texts = tokenizer.decode_batch([[t] for t in ids], skip_special_tokens=False)
    blank = _BLANKS[1]  # of SentencePiece; decoding a single token removes it
    raw = [tokenizer.id_to_token(t) or "" for t in ids]
    return {t: written.replace(blank, " ") if blank in written else text for t, written, text in zip(ids, raw, texts, strict=True)}
