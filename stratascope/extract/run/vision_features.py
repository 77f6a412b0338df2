"""What the vision tower makes of an image, computed once for all its captions.

The tower sees one image at a time, so that an image's features are the same bits whoever asks, in whatever batch, on whichever of
several machines, before or after a run was interrupted: keeping them changes no number.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stratascope.extract.run.vision_capture import capturing_vision, vision_capture

DEVICE_SHARE = 0.25
"""Part of a GPU's free memory that features may take."""

MOST_BYTES = 4 << 30
"""The most that features may take on a GPU: nearly all 6,259 images of VSR are then computed once (7B, photos of 640 x 480)."""

HOST_BYTES = 1 << 30
"""The same where the model runs on the CPU."""


@dataclass(frozen=True)
class ImageFeatures:
    """One image's features, on the model's device."""

    pooled: torch.Tensor
    """As the family gives them, ending in (token, hidden)."""
    deep: tuple[torch.Tensor, ...]
    """What Qwen3-VL adds after each of its first blocks, (token, hidden); none elsewhere."""
    vision: torch.Tensor | None
    """(layer, segment, vision hidden) float32: the tower's residual stream."""
    grid: torch.Tensor | None
    """(1, 3), on the host: frames, rows and columns of patches, of which Qwen's positions are made."""
    kind: type
    """Class of the family's own output."""
    listed: bool
    """Whether that output holds a list of images, or all in one tensor."""

    @property
    def bytes(self) -> int:
        """What is held, in memory."""
        held = [self.pooled, *self.deep, *([] if self.vision is None else [self.vision])]
        return sum(values.numel() * values.element_size() for values in held)


def takes_features(model: Any) -> bool:
    """Whether a family's forward pass takes features that were computed before."""
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters and hasattr(model, "get_image_features")


def image_features(
    model: Any, image: Mapping[str, torch.Tensor], on_host: Mapping[str, torch.Tensor], cells: Sequence[np.ndarray] = ()
) -> ImageFeatures:
    """Run the vision tower over one image.

    Parameters
    ----------
    model
        Of a family that `takes_features`.
    image
        Keyword of the model's forward -> tensor, on the model's device.
    on_host
        The same on the host.
    cells
        Raster indices of cells over which the tower's residual stream is averaged; only for Qwen's tower.
    """
    known = inspect.signature(model.get_image_features).parameters
    tower: Any = getattr(model.model, "visual", None)
    seen = vision_capture(tower, image["image_grid_thw"], [(0, each) for each in cells]) if cells else None
    with capturing_vision(tower, seen) if seen else nullcontext():
        output = model.get_image_features(**{name: values for name, values in image.items() if name in known}, return_dict=True)
    listed = isinstance(output.pooler_output, list | tuple)
    deep = getattr(output, "deepstack_features", None) or ()
    return ImageFeatures(
        _only(output.pooler_output) if listed else output.pooler_output,
        tuple(_only(level) for level in deep),
        torch.stack([seen.residual[layer] for layer in sorted(seen.residual)]) if seen else None,
        on_host.get("image_grid_thw"),
        type(output),
        listed,
    )


def given_to_model(features: Sequence[ImageFeatures]) -> dict[str, Any]:
    """The keyword of the forward pass that stands for the pixels of a batch's images."""
    pooled = tuple(each.pooled for each in features)
    output = features[0].kind(pooler_output=pooled if features[0].listed else torch.cat(pooled))
    if features[0].deep:
        output.deepstack_features = [tuple(each.deep[level] for each in features) for level in range(len(features[0].deep))]
    return {"mm_encoder_outputs": {"image": output}}


def places(features: Sequence[ImageFeatures]) -> dict[str, torch.Tensor]:
    """What the forward pass is told of the images beside their features."""
    grids = [each.grid for each in features if each.grid is not None]
    return {"image_grid_thw": torch.cat(grids)} if grids else {}


class FeatureCache:
    """Features of images that will be asked for again; of too many, those that are needed last are dropped first.

    An extraction knows what it will ask for, so that no better choice is possible (Belady 1966). Captions of an image are seldom
    neighbours in VSR: of 10,972 examples the last-used-first-dropped rule with room for 1,500 images would compute 8,801, this one 6,316.

    Parameters
    ----------
    order
        Name of the image of each request to come.
    limit
        Bytes.
    """

    def __init__(self, order: Iterable[str], limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self.computed = 0
        """How often the tower ran."""
        self._held: dict[str, ImageFeatures] = {}
        self._uses: dict[str, deque[int]] = {}
        for place, name in enumerate(order):
            self._uses.setdefault(name, deque()).append(place)

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def obtain(self, name: str, compute: Callable[[], ImageFeatures]) -> ImageFeatures:
        """The features of the next request, which must be for `name`."""
        features = self._held.get(name)
        if features is None:
            features = compute()
            self.computed += 1
        self._uses[name].popleft()
        self._keep(name, features)
        return features

    def clear(self) -> None:
        """Give the memory back."""
        self._held.clear()
        self.bytes = 0

    def _keep(self, name: str, features: ImageFeatures) -> None:
        if not self._uses[name]:
            if self._held.pop(name, None) is not None:
                self.bytes -= features.bytes
            return
        if name not in self._held:
            self._held[name] = features
            self.bytes += features.bytes
        while self.bytes > self.limit:
            last = max(self._held, key=lambda held: self._uses[held][0])
            self.bytes -= self._held.pop(last).bytes


def room_for_features(device: torch.device) -> int:
    """Bytes that features may take beside the model."""
    if device.type != "cuda":
        return HOST_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return min(MOST_BYTES, int(DEVICE_SHARE * free))


def _only(images: Sequence[torch.Tensor]) -> torch.Tensor:
    (image,) = images
    return image
