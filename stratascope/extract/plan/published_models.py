"""Bundled descriptions of published models, with which `plan` works where their files cannot be fetched. No torch."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors

from stratascope.errors import InvalidInputError, MissingExtraError
from stratascope.extract.model_files import ModelSource, resolve_model
from stratascope.extract.plan.answer_tokens import ANSWER_FORMS

_PIECES = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+")
"""Pieces of a text that count as tokens: words, digits, runs of punctuation, line feeds, each with the space before it."""

_ROLES = tuple(
    form for role in ("system", "user", "assistant", "model") for form in (role, role.capitalize(), role.upper(), f" {role.upper()}")
)


@dataclass(frozen=True)
class PublishedModel(ModelSource):
    """A model known by its bundled description: sizes, image settings and prompt as published, and words in place of its tokens."""

    reason: str = ""
    """Why its files were not used."""
    texts: frozenset[str] = frozenset()
    """Texts whose words are tokens."""

    @property
    def note(self) -> str:
        """What a plan says of the origin of its numbers."""
        return f"from the bundled description of {self.name}, revision not checked ({self.reason})"

    @cached_property
    def _facts(self) -> Mapping[str, Any]:
        return dict(_bundled()["models"][self.name])

    @cached_property
    def _form(self) -> Mapping[str, Any]:
        return dict(_bundled()["forms"][self._facts["form"]])

    @cached_property
    def config(self) -> dict[str, Any]:
        """`config.json`, as far as planning reads it."""
        facts = self._facts
        return {**facts["config"], "text_config": facts["text"], "vision_config": facts["vision"], "dtype": facts["dtype"]}

    @cached_property
    def processor_config(self) -> dict[str, Any]:
        """Settings of the image processor."""
        return dict(self._facts["image_processor"])

    @cached_property
    def processor_settings(self) -> dict[str, Any]:
        """Settings of the processor without its image processor."""
        return dict(self._facts.get("processor", {}))

    @cached_property
    def tokenizer_settings(self) -> dict[str, Any]:
        """The token that begins a prompt, if there is one."""
        return {"bos_token": self._form["begin"]} if "begin" in self._form else {}

    @cached_property
    def chat_template(self) -> str | None:
        """A template with the text of the published one for a user's turn with an image; None for prompts without turns."""
        return self._form.get("template")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """A stand-in: the model's control tokens, and one token for every word, digit and run of punctuation of `texts`."""
        special = self._form["tokens"]
        pieces = pre_tokenizers.Split(_PIECES, "isolated")
        words = {
            word for text in (*self.texts, *re.split(r"[{}%']", self.chat_template or "")) for word, _ in pieces.pre_tokenize_str(text)
        }
        words |= {word.strip(" ") for word in words} | {".", *ANSWER_FORMS, *_ROLES, *("\n" * lines for lines in range(1, 5))}
        free = (number for number in count() if number not in set(special.values()))
        made = Tokenizer(models.WordLevel({**special, **dict(zip(["\ufffd", *sorted(words)], free, strict=False))}, "\ufffd"))
        made.pre_tokenizer = pieces
        made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        if begin := self._form.get("begin"):
            made.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, special[begin])])
        return made

    @property
    def vocabulary_size(self) -> int:
        """Number of rows of the embedding."""
        return int(self._facts["text"]["vocab_size"])

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return int(self._facts["parameters"])

    @property
    def weights_here(self) -> bool:
        """Never: there are no files."""
        return False

    def digests(self, *, weights: bool = True, progress: bool = False) -> dict[str, str]:
        """None: there are no files."""
        return {}

    def with_texts(self, texts: Iterable[str]) -> PublishedModel:
        """The same model with these texts as the source of words.

        Parameters
        ----------
        texts
            Prompts and answers of a plan.
        """
        return replace(self, texts=frozenset(texts))


@cache
def _bundled() -> dict[str, Any]:
    return tomllib.loads((resources.files("stratascope.extract.plan") / "published_models.toml").read_text(encoding="utf-8"))


def published_models() -> tuple[str, ...]:
    """Hub ids of the models with a bundled description.

    Examples
    --------
    >>> "Qwen/Qwen2.5-VL-7B-Instruct" in published_models()
    True
    """
    return tuple(sorted(_bundled()["models"]))


def model_to_plan(name: str, *, revision: str | None = None, weights: bool = False) -> ModelSource:
    """The files of a model as `resolve_model` finds them or, where a Hub model cannot be fetched, its bundled description.

    Parameters
    ----------
    name, revision
        See `resolve_model`.
    weights
        Whether an extraction follows, which needs the files: there is no bundled description then.

    Raises
    ------
    InvalidInputError
        As `resolve_model`, unless the Hub cannot be reached and the model has a bundled description and no `revision`.
    MissingExtraError
        As `resolve_model`, on the same condition.
    """
    try:
        return resolve_model(name, revision=revision, weights=weights)
    except (InvalidInputError, MissingExtraError) as error:
        answered = getattr(error.__cause__, "response", None) is not None
        if weights or revision is not None or answered or name not in published_models():
            raise
        missing = isinstance(error, MissingExtraError)
        absent = "huggingface_hub is not installed" if missing else "its files are not here, and the Hub cannot be reached"
        return PublishedModel(name, Path(str(resources.files("stratascope.extract.plan"))), reason=absent)
