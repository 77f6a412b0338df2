"""Copies of results to the host while the device keeps computing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch


class CopyStream(Protocol):
    """A second stream of a device, for copies."""

    def after_compute(self) -> AbstractContextManager[Any]:
        """While open, work goes to this stream; it starts after the work that the compute stream has so far."""
        ...

    def pinned_like(self, like: torch.Tensor) -> torch.Tensor:
        """Pinned host memory of the shape and dtype of a tensor."""
        ...

    def retain(self, values: torch.Tensor) -> None:
        """Keep the memory of `values` allocated until this stream is done with it."""
        ...

    def record_event(self) -> Any:
        """An event whose `synchronize` waits for all work of this stream so far."""
        ...


class CudaCopyStream(CopyStream):
    """A CUDA stream with pinned memory; torch reuses freed pinned memory once its copies are done."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def after_compute(self) -> AbstractContextManager[Any]:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._stream)

    def pinned_like(self, like: torch.Tensor) -> torch.Tensor:
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def retain(self, values: torch.Tensor) -> None:
        values.record_stream(self._stream)

    def record_event(self) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event


@dataclass(frozen=True)
class HostCopy:
    """Copies that may still be running; read them through `result`."""

    _copies: Mapping[str, torch.Tensor]
    _event: Any

    def result(self) -> dict[str, np.ndarray]:
        """Wait for the copies and return them; any thread may call this."""
        if self._event is not None:
            self._event.synchronize()
        return {name: np.asarray(values.numpy()) for name, values in self._copies.items()}


def copy_stream(device: torch.device) -> CopyStream | None:
    """A stream for copies; None if results are on the host already."""
    return CudaCopyStream(device) if device.type == "cuda" else None


def to_host(values: Mapping[str, torch.Tensor], stream: CopyStream | None = None) -> HostCopy:
    """Start to copy results to the host; without a stream, copy them at once."""
    if stream is None:
        return HostCopy({name: each.cpu() for name, each in values.items()}, None)
    copies = {}
    with stream.after_compute():
        for name, each in values.items():
            stream.retain(each)
            whole = each.contiguous()
            copies[name] = stream.pinned_like(whole)
            copies[name].copy_(whole, non_blocking=True)
        return HostCopy(copies, stream.record_event())
