"""Images of examples and few-shot turns, and the tokens of every example. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stratascope.datasets.examples import Example
from stratascope.datasets.progress import progress_bar
from stratascope.errors import InvalidInputError
from stratascope.extract.plan.images import PLACEHOLDER_SIZE, ImageFacts, inspect_images, stated_images
from stratascope.extract.plan.settings import ExtractionSettings
from stratascope.extract.plan.token_layout import PromptTokenizer, Request, TokenLayout


def check_single_images(count: int, requests: Mapping[str, Sequence[str]]) -> None:
    """Refuse settings that need one image an example, for examples of several.

    Parameters
    ----------
    count
        Number of images of each example.
    requests
        Parameter -> its values that concern single images.

    Raises
    ------
    InvalidInputError
        Naming the parameter and values.
    """
    for parameter, found in requests.items():
        if found and (parameter != "condition" or found == ["patch-shuffle"]):
            raise InvalidInputError(
                f"expected one image an example for `{parameter}` {', '.join(found)}, found {count}: cells, boxes and the vision tower "
                "belong to a single image; leave it out"
            )


def image_facts(settings: ExtractionSettings, names: Sequence[str], *, strict: bool, progress: bool = False) -> dict[str, ImageFacts]:
    """Facts of images by name, or those that the settings state."""
    if settings.image_size is not None:
        return stated_images(names, *settings.image_size)
    return inspect_images(settings.image_path(""), names, strict=strict, progress=progress) if names else {}


def check_shots(
    settings: ExtractionSettings, examples: Sequence[Example], facts: Mapping[str, ImageFacts], context: Mapping[str, ImageFacts]
) -> None:
    """Refuse few-shot images that examples also show, and image tokens in another order beside them.

    Parameters
    ----------
    settings, examples
        The settings and the examples.
    facts, context
        Facts of the examples' images, and of those of the few-shot turns.

    Raises
    ------
    InvalidInputError
        Naming the example and the image.
    """
    if not context:
        return
    if settings.condition == "patch-shuffle":
        raise InvalidInputError(
            "expected a prompt without few-shot images for `condition` patch-shuffle, found some; use another condition"
        )
    known = {fact.sha256: name for name, fact in context.items() if fact.sha256} | {name: name for name in context}
    for example in examples:
        for name in example.images:
            if (shot := known.get(name) or known.get(facts[name].sha256)) is not None:
                raise InvalidInputError(
                    f"example {example.id}: expected another image than those of the prompt's shots, found {name}"
                    f"{'' if name == shot else f', which is {shot}'}: the model would see it with an answer; leave the example or the shot "
                    "out"
                )


def planned_layouts(
    tokenizer: PromptTokenizer,
    examples: Sequence[Example],
    shown: Sequence[tuple[str, ...]],
    facts: dict[str, ImageFacts],
    settings: ExtractionSettings,
    progress: bool,
) -> list[TokenLayout]:
    """Tokens of every example; `facts` receives the reason for images whose shape the model does not accept.

    Raises
    ------
    InvalidInputError
        If the tokens of an example cannot be told, and an unusable image is not the reason.
    """
    layouts = []

    def sizes(images: tuple[str, ...]) -> list[tuple[int, int]]:
        return [(facts[image].width, facts[image].height) for image in images]

    sized: list[Request] = [(example, *sizes(images)) for example, images in zip(examples, shown, strict=True)]
    ahead = progress_bar(tokenizer.layouts(sized), "tokens", len(sized), unit="example", show=progress)
    for (example, *before), images, found in zip(sized, shown, ahead, strict=True):
        if before != (now := sizes(images)):  # another example marked an image as unusable
            found = tokenizer.layout_or_error(example, *now)
        if isinstance(found, InvalidInputError):
            if settings.image_size is not None or any(facts[image].problem for image in images):
                raise found
            tokenizer.layout(example, *(PLACEHOLDER_SIZE for _ in images))  # raises if no image is the reason
            for image, size in zip(images, now, strict=True):
                try:
                    tokenizer.rule.tokens(*size)
                except InvalidInputError as error:
                    problem = f"{settings.image_path(image)}: {error}"
                    if settings.strict:
                        raise InvalidInputError(f"example {example.id}: {problem}") from error
                    facts[image] = replace(facts[image], width=PLACEHOLDER_SIZE[0], height=PLACEHOLDER_SIZE[1], problem=problem)
            found = tokenizer.layout(example, *sizes(images))
        layouts.append(found)
    return layouts
