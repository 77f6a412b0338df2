"""Token ids, spans and image grid of an example, from the tokenizer and the image size. No torch, no model."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate, islice

import numpy as np
from tokenizers import Encoding

from stratascope.datasets.boxes import Box
from stratascope.datasets.captions import Interval
from stratascope.datasets.examples import Example
from stratascope.datasets.prompts import FilledPrompt, Prompt
from stratascope.errors import InvalidInputError
from stratascope.extract.families.patch_grid import ImageRule, ImageTokens
from stratascope.extract.families.registry import check_family
from stratascope.extract.model_files import ModelSource
from stratascope.extract.plan.chat_template import Chat, Prefix, Wording
from stratascope.extract.plan.template_framing import Frame, frame_of, tokens_within

SPANS = ("system", "image", "prompt", "caption", "subject", "relation", "object", "final")
"""Named half-open token intervals; the other tokens belong to the chat template."""

TILES = "image_tiles"
"""A further span: image tokens outside the grid, with the markers between them."""

_CHUNK = 4096
"""Examples that are tokenised together."""


@dataclass(frozen=True)
class TokenLayout:
    """The tokens of one example's prompt."""

    ids: np.ndarray
    """(token,) int32, with one image token per cell."""
    spans: dict[str, Interval]
    """Those of `SPANS` and `TILES` that this prompt has."""
    grid: tuple[int, int]
    """(rows, columns) of image cells; token k of the span `image` is cell (k // columns, k % columns)."""
    view: Box
    """The part of the image that the cells cover, in pixels."""
    cut: tuple[int, ...]
    """Tiling that the processor must report, see `ImageTokens`."""


@dataclass(frozen=True)
class _Asked:
    """Prompt text of one example, each run of image tokens as a single one."""

    filled: FilledPrompt
    image: ImageTokens
    text: str
    frame: Frame | None = None
    """Frame around the filled text, if the text is tokenised separately."""


