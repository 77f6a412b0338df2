"""Words whose rows of the unembedding a store keeps: answer choices, answer forms, relations. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from tokenizers import Tokenizer

from stratascope.extract.plan.answer_tokens import answer_forms, token_texts

MOST_RELATIONS = 200
"""Relations whose words are kept: a data set with more names things by its relations."""
_BEFORE = "a"
"""A word before a relation, so that the relation's tokens are those within a sentence."""


def readout_words(tokenizer: Tokenizer, choices: Mapping[str, int], relations: Iterable[str]) -> pd.DataFrame:
    """Table of the words, as `Readout.words`.

    Parameters
    ----------
    tokenizer
        Of the model.
    choices
        Answer choice -> token id.
    relations
        Relations of the examples, one for each example; the most frequent `MOST_RELATIONS` are kept, and empty texts left out.
    """
    named = [("choice", name, token) for name, token in choices.items()]
    named += [("form", name, token) for name, token in answer_forms(tokenizer).items()]
    frequent = [name for name, _ in Counter(sorted(name for name in relations if name.strip())).most_common(MOST_RELATIONS)]
    named += [("relation", name, token) for name, token in relation_tokens(tokenizer, frequent).items()]
    texts = token_texts(tokenizer, np.unique(np.array([token for *_, token in named], np.int64)))
    rows = [(kind, name, token, texts[token]) for kind, name, token in named]
    return pd.DataFrame(rows, columns=["kind", "name", "token", "text"])


def relation_tokens(tokenizer: Tokenizer, relations: Iterable[str]) -> dict[str, int]:
    """Relation -> the token that stands for it: the first one of its phrase, within a sentence, that no other relation's phrase has.

    A relation without such a token (`on` beside `on top of`) gets its first token that stands for no other one; a relation whose
    tokens all do is left out. No token stands for two relations.
    """
    phrases = {name: ids for name in sorted(set(relations)) if (ids := _within_sentence(tokenizer, name.strip()))}
    uses = Counter(token for ids in phrases.values() for token in set(ids))
    found = {name: next((token for token in ids if uses[token] == 1), -1) for name, ids in phrases.items()}
    taken = set(found.values())
    for name in sorted((name for name, token in found.items() if token < 0), key=lambda name: (len(phrases[name]), name)):
        found[name] = next((token for token in phrases[name] if token not in taken), -1)
        taken.add(found[name])
    return {name: token for name, token in found.items() if token >= 0}


def _within_sentence(tokenizer: Tokenizer, phrase: str) -> Sequence[int]:
    """Tokens of a phrase after another word; empty if the tokenizer does not split between them."""
    before = tokenizer.encode(_BEFORE, add_special_tokens=False).ids
    ids = tokenizer.encode(f"{_BEFORE} {phrase}", add_special_tokens=False).ids
    return ids[len(before) :] if ids[: len(before)] == before else []
