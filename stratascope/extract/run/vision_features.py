"""Image features of the vision tower, computed once for all captions of an image, and its residual stream over image cells.

The tower processes one image at a time, so its features are bitwise the same in every batch, on every such machine, and after an
interruption: caching them changes no number.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from stratascope.errors import CaptureError
from stratascope.extract.run.tower_maps import TowerMapRequest
from stratascope.extract.run.vision_tower import CellRequest, capturing_vision, find_tower
from stratascope.extract.run.window_attention import windows_in_one_call

COUNTED = frozenset({"hunyuan_vl"})
"""Types that number the images of a batch across its examples in their position ids: they run one example at a time."""

DEVICE_SHARE = 0.25
"""Share of free GPU memory for cached features."""

MOST_BYTES = 4 << 30
"""Largest cache on a GPU in bytes: it holds nearly all 6,259 images of VSR (7B, 640 x 480)."""

HOST_BYTES = 1 << 30
"""Largest cache on a CPU in bytes."""


@dataclass(frozen=True)
class ImageFeatures:
    """One image's features, on the model's device."""

    pooled: torch.Tensor
    """As the family returns them, ending in (token, hidden)."""
    deep: tuple[torch.Tensor, ...]
    """Features that Qwen3-VL adds after each of its first blocks, Granite 4 before some, (token, hidden); otherwise empty."""
    vision: torch.Tensor | None
    """(layer, segment, vision hidden) float32: residual stream of the tower."""
    grid: torch.Tensor | None
    """(1, 3), on the host: frames, rows and columns of patches, for the position ids of Qwen."""
    kind: type
    """Output class of the family."""
    listed: bool
    """Whether that output holds a list of images or one tensor."""
    output: str = "pooler_output"
    """Field of the output class with the features."""
    deep_layers: tuple[int, ...] = ()
    """Blocks before which Granite 4 adds the features `deep`."""
    sizes: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """On the host: all whole numbers that the processor made of the image, such as its patch grid and size."""
    maps: np.ndarray | None = None
    """(block, view, token, token) uint8, on the host: packed attention maps of the tower."""

    @property
    def bytes(self) -> int:
        """Memory of the features in bytes."""
        held = [self.pooled, *self.deep, *([] if self.vision is None else [self.vision])]
        return sum(values.numel() * values.element_size() for values in held) + (0 if self.maps is None else self.maps.nbytes)

    @property
    def tokens(self) -> int:
        """Image tokens."""
        return self.pooled.numel() // self.pooled.shape[-1]

    def reordered(self, order: np.ndarray) -> ImageFeatures:
        """The features with image token `order[k]` in slot k."""
        index = torch.from_numpy(order).to(self.pooled.device)
        pooled = self.pooled.reshape(self.tokens, -1)[index].view(self.pooled.shape)
        return replace(self, pooled=pooled, deep=tuple(level[index] for level in self.deep))


def accepts_features(model: Any) -> bool:
    """Whether the forward pass of a family accepts precomputed image features, in batches that equal single examples."""
    if model.config.model_type in COUNTED:
        return False
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters and bool(_feature_owners(model))


def _feature_owners(model: Any) -> list[Any]:
    """The outer and the inner model, where they compute image features."""
    return [owner for owner in (model, getattr(model, "model", None)) if hasattr(owner, "get_image_features")]


def image_features(
    model: Any,
    image: Mapping[str, torch.Tensor],
    on_host: Mapping[str, torch.Tensor],
    cells: CellRequest | None = None,
    maps: TowerMapRequest | None = None,
) -> ImageFeatures:
    """Run the vision tower on one image.

    Parameters
    ----------
    model
        A model that `accepts_features`.
    image
        Keyword of the model's forward -> tensor, on the model's device.
    on_host
        The same on the host.
    cells
        The cells over which the tower's residual stream is averaged; None: it is not captured.
    maps
        How the tower's attention maps are captured; None: they are not.

    Raises
    ------
    CaptureError
        If the tower is not as `cells` or `maps` expect.
    """
    known = _feature_parameters(model)
    seen = cells.capture(model, image) if cells else None
    with (
        maps.capturing(model, image) if maps else nullcontext() as heard,
        windows_in_one_call(getattr(getattr(model, "model", None), "visual", None)),
        capturing_vision(find_tower(model), seen) if seen else nullcontext(),
    ):
        output = _feature_owners(model)[0].get_image_features(
            **{name: values for name, values in image.items() if name in known}, return_dict=True
        )
    found = getattr(output, "deepstack_features", None) or ()
    if found and maps:
        raise CaptureError(
            "expected image features that enter the decoder once for vision_maps, found further ones for later blocks (deepstack); leave "
            "vision_maps out of `record`"
        )
    layers = tuple(level[0] for level in found if isinstance(level[0], int))
    deep = tuple(_only(level[1] if layers else level) for level in found)
    name = "pooler_output" if layers or getattr(output, "pooler_output", None) is not None else "last_hidden_state"
    pooled = deep[0] if layers else output[name]
    listed = isinstance(pooled, list | tuple)
    return ImageFeatures(
        torch.cat([each.reshape(-1, each.shape[-1]) for each in pooled]) if listed else pooled,
        deep,
        torch.stack([seen.residual[layer] for layer in sorted(seen.residual)]) if seen else None,
        on_host.get("image_grid_thw"),
        type(output),
        listed,
        name,
        layers,
        {key: values for key, values in on_host.items() if not values.is_floating_point()},
        heard.array if heard else None,
    )


def _feature_parameters(model: Any) -> set[str]:
    """Parameters of the model's image features; the outer model may hand them on to the inner one."""
    return {name for owner in _feature_owners(model) for name in inspect.signature(owner.get_image_features).parameters}


