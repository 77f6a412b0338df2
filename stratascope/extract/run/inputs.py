"""Read the images of a plan and prepare model inputs by family: pixels, positions, token types and masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils import fetch_image

from stratascope.errors import CaptureError, InvalidInputError
from stratascope.extract.families.general_family import ProcessorRule
from stratascope.extract.families.image_tokens import CanvasTiles, ImageRule, PatchGrid, SplitTiles
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.images import ImageChangedError, apply_condition, decoded_file, thumbnail

_KEPT = ("pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask")
"""Outputs of image processors that models accept."""


@dataclass(frozen=True)
class PreparedImages:
    """Images as model inputs."""

    tensors: dict[str, torch.Tensor]
    """Keyword of the model's forward -> tensor."""
    cuts: tuple[tuple[int, ...], ...]
    """Tiling or size of each image, to compare with `cut` of the plan."""


def prepare_image(processor: Any, rule: ImageRule, image: Image.Image) -> PreparedImages:
    """Process one image with the family's processor; images for Qwen are resized by qwen_vl_utils first."""
    if isinstance(rule, ProcessorRule):
        prepared: PreparedImages = rule.probe.prepare(image)
        return prepared
    if isinstance(rule, PatchGrid):
        width, height = rule.resize(*image.size)
        size = {"resized_width": width, "resized_height": height}
        resized = fetch_image({"image": image, **size}, image_patch_size=rule.patch)
        made = processor(images=[resized], return_tensors="pt", do_resize=False)
        cut = made["image_grid_thw"][0, 1:]
    elif isinstance(rule, SplitTiles):
        made = processor(images=[[image]], return_tensors="pt", return_row_col_info=True)
        cut = [made["rows"][0][0], made["cols"][0][0]]
    else:
        made = processor(images=[image], return_tensors="pt", **rule.options)
        if "image_sizes" in made:
            cut = made["image_sizes"][0]
        else:
            cut = made["num_patches"] if isinstance(rule, CanvasTiles) else made["pixel_values"].shape[-2:]
    return PreparedImages({name: made[name] for name in _KEPT if name in made}, (tuple(int(n) for n in cut),))


def given_images(images: Sequence[Image.Image]) -> list[Any]:
    """Images of one prompt as processors take them: several in a list of their own."""
    return list(images) if len(images) == 1 else [list(images)]


def joined(prepared: Sequence[PreparedImages]) -> PreparedImages:
    """Concatenate images; missing tiles are padded with empty ones, which the models ignore."""
    tensors = {}
    for name in prepared[0].tensors:
        parts = [images.tensors[name] for images in prepared]
        if name in ("pixel_values", "pixel_attention_mask") and parts[0].ndim >= 4 and len({part.shape[1] for part in parts}) > 1:
            most = max(part.shape[1] for part in parts)
            parts = [torch.cat([part, part.new_zeros(part.shape[0], most - part.shape[1], *part.shape[2:])], 1) for part in parts]
        tensors[name] = torch.cat(parts)
    return PreparedImages(tensors, tuple(cut for images in prepared for cut in images.cuts))


def forward_inputs(model: Any, ids: torch.Tensor, lengths: torch.Tensor, images: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keywords of a forward pass over right-padded prompts with images.

    With causal attention, padding on the right needs no mask; the bidirectional prompts of PaliGemma are masked.

    Parameters
    ----------
    model
        A model of a known family.
    ids, lengths
        (batch, token) and (batch,).
    images
        As `PreparedImages.tensors`.
    """
    family = model.config.model_type
    kinds = (ids == model.config.image_token_id).int()
    real = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
    made = {"input_ids": ids, **images}
    if family.startswith("qwen"):
        made["position_ids"], _ = model.model.get_rope_index(
            ids, mm_token_type_ids=kinds, image_grid_thw=images["image_grid_thw"], attention_mask=real
        )
        made["mm_token_type_ids"] = kinds
    elif family == "gemma3":  # bidirectional attention among image tokens
        made["token_type_ids"] = kinds.long()
    elif family == "paligemma":
        made |= {"token_type_ids": torch.zeros_like(ids), "attention_mask": real}
    return made


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
    """Read an image and, unless it is of a few-shot turn, apply the condition; its file must be the one that was planned.

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
    return found.image if name in plan.shots else apply_condition(found.image, plan.settings.condition)


def load_image(plan: ExtractionPlan, example: int, prepare: Callable[[Image.Image], PreparedImages] | None, number: int = 0) -> LoadedImage:
    """Read and prepare an image of an example.

    Parameters
    ----------
    plan, example
        The plan and the example's number.
    prepare
        Makes the model's inputs of the image; None: they are not needed.
    number
        Of the image among `ExtractionPlan.images_of`.

    Raises
    ------
    CaptureError
        If the processor does not tile the image as planned.
    """
    name = plan.images_of(example)[number]
    if problem := plan.facts[name].problem:
        return LoadedImage(name, problem=(problem, "unreadable_image"))
    try:
        image = shown_image(plan, name)
    except ImageChangedError as error:
        return LoadedImage(name, problem=(str(error), "image_mismatch"))
    except (InvalidInputError, OSError) as error:
        reason = f"{plan.settings.image_path(name)} could be read during planning and cannot be read now ({error})"
        return LoadedImage(name, problem=(reason, "unreadable_image"))
    view = None if plan.further else plan.layouts[example].view
    small = None if plan.store.thumbnail is None or name in plan.shots else thumbnail(image, plan.store.thumbnail, view)
    if prepare is None:
        return LoadedImage(name, small)
    prepared = prepare(image)
    check_cut(plan, example, prepared, number)
    return LoadedImage(name, small, prepared)


def side_by_side(thumbnails: Sequence[np.ndarray]) -> np.ndarray:
    """One thumbnail (height, width, 3) of the thumbnails of several images, from left to right."""
    height, width = thumbnails[0].shape[:2]
    stops = [width * k // len(thumbnails) for k in range(len(thumbnails) + 1)]
    parts = [
        thumbnail(Image.fromarray(each), (height, stop - start)) for each, start, stop in zip(thumbnails, stops, stops[1:], strict=False)
    ]
    return np.concatenate(parts, 1) if len(thumbnails) > 1 else thumbnails[0]


def check_cut(plan: ExtractionPlan, example: int, prepared: PreparedImages, number: int = 0) -> None:
    """Refuse an image that the processor tiles differently from the plan.

    Raises
    ------
    CaptureError
        Naming both tilings.
    """
    (cut,) = prepared.cuts
    planned = plan.layouts[example].cuts[number]
    if cut != planned:
        raise CaptureError(
            f"expected the processor to tile {plan.images_of(example)[number]} into {planned} as planned, found {cut}; report this "
            "with the image's size and the model's name"
        )


def first_per_image(plan: ExtractionPlan, examples: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The first example of each image, and the image's number among those of the example."""
    seen: set[str] = set()
    for k in examples:
        for number, name in enumerate(plan.images_of(k)):
            if name not in seen:
                seen.add(name)
                yield k, number
