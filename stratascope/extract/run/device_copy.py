"""Results on their way from the device to the host, while the device computes on."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch


class Side(Protocol):
    """A second queue of a device's work, beside the one that computes."""

    def after_computing(self) -> AbstractContextManager[Any]:
        """While open, work goes to this queue, and begins when what is asked of the first one so far is done."""
        ...

    def room(self, like: torch.Tensor) -> torch.Tensor:
        """Memory of the host that the device writes to by itself."""
        ...

    def hold(self, values: torch.Tensor) -> None:
        """Keep the memory of `values` from being given to others before this queue is done with it."""
        ...

    def mark(self) -> Any:
        """Something whose `synchronize` waits for all that this queue was asked so far."""
        ...


class CudaSide(Side):
    """A CUDA stream, with pinned memory: torch keeps freed pinned blocks for the next batch, once their copies are through."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def after_computing(self) -> AbstractContextManager[Any]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._stream)

    def room(self, like: torch.Tensor) -> torch.Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def hold(self, values: torch.Tensor) -> None:
        values.record_stream(self._stream)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event


@dataclass(frozen=True)
class Arrival:
    """Copies that may still be under way; not to be read before `result`."""

    _copies: Mapping[str, torch.Tensor]
    _mark: Any

    def result(self) -> dict[str, np.ndarray]:
        """The copies, once all are there; may be asked for by any thread."""
        if self._mark is not None:
            self._mark.synchronize()
        return {name: np.asarray(values.numpy()) for name, values in self._copies.items()}


def side_of(device: torch.device) -> Side | None:
    """A device's second queue; None where results are on the host already."""
    return CudaSide(device) if device.type == "cuda" else None


def to_host(values: Mapping[str, torch.Tensor], side: Side | None) -> Arrival:
    """Begin to copy results to the host; without a side queue they are there."""
    if side is None:
        return Arrival({name: each.cpu() for name, each in values.items()}, None)
    copies = {}
    with side.after_computing():
        for name, each in values.items():
            side.hold(each)
            whole = each.contiguous()
            copies[name] = side.room(whole)
            copies[name].copy_(whole, non_blocking=True)
        return Arrival(copies, side.mark())