def feature_inputs(features: Sequence[ImageFeatures]) -> dict[str, Any]:
    """Keyword of the forward pass that replaces the pixels of a batch."""
    pooled = tuple(each.pooled for each in features)
    if not features[0].listed and len({each.shape[1:] for each in pooled}) > 1:  # images with different numbers of tokens
        pooled = tuple(each.reshape(1, -1, each.shape[-1]) for each in pooled)
        joined = torch.cat(pooled, 1)
    else:
        joined = torch.cat(pooled)
    needed = {each.name: None for each in fields(features[0].kind) if each.default is MISSING and each.default_factory is MISSING}
    output = features[0].kind(**{**needed, features[0].output: pooled if features[0].listed else joined})
    if features[0].deep:
        levels = [tuple(each.deep[level] for each in features) for level in range(len(features[0].deep))]
        output.deepstack_features = list(zip(features[0].deep_layers, levels, strict=True)) if features[0].deep_layers else levels
    return {"mm_encoder_outputs": {"image": output}}


def image_grids(features: Sequence[ImageFeatures]) -> dict[str, torch.Tensor]:
    """Keyword of the forward pass with the patch grids of the images."""
    grids = [each.grid for each in features if each.grid is not None]
    return {"image_grid_thw": torch.cat(grids)} if grids else {}


def image_sizes(features: Sequence[ImageFeatures]) -> dict[str, torch.Tensor]:
    """Keywords of the forward pass with the whole numbers that belong to the images, where they can be joined."""
    shapes = {name: {each.sizes[name].shape[1:] for each in features} for name in features[0].sizes if features[0].sizes[name].ndim}
    return {name: torch.cat([each.sizes[name] for each in features]) for name, found in shapes.items() if len(found) == 1}


def vision_segments(features: Sequence[ImageFeatures], segments: Sequence[tuple[int, int]]) -> torch.Tensor:
    """(layer, segment, vision hidden) float32: residual stream of the tower at (example, segment) pairs."""
    kept = [features[row].vision for row, _ in segments]
    return torch.stack([vision[:, segment] for vision, (_, segment) in zip(kept, segments, strict=True) if vision is not None], 1)


class FeatureCache:
    """Cache of image features that evicts those needed furthest in the future (Belady 1966).

    The order of requests is known, so this is optimal. For the 10,972 examples of VSR and a cache of 1,500 images it computes 6,316 images,
    a least-recently-used cache 8,801.

    Parameters
    ----------
    order
        Image name of each future request.
    limit
        Size in bytes.
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
        """Features for the next request, which must be for `name`."""
        features = self._held.get(name)
        if features is None:
            features = compute()
            self.computed += 1
        self._uses[name].popleft()
        self._keep(name, features)
        return features

    def clear(self) -> None:
        """Free the memory."""
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


def feature_budget(device: torch.device) -> int:
    """Bytes for cached features besides the model."""
    if device.type != "cuda":
        return HOST_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return min(MOST_BYTES, int(DEVICE_SHARE * free))


def _only(images: Sequence[torch.Tensor]) -> torch.Tensor:
    (image,) = images
    return image
