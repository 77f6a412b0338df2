"""Copies to the host on a copy stream: a fake one does nothing until it is waited for, so that who reads early reads rubbish."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stratascope.extract.run.device_copy import to_host  # noqa: E402


class LateCopy(torch.Tensor):
    """Host memory that is filled when its queue is waited for."""

    queue: list[Callable[[], object]]

    def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        assert non_blocking
        held = self.as_subclass(torch.Tensor)
        self.queue.append(lambda: held.copy_(source))
        return self


class FakeStream:
    """The copy stream of an imaginary device."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], object]] = []
        self.held: list[int] = []
        self.inside = False
        self.log: list[str] = []

    @contextmanager
    def after_compute(self) -> Iterator[None]:
        self.log.append("wait for the device")
        self.inside = True
        yield
        self.inside = False

    def pinned_like(self, like: torch.Tensor) -> torch.Tensor:
        assert self.inside
        assert like.is_contiguous()
        made = torch.full_like(like, -777).as_subclass(LateCopy)
        made.queue = self.queue
        return made

    def retain(self, values: torch.Tensor) -> None:
        assert self.inside
        self.held.append(values.data_ptr())

    def record_event(self) -> FakeStream:
        assert self.inside
        self.log.append("event")
        return self

    def synchronize(self) -> None:
        while self.queue:
            self.queue.pop(0)()


def test_results_are_read_only_when_all_copies_are_through() -> None:
    side, values = FakeStream(), {"a": torch.arange(12.0).view(3, 4).T, "b": torch.arange(5)}
    arrival = to_host(values, side)
    assert side.log == ["wait for the device", "event"]
    assert side.held == [each.data_ptr() for each in values.values()]
    assert len(side.queue) == 2
    found = arrival.result()
    for name, each in values.items():
        np.testing.assert_array_equal(found[name], each.numpy())
        assert found[name].dtype == each.numpy().dtype


def test_without_a_copy_stream_results_are_there() -> None:
    values = torch.arange(6.0).view(2, 3)
    np.testing.assert_array_equal(to_host({"a": values}, None).result()["a"], values.numpy())
