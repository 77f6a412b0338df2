"""Ways in which a model may word its answer, as tokens: with and without the blank that tokenizers glue to a word. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ANSWER_FORMS = tuple(blank + word for word in ("True", "False", "Yes", "No") for blank in ("", " "))

ANSWER_LOGITS = {"precision": "float32", "read_from": "final norm and unembedding of the residual stream after the last block"}
"""How logits of answers, answer forms and the likeliest tokens are computed, for the provenance. Stores without it hold the model's own."""

_BLANKS = ("Ġ", "▁", " ")


def answer_forms(tokenizer: Tokenizer) -> dict[str, int]:
    """Those of `ANSWER_FORMS` that are one token of this vocabulary -> its id.

    They are looked up, not encoded: sentencepiece encodes "True" with a blank before it.
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
    """Token id -> text, of the ids `used`, or of the whole vocabulary; a blank that is part of the token is part of its text."""
    ids = sorted(tokenizer.get_vocab(with_added_tokens=True).values()) if used is None else [int(t) for t in used]
    texts = tokenizer.decode_batch([[t] for t in ids], skip_special_tokens=False)
    blank = _BLANKS[1]  # SentencePiece's, which decoding one token by itself takes away
    raw = [tokenizer.id_to_token(t) or "" for t in ids]
    return {t: written.replace(blank, " ") if blank in written else text for t, written, text in zip(ids, raw, texts, strict=True)}
