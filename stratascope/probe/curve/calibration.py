"""Calibration: out-of-fold confidence of a probe against its accuracy (Guo et al. 2017)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.probe.curve.advantage import DERIVED
from stratascope.probe.curve.curve_table import CurveTable, curve_facts
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.solver.losses import probabilities
from stratascope.results.result import table_field
from stratascope.results.schema import columns


class Calibration(CurveTable, kind="calibration", command="probe", prefix="calibration", schema=DERIVED):
    """Confidence and accuracy of a curve's probes by layer, in bins of equal size."""

    table: pd.DataFrame = table_field(columns(ints="layer bin examples", shares="confidence accuracy error", keys=["layer bin"]))
    """layer, bin, examples, confidence, accuracy, error (expected calibration error of the layer)."""

    @classmethod
    def of(cls, curve: LayerCurve, bins: int = 10) -> Calibration:
        """Calibration of a curve; as `calibration`."""
        return cls(calibration(curve, bins), curve_facts(curve))

    def error(self, layer: int) -> float:
        """Expected calibration error at a layer."""
        return float(self.table.set_index("layer").loc[[layer], "error"].iloc[0])

    def summary(self) -> str:
        """Lowest and highest expected calibration error over layers."""
        error = self.table.groupby("layer")["error"].first()
        return f"{self.title}: expected calibration error {error.min():.3f} to {error.max():.3f} over layers"


def calibration(curve: LayerCurve, bins: int = 10) -> pd.DataFrame:
    """Reliability diagram by layer: out-of-fold confidence against accuracy.

    Parameters
    ----------
    curve
        Of a task of classes.
    bins
        Number of bins with equal numbers of examples, by the probability of the predicted class.

    Returns
    -------
    pandas.DataFrame
        One row per layer and bin: layer, bin, examples, confidence, accuracy, error (expected calibration error of the layer: mean over
        examples of |confidence - accuracy|, averaged within bins; Guo et al. 2017).

    Raises
    ------
    InvalidInputError
        The task has values instead of classes.

    Examples
    --------
    >>> table = calibration(LayerCurve.load(curve_file), bins=4)
    >>> table.query("layer == 3")["examples"].tolist()
    [60, 60, 60, 60]
    """
    if curve.targets:
        raise InvalidInputError(f"expected a curve of a task of classes, found {curve.task!r}, whose probes predict values")
    label = curve.examples["label"].to_numpy()
    rows = []
    for layer, logits in zip(curve.layers, curve.logits, strict=True):
        probability = probabilities(logits)
        confidence = probability.max(axis=1)
        right = probability.argmax(axis=1) == label
        parts = [part for part in np.array_split(np.argsort(confidence, kind="stable"), bins) if len(part)]
        gaps = [abs(float(confidence[part].mean() - right[part].mean())) * len(part) for part in parts]
        rows += [
            {
                "layer": int(layer),
                "bin": number,
                "examples": len(part),
                "confidence": float(confidence[part].mean()),
                "accuracy": float(right[part].mean()),
                "error": sum(gaps) / len(label),
            }
            for number, part in enumerate(parts)
        ]
    return pd.DataFrame(rows)
