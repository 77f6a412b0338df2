"""Advantages: paired differences of scores by layer, over chance, a control, another store, or another layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.probe.curve.claims import LayerClaims, band_text, detectable_effect, equivalence_margin_of
from stratascope.probe.curve.metrics import advantage_range, width_of
from stratascope.probe.curve.onset_offset import EVENTS, LayerEvent, event_table, peak
from stratascope.results.file import ResultFile
from stratascope.results.layer_intervals import LayerIntervals
from stratascope.results.result import Result, new_axes
from stratascope.results.schema import ResultSchema, columns, floats
from stratascope.stats.intervals import INTERVAL, INTERVALS, Band, band, largest_deviation
from stratascope.store.format.json_schema import each

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[Any]

DERIVED = {**each(str, "task"), **each(str | None, "position fingerprint")}
"""Schema of the attributes that name the curve of a derived result."""
FAMILY = {"critical": float, "comparisons": int, "text": str}
"""Schema of the attribute `family`: curves whose claims hold together, with the standard errors on each side of their common band, the
number of values, and their description."""
_BASELINE = {**each(str, "task?"), **each(str | None, "store? fingerprint? condition?"), **each(int, "layer?")}
_SCHEMA = ResultSchema(
    {
        **DERIVED,
        "level": float,
        "baseline?": {**_BASELINE, "of?": list[Any]},
        **each(float, "margin? equivalence_margin? largest?"),
        "chance?": float | None,
        "examples?": int | None,
        "family?": (FAMILY, None),
    },
    {
        "table": columns("layer", text="metric name baseline", ints="layer", floats=f"value {INTERVAL}", keys=["layer"]),
        "events": EVENTS,
    },
    {"draws": floats("draw layer")},
)


class Advantage(Result, kind="advantage", command="probe", prefix="advantage"):
    """A paired difference of scores by layer, with the layers in which it is detected or absent.

    Examples
    --------
    >>> import numpy as np
    >>> value = np.array([0.0, 0.01, 0.3, 0.3])
    >>> draws = value + np.random.default_rng(0).normal(0, 0.02, (500, 4))
    >>> advantage = Advantage.of(np.arange(4), value, draws, metric="auroc", name="truth", baseline="chance")
    >>> print(advantage.detected, advantage.onset, sep="; ")
    layers 2-3; onset at layer 2 (above 0.03: layers 0-2)
    >>> advantage.onset_over(0.5).layer is None
    True
    >>> advantage.minimum_detectable_effect.round(2)
    array([0.07, 0.06, 0.07, 0.07])
    """

    table: pd.DataFrame
    """One row per layer: layer, metric, name, baseline, value, low, high, low_simultaneous, high_simultaneous,
    minimum_detectable_effect."""
    draws: Floats
    """(draw, layer)"""
    bands: Band
    level: float
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """task, position, fingerprint (of the store), baseline (task, store, fingerprint, condition) where known; margin,
    equivalence_margin, chance (the baseline's constant score), largest (possible advantage), examples, family (joint claims)."""

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
        """From differences and their bootstrap draws.

        Parameters
        ----------
        layers
            (layer,) layer numbers.
        value, draws
            (layer,) differences, and (draw, layer) their bootstrap draws.
        metric, name, baseline
            Names of the score, of the curve and of the baseline; the sign of log-loss is inverted, so that an advantage is positive.
        level
            Of the intervals.
        attributes
            Of the result.
        groups, certain
            Number of groups, and (layer,) whether a difference is constant over resamples: as of `intervals.band`.
        """
        sign = -1 if metric == "log_loss" else 1
        value, draws = sign * value, sign * draws
        if certain is not None:  # constant predictions differ by the class frequencies of folds alone: no advantage
            value, draws = np.where(certain, np.minimum(value, 0), value), np.where(certain, np.minimum(draws, 0), draws)
        facts: dict[str, Any] = dict(attributes or {})
        family = facts.get("family") or {}
        both = {"critical": family.get("critical", 0.0), "comparisons": family.get("comparisons")}
        bands = band(value, draws, level=level, **width_of(metric, groups), certain=certain, **both)
        columns = {"layer": layers, "metric": metric, "name": name, "baseline": baseline, "value": value}
        least = detectable_effect(value, draws, bands, metric, facts)
        bands = bands.within(advantage_range(metric, facts.get("chance")))
        table = pd.DataFrame(columns | bands.ends).assign(minimum_detectable_effect=least)
        return cls(table=table, draws=draws, bands=bands, level=level, attributes=facts)

    @property
    def margin(self) -> float:
        """The advantage that a layer must exceed to be detected; 0 by default."""
        return float(self.attributes.get("margin") or 0.0)

    @property
    def equivalence_margin(self) -> float:
        """The advantage below which it counts as absent: 0.03, or 0.01 of R2, by default; at least the margin."""
        given = self.attributes.get("equivalence_margin")
        return max(self.margin, equivalence_margin_of(str(self.table["metric"].iloc[0])) if given is None else float(given))

    @property
    def claims(self) -> LayerClaims:
        """Detected, absent and undecided layers, onset, offset and minimum detectable effects, which all hold together."""
        return self.claims_over()

    def claims_over(self, margin: float | None = None, equivalence_margin: float | None = None) -> LayerClaims:
        """The claims about other margins than the advantage's own.

        Parameters
        ----------
        margin, equivalence_margin
            As of `LayerClaims.of`.

        Raises
        ------
        InvalidInputError
            A margin is negative.
        """
        over = self.margin if margin is None else margin
        within = self.equivalence_margin if equivalence_margin is None else equivalence_margin
        if over < 0 or within < 0:
            raise InvalidInputError(f"expected margins of at least 0, found `margin` {over:g} and `equivalence_margin` {within:g}")
        return LayerClaims.of(
            self.table["layer"].to_numpy(),
            self.table["value"].to_numpy(),
            self.bands,
            self.table["minimum_detectable_effect"].to_numpy(),
            metric=str(self.table["metric"].iloc[0]),
            margin=over,
            equivalence_margin=max(over, within),
            level=self.level,
            chance=self.attributes.get("chance"),
            examples=self.attributes.get("examples"),
            largest=self.attributes.get("largest"),
        )

    @property
    def detected(self) -> LayerIntervals:
        """Layers whose simultaneous lower bound exceeds the margin."""
        return self.claims.detected

    @property
    def absent(self) -> LayerIntervals:
        """Layers whose simultaneous upper bound lies below the equivalence margin, and that are not detected."""
        return self.claims.absent

    @property
    def minimum_detectable_effect(self) -> Floats:
        """(layer,) smallest advantage that would have been detected with 80 % power."""
        return self.claims.minimum_detectable_effect

    @property
    def onset(self) -> LayerEvent:
        """First layer detected, with an interval of the first layer whose advantage exceeds the equivalence margin."""
        return replace(self.claims.onset, _over=self.onset_over)

    @property
    def offset(self) -> LayerEvent:
        """First layer after the last one detected from which on the advantage is absent."""
        return replace(self.claims.offset, _over=self.offset_over)

    @property
    def peak(self) -> LayerEvent:
        """The layer of the largest advantage; candidates are the layers that are not significantly worse."""
        return peak(self.table["layer"].to_numpy(), self.table["value"].to_numpy(), self.draws, level=self.level)

    def onset_over(self, margin: float) -> LayerEvent:
        """The onset of an advantage that exceeds a margin."""
        return replace(self.claims_over(margin).onset, _over=self.onset_over)

    def offset_over(self, margin: float) -> LayerEvent:
        """The offset of an advantage that exceeds a margin."""
        return replace(self.claims_over(margin).offset, _over=self.offset_over)

    @property
    def band_text(self) -> str:
        """Name of the band: `95 % simultaneous band over layers`, or over a family of curves."""
        return band_text(self.level, self.attributes.get("family"))

    @property
    def _heading(self) -> str:
        name, baseline = (str(self.table[column].iloc[0]) for column in ("name", "baseline"))
        return f"Advantage of {name} over {baseline}"

    @property
    def options(self) -> Mapping[str, Any]:
        """Task, position, baseline and level."""
        return {name: self.attributes.get(name) for name in ("task", "position", "baseline")} | {"level": self.level}

    def summary(self) -> str:
        """The largest difference with its simultaneous interval, the layers in which it is detected, and the band."""
        best = self.table.iloc[int(self.table["value"].to_numpy().argmax())]
        interval = f"[{best['low_simultaneous']:.3f}, {best['high_simultaneous']:.3f}]"
        largest = f"{best['value']:+.3f} {interval} of {best['metric']} at layer {int(best['layer'])} (peak)"
        return "\n".join([largest, self.claims.sentence, self.band_text])

    def to_frame(self) -> pd.DataFrame:
        """Differences with their intervals by layer."""
        return self.table.drop(columns=["metric", "name", "baseline"])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the difference by layer with its simultaneous band and a line at 0."""
        from stratascope.figures.drawing import draw_advantages

        return draw_advantages({str(self.table["name"].iloc[0]): self.table}, new_axes(ax), title=self._heading)

    @classmethod
    def over_all(cls, advantages: Sequence[Advantage]) -> Advantage:
        """The advantage over the best of several baselines: the smallest of their advantages in each layer and draw.

        Parameters
        ----------
        advantages
            Of one curve and metric, over each baseline.

        Raises
        ------
        InvalidInputError
            There are none, or their layers or metrics differ.
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
        level, draws = advantages[0].level, np.min([one.draws for one in advantages], axis=0)
        # the smallest of several differences lies between the smallest lower and the smallest upper bound of a band over all of them
        together = float(np.quantile(np.max([largest_deviation(one.draws) for one in advantages], axis=0), level))
        wide = [one._widened(together) for one in advantages]
        ends = {name: np.min([each.ends[name] for each in wide], axis=0) for name in INTERVALS}
        bands = wide[0].with_ends(ends)
        table = first[["layer", "metric", "name"]].assign(baseline=" and ".join(one.table["baseline"].iloc[0] for one in advantages))
        table = table.assign(value=np.min([one.table["value"] for one in advantages], axis=0), **bands.ends)
        needed = [one.table["minimum_detectable_effect"] + one._missing_reach(together) for one in advantages]
        table["minimum_detectable_effect"] = np.max(needed, axis=0)
        kept = ("task", "position", "fingerprint", "margin", "equivalence_margin", "examples", "family")
        facts = {key: advantages[0].attributes[key] for key in kept if key in advantages[0].attributes}
        facts |= {"largest": min(known)} if (known := [v for one in advantages if (v := one.attributes.get("largest")) is not None]) else {}
        facts["baseline"] = {"task": "the best of several", "of": [one.attributes.get("baseline", "chance") for one in advantages]}
        return cls(table, draws, bands, level, facts)

    def _widened(self, critical: float) -> Band:
        """The band with at least `critical` standard errors on each side."""
        if critical <= self.bands.critical:
            return self.bands
        value, reach = self.table["value"].to_numpy(), critical * self.draws.std(axis=0)
        low, high = np.minimum(self.bands.low_simultaneous, value - reach), np.maximum(self.bands.high_simultaneous, value + reach)
        wider = replace(self.bands, low_simultaneous=low, high_simultaneous=high, critical=critical)
        return wider.within(advantage_range(str(self.table["metric"].iloc[0]), self.attributes.get("chance")))

    def _missing_reach(self, critical: float) -> Floats:
        """(layer,) by how much the half-width of the band is below that of at least `critical` standard errors."""
        value = self.table["value"].to_numpy()
        # one end may be that of the metric's range; the other then shows the half-width
        half = np.maximum(value - self.bands.low_simultaneous, self.bands.high_simultaneous - value)
        return np.asarray(np.maximum(critical * self.draws.std(axis=0) - half, 0.0))

    @classmethod
    def schema(cls) -> ResultSchema:
        """The schema of the file."""
        return _SCHEMA

    def contents(self) -> ResultFile:
        """Tables, arrays and attributes of the file; a table holds onset, peak and offset."""
        tables = {"table": self.table, "events": event_table(self.onset, self.peak, self.offset, detectable=self.claims.detectable)}
        arrays = {"draws": (("draw", "layer"), self.draws)}
        return ResultFile(self.kind, tables, arrays, {**self.attributes, "level": self.level})

    @classmethod
    def from_contents(cls, file: ResultFile) -> Advantage:
        """The advantage whose `contents` a file holds."""
        attributes = dict(file.attributes)
        level, table, draws = float(attributes.pop("level")), file.tables["table"], file.arrays["draws"][1]
        least = float((attributes.get("family") or {}).get("critical", 0.0))
        value = table["value"].to_numpy()
        bands = band(value, draws, level=level, critical=least).with_ends({k: table[k].to_numpy() for k in INTERVALS})
        if "minimum_detectable_effect" not in table:  # a file of version 0.1
            table = table.assign(minimum_detectable_effect=detectable_effect(value, draws, bands, str(table["metric"].iloc[0]), attributes))
        return cls(table, draws, bands, level, attributes)
