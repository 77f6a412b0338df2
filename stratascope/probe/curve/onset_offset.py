"""Layers in which an advantage is detected or absent, with onset, peak and offset."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.results.schema import columns
from stratascope.stats.intervals import NO_SPREAD, Band

Floats = NDArray[Any]
EVENTS = columns(
    text="kind candidates", flags="found", ints="layer low high", floats="margin level", keys=["kind"], values={"kind": "onset peak offset"}
)
"""Schema of the table that `event_table` gives; files since version 0.2 also hold equivalence_margin, decided and
minimum_detectable_effect."""


@dataclass(frozen=True)
class LayerEvent:
    """A layer with its interval, or the statement that there is none."""

    kind: str
    """onset, peak or offset"""
    layer: int | None
    """Onset: the first layer detected over `margin`. Offset: the first layer after the last one detected such that the upper bound of
    each layer from it on lies below `equivalence_margin`. None where there is no such layer."""
    low: int | None
    high: int | None
    """Onset: simultaneous interval of the first layer whose advantage exceeds `equivalence_margin`; offset: of the layer after the last
    such one. `low` of an onset is never later, `high` of an offset never earlier than the bounds of the band allow; None: open, no bound
    in the recorded layers. Peak: lowest and highest candidate."""
    candidates: tuple[int, ...]
    """Layers within the interval; of a peak: the layers that are not significantly worse."""
    margin: float
    """The advantage must exceed it to be detected."""
    level: float
    equivalence_margin: float | None = None
    """An advantage below it counts as absent."""
    decided: bool = True
    """Of an offset without layer: whether an advantage is still detected in the last layer, or in no layer. False: neither detection
    nor absence in the last layers can be claimed."""
    _over: Callable[[float], LayerEvent] | None = field(default=None, repr=False, compare=False)

    def __call__(self, margin: float = 0.0) -> LayerEvent:
        """The event over another margin, as version 0.1 wrote it: `advantage.onset(0.05)`."""
        warnings.warn(
            f"advantage.{self.kind} is a property: drop the call, or use {self.kind}_over(margin)", DeprecationWarning, stacklevel=2
        )
        return self if self._over is None or margin == self.margin else self._over(margin)

    def __str__(self) -> str:
        if self.layer is None:
            if self.kind == "offset" and not self.decided:
                return "offset not decided"
            return f"no {self.kind}"
        if self.low == self.high == self.layer or self.kind == "offset":
            return f"{self.kind} at layer {self.layer}"
        if self.kind == "peak":
            return f"peak at layer {self.layer} ({self.low}-{self.high})"
        return f"onset at layer {self.layer} (above {self.equivalence_margin:g}: {self.span})"

    @property
    def span(self) -> str:
        """The interval as text, such as `layers 3-4`, or `layer 3 or later, if at all` where it is open."""
        if self.low is None:
            return "no layer"
        if self.high is None:
            return f"layer {self.low} or later, if at all"
        return f"layer {self.low}" if self.low == self.high else f"layers {self.low}-{self.high}"


def event_table(*events: LayerEvent, detectable: float = np.nan) -> pd.DataFrame:
    """One row per event: kind, found, layer, low, high (-1 for no layer), candidates (as text), margin, level, equivalence_margin, decided.

    `detectable` is the largest minimum detectable effect of the layers that are not detected; NaN where all are.
    """
    return pd.DataFrame(
        [
            {
                "kind": event.kind,
                "found": event.layer is not None,
                **{name: -1 if (layer := getattr(event, name)) is None else layer for name in ("layer", "low", "high")},
                "candidates": ", ".join(map(str, event.candidates)),
                "margin": event.margin,
                "level": event.level,
                "equivalence_margin": np.nan if event.equivalence_margin is None else event.equivalence_margin,
                "decided": event.decided,
                "minimum_detectable_effect": detectable,
            }
            for event in events
        ]
    )


def onset(layers: NDArray[np.integer], bands: Band, *, margin: float = 0.0, equivalence_margin: float, level: float = 0.95) -> LayerEvent:
    """First layer whose simultaneous lower bound exceeds the margin.

    The familywise error rate is 1 - level: on pure noise, at most that share of data sets has an onset. The interval is of the first layer
    with an advantage above `equivalence_margin` (or `margin`, if larger): no earlier than the first layer whose upper bound exceeds it, no
    later than the first whose lower bound does. It covers that layer wherever the band covers all advantages, whatever their course.

    Parameters
    ----------
    layers
        (layer,) ascending.
    bands
        Simultaneous band of the advantage.
    margin, equivalence_margin, level
        As of `LayerEvent`.
    """
    effect = max(margin, equivalence_margin)
    detected, certain, possible = (
        _first(above, layers)
        for above in (bands.low_simultaneous > margin, bands.low_simultaneous > effect, bands.high_simultaneous > effect)
    )
    last = int(layers[-1]) if certain is None else certain
    candidates = () if possible is None else tuple(layers[(layers >= possible) & (layers <= last)].tolist())
    return LayerEvent("onset", detected, possible, certain, candidates, margin, level, equivalence_margin=effect)


def offset(layers: NDArray[np.integer], bands: Band, *, margin: float = 0.0, equivalence_margin: float, level: float = 0.95) -> LayerEvent:
    """First layer from which on the advantage is absent: a claim by equivalence (Schuirmann 1987), not the lack of a detection.

    Every layer from it on has a simultaneous upper bound below `equivalence_margin` (or `margin`, if larger), and none is detected. There
    is no offset where no layer is detected, or the last one is; it is not decided where the last layers are neither detected nor absent.

    Parameters
    ----------
    layers, bands, margin, equivalence_margin, level
        As of `onset`.
    """
    effect, count = max(margin, equivalence_margin), len(layers)
    detected, certain, possible = (
        0 if (place := _first(above[::-1], np.arange(count))) is None else count - place
        for above in (bands.low_simultaneous > margin, bands.low_simultaneous > effect, bands.high_simultaneous > effect)
    )
    start = max(detected, possible)
    found = detected > 0 and start < count
    name = (*layers.tolist(), None)
    candidates = tuple(layers[certain : possible + 1].tolist())
    return LayerEvent(
        "offset", name[start] if found else None, name[certain], name[possible], candidates, margin, level,
        equivalence_margin=effect, decided=found or detected in (0, count),
    )  # fmt: skip


def peak(layers: NDArray[np.integer], value: Floats, draws: Floats, *, level: float = 0.95) -> LayerEvent:
    """The layer of the highest value; candidates are the layers that are not significantly worse.

    The highest value is biased upwards, because the layer is selected on the same data: report the candidates, not the layer alone. They
    hold the layer of the highest expected value with probability `level`, by a band over the differences of all pairs of layers.

    Parameters
    ----------
    layers
        (layer,) ascending.
    value, draws
        (layer,) advantages, and (draw, layer) their draws.
    level
        Of the set of candidates.
    """
    best = int(np.argmax(value))
    centred = draws.astype(np.float64) - draws.mean(axis=0, dtype=np.float64)
    largest = np.zeros(len(draws))
    for one in range(len(layers) - 1):
        apart = np.abs(centred[:, [one]] - centred[:, one + 1 :])
        spread = np.sqrt(np.square(apart).mean(axis=0))
        np.maximum(largest, (apart / np.where(spread > NO_SPREAD, spread, np.inf)).max(axis=1), out=largest)
    error = (centred[:, [best]] - centred).std(axis=0)
    candidates = layers[value[best] - value <= np.quantile(largest, level) * error].tolist()
    return LayerEvent("peak", int(layers[best]), candidates[0], candidates[-1], tuple(candidates), 0.0, level)


def _first(chosen: NDArray[np.bool_], layers: NDArray[np.integer]) -> int | None:
    """The first layer that is chosen; None if there is none."""
    return int(layers[np.argmax(chosen)]) if chosen.any() else None
