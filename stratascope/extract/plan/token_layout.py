"""Token ids, spans and image grid of an example, from the tokenizer and the image size; answer words as tokens. No torch, no model."""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate, islice

import numpy as np
from tokenizers import Encoding

from stratascope.datasets.boxes import Box
from stratascope.datasets.captions import Interval
from stratascope.datasets.examples import Example
from stratascope.datasets.prompts import FilledPrompt, Prompt
from stratascope.errors import InvalidInputError
from stratascope.extract.families.image_tokens import NO_GRID, ImageRule, ImageTokens, image_spans, whole
from stratascope.extract.model_files import ModelSource
from stratascope.extract.plan.answer_tokens import tokens_after
from stratascope.extract.plan.chat_template import PromptFormat, prompt_format
from stratascope.extract.plan.template_framing import Frame, frame_of, tokens_within
from stratascope.store.format.prompt_parts import token_roles

SPANS = ("system", "image", "prompt", "caption", "subject", "relation", "object", "final")
"""Named half-open token intervals; the other tokens belong to the chat template."""

Request = tuple[Example, *tuple[tuple[int, int], ...]]
"""An example, and (width, height) of each of its images."""

_CHUNK = 128
"""Examples that are tokenised together."""

_THREADS = 2
"""Chunks that are tokenised at the same time; more would wait for the thread that makes layouts."""


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
    """The part of the image that the cells cover, in pixels; of several images the first one."""
    cuts: tuple[tuple[int, ...], ...]
    """Tiling that the processor must report of each image, see `ImageTokens`; those of few-shot turns are first."""

    @cached_property
    def roles(self) -> Mapping[str, int]:
        """Role -> index of each text token, see `token_roles`."""
        return token_roles(self.spans, len(self.ids))

    @property
    def seen(self) -> int:
        """Index of the first token of image or prompt: those before it are the same in every example."""
        return min(self.spans[name][0] for name in ("image", "prompt") if name in self.spans)


