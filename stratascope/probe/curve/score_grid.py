"""Score grid of one task, position by layer or head by layer, with a simultaneous band over all cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.figures.drawing import LAYER_LABELS, metric_name, new_figure
from stratascope.figures.style import paper_style
from stratascope.probe.curve.claims import detectable_effect
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.curve.metrics import better_than_chance, score_band
from stratascope.results.locations import file_name
from stratascope.results.result import CHOICE, Result, new_axes, table_field
from stratascope.results.schema import columns
from stratascope.stats.intervals import INTERVAL
from stratascope.store.format.json_schema import each
from stratascope.store.format.provenance import PROVENANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stratascope.store import ActivationStore


class ScoreGrid(
    Result,
    kind="score_grid",
    command="probe",
    prefix="positions",
    schema={
        **each(str, "task metric"),
        **each(str | None, "array? fingerprint store"),
        **each(float, "level critical"),
        "examples?": int,
        **CHOICE,
        "provenance?": (PROVENANCE, None),
    },
):
    """Scores of one task at several positions, or by several heads."""

    table: pd.DataFrame = table_field(
        columns(text="row metric", ints="layer", floats=f"value {INTERVAL} chance", flags="found", grid="metric row layer")
    )
    """One row per curve and layer: row (the position or head), layer, metric, value, low, high, low_simultaneous, high_simultaneous,
    chance, found (whether the simultaneous lower bound exceeds chance); since version 0.2 also minimum_detectable_effect (the advantage
    over chance that would have been detected with 80 % power)."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """task, metric, level, critical (standard errors on each side of the band), examples (of the smallest curve), array, only;
    fingerprint, name and provenance of the store."""

    @classmethod
    def of(cls, curves: Sequence[LayerCurve], metric: str | None = None) -> ScoreGrid:
        """A grid of curves of the same task.

        The simultaneous band takes the maximum over all cells: at a level of 95 %, at most 5 % of data sets without signal have a
        significant cell. Pointwise intervals do not correct for the selection of the best of many cells. Curves with a `family` keep its
        wider band.

        Parameters
        ----------
        curves
            One per row, by position or head.
        metric
            The curves' main one by default.

        Raises
        ------
        InvalidInputError
            The curves are of different tasks, or there is none.

        Examples
        --------
        >>> from stratascope.probe import head_curves
        >>> grid = ScoreGrid.of(head_curves(store, layers=(1, 3), draws=200))
        >>> grid.best()[["row", "layer"]].to_numpy().tolist()
        [['head 1', 3]]
        """
        tasks = sorted({curve.task for curve in curves})
        if len(tasks) != 1:
            raise InvalidInputError(f"expected curves of one task, found {', '.join(tasks) or 'none'}; make a grid of each")
        name = metric or curves[0].metric
        parts = [curve.rows(name).assign(row=curve.position or "all") for curve in curves]
        table = pd.concat(parts, ignore_index=True)
        draws = np.concatenate([curve.draws[name] for curve in curves]).T.astype(np.float64)
        attributes = curves[0].attributes
        level = float(attributes.get("level", 0.95))
        groups = min(curve.examples["group"].nunique() for curve in curves)
        certain = np.concatenate([curve.certain for curve in curves])
        family = attributes.get("family") if name == curves[0].metric else None
        bands = score_band(table["value"].to_numpy(), draws, name, groups, level, certain, family)
        chance = table["chance"].to_numpy()
        over = replace(bands, low_simultaneous=bands.low_simultaneous - chance)
        table["minimum_detectable_effect"] = detectable_effect(
            table["value"].to_numpy() - chance, draws, over, name, {"chance": float(chance[0])}
        )
        table = table.assign(low_simultaneous=bands.low_simultaneous, high_simultaneous=bands.high_simultaneous)
        table["found"] = better_than_chance(table, name)
        columns = ["row", "layer", "metric", "value", "low", "high", "low_simultaneous", "high_simultaneous", "chance", "found"]
        columns += ["minimum_detectable_effect"]
        facts: dict[str, Any] = {"task": tasks[0], "metric": name, "level": level, "critical": bands.critical}
        facts["examples"] = min(len(curve.examples) for curve in curves)
        facts |= {key: attributes.get(key) for key in ("array", "fingerprint", "store", "provenance")}
        facts["only"] = list(attributes.get("only", ()))
        return cls(table[columns], facts)

    def matrix(self, column: str = "value") -> pd.DataFrame:
        """(row, layer) a column of the table: one row per position or head, in the order of the curves, and one column per layer."""
        return self.table.pivot(index="row", columns="layer", values=column).loc[list(dict.fromkeys(self.table["row"]))]

    def best(self, count: int = 5) -> pd.DataFrame:
        """The `count` best significant cells, best first: with the lowest log loss, or the highest of another metric."""
        found = self.table[self.table["found"]].sort_values("value", ascending=self.attributes["metric"] == "log_loss", kind="stable")
        return found.head(count).reset_index(drop=True)

    @property
    def by_head(self) -> bool:
        """Whether the rows are heads rather than positions."""
        return bool(self.table["row"].str.startswith("head ").all())

    @property
    def options(self) -> Mapping[str, Any]:
        """Task, metric and array of the curves."""
        return {name: self.attributes.get(name) for name in ("task", "metric", "array", "level")} | {"only": self.only}

    @property
    def file_name(self) -> str:
        """`heads-TASK` or `positions-TASK`."""
        return file_name("heads" if self.by_head else "positions", self.attributes["task"])

    def summary(self) -> str:
        """Number of cells significantly above chance by the simultaneous band, and the highest ones."""
        metric = str(self.attributes["metric"])
        name = metric_name(metric)
        rows, where = ("heads", "block") if self.by_head else ("cells", "layer")
        best = [
            f"{row.row} of {where} {row.layer} {row.value:.3f} [{row.low_simultaneous:.3f}, {row.high_simultaneous:.3f}]"
            for row in self.best(3).itertuples()
        ]
        count = int(self.table["found"].sum())
        found = ", ".join(best) or f"none{self._limits}"
        return f"{self.attributes['task']:<16} {count} of {len(self.table)} {rows} above chance in {name}: {found}"

    @property
    def _limits(self) -> str:
        """Number of examples and minimum detectable effect, of a file that holds them."""
        if "minimum_detectable_effect" not in self.table or "examples" not in self.attributes:
            return ""
        metric, chance, least = (
            str(self.attributes["metric"]),
            float(self.table["chance"].max()),
            float(self.table["minimum_detectable_effect"].max()),
        )
        size, lower = f"n = {self.attributes['examples']:,}", metric == "log_loss"
        if least > (chance if lower else 1 - chance):
            return f" ({size}; not even the best possible {metric_name(metric)} would have been detected with 80 % power)"
        score = f"at most {chance - least:.2f}" if lower else f"at least {chance + least:.2f}"
        return f" ({size}; {metric_name(metric)} of {score} would have been detected with 80 % power)"

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the grid: position by layer, or head by layer."""
        from stratascope.figures.score_grids import draw_score_grid

        table = self.table.assign(row=self.table["row"].str.removeprefix("head ")) if self.by_head else self.table
        layers = LAYER_LABELS.get(str(self.attributes.get("array")), "layer")
        return draw_score_grid(table, new_axes(ax), title=str(self.attributes["task"]), rows="head" if self.by_head else "", layers=layers)

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """The grid on a column's width, as high as its rows need."""
        rows = self.table["row"].nunique()
        figure, (ax,) = new_figure(1, width=3.4, height=max(1.1 + 0.17 * rows, 1.7) if rows <= 16 else 3.2)
        with paper_style():
            self.plot(ax)
        return figure
