"""Gold boxes of examples in the pixels of the photos at hand. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stratascope.datasets.box_alignment import BoxAlignment, align_image
from stratascope.datasets.boxes import Box, BoxIndex
from stratascope.datasets.example import Example
from stratascope.errors import InvalidInputError
from stratascope.extract.plan.images import ImageFacts
from stratascope.extract.plan.visible_boxes import scaled


def aligned_examples(
    examples: Sequence[Example], index: BoxIndex, facts: Mapping[str, ImageFacts], *, strict: bool = False
) -> tuple[list[Example], dict[str, BoxAlignment]]:
    """Examples with their boxes in the pixels of the upright photos, and how each image's boxes were aligned.

    Boxes that cannot be aligned with their photo, and those of photos that cannot be recorded, are left out.

    Parameters
    ----------
    examples
        With boxes as annotated.
    index
        Where these come from.
    facts
        Of every image, by name.
    strict
        Refuse boxes that do not fit their photo, instead of leaving them out.

    Raises
    ------
    InvalidInputError
        If no image's boxes fit its photo; if `strict`, if any image's do not.
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
    """Examples whose boxes are stretched to photos that are not there, all of one stated size, for a plan only."""

    def stretched(name: str, box: Box | None) -> Box | None:
        annotated = index.annotated_size(name)
        return box if box is None or annotated is None else scaled(box, annotated, size)

    boxes = [(stretched(row.image, row.subject_box), stretched(row.image, row.object_box)) for row in examples]
    return [replace(row, subject_box=a, object_box=b) for row, (a, b) in zip(examples, boxes, strict=True)]


def alignment_cases(alignments: Mapping[str, BoxAlignment]) -> dict[str, int]:
    """Case -> number of images whose boxes were scaled, turned or refused; empty where all are as annotated."""
    cases = Counter(alignment.case for alignment in alignments.values())
    return {case: cases[case] for case in ("scaled", "turned", "refused") if cases[case]}
