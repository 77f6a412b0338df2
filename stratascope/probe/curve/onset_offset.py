"""Onset, peak and offset of an advantage over layers, with intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.results.schema import columns
from stratascope.stats.intervals import Band, band

Floats = NDArray[Any]
EVENTS = columns(
    text="kind candidates", flags="found", ints="layer low high", floats="margin level", keys=["kind"], values={"kind": "onset peak offset"}
)
"""Schema of the table that `event_table` gives."""


@dataclass(frozen=True)
class LayerEvent:
    """A layer with its interval, or the statement that there is none."""

    kind: str
    """onset, peak or offset"""
    layer: int | None
    """None: no layer is significant (onset), or the last layer still is (offset)."""
    low: int | None
    high: int | None
    """Bootstrap interval of the layer at `level`, with the threshold of the simultaneous band; None stands for no layer."""
    candidates: tuple[int, ...]
    """Layers that the simultaneous band does not exclude: many where the curve changes slowly or has a plateau."""
    margin: float
    """The advantage must exceed it."""
    level: float
    _over: Callable[[float], LayerEvent] | None = field(default=None, repr=False, compare=False)

    def __call__(self, margin: float = 0.0) -> LayerEvent:
        """The event over another margin, as version 0.1 wrote it: `advantage.onset(0.05)`."""
        warnings.warn(
            f"advantage.{self.kind} is a property: drop the call, or use {self.kind}_over(margin)", DeprecationWarning, stacklevel=2
        )
        return self if self._over is None or margin == self.margin else self._over(margin)

    def __str__(self) -> str:
        if self.layer is None:
            return "no onset" if self.kind == "onset" else "no offset"
        span = "" if self.low == self.high == self.layer else f" ({_name(self.low)}-{_name(self.high)})"
        return f"{self.kind} at layer {self.layer}{span}"


def event_table(*events: LayerEvent) -> pd.DataFrame:
    """One row per event: kind, found, layer, low, high (-1 for no layer), candidates (as text), margin, level."""
    return pd.DataFrame(
        [
            {
                "kind": event.kind,
                "found": event.layer is not None,
                **{name: -1 if (layer := getattr(event, name)) is None else layer for name in ("layer", "low", "high")},
                "candidates": ", ".join(map(str, event.candidates)),
                "margin": event.margin,
                "level": event.level,
            }
            for event in events
        ]
    )


def _name(layer: int | None) -> str:
    return "none" if layer is None else str(layer)


def onset(
    layers: NDArray[np.integer], value: Floats, draws: Floats, bands: Band, *, margin: float = 0.0, level: float = 0.95
) -> LayerEvent:
    """First layer whose simultaneous lower bound exceeds the margin, and whose successor's does too.

    The familywise error rate is 1 - level: on pure noise, at most that share of data sets has an onset.

    Parameters
    ----------
    layers
        (layer,) ascending.
    value, draws
        (layer,) the advantage over the baseline, and (draw, layer) its draws.
    """
    threshold = margin + (value - bands.low_simultaneous)
    found = _first(value > threshold)
    places = np.array([_first(row) for row in draws > threshold])
    may = bands.high_simultaneous > margin
    # a candidate lies no later than the onset, and its band does not exclude an advantage above the margin
    last = found if found < len(layers) else len(layers) - 1
    candidates = tuple(int(layers[i]) for i in range(last + 1) if may[i])
    return _event("onset", layers, found, places, candidates, margin, level)


def offset(
    layers: NDArray[np.integer], value: Floats, draws: Floats, bands: Band, *, margin: float = 0.0, level: float = 0.95
) -> LayerEvent:
    """First layer after the last two successive layers whose simultaneous lower bound exceeds the margin."""
    threshold = margin + (value - bands.low_simultaneous)
    count = len(layers)
    from_top = _first((value > threshold)[::-1])
    if from_top == count:
        return LayerEvent("offset", None, None, None, (), margin, level)
    found = count - from_top
    places = np.array([count - _first(row[::-1]) for row in draws > threshold])
    # the advantage may persist in later layers whose band does not exclude it
    candidates = tuple(int(layers[i]) for i in range(found, count) if i == found or bands.high_simultaneous[i - 1] > margin)
    return _event("offset", layers, found, places, candidates, margin, level)


def peak(layers: NDArray[np.integer], value: Floats, draws: Floats, bands: Band, *, margin: float = 0.0, level: float = 0.95) -> LayerEvent:
    """The layer of the highest value; candidates are the layers that are not significantly worse.

    The highest value is biased upwards, because the layer is selected on the same data: report the candidates, not the layer alone.
    """
    best = int(np.argmax(value))
    behind = band(value[best] - value, draws[:, [best]] - draws, level=level)
    candidates = tuple(int(layer) for layer, low in zip(layers, behind.low_simultaneous, strict=True) if low <= 0)
    return _event("peak", layers, best, draws.argmax(axis=1), candidates, margin, level)


def _first(above: NDArray[np.bool_]) -> int:
    """Index of the first True that is followed by a True (the last may stand alone); the length if there is none."""
    pair = above.copy()
    pair[:-1] &= above[1:]
    return int(np.argmax(pair)) if pair.any() else len(above)


def _event(
    kind: str, layers: NDArray[np.integer], found: int, places: NDArray[np.intp], candidates: tuple[int, ...], margin: float, level: float
) -> LayerEvent:
    tail = (1 - level) / 2
    low, high = np.quantile(places, [tail, 1 - tail], method="nearest")

    def name(place: int) -> int | None:
        return int(layers[place]) if place < len(layers) else None

    return LayerEvent(kind, name(found), name(int(low)), name(int(high)), candidates, margin, level)
