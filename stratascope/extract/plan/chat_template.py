"""Prompt text: chat turns up to the start of the model's answer, or a prefix without turns. No torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from stratascope.datasets.captions import Interval
from stratascope.datasets.prompts import Shot
from stratascope.errors import InvalidInputError
from stratascope.extract.families.general_family import family_of
from stratascope.extract.model_files import ModelSource

_ASKED, _ANSWER = "WHETHER", "STRATASCOPE"
"""Placeholders for the user's text and the model's answer while a template is examined."""
_THINKING = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("\u25c1think\u25b7", "\u25c1/think\u25b7"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<seed:think>", "</seed:think>"),
)
"""Opening and closing markers of reasoning before the answer."""
_CLOSE_THINKING = ("enable_thinking", "thinking")
"""Variables of chat templates that turn reasoning off with the value false."""
_OTHER = 'Is it so: "a-b\'s" (c/d, é) & 1.5 % of e; true, false, or not? Yes!'
_PLAIN = re.compile(r"[\w ,.;:?!'\"()&%/+-]+")
"""Characters without meaning for templates. `_OTHER` has every kind of them."""
_CHATML_SYSTEM, _CHATML_END = "<|im_start|>system\n", "<|im_end|>"


class PromptFormat(Protocol):
    """Format of a prompt around the user's text."""

    adds_special: bool
    """Whether the tokenizer must add its initial special tokens."""
    answer_gap: str
    """Whitespace between the prompt and the answer."""
    template_options: Mapping[str, bool]
    """Variables of the chat template besides the conversation."""
    dates: frozenset[str]
    """Dates that the chat template inserted; the prompt differs on another day."""

    def render(self, text: str) -> str:
        """The prompt with a placeholder for each image."""

    def processor_text(self, text: str) -> str:
        """Input of the family's own processor for the same prompt."""

    @property
    def around(self) -> tuple[str, str] | None:
        """Text before and after every plain text; None if it depends on the text."""

    def is_plain(self, text: str) -> bool:
        """Whether a text has only characters without meaning for templates."""

    def system_interval(self, rendered: str) -> Interval | None:
        """Characters of the system turn; None if there is none."""


class PrefixFormat(PromptFormat):
    """Prompt of PaliGemma: images, beginning-of-text token, the user's text, a line feed; no turns.

    Raises
    ------
    InvalidInputError
        If there is a `system` text.
    """

    adds_special = False
    answer_gap = ""
    template_options: Mapping[str, bool] = {}
    dates: frozenset[str] = frozenset()
    around = None

    def __init__(self, source: ModelSource, placeholder: str, system: str | None, images: int = 1) -> None:
        if system:
            raise InvalidInputError(f"expected no `system` for {source.name}, whose prompts are a prefix without turns, found {system!r}")
        self.placeholder, self._images, self._begin = placeholder, placeholder * images, source.named_token("bos_token", "<bos>")

    def render(self, text: str) -> str:
        return f"{self._images}{self._begin}{text}\n"

    def processor_text(self, text: str) -> str:
        return f"{self._images}{text}"

    def is_plain(self, text: str) -> bool:
        return False

    def system_interval(self, rendered: str) -> Interval | None:
        return None


