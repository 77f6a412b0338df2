"""Onset, peak and offset: where an advantage becomes real, is largest, and is gone."""

from __future__ import annotations

from dataclasses import dataclass
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
    """A layer, or that there is none."""

    kind: str
    """onset, peak or offset"""
    layer: int | None
    """None: never found (onset), or still found at the last layer (offset)."""
    low: int | None
    high: int | None
    """Interval of the layer at `level`, over bootstrap draws and with the threshold of the band; None stands for no layer at all."""
    candidates: tuple[int, ...]
    """Layers that the simultaneous band does not exclude: many where the curve changes slowly, or has a plateau."""
    margin: float
    """The advantage has to exceed it."""
    level: float

    def __str__(self) -> str:
        if self.layer is None:
            return "no onset" if self.kind == "onset" else "no offset"
        span = "" if self.low == self.high == self.layer else f" ({_name(self.low)}-{_name(self.high)})"
        return f"{self.kind} at layer {self.layer}{span}"


def event_table(*events: LayerEvent) -> pd.DataFrame:
    """One row an event: kind, found, layer, low, high (-1 for no layer), candidates (as text), margin, level."""
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
    """First layer whose simultaneous lower bound exceeds the margin and whose successor's does, too.

    On pure noise any layer is named in at most 1 - level of all data sets.

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
    # a layer may be the onset as long as no earlier pair of layers is sure, and it is not itself surely below the margin
    last = found if found < len(layers) else len(layers) - 1
    candidates = tuple(int(layers[i]) for i in range(last + 1) if may[i])
    return _event("onset", layers, found, places, candidates, margin, level)


def offset(
    layers: NDArray[np.integer], value: Floats, draws: Floats, bands: Band, *, margin: float = 0.0, level: float = 0.95
) -> LayerEvent:
    """First layer from which on, after the last two layers that are sure of the advantage, it can no longer be found."""
    threshold = margin + (value - bands.low_simultaneous)
    count = len(layers)
    from_top = _first((value > threshold)[::-1])
    if from_top == count:
        return LayerEvent("offset", None, None, None, (), margin, level)
    found = count - from_top
    places = np.array([count - _first(row[::-1]) for row in draws > threshold])
    # the advantage may live on in later layers, as far as the band does not exclude it
    candidates = tuple(int(layers[i]) for i in range(found, count) if i == found or bands.high_simultaneous[i - 1] > margin)
    return _event("offset", layers, found, places, candidates, margin, level)


def peak(layers: NDArray[np.integer], value: Floats, draws: Floats, bands: Band, *, margin: float = 0.0, level: float = 0.95) -> LayerEvent:
    """The layer of the highest value; its candidates are the layers whose difference from it is not sure.

    The value at the highest layer is biased upwards, since it is chosen on the same data: say the candidates, not the layer alone.
    """
    best = int(np.argmax(value))
    behind = band(value[best] - value, draws[:, [best]] - draws, level=level)
    candidates = tuple(int(layer) for layer, low in zip(layers, behind.low_simultaneous, strict=True) if low <= 0)
    return _event("peak", layers, best, draws.argmax(axis=1), candidates, margin, level)


def _first(above: NDArray[np.bool_]) -> int:
    """First place that is above together with its successor (the last place: alone); the length if there is none."""
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
