"""Token ids, spans and image grid of an example, from the fast tokenizer and the image's size alone (no torch, no model)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from stratascope.datasets.captions import Interval
from stratascope.datasets.examples import Example
from stratascope.datasets.prompts import Prompt
from stratascope.errors import InvalidInputError
from stratascope.extract.families import ImageGrid
from stratascope.extract.sources import ModelSource

SPANS = ("system", "image", "prompt", "caption", "subject", "relation", "object", "final")
"""Named half-open token intervals; what lies in none of them is the chat template's own."""

IMAGE_TOKEN = "<|image_pad|>"


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one example's prompt."""

    ids: np.ndarray
    """(token,) int32, the image's placeholder expanded to one token a cell."""
    spans: dict[str, Interval]
    """Of `SPANS`, those that this prompt has."""
    grid: tuple[int, int]
    """(rows, columns) of image cells; image token k is cell (k // columns, k % columns)."""


class PromptTokenizer:
    """Lays out prompts for one model: chat template, tokenizer, image grid.

    Raises
    ------
    InvalidInputError
        If an answer choice is not exactly one token of the model, or the tokenizer knows no image token.

    Attributes
    ----------
    choice_ids
        Answer choice -> its token id.
    """

    def __init__(self, source: ModelSource, prompt: Prompt, grid: ImageGrid, system: str | None = None) -> None:
        self.prompt, self.grid, self._system, self._source = prompt, grid, system, source
        self.tokenizer = Tokenizer.from_file(str(source.tokenizer_file))
        image_id = self.tokenizer.token_to_id(IMAGE_TOKEN)
        if image_id is None:
            raise InvalidInputError(f"{source.name}: expected the token {IMAGE_TOKEN} in its tokenizer, found none")
        self.image_id = int(image_id)
        self.choice_ids = self._one_token_each()

    def _one_token_each(self) -> dict[str, int]:
        ids: dict[str, int] = {}
        for choice in self.prompt.choices:
            encoded = self.tokenizer.encode(choice, add_special_tokens=False)
            if len(encoded.ids) != 1:
                raise InvalidInputError(
                    f"expected each answer to be one token of {self._source.name}, found {choice!r} = {encoded.tokens}; "
                    "choose other answer words"
                )
            ids[choice] = int(encoded.ids[0])
        return ids

    @cached_property
    def _template(self) -> Any:
        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = raise_exception
        return environment.from_string(self._source.chat_template)

    def conversation(self, text: str) -> list[dict[str, Any]]:
        """The messages that are laid out: the user's turn with one image and the text, and a system turn if one was given."""
        user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        if self._system is None:
            return [user]
        return [{"role": "system", "content": [{"type": "text", "text": self._system}]}, user]

    def render(self, text: str) -> str:
        """The conversation as the chat template lays it out, up to where the model's answer begins."""
        try:
            rendered = self._template.render(messages=self.conversation(text), add_generation_prompt=True)
        except TemplateError as error:
            raise InvalidInputError(f"{self._source.name}: its chat template refuses one user turn with an image: {error}") from error
        if rendered.count(IMAGE_TOKEN) != 1:
            raise InvalidInputError(
                f"{self._source.name}: expected its chat template to place one {IMAGE_TOKEN}, found "
                f"{rendered.count(IMAGE_TOKEN)} in {rendered!r}"
            )
        if rendered.rstrip().endswith(text.rstrip()):
            raise InvalidInputError(
                f"{self._source.name}: expected its chat template to open the model's turn after the user's, found {rendered!r}"
            )
        return str(rendered)

    def layout(self, example: Example, image_size: tuple[int, int]) -> TokenLayout:
        """Tokens and spans of one example whose image file is `image_size` = (width, height) pixels.

        Raises
        ------
        InvalidInputError
            If a word of the caption has no token of its own, or the image's shape is beyond what the model takes.
        """
        filled = self.prompt.fill(example)
        for special in (IMAGE_TOKEN, "<|im_start|>", "<|im_end|>"):
            if special in filled.text:
                raise InvalidInputError(
                    f"example {example.id}: expected plain text, found the model's control token {special} in its caption"
                )
        text = self.render(filled.text)
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        ids, offsets = np.array(encoded.ids, np.int32), np.array(encoded.offsets, np.int64)
        places = np.flatnonzero(ids == self.image_id)
        assert len(places) == 1, "the rendered text holds one image token"
        image_at = int(places[0])
        rows, columns = self.grid.cells(*image_size)
        repeats = np.ones(len(ids), np.int64)
        repeats[image_at] = rows * columns
        ids, offsets = np.repeat(ids, repeats), np.repeat(offsets, repeats, axis=0)
        start = text.rindex(filled.text)
        starts = _without_leading_blanks(text, offsets)
        spans = {"image": (image_at, image_at + rows * columns), "final": (len(ids) - 1, len(ids))}
        named = {"prompt": (0, len(filled.text)), **filled.intervals}
        for name, (a, b) in named.items():
            spans[name] = _tokens_within(starts, offsets[:, 1], start + a, start + b, f"example {example.id}: {name} {filled.text[a:b]!r}")
        system = self._system_interval(text)
        if system is not None:
            spans["system"] = _tokens_within(starts, offsets[:, 1], *system, "the system turn")
        return TokenLayout(ids, spans, (rows, columns))

    def _system_interval(self, text: str) -> Interval | None:
        opening = "<|im_start|>system\n"
        if not text.startswith(opening):
            return None
        return len(opening), text.index("<|im_end|>")


def _without_leading_blanks(text: str, offsets: np.ndarray) -> np.ndarray:
    """Where each token begins, not counting the blank that byte-pair encodings glue to the front of a word."""
    return np.array([a + len(text[a:b]) - len(text[a:b].lstrip()) if text[a:b].strip() else a for a, b in offsets])


def _tokens_within(starts: np.ndarray, ends: np.ndarray, a: int, b: int, what: str) -> Interval:
    found = np.flatnonzero((starts < b) & (ends > a) & (starts < ends))
    if not len(found):
        raise InvalidInputError(f"{what}: expected at least one token of its own, found none")
    first, last = int(found[0]), int(found[-1]) + 1
    assert last - first == len(found), "tokens of a stretch of text are adjacent"
    return first, last
