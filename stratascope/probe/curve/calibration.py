"""Whether a probe's probabilities mean what they say."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.solver.losses import probabilities


def calibration(curve: LayerCurve, bins: int = 10) -> pd.DataFrame:
    """Reliability by layer: out-of-fold confidence against accuracy.

    Parameters
    ----------
    curve
        Of a task of classes.
    bins
        Of equal numbers of examples, by the probability of the predicted class.

    Returns
    -------
    pandas.DataFrame
        One row per layer and bin: layer, bin, examples, confidence, accuracy, error (expected calibration error of the layer: mean over
        examples of |confidence - accuracy|, averaged within bins; Guo et al. 2017).

    Raises
    ------
    InvalidInputError
        The task has values instead of classes.
    """
    if curve.targets:
        raise InvalidInputError(f"expected a curve of a task of classes, found {curve.task!r}, whose probes predict values")
    label = curve.examples["label"].to_numpy()
    rows = []
    for layer, logits in zip(curve.layers, curve.logits, strict=True):
        chance = probabilities(logits)
        sure = chance.max(axis=1)
        right = chance.argmax(axis=1) == label
        parts = [part for part in np.array_split(np.argsort(sure, kind="stable"), bins) if len(part)]
        gaps = [abs(float(sure[part].mean() - right[part].mean())) * len(part) for part in parts]
        rows += [
            {
                "layer": int(layer),
                "bin": number,
                "examples": len(part),
                "confidence": float(sure[part].mean()),
                "accuracy": float(right[part].mean()),
                "error": sum(gaps) / len(label),
            }
            for number, part in enumerate(parts)
        ]
    return pd.DataFrame(rows)
