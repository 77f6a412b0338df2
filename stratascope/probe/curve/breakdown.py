"""A curve taken apart: accuracy by relation or any other property of the examples, and who is taken for whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.curve.metrics import predict
from stratascope.stats.intervals import wilson


def accuracy_by(curve: LayerCurve, value_of: Mapping[str, object], *, minimum: int = 1) -> pd.DataFrame:
    """Out-of-fold accuracy by layer for examples of each value: small multiples by relation, for instance.

    Parameters
    ----------
    curve
        Of a task of classes.
    value_of
        Example id -> value, such as `dict(zip(store.examples["id"], store.examples["relation"]))`.
    minimum
        Values of fewer examples are left out.

    Returns
    -------
    pandas.DataFrame
        One row per value and layer: by, layer, examples, groups, value, low, high (Wilson's 95 % interval with as many trials as
        there are groups).

    Raises
    ------
    InvalidInputError
        The task has values instead of classes, or an example of the curve has no value.
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
    """Counts of out-of-fold predictions at a layer.

    Parameters
    ----------
    curve
        Of a task of classes.
    layer
        One of the curve's.
    group
        Class -> group, such as `category_of` from relation to meta category; groups are counted instead of classes.

    Returns
    -------
    pandas.DataFrame
        One row per true class, one column per predicted class.

    Raises
    ------
    InvalidInputError
        The task has values instead of classes, or the curve has no such layer.
    """
    if curve.targets or layer not in curve.layers:
        raise InvalidInputError(f"expected a task of classes and a layer of {curve.layers.tolist()}, found {curve.task!r} and {layer}")
    predicted = predict(curve.logits[int(np.flatnonzero(curve.layers == layer)[0])])
    of_class = [group(name) for name in curve.classes] if group else list(curve.classes)
    names = sorted(set(of_class))
    number = np.array([names.index(name) for name in of_class])
    table = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(table, (number[curve.examples["label"].to_numpy()], number[predicted]), 1)
    index, columns = pd.Index(names, name="label"), pd.Index(names, name="predicted")
    return pd.DataFrame(table, index=index, columns=columns)
