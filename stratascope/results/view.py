"""One results file, as a page or a figure asks it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import StoreError
from stratascope.results.file import ResultFile
from stratascope.results.source import Source
from stratascope.store import choice_of, condition_of


@dataclass(frozen=True, eq=False)
class Found:
    """One results file."""

    path: Path
    result: ResultFile
    _read: dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The file's name, as a page cites it."""
        return self.path.name

    @property
    def kind(self) -> str:
        """Which result it is."""
        return self.result.kind

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the file; those of a layer curve with its settings among them."""
        given = dict(self.result.attributes)
        return {**given.get("settings", {}), **given} if isinstance(given.get("settings", {}), dict) else given

    @property
    def fingerprint(self) -> str | None:
        """Of the store that it was made from."""
        own = self.attributes
        return own.get("fingerprint") or own.get("store")

    @property
    def condition(self) -> str:
        """What sets its store apart: what was done to the images, `untrained` weights, both; `original` where nothing."""
        own = self.attributes
        return str(own.get("condition") or condition_of(own.get("provenance", {})))

    @property
    def task(self) -> str:
        """Of a probe's result: the task, with its control."""
        return str(self.attributes.get("task", ""))

    @property
    def position(self) -> str:
        """Of a probe's result: where it read; empty for arrays without positions."""
        return str(self.attributes.get("position") or "")

    @property
    def title(self) -> str:
        """Of a probe's result: task and position, such as `truth at final`; the task alone of an array without positions."""
        return f"{self.task} at {self.position}" if self.position else self.task

    @property
    def only(self) -> tuple[str, ...]:
        """COLUMN=VALUE that chose its examples; () for all. A probe's task tells it, too."""
        return choice_of(self.result.attributes)

    @property
    def weighing(self) -> str:
        """What its looks were weighed by: attention alone, unless it says otherwise."""
        return str(self.attributes.get("weighing") or self.attributes.get("map") or "attention")

    @property
    def identity(self) -> tuple[object, ...]:
        """What it is a result of: of two files with the same one, made twice, the first is enough."""
        own = self.attributes
        if "task" not in own:
            return self.kind, self.name
        over = own.get("baseline") or {}
        what = (self.task, self.position, own.get("array"), own.get("by"), own.get("to"), self.fingerprint)
        return self.kind, *what, over.get("task"), over.get("fingerprint")

    def table(self, name: str) -> pd.DataFrame:
        """A table; StoreError where the file has none of that name, having been made by an older version."""
        if name not in self.result.tables:
            raise StoreError(
                f"{self.name}: expected a table {name!r}, found {', '.join(self.result.tables) or 'none'}; "
                "it was made by an older version, make it again"
            )
        return self.result.tables[name]

    def means(self, array: str) -> NDArray[np.float64]:
        """Means of an array over the examples of which it is known, NaN where it is of none; read once, however often it is asked for.

        Parameters
        ----------
        array
            Name of one with the dimension example, such as (example, layer, head, part).
        """
        return self._known(array)[0]

    def mean(self, array: str, part: int) -> float:
        """Mean of all that is known of an array at place `part` of its last axis; NaN where nothing is."""
        means, counts = (values[..., part] for values in self._known(array))
        return float(np.nansum(means * counts) / counts.sum()) if counts.any() else np.nan

    def _known(self, array: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        if array not in self._read:
            self._read[array] = self.result.known_means(array)
        return self._read[array]

    def rows(self, metric: str) -> pd.DataFrame:
        """Rows of a layer curve's table of one metric, by layer."""
        table = self.table("table")
        return table[table["metric"] == metric].sort_values("layer").reset_index(drop=True)

    def event(self, kind: str) -> pd.Series[Any]:
        """The row of the table of events whose `kind` this is, `onset` or `offset`."""
        table = self.table("events")
        return table[table["kind"] == kind].iloc[0]

    def source(self, table: str = "", detail: str = "") -> Source:
        """How a page cites it: the file, and within it a `table` and a `detail`."""
        return Source(self.name, table, detail)
