"""Edits of the residual stream on the model's device, and which are run on an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch


class Edits(Protocol):
    """Edits of one position and layer, one for each slot: x -> x + shift - write (read (x - centre)), as numpy arrays."""

    @property
    def write(self) -> np.ndarray: ...  # (slot, d, k)
    @property
    def read(self) -> np.ndarray: ...  # (slot, d, k)
    @property
    def centre(self) -> np.ndarray: ...  # (slot, d)
    @property
    def shift(self) -> np.ndarray: ...  # (slot, d)


@dataclass(frozen=True)
class DeviceEdits:
    """`Edits` on the model's device, in float32."""

    write: torch.Tensor
    read: torch.Tensor
    centre: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def of(cls, edits: Edits, device: torch.device) -> DeviceEdits:
        """Copy numpy arrays to a device."""
        parts = (edits.write, edits.read, edits.centre, edits.shift)
        return cls(*(torch.from_numpy(np.asarray(part, np.float32)).to(device) for part in parts))

    @property
    def count(self) -> int:
        """Number of slots."""
        return len(self.shift)

    @cached_property
    def idle(self) -> bool:
        """Whether they change nothing, whatever the residual stream."""
        return not (self.write.any() or self.shift.any())

    def __call__(self, x: torch.Tensor, slots: slice) -> torch.Tensor:
        """(slot, token, d) -> the same, edited."""
        read = (x - self.centre[slots][:, None]) @ self.read[slots]
        return x + self.shift[slots][:, None] - read @ self.write[slots].mT


@dataclass(frozen=True)
class Interventions:
    """What is run on each example of a fold."""

    parts: tuple[tuple[str, ...], ...]
    """Positions that are changed together, for each position of the variants."""
    windows: tuple[tuple[int, int], ...]
    """First and last layer, ascending."""
    edits: Mapping[tuple[str, int], DeviceEdits]
    """(position, layer) -> edits."""
    sources: int = 0
    """Patches, the last slots of each window."""

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """All layers that are changed, ascending."""
        return changed_layers(self.windows)

    @cached_property
    def slots(self) -> int:
        """Variants of a position and window."""
        return (next(iter(self.edits.values())).count if self.edits else 0) + self.sources

    def moving(self, part: Sequence[str]) -> list[int]:
        """Numbers of the windows in which some edit at the positions of a part can change anything."""
        return [
            number
            for number, (first, last) in enumerate(self.windows)
            if self.sources or not all(self.edits[name, layer].idle for name in part for layer in self.layers if first <= layer <= last)
        ]


def changed_layers(windows: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """All layers of the windows, ascending."""
    return tuple(sorted({layer for first, last in windows for layer in range(first, last + 1)}))


def edited(x: torch.Tensor, slots: slice, chosen: Interventions, key: tuple[str, int], patch: torch.Tensor | None) -> torch.Tensor:
    """Edits of some slots, (slot, token, d) in the model's precision; the last slots are patches, (source, token, d)."""
    count = chosen.slots - chosen.sources
    parts = []
    if slots.start < count:
        own = slice(slots.start, min(slots.stop, count))
        parts.append(chosen.edits[key](x[: own.stop - own.start].float(), own).to(x.dtype))
    if slots.stop > count:
        assert patch is not None
        new = patch[max(slots.start, count) - count : slots.stop - count].to(x.dtype)
        # a missing source changes nothing: NaN would reach the other copies, whose attention to it is 0 times NaN
        parts.append(torch.where(new.isnan(), x[-len(new) :], new))
    return torch.cat(parts)