@dataclass(slots=True)
class _PromptText:
    """Filled prompt of one example, and the frame around it if it is tokenised separately."""

    example: Example
    filled: FilledPrompt
    images: tuple[ImageTokens, ...]
    """Those of few-shot turns, then the example's."""
    view: Box
    frame: Frame | None = None


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
    images
        Number of images of an example.
    shot_sizes
        (width, height) of each image of the prompt's few-shot turns.

    Raises
    ------
    InvalidInputError
        If an answer choice has no tokens behind the prompt, or the chat template has no final model turn.

    Attributes
    ----------
    answer_tokens
        Answer choice -> token ids after the prompt; empty if the answers are each example's own options.
    choice_ids
        Answer choice -> the first of them, or None.
    scored
        Whether answers have several tokens, so that their log-probabilities are summed.
    """

    def __init__(
        self,
        source: ModelSource,
        prompt: Prompt,
        rule: ImageRule,
        system: str | None = None,
        images: int = 1,
        shot_sizes: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.prompt, self.rule, self._source, self._count = prompt, rule, source, images
        self.tokenizer = source.tokenizer
        image_id = self.tokenizer.token_to_id(rule.token)
        if image_id is None:
            raise InvalidInputError(f"{source.name}: expected the token {rule.token} in its tokenizer, found none")
        self.image_id = int(image_id)
        self.prompt_format: PromptFormat = prompt_format(
            source, rule.placeholder, system, image_after=prompt.image_after, images=images, shots=prompt.shots
        )
        self._image_tokens = lru_cache(maxsize=4096)(rule.tokens)
        self._shots: tuple[ImageTokens, ...] = tuple(self._image_tokens(*size) for size in shot_sizes)
        self._frame = lru_cache(maxsize=4096)(self._framed)
        self._frames_hold, self._system = True, system
        special = {token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special}
        self._control_begins = frozenset(text[0] for text in (*special, rule.token, rule.placeholder) if text)
        self._control = re.compile("|".join(map(re.escape, sorted({*special, rule.token, rule.placeholder}, key=len, reverse=True))))
        for shot in prompt.shots:
            self._check_plain("the prompt's shots", f"{shot.text} {shot.answer}")
        self._ask = self.prompt_format.render("x")
        self._answer = lru_cache(maxsize=65536)(self._answered)
        self.answer_tokens = {} if prompt.own_options else {choice: self._answer(choice) for choice in prompt.choices}
        self.choice_ids = {choice: self.answer_tokens[choice][0] if choice in self.answer_tokens else None for choice in prompt.choices}
        self.scored = prompt.own_options or any(len(tokens) > 1 for tokens in self.answer_tokens.values())

    def _answered(self, answer: str) -> tuple[int, ...]:
        unknown = self._source.named_token("unk_token")
        return tokens_after(self._ask, self.prompt_format.answer_gap, answer, self._encode, unknown, self._source.name)

    def answers(self, example: Example) -> tuple[tuple[int, ...], ...]:
        """Tokens of each answer to an example's prompt: the prompt's choices, or the example's own options.

        Raises
        ------
        InvalidInputError
            As `tokens_after`.
        """
        return tuple(map(self._answer, example.options if self.prompt.own_options else self.prompt.choices))

    def _encode(self, text: str) -> Encoding:
        return self.tokenizer.encode(text, add_special_tokens=self.prompt_format.adds_special)

    def layout(self, example: Example, *image_sizes: tuple[int, int]) -> TokenLayout:
        """Tokens and spans of one example with images of (width, height) pixels.

        Raises
        ------
        InvalidInputError
            If a word of the caption has no token of its own, or the model does not accept the shape of an image.
        """
        prompt_text = self._prompt_text(example, *image_sizes)
        text = self._full_text(prompt_text)
        return self._lay_out(prompt_text, text, self._encode(text))

    def layouts(self, requests: Iterable[Request]) -> Iterator[TokenLayout | InvalidInputError]:
        """Yield `layout` of each request in this order, or the error that it raises.

        Other threads tokenise the next texts. Repeated texts and sizes share one layout.
        """
        pairs = iter(requests)
        numbers: dict[Hashable, int] = {}
        made: list[TokenLayout | None] = []
        with ThreadPoolExecutor(_THREADS) as pool:
            ahead = deque(self._submit_chunk(pairs, numbers, pool) for _ in range(_THREADS))
            while ahead:
                chunk, encoded = ahead.popleft()
                if chunk:
                    ahead.append(self._submit_chunk(pairs, numbers, pool))
                made += [None] * (len(numbers) - len(made))
                for number, prompt_text, encoding in encoded.result():
                    with contextlib.suppress(InvalidInputError):  # `layout_or_error` returns it for each of its examples
                        if prompt_text.frame is None:
                            made[number] = self._lay_out(prompt_text, self._full_text(prompt_text), encoding)
                        else:
                            made[number] = self._fill_frame(prompt_text, prompt_text.frame, encoding)
                for number, request in chunk:
                    yield made[number] or self.layout_or_error(*request)

    def layout_or_error(self, example: Example, *image_sizes: tuple[int, int]) -> TokenLayout | InvalidInputError:
        """`layout` of an example, or the error that it raises."""
        try:
            return self.layout(example, *image_sizes)
        except InvalidInputError as error:
            return error

    def _submit_chunk(
        self, pairs: Iterator[Request], numbers: dict[Hashable, int], pool: ThreadPoolExecutor
    ) -> tuple[list[tuple[int, Request]], Future[list[tuple[int, _PromptText, Encoding]]]]:
        """The next requests by number of their layout, and the encodings of those that are not in `numbers`, which receives them."""
        chunk = []
        fresh: list[tuple[int, _PromptText]] = []
        for request in islice(pairs, _CHUNK):
            following = len(numbers)
            number = numbers.setdefault((_key(*request), self.prompt.values(request[0])), following)
            chunk.append((number, request))
            if number == following:
                with contextlib.suppress(InvalidInputError):  # as in `layouts`
                    fresh.append((number, self._prompt_text(*request, framed=True)))
        return chunk, pool.submit(self._encode_all, fresh)

    def _encode_all(self, texts: Sequence[tuple[int, _PromptText]]) -> list[tuple[int, _PromptText, Encoding]]:
        framed = [(number, one) for number, one in texts if one.frame is not None]
        found = self._encode_framed(framed)
        if found is None:  # the tokenizer does not split at its added tokens
            self._frames_hold, found, framed = False, [], []
        rest = [(number, replace(one, frame=None)) for number, one in texts if one.frame is None or not framed]
        encoded = self._batch([self._full_text(one) for _, one in rest], self.prompt_format.adds_special)
        return found + [(number, one, text) for (number, one), text in zip(rest, encoded, strict=True)]

    def _encode_framed(self, texts: Sequence[tuple[int, _PromptText]]) -> list[tuple[int, _PromptText, Encoding]] | None:
        """Tokenise the texts separately; None if the first or the longest has other tokens in the full prompt."""
        encoded = self._batch([one.frame.text(one.filled.text) for _, one in texts if one.frame], False)
        found = [(number, one, text) for (number, one), text in zip(texts, encoded, strict=True)]
        if found:
            for _, one, text in (found[0], max(found, key=lambda entry: len(entry[1].filled.text))):
                assert one.frame is not None
                if one.frame.written(text) != self._encode(self._full_text(one)).ids:
                    return None
        return found

    def _batch(self, texts: list[str], special: bool) -> list[Encoding]:
        if self.tokenizer.padding is None:
            return list(self.tokenizer.encode_batch(texts, add_special_tokens=special))
        # a batch would be padded to its longest text
        return [self.tokenizer.encode(text, add_special_tokens=special) for text in texts]

    def _framed(self, images: tuple[ImageTokens, ...]) -> Frame | None:
        """The frame around plain texts with such images; None if it does not separate them."""
        around = self.prompt_format.around
        if around is None or self.tokenizer.truncation is not None:
            return None
        if around[0].count(self.rule.placeholder) != len(images):
            return None
        before, after = self._written(around[0], images), around[1]
        system = self.prompt_format.system_interval(f"{before}{after}")
        if system is None and self._system:  # it would be searched in the user's text
            return None
        lengths = [count for image in images for count in image.runs]
        return frame_of(
            before, after, lengths, self.image_id, self.tokenizer, self._encode, system, lambda runs: image_spans(runs, images, self._count)
        )

    def _prompt_text(self, example: Example, *image_sizes: tuple[int, int], framed: bool = False) -> _PromptText:
        """The prompt of one example, in a frame if `framed` and it fits; InvalidInputError as in `layout`."""
        filled = self.prompt.fill(example)
        text = filled.text
        self._check_plain(f"example {example.id}", text)
        own = tuple(self._image_tokens(*size) for size in image_sizes)
        assert len(own) == self._count, "the prompt has a place for each image"
        images, view = (*self._shots, *own), own[0].view if self._count == 1 else whole(*image_sizes[0])
        plain = framed and self._frames_hold and self.prompt_format.is_plain(text)
        return _PromptText(example, filled, images, view, self._frame(images) if plain else None)

    def _check_plain(self, what: str, text: str) -> None:
        if not self._control_begins.isdisjoint(text) and (control := self._control.search(text)):
            raise InvalidInputError(f"{what}: expected plain text, found the model's control token {control[0]} in its caption")

    def _written(self, rendered: str, images: tuple[ImageTokens, ...]) -> str:
        """Text with the images in place of their placeholders."""
        first, *rest = rendered.split(self.rule.placeholder)
        return first + "".join(f"{image.text}{after}" for image, after in zip(images, rest, strict=True))

    def _full_text(self, prompt_text: _PromptText) -> str:
        """The full prompt, with each run of image tokens as a single one."""
        return self._written(self.prompt_format.render(prompt_text.filled.text), prompt_text.images)

    def _lay_out(self, prompt_text: _PromptText, text: str, encoded: Encoding) -> TokenLayout:
        example, filled = prompt_text.example, prompt_text.filled
        lengths = [count for image in prompt_text.images for count in image.runs]
        written = encoded.ids
        runs = [k for k, token in enumerate(written) if token == self.image_id]
        assert len(runs) == len(lengths), "each run is written as one image token"
        repeats = [1] * len(written)
        for k, count in zip(runs, lengths, strict=True):
            repeats[k] = count
        at = [0, *accumulate(repeats)]  # position of each token after the runs are expanded

        def tokens_of(a: int, b: int, what: str) -> Interval:
            found = tokens_within(encoded, a, b)
            if found is None:
                raise InvalidInputError(f"example {example.id}: {what} {text[a:b]!r}: expected at least one token of its own, found none")
            return at[found[0]], at[found[1]]

        ids = np.repeat(np.array(written, np.int32), repeats)
        spans = {**image_spans([(at[k], at[k + 1]) for k in runs], prompt_text.images, self._count), "final": (len(ids) - 1, len(ids))}
        shown = filled.text if filled.text in text else filled.text.rstrip()  # some templates trim it
        start = text.rindex(shown)
        for name, (a, b) in {"prompt": (0, len(shown)), **filled.intervals}.items():
            spans[name] = tokens_of(start + a, start + b, name)
        system = self.prompt_format.system_interval(text)
        if system is not None:
            spans["system"] = tokens_of(*system, "the system turn")
        return self._finished(prompt_text, ids, spans)

    def _fill_frame(self, prompt_text: _PromptText, frame: Frame, encoded: Encoding) -> TokenLayout:
        """The layout of a text that was tokenised between the added tokens of its frame."""
        text = prompt_text.filled.text
        ids, spans = frame.filled(encoded, {"prompt": (0, len(text)), **prompt_text.filled.intervals})
        if absent := next((name for name, found in spans.items() if found is None), None):
            a, b = prompt_text.filled.intervals.get(absent, (0, len(text)))
            raise InvalidInputError(
                f"example {prompt_text.example.id}: {absent} {text[a:b]!r}: expected at least one token of its own, found none"
            )
        return self._finished(prompt_text, ids, {name: found for name, found in spans.items() if found is not None})

    def _finished(self, prompt_text: _PromptText, ids: np.ndarray, spans: dict[str, Interval]) -> TokenLayout:
        images = prompt_text.images
        grid = images[-1].grid if self._count == 1 else NO_GRID
        return TokenLayout(ids, spans, grid, prompt_text.view, tuple(image.cut for image in images))


def _key(example: Example, *image_sizes: tuple[int, int]) -> Hashable:
    """Everything that a layout depends on, except further columns."""
    parts = example.parts
    asked = example.question, example.options, example.full_question
    return example.caption, example.relation, parts.subject, parts.relation, parts.object, asked, image_sizes
