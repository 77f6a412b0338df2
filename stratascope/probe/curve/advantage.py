"""Advantages: paired differences of scores by layer, over chance, a control, another store, or another layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, Protocol

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
"""Schema of the attributes that name the curve of a derived result."""
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
    """A paired difference of scores by layer, with its onset, peak and offset.

    Examples
    --------
    >>> import numpy as np
    >>> value = np.array([0.0, 0.01, 0.3, 0.3])
    >>> draws = value + np.random.default_rng(0).normal(0, 0.02, (500, 4))
    >>> advantage = Advantage.of(np.arange(4), value, draws, metric="auroc", name="truth", baseline="chance")
    >>> print(advantage.onset)
    onset at layer 2
    >>> advantage.onset_over(0.5).layer is None
    True
    """

    table: pd.DataFrame
    """One row per layer: layer, metric, name, baseline, value, low, high, low_simultaneous, high_simultaneous."""
    draws: Floats
    """(draw, layer)"""
    bands: Band
    level: float
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """task, position, fingerprint (of the store), baseline (task, store, fingerprint, condition) where known."""

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
        # log-loss is better when it is lower: an advantage is always positive
        sign = -1 if metric == "log_loss" else 1
        value, draws = sign * value, sign * draws
        bands = band(value, draws, level=level, **width_of(metric, groups), certain=certain)
        columns = {"layer": layers, "metric": metric, "name": name, "baseline": baseline, "value": value}
        return cls(table=pd.DataFrame(columns | bands.ends), draws=draws, bands=bands, level=level, attributes=attributes or {})

    @property
    def onset(self) -> LayerEvent:
        """First layer whose simultaneous lower bound exceeds 0, and whose successor's does too."""
        return self.onset_over(0.0)

    @property
    def offset(self) -> LayerEvent:
        """First layer after the last two successive layers whose simultaneous lower bound exceeds 0."""
        return self.offset_over(0.0)

    @property
    def peak(self) -> LayerEvent:
        """The layer of the largest advantage; candidates are the layers that are not significantly worse."""
        return peak(*self._scores, level=self.level)

    def onset_over(self, margin: float) -> LayerEvent:
        """The onset of an advantage that exceeds a margin."""
        return replace(onset(*self._scores, margin=margin, level=self.level), _over=self.onset_over)

    def offset_over(self, margin: float) -> LayerEvent:
        """The offset of an advantage that exceeds a margin."""
        return replace(offset(*self._scores, margin=margin, level=self.level), _over=self.offset_over)

    @property
    def _scores(self) -> tuple[NDArray[Any], Floats, Floats, Band]:
        """Layers, differences, draws and band, as `onset`, `offset` and `peak` take them."""
        return self.table["layer"].to_numpy(), self.table["value"].to_numpy(), self.draws, self.bands

    @property
    def _heading(self) -> str:
        name, baseline = (str(self.table[column].iloc[0]) for column in ("name", "baseline"))
        return f"Advantage of {name} over {baseline}"

    @property
    def options(self) -> Mapping[str, Any]:
        """Task, position, baseline and level."""
        return {name: self.attributes.get(name) for name in ("task", "position", "baseline")} | {"level": self.level}

    def summary(self) -> str:
        """The largest difference with its simultaneous interval; onset and offset."""
        best = self.table.iloc[int(self.table["value"].to_numpy().argmax())]
        interval = f"[{best['low_simultaneous']:.3f}, {best['high_simultaneous']:.3f}]"
        return f"{best['value']:+.3f} {interval} of {best['metric']} at layer {int(best['layer'])}\n{self.onset}, {self.offset}"

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
        value = np.min([one.table["value"] for one in advantages], axis=0)
        draws = np.min([one.draws for one in advantages], axis=0)
        bands = band(value, draws, level=advantages[0].level)
        smallest = np.argmin([one.table["value"] for one in advantages], axis=0)
        # without spread over draws, the interval is that of the smallest advantage
        constant = draws.std(axis=0) <= NO_SPREAD
        theirs = {k: np.choose(smallest, [one.table[k] for one in advantages]) for k in INTERVALS}
        bands = bands.with_ends({k: np.where(constant, theirs[k], own) for k, own in bands.ends.items()})
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
        """Tables, arrays and attributes of the file; a table holds onset, peak and offset."""
        tables = {"table": self.table, "events": event_table(self.onset, self.peak, self.offset)}
        arrays = {"draws": (("draw", "layer"), self.draws)}
        return ResultFile(self.kind, tables, arrays, {**self.attributes, "level": self.level})

    @classmethod
    def from_contents(cls, file: ResultFile) -> Advantage:
        """The advantage whose `contents` a file holds."""
        attributes = dict(file.attributes)
        level, table, draws = float(attributes.pop("level")), file.tables["table"], file.arrays["draws"][1]
        bands = band(table["value"].to_numpy(), draws, level=level).with_ends({k: table[k].to_numpy() for k in INTERVALS})
        return cls(table, draws, bands, level, attributes)


class Paired(Protocol):
    """Part of a layer curve that decides whether another can be paired with it."""

    @property
    def layers(self) -> NDArray[np.intp]:
        """(layer,) layer numbers."""
        ...

    @property
    def examples(self) -> pd.DataFrame:
        """Columns id, group, and digest where known."""
        ...

    @property
    def attributes(self) -> Mapping[str, Any]:
        """draws and seed of the bootstrap."""
        ...


def refuse_unpaired(own: Paired, other: Paired) -> None:
    """Check that two curves can be paired example by example.

    Raises
    ------
    InvalidInputError
        The curves are of other layers, groups or seeds, or of examples that differ in image, caption, relation or label.
    """
    if not np.array_equal(own.layers, other.layers):
        raise InvalidInputError(f"expected curves of the same layers, found {own.layers.tolist()} and {other.layers.tolist()}")
    keys = [(c.attributes.get("draws"), c.attributes.get("seed"), c.examples[["id", "group"]].to_numpy().tolist()) for c in (own, other)]
    if keys[0] != keys[1]:
        raise InvalidInputError(
            f"expected curves of the same examples and seed, so that differences are paired, found {len(own.examples)} and "
            f"{len(other.examples)} examples with seeds {keys[0][1]} and {keys[1][1]}; give both the same `examples` and `seed`"
        )
    mine, theirs = (c.examples.get("digest") for c in (own, other))
    if mine is not None and theirs is not None and (unlike := np.flatnonzero(mine.to_numpy() != theirs.to_numpy())).size:
        raise InvalidInputError(
            f"expected curves of the same examples, found {len(unlike)} of {len(mine)} that differ in image, caption, relation or "
            f"label, first at id {str(own.examples['id'].iloc[unlike[0]])!r}; extract the same examples again for the baseline"
        )