class ChatFormat(PromptFormat):
    """Optional system turn, few-shot turns, a user turn with images and a text, and the start of the model's turn.

    Parameters
    ----------
    source
        The model.
    placeholder
        Image placeholder of the chat template; None: what the template writes for an image.
    system
        Text of the system turn; None leaves it to the template, and an empty text leaves it out.
    image_after
        Whether the image follows the text in the user's turn.
    images
        Number of images in the last of the user's turns.
    shots
        Earlier turns of user and model.

    Raises
    ------
    InvalidInputError
        If there is no chat template, it refuses the conversation, it does not open the model's turn, or it opens reasoning that cannot be
        turned off.
    """

    def __init__(
        self,
        source: ModelSource,
        placeholder: str | None,
        system: str | None,
        *,
        image_after: bool = False,
        images: int = 1,
        shots: Sequence[Shot] = (),
    ) -> None:
        self._source, self.system, self._image_after = source, system, image_after
        self._images, self._shots = 1, tuple[Shot, ...]()
        self.dates = frozenset()
        self.template_options = self._without_thinking()
        self.placeholder = self._written_image() if placeholder is None else placeholder
        self._images, self._shots = images, tuple(shots)
        self.answer_gap = self._examined_gap()
        begin = source.named_token("bos_token")
        self.adds_special = not (begin and self.render("x").startswith(begin))

    def _written_image(self) -> str:
        """What the template adds for the image of a conversation."""
        user = self.conversation(_ASKED)
        bare = [*user[:-1], {**user[-1], "content": [part for part in user[-1]["content"] if part["type"] != "image"]}]
        with_image, without = self._apply_template(user, True), self._apply_template(bare, True)
        start = next((k for k, (a, b) in enumerate(zip(with_image, without, strict=False)) if a != b), len(without))
        stop = len(with_image) - (len(without) - start)
        if stop <= start or with_image[:start] + with_image[stop:] != without:
            raise InvalidInputError(
                f"{self._source.name}: expected a chat template that writes an image of the user's turn in one place, found {with_image!r} "
                f"with and {without!r} without it; use a model whose template takes images"
            )
        return with_image[start:stop]

    def _without_thinking(self) -> Mapping[str, bool]:
        """Options that turn reasoning off, so that the answer follows the prompt; empty for templates without reasoning."""
        self._template  # noqa: B018  # raises its own error first
        read = meta.find_undeclared_variables(self._environment.parse(str(self._source.chat_template)))
        options = {name: False for name in _CLOSE_THINKING if name in read}
        self.template_options = options
        prompt = self._apply_template(self.conversation(_ASKED), True)
        answer = prompt[prompt.rfind(_ASKED) + len(_ASKED) :]
        for opens, closes in _THINKING:
            if opens in answer and closes not in answer[answer.rindex(opens) :]:
                tried = f" even with {' and '.join(f'{name}=False' for name in options)}" if options else ""
                raise InvalidInputError(
                    f"{self._source.name}: expected a chat template whose prompt ends at the answer, found one that ends inside "
                    f"{opens}{tried}: the next token would start reasoning, not the answer; use the instruct version of the model, or a "
                    f"chat_template.jinja that closes with {closes}"
                )
        return options

    @cached_property
    def _template(self) -> Any:
        template = self._source.chat_template
        if template is None:
            raise InvalidInputError(
                f"{self._source.name}: expected a chat template in {self._source.folder}, found none; use an instruction-tuned model"
            )

        try:
            return self._environment.from_string(template)
        except TemplateError as error:
            raise InvalidInputError(f"{self._source.name}: expected a chat template in Jinja, found: {error}") from error

    @cached_property
    def _environment(self) -> ImmutableSandboxedEnvironment:
        def raise_exception(message: str) -> None:
            raise TemplateError(message)

        def strftime_now(form: str) -> str:
            found = datetime.now().strftime(form)
            self.dates |= {found}
            return found

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
        environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
        return environment

    def conversation(self, text: str) -> list[dict[str, Any]]:
        """Messages of the chat template."""
        turns = [{"role": "system", "content": [_text(self.system)]}] if self.system else []
        for shot in self._shots:
            turns += [self._user(len(shot.images), shot.text), {"role": "assistant", "content": [_text(shot.answer)]}]
        return [*turns, self._user(self._images, text)]

    def _user(self, images: int, text: str) -> dict[str, Any]:
        content = [_text(text), *({"type": "image"},) * images]
        return {"role": "user", "content": content if self._image_after else [*content[1:], content[0]]}

    def render(self, text: str) -> str:
        """The prompt with a placeholder for each image; InvalidInputError if there are not as many as images."""
        if self.around is not None and self.is_plain(text):
            return f"{self.around[0]}{text}{self.around[1]}"
        return self._rendered(text)

    def is_plain(self, text: str) -> bool:
        return bool(_PLAIN.fullmatch(text)) and text == text.strip()

    def _rendered(self, text: str) -> str:
        rendered = self._apply_template(self.conversation(text), True)
        expected = self._images + sum(len(shot.images) for shot in self._shots)
        wanted = "one" if expected == 1 else str(expected)
        if rendered.count(self.placeholder) != expected:
            raise InvalidInputError(
                f"{self._source.name}: expected its chat template to place {wanted} {self.placeholder}, found "
                f"{rendered.count(self.placeholder)} in {rendered!r}"
            )
        return rendered

    processor_text = render

    @cached_property
    def around(self) -> tuple[str, str] | None:
        """Text that the template adds before and after a plain text; None if it changes the text."""
        (before, found, after), other = self._rendered(_ASKED).rpartition(_ASKED), self._rendered(_OTHER)
        return (before, after) if found and other == f"{before}{_OTHER}{after}" else None

    def _apply_template(self, messages: list[dict[str, Any]], open_turn: bool) -> str:
        special = {role: self._source.named_token(role) for role in ("bos_token", "eos_token", "pad_token", "unk_token")}
        known = {role: text for role, text in special.items() if text is not None}
        try:
            rendered = str(self._template.render(messages=messages, add_generation_prompt=open_turn, **known, **self.template_options))
        except TemplateError as error:
            asked = "the few-shot turns" if self._shots else "one user turn with an image"
            raise InvalidInputError(f"{self._source.name}: its chat template refuses {asked}: {error}") from error
        if self.system == "" and rendered.startswith(_CHATML_SYSTEM):  # the default of the template, which has no option to omit it
            rendered = rendered[rendered.index(_CHATML_END) + len(_CHATML_END) :].removeprefix("\n")
        return rendered

    def _examined_gap(self) -> str:
        """Whitespace before the answer; checks that the prompt ends at the start of the answer."""
        asked = self.conversation(_ASKED)
        opened, closed = self._apply_template(asked, True), self._apply_template(asked, False)
        answered = self._apply_template([*asked, {"role": "assistant", "content": [_text(_ANSWER)]}], False)
        rest = answered[len(opened) :] if answered.startswith(opened) else ""
        gap, found, _ = rest.partition(_ANSWER)
        ended = not opened.rstrip().endswith(_ASKED)
        if ended and found and not gap.strip():
            return gap
        if not ended or opened == closed:
            raise InvalidInputError(
                f"{self._source.name}: expected its chat template to open the model's turn after the user's, found {opened!r}: without a "
                "final model turn the last token does not predict an answer; use an instruction-tuned model"
            )
        return ""

    def system_interval(self, rendered: str) -> Interval | None:
        if rendered.startswith(_CHATML_SYSTEM):
            return len(_CHATML_SYSTEM), rendered.index(_CHATML_END)
        if not self.system or (start := rendered.find(self.system.strip())) < 0:
            return None
        return start, start + len(self.system.strip())


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def prompt_format(
    source: ModelSource,
    placeholder: str,
    system: str | None,
    *,
    image_after: bool = False,
    images: int = 1,
    shots: Sequence[Shot] = (),
) -> PromptFormat:
    """The format of a model's prompts.

    Parameters
    ----------
    source, placeholder, system, image_after, images, shots
        See `ChatFormat`.

    Raises
    ------
    InvalidInputError
        See `ChatFormat`; or for an image after the text, or few-shot turns, in a prompt without turns.
    """
    if not family_of(source).prefix:
        return ChatFormat(source, placeholder, system, image_after=image_after, images=images, shots=shots)
    if shots:
        raise InvalidInputError(f"expected no shots in the prompt for {source.name}, whose prompts are a prefix without turns, found them")
    if image_after:
        raise InvalidInputError(f"expected the image before the text for {source.name}, whose prompts begin with it, found it after")
    return PrefixFormat(source, placeholder, system, images)


class _Generation(Extension):
    """The tag `{% generation %}`, which marks the model's turns in transformers; its body is rendered unchanged."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)
