"""Base of results that are one table derived from a layer curve."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.results.result import Result


class CurveTable(Result):
    """A table derived from a layer curve."""

    table: pd.DataFrame
    attributes: Mapping[str, Any]
    """task, position and fingerprint of the curve, and what the class adds."""

    @property
    def title(self) -> str:
        """Task and position, such as `truth at final`."""
        task, position = self.attributes["task"], self.attributes.get("position")
        return f"{task} at {position}" if position else str(task)

    @property
    def _heading(self) -> str:
        return f"{type(self).__name__} of {self.title}: {len(self.table)} rows"

    @property
    def options(self) -> Mapping[str, Any]:
        """Task and position of the curve, and the parameters of the class."""
        return {name: value for name, value in self.attributes.items() if name not in ("fingerprint", "run")}

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """Task and position."""
        return (self.attributes["task"], self.attributes.get("position"))

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def summary(self) -> str:
        """One line: what the table is of."""
        return self._heading


def curve_facts(curve: LayerCurve, **facts: Any) -> dict[str, Any]:
    """Attributes of a result that is derived from a curve."""
    return {"task": curve.task, "position": curve.position, "fingerprint": curve.attributes.get("fingerprint"), **facts}
