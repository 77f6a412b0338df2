"""Curves as one table to read elsewhere: a row for every score, of all folds together and of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from stratascope.probe.curve.layer_curve import LayerCurve

COLUMNS = (
    "store", "task", "position", "layer", "fold", "target", "strength", "metric", "value",
    "low", "high", "low_simultaneous", "high_simultaneous", "chance",
)  # fmt: skip


def tidy_table(curves: Mapping[str, Sequence[LayerCurve]]) -> pd.DataFrame:
    """All scores of curves in one table: a row for each store, task, position, layer, metric and fold.

    Rows of all folds together have intervals, and no fold, target or strength. Those of one fold have none: its accuracy, and the loss
    within its training examples that chose the strength (`inner_loss`); one a target in a task of values.

    Parameters
    ----------
    curves
        By the name of the store that they are of.
    """
    parts = []
    for store, some in curves.items():
        for curve in some:
            named = {"store": store, "task": curve.task, "position": curve.position or ""}
            parts.append(curve.table.assign(**named))
            kept = ["layer", "target", "fold", "strength"]
            by_fold = curve.folds.melt(kept, ["accuracy", "inner_loss"], "metric", "value").dropna(subset="value")
            parts.append(by_fold.assign(**named))
    table = pd.concat(parts, ignore_index=True).reindex(columns=list(COLUMNS))
    return table.astype({"layer": "int64", "fold": "Int64"}).fillna({"target": ""})
