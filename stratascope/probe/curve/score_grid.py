"""Many curves of one task as one grid of cells, position by layer or head by layer, with a band that holds for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.curve.metrics import width_of
from stratascope.results.file import ResultFile
from stratascope.results.registry import load_result, save_result
from stratascope.stats.intervals import band

RESULT_KIND = "score_grid"


@dataclass(frozen=True)
class ScoreGrid:
    """Scores of one task at several positions, or by several heads."""

    table: pd.DataFrame
    """One row per curve and layer: row (the position or head), layer, metric, value, low, high, low_simultaneous, high_simultaneous,
    chance, found (whether the simultaneous lower bound is above chance)."""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """task, metric, level, critical (standard errors on each side of the band), array, only; fingerprint, name and provenance of the
    store."""

    @classmethod
    def of(cls, curves: Sequence[LayerCurve], metric: str | None = None) -> ScoreGrid:
        """A grid of curves of the same task.

        The simultaneous band takes the maximum over all cells, so that at a level of 95 % a single cell is found in at most
        5 % of data sets without any signal. Single intervals do not allow for the choice of the best of many cells.

        Parameters
        ----------
        curves
            One a row, by position or head.
        metric
            The curves' main one by default.

        Raises
        ------
        InvalidInputError
            The curves are of different tasks, or none.
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
        bands = band(table["value"].to_numpy(), draws, level=level, **width_of(name, groups), certain=certain)
        table = table.assign(low_simultaneous=bands.low_simultaneous, high_simultaneous=bands.high_simultaneous)
        table["found"] = table["low_simultaneous"] > table["chance"]
        columns = ["row", "layer", "metric", "value", "low", "high", "low_simultaneous", "high_simultaneous", "chance", "found"]
        facts = {"task": tasks[0], "metric": name, "level": level, "critical": bands.critical}
        facts |= {key: attributes.get(key) for key in ("array", "fingerprint", "store", "provenance")}
        facts["only"] = list(attributes.get("only", ()))
        return cls(table[columns], facts)

    def matrix(self, column: str = "value") -> pd.DataFrame:
        """(row, layer) a column of the table: one row per position or head, in the order of the curves, and one column per layer."""
        return self.table.pivot(index="row", columns="layer", values=column).loc[list(dict.fromkeys(self.table["row"]))]

    def best(self, count: int = 5) -> pd.DataFrame:
        """The `count` highest cells that are found, highest first."""
        return self.table[self.table["found"]].nlargest(count, "value").reset_index(drop=True)

    def save(self, path: str | Path) -> None:
        """Write one file, read back by `ScoreGrid.load`."""
        save_result(path, ResultFile(RESULT_KIND, {"table": self.table}, {}, self.attributes))

    @classmethod
    def load(cls, path: str | Path) -> ScoreGrid:
        """The grid that `save` wrote; StoreError for any other file."""
        file = load_result(path, RESULT_KIND)
        return cls(file.tables["table"], file.attributes)
