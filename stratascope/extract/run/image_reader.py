"""Images of a plan, read and prepared for the model ahead of it, in threads of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stratascope.errors import CaptureError, InvalidInputError
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.images import ImageChangedError, apply_condition, decoded_file, thumbnail
from stratascope.extract.run.inputs import PreparedImages


@dataclass(frozen=True)
class LoadedImage:
    """An image, ready for the model, or why it cannot be had."""

    name: str
    thumbnail: np.ndarray | None = None
    """(height, width, 3) uint8, where the store wants one."""
    prepared: PreparedImages | None = None
    """None where the model needs no pixels: its features are kept."""
    problem: tuple[str, str] | None = None
    """The reason, and the name of the status that is recorded."""


def shown_image(plan: ExtractionPlan, name: str) -> Image.Image:
    """An image as the model is shown it, conditioned; read now, and the same file as when it was planned.

    Raises
    ------
    ImageChangedError
        If the file is another one than when it was planned.
    InvalidInputError
        If it cannot be decoded.
    OSError
        If it cannot be read.
    """
    _, found = decoded_file(plan.settings.image_path(name), plan.facts[name].sha256)
    return apply_condition(found.image, plan.settings.condition)


def load_image(plan: ExtractionPlan, example: int, prepare: Callable[[Image.Image], PreparedImages] | None) -> LoadedImage:
    """Read, condition and prepare the image that an example is shown.

    Raises
    ------
    CaptureError
        If the processor does not cut the image as planned.
    """
    name, layout = plan.shown[example], plan.layouts[example]
    if problem := plan.facts[name].problem:
        return LoadedImage(name, problem=(problem, "unreadable_image"))
    try:
        image = shown_image(plan, name)
    except ImageChangedError as error:
        return LoadedImage(name, problem=(str(error), "image_mismatch"))
    except (InvalidInputError, OSError) as error:
        reason = f"{plan.settings.image_path(name)} could be read when planning and no longer can ({error})"
        return LoadedImage(name, problem=(reason, "unreadable_image"))
    small = None if plan.store.thumbnail is None else thumbnail(image, plan.store.thumbnail, layout.view)
    if prepare is None:
        return LoadedImage(name, small)
    prepared = prepare(image)
    check_cut(plan, example, prepared)
    return LoadedImage(name, small, prepared)


def check_cut(plan: ExtractionPlan, example: int, prepared: PreparedImages) -> None:
    """Refuse an image that the processor cuts otherwise than the plan.

    Raises
    ------
    CaptureError
        With both ways of cutting it.
    """
    (cut,) = prepared.cuts
    if cut != plan.layouts[example].cut:
        raise CaptureError(
            f"expected the processor to cut {plan.shown[example]} into {plan.layouts[example].cut} as planned, found {cut}; report this "
            "with the image's size and the model's name"
        )


def first_shown(plan: ExtractionPlan, examples: Iterable[int]) -> Iterator[int]:
    """Of examples that are shown the same image, the first."""
    seen: set[str] = set()
    for k in examples:
        if plan.shown[k] not in seen:
            seen.add(plan.shown[k])
            yield k
