"""Changes of the vision tower's residual stream at every image cell when the box of one object is painted over."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from stratascope.datasets.boxes import Box
from stratascope.errors import CaptureError
from stratascope.extract.families.general_family import family_of
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.run.inputs import PreparedImages, shown_image
from stratascope.extract.run.vision_features import ImageFeatures
from stratascope.extract.run.vision_tower import CellRequest
from stratascope.store.format.layout import CHANGED


def painted_over(image: Image.Image, box: Box) -> Image.Image | None:
    """The image with a box in the mean colour of all pixels outside; None if there are none.

    Parameters
    ----------
    image
        RGB.
    box
        (x0, y0, x1, y1) in pixels; every pixel that it touches is changed.

    Examples
    --------
    >>> from PIL import Image
    >>> image = Image.new("RGB", (4, 4), (10, 20, 30))
    >>> image.putpixel((1, 1), (255, 0, 0))
    >>> painted_over(image, (0.5, 1, 1.5, 2)).getpixel((1, 1))
    (10, 20, 30)
    """
    pixels = np.array(image)
    inside = np.zeros(pixels.shape[:2], bool)
    inside[max(math.floor(box[1]), 0) : math.ceil(box[3]), max(math.floor(box[0]), 0) : math.ceil(box[2])] = True
    if inside.all():
        return None
    pixels[inside] = pixels[~inside].mean(0).round()
    return Image.fromarray(pixels)


def changed_image(plan: ExtractionPlan, example: int, who: str, image: Image.Image) -> Image.Image | None:
    """The image that the model sees with the box of subject or object painted over; None if the box is all of it."""
    box, view = plan.shown_box(example, who), plan.layouts[example].view
    assert box is not None, "examples without both boxes are not chosen"
    return painted_over(image, (box[0] + view[0], box[1] + view[1], box[2] + view[0], box[3] + view[1]))


def vision_changes(
    plan: ExtractionPlan,
    example: int,
    prepare: Callable[[Image.Image], PreparedImages],
    features: Callable[[PreparedImages, CellRequest], ImageFeatures],
) -> np.ndarray:
    """(changed, layer, cell) float32 relative changes |r' - r| / |r| of one example; NaN where a box is the whole image.

    r is the residual stream of a cell, the mean over its patches, after 0, 1, ... blocks, and last the image token that the tower hands to
    the decoder; r' is the same of the image with the box painted over.

    Parameters
    ----------
    plan, example
        The plan and the example's number.
    prepare, features
        The model's inputs of an image, and what its tower makes of them.

    Raises
    ------
    CaptureError
        If the family's tower has no cells, or its tokens are not those of the prompt.
    """
    layout, tower = plan.layouts[example], family_of(plan.source).tower
    if tower is None:
        raise CaptureError(
            f"expected a vision tower with known cells for vision_change, found {plan.source.config['model_type']!r}; leave it out "
            "of `record`"
        )
    count = int(np.prod(layout.grid))
    request = CellRequest([np.array([cell]) for cell in range(count)], layout.grid, tower)
    first = layout.spans["image"][0]
    slots = np.cumsum(np.asarray(layout.ids) == plan.tokenizer.image_id)

    def states(image: Image.Image) -> list[torch.Tensor]:
        found = features(prepare(image), request)
        # the example's own image is the last
        places = slots[first : first + count] - 1 - (int(slots[-1]) - found.tokens)
        if found.vision is None or places.min() < 0 or (not plan.shots and int(slots[-1]) != found.tokens):
            raise CaptureError(
                f"expected {int(slots[-1])} image tokens of the vision tower, as the prompt has, found {found.tokens}; leave vision_change "
                "out of `record`"
            )
        pooled = found.pooled.reshape(found.tokens, -1)[torch.from_numpy(places).to(found.pooled.device)]
        return [*found.vision, pooled.float()]

    image = shown_image(plan, plan.shown[example])
    before = states(image)
    changes = np.full((len(CHANGED), len(before), count), np.nan, np.float32)
    for k, who in enumerate(CHANGED):
        if (other := changed_image(plan, example, who, image)) is not None:
            for layer, (r, changed) in enumerate(zip(before, states(other), strict=True)):
                changes[k, layer] = (torch.linalg.vector_norm(changed - r, dim=-1) / torch.linalg.vector_norm(r, dim=-1)).cpu().numpy()
    return changes