class PromptTokenizer:
    """Tokenise prompts for one model: chat template, tokenizer, image tokens.

    Parameters
    ----------
    source
        The model.
    prompt
        The question to the model.
    rule
        How the model's processor tiles images.
    system
        Text of the system turn; None: as the chat template has it; empty: no system turn.

    Raises
    ------
    InvalidInputError
        If an answer choice is not exactly one token, or the chat template has no final model turn.

    Attributes
    ----------
    choice_ids
        Answer choice -> token id after the prompt.
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
        self._frame = lru_cache(maxsize=4096)(self._framed)
        self._frames_hold, self._system = True, system
        special = {token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special}
        self._control_begins = frozenset(text[0] for text in (*special, rule.token, rule.placeholder) if text)
        self._control = re.compile("|".join(map(re.escape, sorted({*special, rule.token, rule.placeholder}, key=len, reverse=True))))
        self._encoded: dict[Hashable, tuple[_Asked, Encoding]] = {}
        self._laid_out: dict[Hashable, TokenLayout] | None = None
        self.choice_ids = self._one_token_each()

    def _one_token_each(self) -> dict[str, int]:
        """The token that each answer adds to a prompt, at the answer position of the chat template."""
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
        key = _key(example, image_size)
        if self._laid_out is not None and (known := self._laid_out.get(key)) is not None:
            return known
        asked, encoded = self._encoded.pop(key, (None, None))
        if asked is None or encoded is None:
            asked = self._asked(example, image_size)
            encoded = self._encode(asked.text)
        made = self._lay_out(example, asked, encoded)
        if self._laid_out is not None:
            self._laid_out[key] = made
        return made

    def ahead(self, asked: Iterable[tuple[Example, tuple[int, int]]]) -> Iterator[tuple[Example, tuple[int, int]]]:
        """The same examples with the sizes of their images, for `layout` of each in this order.

        Meanwhile another thread tokenises the texts of those that come next, and a text and size that occurred before are not laid out
        again. The layouts are those that `layout` makes by itself.
        """
        pairs = iter(asked)
        self._laid_out = {}
        try:
            with ThreadPoolExecutor(1) as pool:
                chunk, coming = self._submitted(pairs, pool)
                while chunk:
                    following = self._submitted(pairs, pool)
                    self._encoded = coming.result()
                    yield from chunk
                    chunk, coming = following
        finally:
            self._encoded, self._laid_out = {}, None

    def _submitted(
        self, pairs: Iterator[tuple[Example, tuple[int, int]]], pool: ThreadPoolExecutor
    ) -> tuple[list[tuple[Example, tuple[int, int]]], Future[dict[Hashable, tuple[_Asked, Encoding]]]]:
        chunk = list(islice(pairs, _CHUNK))
        fresh: dict[Hashable, _Asked] = {}
        for example, size in chunk:
            key = _key(example, size)
            if key not in fresh and key not in (self._laid_out or ()):
                with contextlib.suppress(InvalidInputError):  # `layout` raises it when it is this example's turn
                    fresh[key] = self._asked(example, size)
        return chunk, pool.submit(self._encode_all, fresh)

    def _encode_all(self, asked: Mapping[Hashable, _Asked]) -> dict[Hashable, tuple[_Asked, Encoding]]:
        framed = {key: one for key, one in asked.items() if one.frame is not None}
        found = self._encode_framed(framed)
        if found is None:  # a tokenizer that does not cut at its added tokens
            self._frames_hold, found, framed = False, {}, {}
        rest = {key: replace(one, frame=None) for key, one in asked.items() if key not in framed}
        encoded = self._batch([one.text for one in rest.values()], self.wording.adds_special)
        return found | {key: (one, text) for (key, one), text in zip(rest.items(), encoded, strict=True)}

    def _encode_framed(self, asked: Mapping[Hashable, _Asked]) -> dict[Hashable, tuple[_Asked, Encoding]] | None:
        """The texts alone; None where the first and the longest of them have other tokens in the whole prompt."""
        encoded = self._batch([one.frame.text(one.filled.text) for one in asked.values() if one.frame], False)
        found = {key: (one, text) for (key, one), text in zip(asked.items(), encoded, strict=True)}
        if found:
            for one, text in (next(iter(found.values())), max(found.values(), key=lambda pair: len(pair[0].text))):
                assert one.frame is not None
                if one.frame.written(text) != self._encode(one.text).ids:
                    return None
        return found

    def _batch(self, texts: list[str], special: bool) -> list[Encoding]:
        if self.tokenizer.padding is None:
            return list(self.tokenizer.encode_batch(texts, add_special_tokens=special))
        # a batch would be padded to its longest text
        return [self.tokenizer.encode(text, add_special_tokens=special) for text in texts]

    def _framed(self, image: ImageTokens) -> Frame | None:
        """What stands around plain texts with such an image; None where it does not cut them off."""
        around = self.wording.around
        if around is None or self.tokenizer.truncation is not None:
            return None
        before, after = around[0].replace(self.rule.placeholder, image.text, 1), around[1]
        system = self.wording.system_interval(f"{before}{after}")
        if system is None and self._system:  # it would be looked for in the user's text
            return None
        return frame_of(before, after, image, self.image_id, self.tokenizer, self._encode, system, lambda runs: _image_spans(runs, image))

    def _asked(self, example: Example, image_size: tuple[int, int]) -> _Asked:
        """The text of one example's prompt; InvalidInputError as of `layout`."""
        filled = self.prompt.fill(example)
        if not self._control_begins.isdisjoint(filled.text) and (control := self._control.search(filled.text)):
            raise InvalidInputError(
                f"example {example.id}: expected plain text, found the model's control token {control[0]} in its caption"
            )
        image: ImageTokens = self._image_tokens(*image_size)
        frame = self._frame(image) if self._laid_out is not None and self._frames_hold and self.wording.is_plain(filled.text) else None
        return _Asked(filled, image, self.wording.render(filled.text).replace(self.rule.placeholder, image.text, 1), frame)

    def _lay_out(self, example: Example, asked: _Asked, encoded: Encoding) -> TokenLayout:
        if asked.frame is not None:
            return self._fill_frame(example, asked, asked.frame, encoded)
        filled, image, text = asked.filled, asked.image, asked.text
        written = encoded.ids
        runs = [k for k, token in enumerate(written) if token == self.image_id]
        assert len(runs) == len(image.runs), "each run is written as one image token"
        repeats = [1] * len(written)
        for k, count in zip(runs, image.runs, strict=True):
            repeats[k] = count
        at = [0, *accumulate(repeats)]  # where each token of the text stands once the runs are expanded

        def tokens_of(a: int, b: int, what: str) -> Interval:
            found = tokens_within(encoded, a, b)
            if found is None:
                raise InvalidInputError(f"example {example.id}: {what} {text[a:b]!r}: expected at least one token of its own, found none")
            return at[found[0]], at[found[1]]

        ids = np.repeat(np.array(written, np.int32), repeats)
        spans = {**_image_spans([(at[k], at[k + 1]) for k in runs], image), "final": (len(ids) - 1, len(ids))}
        start = text.rindex(filled.text)
        for name, (a, b) in {"prompt": (0, len(filled.text)), **filled.intervals}.items():
            spans[name] = tokens_of(start + a, start + b, name)
        system = self.wording.system_interval(text)
        if system is not None:
            spans["system"] = tokens_of(*system, "the system turn")
        return TokenLayout(ids, spans, image.grid, image.view, image.cut)

    def _fill_frame(self, example: Example, asked: _Asked, frame: Frame, encoded: Encoding) -> TokenLayout:
        ids = np.concatenate([frame.head, np.array(encoded.ids[1:-1], np.int32), frame.tail])
        spans = {**frame.spans, "final": (len(ids) - 1, len(ids))}
        for name, (a, b) in {"prompt": (0, len(asked.filled.text)), **asked.filled.intervals}.items():
            found = tokens_within(encoded, len(frame.opening) + a, len(frame.opening) + b)
            if found is None:
                word = asked.filled.text[a:b]
                raise InvalidInputError(f"example {example.id}: {name} {word!r}: expected at least one token of its own, found none")
            spans[name] = (len(frame.head) - 1 + found[0], len(frame.head) - 1 + found[1])
        return TokenLayout(ids, spans, asked.image.grid, asked.image.view, asked.image.cut)


def _key(example: Example, image_size: tuple[int, int]) -> Hashable:
    """All that a layout depends on."""
    parts = example.parts
    return example.caption, example.relation, parts.subject, parts.relation, parts.object, example.question, image_size


def _image_spans(runs: Sequence[Interval], image: ImageTokens) -> dict[str, Interval]:
    """Where the cells are, and all between the first and the last image token that is no cell; `runs` are those of all image tokens."""
    a, b = image.cells
    assert b - a == image.grid[0] * image.grid[1], "there is one cell for each place of the grid"
    if len(runs) == 1 and (a, b) == (0, runs[0][1] - runs[0][0]):
        return {"image": runs[0]}
    places = [place for first, last in runs for place in range(first, last)]
    cells, others = places[a:b], places[:a] + places[b:]
    assert cells[-1] + 1 - cells[0] == b - a, "cells are adjacent"
    spans = {"image": (cells[0], cells[-1] + 1)}
    if others:
        spans[TILES] = (others[0], others[-1] + 1)
        assert others[-1] < cells[0] or others[0] > cells[-1], "tiles are before or after the cells"
    return spans
