"""Paired differences by layer: over chance, a control, another store, or another layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.probe.curve.metrics import width_of
from stratascope.probe.curve.onset_offset import EVENTS, LayerEvent, event_table, offset, onset, peak
from stratascope.results.file import ResultFile
from stratascope.results.result import Result, new_axes
from stratascope.results.schema import ResultSchema, columns, floats
from stratascope.stats.intervals import INTERVAL, INTERVALS, NO_SPREAD, Band, band
from stratascope.store.format.json_schema import each

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[Any]


DERIVED = {**each(str, "task"), **each(str | None, "position fingerprint")}
"""Schema of what a result that is derived from a curve says of the curve."""
_BASELINE = {**each(str, "task?"), **each(str | None, "store? fingerprint? condition?"), **each(int, "layer?")}
_SCHEMA = ResultSchema(
    {**DERIVED, "level": float, "baseline?": {**_BASELINE, "of?": list[Any]}},
    {
        "table": columns("layer", text="metric name baseline", ints="layer", floats=f"value {INTERVAL}", keys=["layer"]),
        "events": EVENTS,
    },
    {"draws": floats("draw layer")},
)


class Advantage(Result, kind="advantage", command="probe", prefix="advantage"):
    """A difference of scores by layer."""

    table: pd.DataFrame
    """One row per layer: layer, metric, name, baseline, value, low, high, low_simultaneous, high_simultaneous."""
    draws: Floats
    """(draw, layer)"""
    bands: Band
    level: float
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """task, position, fingerprint (of the store), baseline (task, store, fingerprint, condition), where it is known."""

    @classmethod
    def of(
        cls,
        layers: NDArray[np.integer],
        value: Floats,
        draws: Floats,
        *,
        metric: str,
        name: str,
        baseline: str,
        level: float = 0.95,
        attributes: Mapping[str, Any] | None = None,
        groups: int | None = None,
        certain: NDArray[np.bool_] | None = None,
    ) -> Advantage:
        """From differences and their draws.

        Parameters
        ----------
        layers
            (layer,) layer numbers.
        value, draws
            (layer,) differences, and (draw, layer) their bootstrap draws.
        metric, name, baseline
            Of which score, of what, over what; log-loss turns its sign, so that an advantage is positive.
        level
            Of the intervals.
        attributes
            What the result shall say of itself.
        groups, certain
            Number of groups, and (layer,) differences that are known whatever is drawn: `intervals.band`.
        """
        # log-loss is better when it is lower: an advantage is always positive
        sign = -1 if metric == "log_loss" else 1
        value, draws = sign * value, sign * draws
        bands = band(value, draws, level=level, **width_of(metric, groups), certain=certain)
        columns = {"layer": layers, "metric": metric, "name": name, "baseline": baseline, "value": value}
        return cls(table=pd.DataFrame(columns | bands.ends), draws=draws, bands=bands, level=level, attributes=attributes or {})

    def onset(self, margin: float = 0.0) -> LayerEvent:
        """First layer whose simultaneous lower bound exceeds the margin, and whose successor's does."""
        layers, value = self.table["layer"].to_numpy(), self.table["value"].to_numpy()
        return onset(layers, value, self.draws, self.bands, margin=margin, level=self.level)

    def offset(self, margin: float = 0.0) -> LayerEvent:
        """First layer after the peak from which on the advantage can no longer be found to exceed the margin."""
        layers, value = self.table["layer"].to_numpy(), self.table["value"].to_numpy()
        return offset(layers, value, self.draws, self.bands, margin=margin, level=self.level)

    @property
    def _heading(self) -> str:
        name, baseline = (str(self.table[column].iloc[0]) for column in ("name", "baseline"))
        return f"Advantage of {name} over {baseline}"

    @property
    def options(self) -> Mapping[str, Any]:
        """What it is an advantage of, and over what."""
        return {name: self.attributes.get(name) for name in ("task", "position", "baseline")} | {"level": self.level}

    def summary(self) -> str:
        """The largest difference with its simultaneous interval; onset and offset."""
        best = self.table.iloc[int(self.table["value"].to_numpy().argmax())]
        interval = f"[{best['low_simultaneous']:.3f}, {best['high_simultaneous']:.3f}]"
        return f"{best['value']:+.3f} {interval} of {best['metric']} at layer {int(best['layer'])}\n{self.onset()}, {self.offset()}"

    def to_frame(self) -> pd.DataFrame:
        """Differences with their intervals by layer."""
        return self.table.drop(columns=["metric", "name", "baseline"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the difference by layer with its simultaneous band and a line at 0."""
        from stratascope.figures.drawing import draw_advantages

        return draw_advantages({str(self.table["name"].iloc[0]): self.table}, new_axes(ax), title=self._heading)

    def peak(self) -> LayerEvent:
        """The layer of the largest advantage, and those that may be it as well."""
        layers, value = self.table["layer"].to_numpy(), self.table["value"].to_numpy()
        return peak(layers, value, self.draws, self.bands, level=self.level)

    @classmethod
    def over_all(cls, advantages: Sequence[Advantage]) -> Advantage:
        """The advantage over the best of several baselines, layer by layer and draw by draw: the smallest of theirs.

        Parameters
        ----------
        advantages
            Of one curve and metric, over each baseline.

        Raises
        ------
        InvalidInputError
            None are given, or they are of other layers or metrics.
        """
        if not advantages:
            raise InvalidInputError("expected at least one advantage, found none; give those over each baseline")
        first = advantages[0].table
        for other in advantages[1:]:
            if not first[["layer", "metric", "name"]].equals(other.table[["layer", "metric", "name"]]):
                raise InvalidInputError(
                    f"expected advantages of one curve in one metric, found {first['name'].iloc[0]} in {first['metric'].iloc[0]} and "
                    f"{other.table['name'].iloc[0]} in {other.table['metric'].iloc[0]}"
                )
        value = np.min([one.table["value"] for one in advantages], axis=0)
        draws = np.min([one.draws for one in advantages], axis=0)
        bands = band(value, draws, level=advantages[0].level)
        smallest = np.argmin([one.table["value"] for one in advantages], axis=0)
        # where no draw differs, the interval is that of the one it comes from
        bare = draws.std(axis=0) <= NO_SPREAD
        theirs = {k: np.choose(smallest, [one.table[k] for one in advantages]) for k in INTERVALS}
        bands = bands.with_ends({k: np.where(bare, theirs[k], own) for k, own in bands.ends.items()})
        table = first[["layer", "metric", "name"]].assign(baseline=" and ".join(one.table["baseline"].iloc[0] for one in advantages))
        table = table.assign(value=value, **bands.ends)
        facts = {key: advantages[0].attributes.get(key) for key in ("task", "position", "fingerprint")}
        facts["baseline"] = {"task": "the best of several", "of": [one.attributes.get("baseline", "chance") for one in advantages]}
        return cls(table, draws, bands, advantages[0].level, facts)

    @classmethod
    def schema(cls) -> ResultSchema:
        """The schema of the file."""
        return _SCHEMA

    def contents(self) -> ResultFile:
        """What `save` writes; it names onset, peak and offset, too."""
        tables = {"table": self.table, "events": event_table(self.onset(), self.peak(), self.offset())}
        arrays = {"draws": (("draw", "layer"), self.draws)}
        return ResultFile(self.kind, tables, arrays, {**self.attributes, "level": self.level})

    @classmethod
    def from_contents(cls, file: ResultFile) -> Advantage:
        """The advantage whose `contents` a file holds."""
        attributes = dict(file.attributes)
        level, table, draws = float(attributes.pop("level")), file.tables["table"], file.arrays["draws"][1]
        bands = band(table["value"].to_numpy(), draws, level=level).with_ends({k: table[k].to_numpy() for k in INTERVALS})
        return cls(table, draws, bands, level, attributes)
