"""Gold boxes in pixels of the images and of the part that the model sees. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stratascope.datasets.box_alignment import BoxAlignment, align_image
from stratascope.datasets.boxes import Box, BoxIndex
from stratascope.datasets.example import Example
from stratascope.errors import InvalidInputError
from stratascope.extract.plan.images import ImageFacts


def aligned_examples(
    examples: Sequence[Example], index: BoxIndex, facts: Mapping[str, ImageFacts], *, strict: bool = False
) -> tuple[list[Example], dict[str, BoxAlignment]]:
    """Examples with boxes in pixels of the upright images, and the alignment of each image.

    Boxes that cannot be aligned, and boxes of unusable images, are left out.

    Parameters
    ----------
    examples
        Examples with annotated boxes.
    index
        The annotated boxes.
    facts
        Facts of every image, by name.
    strict
        Refuse boxes that do not fit their image, instead of leaving them out.

    Raises
    ------
    InvalidInputError
        If the boxes fit no image; if `strict`, if they do not fit any one image.
    """
    names = [name for name in dict.fromkeys(example.image for example in examples) if not facts[name].problem]
    found = {name: align_image(index, name, (facts[name].width, facts[name].height), facts[name].orientation) for name in names}
    alignments = {name: alignment for name, alignment in found.items() if alignment is not None}
    refused = {name: alignment.reason for name, alignment in alignments.items() if alignment.case == "refused"}
    if refused and (strict or len(refused) == len(alignments)):
        name, reason = next(iter(refused.items()))
        raise InvalidInputError(
            f"expected `boxes` that fit the images, found {len(refused):,} of {len(alignments):,} images whose boxes do not: "
            f"{name}: {reason}"
        )

    def aligned(name: str, box: Box | None) -> Box | None:
        if box is None or facts[name].problem:
            return None
        return alignments[name].apply(box) if name in alignments else box

    boxes = [(aligned(row.image, row.subject_box), aligned(row.image, row.object_box)) for row in examples]
    return [replace(row, subject_box=a, object_box=b) for row, (a, b) in zip(examples, boxes, strict=True)], alignments


def stretched_examples(examples: Sequence[Example], index: BoxIndex, size: tuple[int, int]) -> list[Example]:
    """Examples with boxes scaled to a stated image size, for a plan without images."""

    def stretched(name: str, box: Box | None) -> Box | None:
        annotated = index.annotated_size(name)
        return box if box is None or annotated is None else scaled(box, annotated, size)

    boxes = [(stretched(row.image, row.subject_box), stretched(row.image, row.object_box)) for row in examples]
    return [replace(row, subject_box=a, object_box=b) for row, (a, b) in zip(examples, boxes, strict=True)]


def alignment_cases(alignments: Mapping[str, BoxAlignment]) -> dict[str, int]:
    """Case -> number of images with scaled, turned or refused boxes; empty if all are as annotated."""
    cases = Counter(alignment.case for alignment in alignments.values())
    return {case: cases[case] for case in ("scaled", "turned", "refused") if cases[case]}


def in_view(box: Box, view: Box) -> Box | None:
    """The part of `box` within `view`, relative to the view's upper left corner; None if there is none."""
    x0, y0 = max(box[0], view[0]), max(box[1], view[1])
    x1, y1 = min(box[2], view[2]), min(box[3], view[3])
    return (x0 - view[0], y0 - view[1], x1 - view[0], y1 - view[1]) if x0 < x1 and y0 < y1 else None


def flipped(box: Box, width: float) -> Box:
    """The box after flipping an image of this width left-right."""
    return width - box[2], box[1], width - box[0], box[3]


def view_size(view: Box) -> tuple[float, float]:
    """Width and height of a view."""
    return view[2] - view[0], view[3] - view[1]


def is_whole(view: Box, width: int, height: int) -> bool:
    """Whether the view is the full image."""
    return view == (0, 0, width, height)


def scaled(box: Box, old: tuple[float, float], new: tuple[float, float]) -> Box:
    """The box after resizing an image from (width, height) `old` to `new`."""
    x, y = new[0] / old[0], new[1] / old[1]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y
