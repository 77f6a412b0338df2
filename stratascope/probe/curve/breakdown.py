"""Accuracy by relation or any other column of the examples, and the confusion matrix of a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.figures.drawing import new_figure
from stratascope.figures.style import paper_style
from stratascope.probe.curve.advantage import DERIVED
from stratascope.probe.curve.curve_table import CurveTable, curve_facts
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.curve.metrics import predict
from stratascope.results.result import new_axes, table_field
from stratascope.results.schema import columns
from stratascope.stats.intervals import wilson
from stratascope.store.io.example_filter import category_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stratascope.store import ActivationStore

MOST_CLASSES = 12
"""Number of relations above which a confusion matrix is grouped by meta category."""


class AccuracyBy(CurveTable, kind="accuracy_by", command="probe", prefix="probe", schema={**DERIVED, "by": str}):
    """Out-of-fold accuracy of a curve for each value of a column of the examples."""

    table: pd.DataFrame = table_field(columns(text="by", ints="layer examples groups", shares="value low high", grid="by layer"))
    """by (the value), layer, examples, groups, value, low, high."""

    @classmethod
    def of(cls, curve: LayerCurve, value_of: Mapping[str, object], column: str) -> AccuracyBy:
        """Accuracy of a curve by the values of a column; as `accuracy_by`."""
        return cls(accuracy_by(curve, value_of), curve_facts(curve, by=column))

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """Task, position and column."""
        return (*super().name_parts, "by", self.attributes["by"])


class Confusion(CurveTable, kind="confusion", command="probe", prefix="confusion", schema={**DERIVED, "layer": int, "grouped": str}):
    """Counts of true and predicted classes at the peak layer of a curve."""

    table: pd.DataFrame = table_field(columns(text="label predicted", ints="count", grid="label predicted"))
    """label (true class), predicted (predicted class), count."""

    @classmethod
    def of(cls, curve: LayerCurve) -> Confusion:
        """Confusion matrix at the peak layer; more than `MOST_CLASSES` relations are grouped by meta category."""
        layer = curve.peak.layer
        assert layer is not None, "a curve has a highest layer"
        grouped = len(curve.classes) > MOST_CLASSES and curve.task == "relation"
        counts = confusion(curve, layer, category_of if grouped else None).reset_index()
        long = counts.melt("label", var_name="predicted", value_name="count")
        return cls(long, curve_facts(curve, layer=layer, grouped="category" if grouped else ""))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the matrix: true class by predicted class, as shares of the true class."""
        from stratascope.figures.score_grids import draw_confusion

        task, position = self.attributes["task"], self.attributes.get("position")
        where = f" at {position}" if position else ""
        grouped = " by category" if self.attributes["grouped"] else ""
        return draw_confusion(self.table, new_axes(ax), title=f"{task}{grouped}{where}, layer {self.attributes['layer']}")

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """Draw the matrix on a canvas whose size follows the number of classes."""
        size = min(max(2.2 + 0.16 * self.table["label"].nunique(), 2.8), 6.0)
        figure, (ax,) = new_figure(1, width=size + 0.8, height=size)
        with paper_style():
            self.plot(ax)
        return figure


def accuracy_by(curve: LayerCurve, value_of: Mapping[str, object], *, minimum: int = 1) -> pd.DataFrame:
    """Out-of-fold accuracy by layer for each value of a column, such as the relation.

    Parameters
    ----------
    curve
        Of a task of classes.
    value_of
        Example id -> value, such as `dict(zip(store.examples["id"], store.examples["relation"]))`.
    minimum
        Values with fewer examples are excluded.

    Returns
    -------
    pandas.DataFrame
        One row per value and layer: by, layer, examples, groups, value, low, high (Wilson's 95 % interval, with groups
        as trials).

    Raises
    ------
    InvalidInputError
        The task has values instead of classes, or an example of the curve has no value.

    Examples
    --------
    >>> curve = LayerCurve.load(curve_file)
    >>> table = accuracy_by(curve, dict(zip(store.examples["id"], store.examples["relation"])))
    >>> table["by"].unique().tolist()
    ['above', 'below', 'left of', 'right of']
    """
    if curve.targets:
        raise InvalidInputError(f"expected a curve of a task of classes, found {curve.task!r}, whose probes predict values")
    keys = curve.examples["id"].map(dict(value_of))
    if keys.isna().any():
        raise InvalidInputError(
            f"expected a value for every example of the curve, found none for {int(keys.isna().sum())} (the first is "
            f"{curve.examples['id'][keys.isna()].iloc[0]!r}); make the mapping from the same store"
        )
    right = predict(curve.logits) == curve.examples["label"].to_numpy()
    rows = []
    for value, index in keys.groupby(keys).indices.items():
        if len(index) < minimum:
            continue
        groups = int(curve.examples["group"].iloc[index].nunique())
        for layer, hit in zip(curve.layers, right[:, index], strict=True):
            low, high = wilson(float(hit.mean()), groups)
            rows.append(
                {
                    "by": value,
                    "layer": int(layer),
                    "examples": len(index),
                    "groups": groups,
                    "value": float(hit.mean()),
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(rows)


def confusion(curve: LayerCurve, layer: int, group: Callable[[str], str] | None = None) -> pd.DataFrame:
    """Confusion matrix of out-of-fold predictions at a layer.

    Parameters
    ----------
    curve
        Of a task of classes.
    layer
        One of the curve's.
    group
        Class -> group, such as `category_of` from relation to meta category; counts are then by group.

    Returns
    -------
    pandas.DataFrame
        One row per true class, one column per predicted class.

    Raises
    ------
    InvalidInputError
        The task has values instead of classes, or the curve has no such layer.

    Examples
    --------
    >>> counts = confusion(LayerCurve.load(curve_file), 3)
    >>> counts.index.tolist(), int(counts.to_numpy().sum())
    (['False', 'True'], 240)
    """
    if curve.targets or layer not in curve.layers:
        raise InvalidInputError(f"expected a task of classes and a layer of {curve.layers.tolist()}, found {curve.task!r} and {layer}")
    predicted = predict(curve.logits[int(np.flatnonzero(curve.layers == layer)[0])])
    of_class = [group(name) for name in curve.classes] if group else list(curve.classes)
    names = sorted(set(of_class))
    number = np.array([names.index(name) for name in of_class])
    table = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(table, (number[curve.examples["label"].to_numpy()], number[predicted]), 1)
    return pd.DataFrame(table, index=pd.Index(names, name="label"), columns=pd.Index(names, name="predicted"))
