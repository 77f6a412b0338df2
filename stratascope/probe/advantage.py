"""Paired differences by layer: over chance, a control, another store, or another layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.probe.events import LayerEvent, offset, onset
from stratascope.probe.intervals import Band, band

Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Advantage:
    """A difference of scores by layer."""

    table: pd.DataFrame
    """One row per layer: layer, metric, name, baseline, value, low, high, low_simultaneous, high_simultaneous."""
    draws: Floats
    """(draw, layer)"""
    bands: Band
    level: float

    @classmethod
    def of(
        cls, layers: NDArray[np.integer], value: Floats, draws: Floats, *, metric: str, name: str, baseline: str, level: float = 0.95
    ) -> Advantage:
        """From the differences (layer,) and their draws (draw, layer)."""
        # log-loss is better when it is lower: an advantage is always positive
        sign = -1 if metric == "log_loss" else 1
        value, draws = sign * value, sign * draws
        bands = band(value, draws, level=level)
        columns = {"layer": layers, "metric": metric, "name": name, "baseline": baseline, "value": value}
        intervals = {k: getattr(bands, k) for k in ("low", "high", "low_simultaneous", "high_simultaneous")}
        return cls(table=pd.DataFrame(columns | intervals), draws=draws, bands=bands, level=level)

    def onset(self, margin: float = 0.0) -> LayerEvent:
        """First layer whose simultaneous lower bound exceeds the margin, and whose successor's does."""
        layers, value = self.table["layer"].to_numpy(), self.table["value"].to_numpy()
        return onset(layers, value, self.draws, self.bands, margin=margin, level=self.level)

    def offset(self, margin: float = 0.0) -> LayerEvent:
        """First layer after the peak from which on the advantage can no longer be found."""
        layers, value = self.table["layer"].to_numpy(), self.table["value"].to_numpy()
        return offset(layers, value, self.draws, self.bands, margin=margin, level=self.level)
