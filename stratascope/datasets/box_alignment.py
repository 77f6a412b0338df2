"""Alignment of gold boxes with a photo that was resized or rotated by its EXIF orientation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stratascope.datasets.boxes import Box, BoxIndex

Size = tuple[float, float]
"""Width and height in pixels."""

Case = Literal["unchanged", "scaled", "turned", "refused"]

MOST_DISTORTION = 0.05
"""Largest relative difference of two aspect ratios that rounding a resized image's sides to whole pixels may explain."""

_SWAPPING = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""


@dataclass(frozen=True)
class BoxAlignment:
    """Map from boxes of an annotated image to the photo."""

    annotated: Size
    photo: Size
    """Of the upright photo."""
    orientation: int = 1
    """EXIF orientation that rotates the boxes; 1 for none."""
    reason: str = ""
    """Reason for refusing the boxes; empty if they are accepted."""

    @property
    def case(self) -> Case:
        """Transformation of the boxes; rotated boxes may also be resized."""
        if self.reason:
            return "refused"
        if self.orientation != 1:
            return "turned"
        return "unchanged" if self.annotated == self.photo else "scaled"

    def apply(self, box: Box) -> Box | None:
        """Map a box to the pixels of the upright photo; None if boxes are refused.

        Examples
        --------
        >>> align_boxes((200, 100), (100, 50)).apply((20, 10, 40, 30))
        (10.0, 5.0, 20.0, 15.0)
        """
        if self.reason:
            return None
        if self.case == "unchanged":
            return box
        width, height = _raw_size(self.photo, self.orientation)
        x, y = width / self.annotated[0], height / self.annotated[1]
        x0, y0, x1, y1 = box[0] * x, box[1] * y, box[2] * x, box[3] * y
        if self.orientation in (2, 3, 7, 8):
            x0, x1 = width - x1, width - x0
        if self.orientation in (3, 4, 6, 7):
            y0, y1 = height - y1, height - y0
        return (y0, x0, y1, x1) if self.orientation in _SWAPPING else (x0, y0, x1, y1)


def align_boxes(annotated: Size, photo: Size, orientation: int = 1, boxes: Iterable[Box] = ()) -> BoxAlignment:
    """Align boxes of an image of size `annotated` with a photo.

    Boxes are resized if both sizes have the same aspect ratio, within the rounding of sides to whole pixels. If the photo has an
    EXIF orientation that swaps its sides, the sizes show whether boxes were drawn on the pixels as stored; such boxes are rotated with
    the photo. All other boxes are refused.

    Parameters
    ----------
    annotated
        (width, height) that the annotations state.
    photo
        (width, height) of the photo, upright as its EXIF orientation says.
    orientation
        The photo's EXIF orientation, 1 to 8.
    boxes
        All boxes of the image, to notice those that are shares of its sides (0..1) instead of pixels.

    Examples
    --------
    >>> align_boxes((640, 480), (480, 640), orientation=6).case
    'turned'
    >>> align_boxes((640, 480), (500, 500)).reason
    'boxes are annotated on 640 x 480 pixels, the photo has 500 x 500'
    """
    upright, raw = _same_shape(annotated, photo), _same_shape(annotated, _raw_size(photo, orientation))
    boxes = list(boxes)
    if boxes and max(annotated) > 2 and all(box[2] <= 1 and box[3] <= 1 for box in boxes):
        reason = "all boxes lie within the first pixel, as if given in shares of width and height (0..1); multiply them by both"
    elif not upright and not raw:
        reason = f"boxes are annotated on {_text(annotated)} pixels, the photo has {_text(photo)}"
        if orientation != 1:
            reason += f", turned by its EXIF orientation {orientation}"
    elif upright and raw and orientation != 1:
        reason = (
            f"the photo is turned by its EXIF orientation {orientation}, and its size does not tell whether the boxes were drawn before or "
            "after turning; save the photo as the boxes were drawn on it, without that tag"
        )
    else:
        return BoxAlignment(annotated, photo, 1 if upright else orientation)
    return BoxAlignment(annotated, photo, orientation, reason)


def align_image(index: BoxIndex, image: str, photo: Size, orientation: int = 1) -> BoxAlignment | None:
    """Align an index's boxes of an image with a photo; None if it has no boxes or no size of the image.

    Parameters
    ----------
    index
        The annotated boxes.
    image
        Name of the image.
    photo, orientation
        As of `align_boxes`.
    """
    annotated, boxes = index.annotated_size(image), index.others(image, ())
    return align_boxes(annotated, photo, orientation, boxes) if annotated and boxes else None


def _raw_size(photo: Size, orientation: int) -> Size:
    """Size of the photo before it was turned upright."""
    return (photo[1], photo[0]) if orientation in _SWAPPING else photo


def _same_shape(one: Size, other: Size) -> bool:
    """Whether one may be the other resized, its sides rounded to whole pixels."""
    distortion = abs(one[0] * other[1] / (one[1] * other[0]) - 1)
    return distortion <= min(MOST_DISTORTION, 1 / min(*one, *other))


def _text(size: Size) -> str:
    return f"{size[0]:g} x {size[1]:g}"
