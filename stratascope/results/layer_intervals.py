"""`LayerIntervals`: layers as runs of consecutive recorded layers, and as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class LayerIntervals:
    """Layers as runs of consecutive recorded layers.

    Examples
    --------
    >>> found = LayerIntervals(((2, 4), (8, 9)), (2, 3, 4, 8, 9))
    >>> str(found), 4 in found.layers, list(found)
    ('layers 2-4 and 8-9', True, [(2, 4), (8, 9)])
    >>> str(LayerIntervals.of([0, 8, 16, 24], [True, True, True, False])), str(LayerIntervals((), ()))
    ('layers 0-16', 'no layer')
    """

    intervals: tuple[tuple[int, int], ...]
    """(first, last) of each run, both included."""
    layers: tuple[int, ...]

    @classmethod
    def of(cls, layers: ArrayLike, chosen: ArrayLike) -> LayerIntervals:
        """The recorded `layers` (layer,), ascending, that are `chosen` (layer,); a single layer is a run."""
        recorded, mask = np.asarray(layers), np.asarray(chosen, bool)
        runs: list[tuple[int, int]] = []
        before = False
        for layer, now in zip(recorded.tolist(), mask.tolist(), strict=True):
            if now:
                runs = [*runs[:-1], (runs[-1][0], layer)] if before else [*runs, (layer, layer)]
            before = now
        return cls(tuple(runs), tuple(recorded[mask].tolist()))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.intervals)

    def __len__(self) -> int:
        return len(self.intervals)

    @property
    def numbers(self) -> str:
        """Such as `2-4 and 8-9`; empty for no layer."""
        runs = [f"{first}" if first == last else f"{first}-{last}" for first, last in self.intervals]
        return " and ".join(filter(None, (", ".join(runs[:-1]), *runs[-1:])))

    def __str__(self) -> str:
        if not self.layers:
            return "no layer"
        return f"layer {self.numbers}" if len(self.layers) == 1 else f"layers {self.numbers}"
