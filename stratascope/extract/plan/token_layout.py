"""Token ids, spans and image grid of an example, from the fast tokenizer and the image's size alone (no torch, no model)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tokenizers import Encoding

from stratascope.datasets.boxes import Box
from stratascope.datasets.captions import Interval
from stratascope.datasets.examples import Example
from stratascope.datasets.prompts import Prompt
from stratascope.errors import InvalidInputError
from stratascope.extract.families.patch_grid import ImageRule, ImageTokens
from stratascope.extract.families.registry import check_family
from stratascope.extract.plan.chat_template import Chat, Prefix, Wording
from stratascope.extract.plan.model_files import ModelSource

SPANS = ("system", "image", "prompt", "caption", "subject", "relation", "object", "final")
"""Named half-open token intervals; what lies in none of them is the chat template's own."""

TILES = "image_tiles"
"""The span, beside `SPANS`, of image tokens that are not cells of the grid, with the markers between them."""


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one example's prompt."""

    ids: np.ndarray
    """(token,) int32, the image's placeholder expanded to one token a cell."""
    spans: dict[str, Interval]
    """Of `SPANS` and `TILES`, those that this prompt has."""
    grid: tuple[int, int]
    """(rows, columns) of image cells; token k of the span `image` is cell (k // columns, k % columns)."""
    view: Box
    """The part of the image that the cells cover, in the image's pixels."""
    cut: tuple[int, ...]
    """What the family's processor must report of the image, see `ImageTokens`."""


class PromptTokenizer:
    """Lays out prompts for one model: chat template, tokenizer, image tokens.

    Parameters
    ----------
    source
        The model.
    prompt
        What the user asks.
    rule
        How the model's processor cuts images.
    system
        Text of the system turn; None leaves it to the chat template, and an empty text leaves it out.

    Raises
    ------
    InvalidInputError
        If an answer choice is not exactly one token of the model, or there is no final chat turn where the family has turns.

    Attributes
    ----------
    choice_ids
        Answer choice -> its token id, as it follows the prompt.
    """

    def __init__(self, source: ModelSource, prompt: Prompt, rule: ImageRule, system: str | None = None) -> None:
        self.prompt, self.rule, self._source = prompt, rule, source
        self.tokenizer = source.tokenizer
        image_id = self.tokenizer.token_to_id(rule.token)
        if image_id is None:
            raise InvalidInputError(f"{source.name}: expected the token {rule.token} in its tokenizer, found none")
        self.image_id = int(image_id)
        self.wording: Wording = (Prefix if check_family(source).prefix else Chat)(source, rule.placeholder, system)
        self._image_tokens = lru_cache(maxsize=4096)(rule.tokens)
        special = {token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special}
        self._control = re.compile("|".join(map(re.escape, sorted({*special, rule.token, rule.placeholder}, key=len, reverse=True))))
        self.choice_ids = self._one_token_each()

    def _one_token_each(self) -> dict[str, int]:
        """The token that each answer adds to a prompt, where the chat template would put the answer."""
        asked = self.wording.render("x")
        before = self._encode(asked).ids
        ids: dict[str, int] = {}
        for choice in self.prompt.choices:
            encoded = self._encode(asked + self.wording.answer_gap + choice)
            if len(encoded.ids) != len(before) + 1 or encoded.ids[:-1] != before:
                common = next((k for k, (a, b) in enumerate(zip(before, encoded.ids, strict=False)) if a != b), len(before))
                raise InvalidInputError(
                    f"expected each answer to be one token of {self._source.name}, found {choice!r} = {encoded.tokens[common:]} after "
                    f"{asked[-22:]!r}; choose other answer words"
                )
            ids[choice] = int(encoded.ids[-1])
        return ids

    def _encode(self, text: str) -> Encoding:
        return self.tokenizer.encode(text, add_special_tokens=self.wording.adds_special)

    def layout(self, example: Example, image_size: tuple[int, int]) -> TokenLayout:
        """Tokens and spans of one example whose image file is `image_size` = (width, height) pixels.

        Raises
        ------
        InvalidInputError
            If a word of the caption has no token of its own, or the image's shape is beyond what the model takes.
        """
        filled = self.prompt.fill(example)
        if control := self._control.search(filled.text):
            raise InvalidInputError(
                f"example {example.id}: expected plain text, found the model's control token {control[0]} in its caption"
            )
        image: ImageTokens = self._image_tokens(*image_size)
        text = self.wording.render(filled.text).replace(self.rule.placeholder, image.text, 1)
        encoded = self._encode(text)
        ids, offsets = np.array(encoded.ids, np.int32), np.array(encoded.offsets, np.int64)
        runs = np.flatnonzero(ids == self.image_id)
        assert len(runs) == len(image.runs), "each run is written as one image token"
        repeats = np.ones(len(ids), np.int64)
        repeats[runs] = image.runs
        at = np.concatenate([[0], repeats.cumsum()])  # where each token of the text stands once the runs are expanded

        def tokens_of(a: int, b: int, what: str) -> Interval:
            first, last = _tokens_within(offsets, a, b, f"example {example.id}: {what} {text[a:b]!r}")
            return int(at[first]), int(at[last])

        ids = np.repeat(ids, repeats)
        spans = {**_image_spans(np.flatnonzero(ids == self.image_id), image), "final": (len(ids) - 1, len(ids))}
        start = text.rindex(filled.text)
        for name, (a, b) in {"prompt": (0, len(filled.text)), **filled.intervals}.items():
            spans[name] = tokens_of(start + a, start + b, name)
        system = self.wording.system_interval(text)
        if system is not None:
            spans["system"] = tokens_of(*system, "the system turn")
        return TokenLayout(ids, spans, image.grid, image.view, image.cut)


def _image_spans(places: np.ndarray, image: ImageTokens) -> dict[str, Interval]:
    """Where the cells are, and all between the first and the last image token that is no cell; `places` are all image tokens'."""
    a, b = image.cells
    cells, others = places[a:b], np.concatenate([places[:a], places[b:]])
    assert cells[-1] + 1 - cells[0] == image.grid[0] * image.grid[1] == b - a, "cells are adjacent, one for each place of the grid"
    spans = {"image": (int(cells[0]), int(cells[-1]) + 1)}
    if len(others):
        spans[TILES] = (int(others[0]), int(others[-1]) + 1)
        assert others[-1] < cells[0] or others[0] > cells[-1], "tiles are before or after the cells"
    return spans


def _tokens_within(offsets: np.ndarray, a: int, b: int, what: str) -> Interval:
    """Tokens that share characters with a..b; the blank before a word belongs to the word's token, and none to the one before."""
    found = np.flatnonzero((offsets[:, 0] < b) & (offsets[:, 1] > a))
    if not len(found):
        raise InvalidInputError(f"{what}: expected at least one token of its own, found none")
    first, last = int(found[0]), int(found[-1]) + 1
    assert last - first == len(found), "tokens of a stretch of text are adjacent"
    return first, last
