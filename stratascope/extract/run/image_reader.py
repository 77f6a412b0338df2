"""Read the images of a plan and prepare them for the model."""

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
    """A prepared image, or the reason why it cannot be used."""

    name: str
    thumbnail: np.ndarray | None = None
    """(height, width, 3) uint8, if the store has thumbnails."""
    prepared: PreparedImages | None = None
    """None if the features of the image are cached."""
    problem: tuple[str, str] | None = None
    """The reason, and the status of the example in the store."""


def shown_image(plan: ExtractionPlan, name: str) -> Image.Image:
    """Read an image and apply the condition; its file must be the one that was planned.

    Raises
    ------
    ImageChangedError
        If the file changed since planning.
    InvalidInputError
        If it cannot be decoded.
    OSError
        If it cannot be read.
    """
    _, found = decoded_file(plan.settings.image_path(name), plan.facts[name].sha256)
    return apply_condition(found.image, plan.settings.condition)


def load_image(plan: ExtractionPlan, example: int, prepare: Callable[[Image.Image], PreparedImages] | None) -> LoadedImage:
    """Read and prepare the image of an example.

    Raises
    ------
    CaptureError
        If the processor does not tile the image as planned.
    """
    name, layout = plan.shown[example], plan.layouts[example]
    if problem := plan.facts[name].problem:
        return LoadedImage(name, problem=(problem, "unreadable_image"))
    try:
        image = shown_image(plan, name)
    except ImageChangedError as error:
        return LoadedImage(name, problem=(str(error), "image_mismatch"))
    except (InvalidInputError, OSError) as error:
        reason = f"{plan.settings.image_path(name)} could be read during planning and cannot be read now ({error})"
        return LoadedImage(name, problem=(reason, "unreadable_image"))
    small = None if plan.store.thumbnail is None else thumbnail(image, plan.store.thumbnail, layout.view)
    if prepare is None:
        return LoadedImage(name, small)
    prepared = prepare(image)
    check_cut(plan, example, prepared)
    return LoadedImage(name, small, prepared)


def check_cut(plan: ExtractionPlan, example: int, prepared: PreparedImages) -> None:
    """Refuse an image that the processor tiles differently from the plan.

    Raises
    ------
    CaptureError
        Naming both tilings.
    """
    (cut,) = prepared.cuts
    if cut != plan.layouts[example].cut:
        raise CaptureError(
            f"expected the processor to tile {plan.shown[example]} into {plan.layouts[example].cut} as planned, found {cut}; report this "
            "with the image's size and the model's name"
        )


def first_per_image(plan: ExtractionPlan, examples: Iterable[int]) -> Iterator[int]:
    """The first example of each image."""
    seen: set[str] = set()
    for k in examples:
        if plan.shown[k] not in seen:
            seen.add(plan.shown[k])
            yield k
