"""Scores of out-of-fold predictions, with bootstrap draws that are paired over layers, labellings and stores."""

from __future__ import annotations

from typing import Any, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.probe.solver.losses import loss_for
from stratascope.stats.auroc import auroc
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import band

Floats = NDArray[Any]


def main_metric(classes: int) -> str:
    """The metric that onset and plots use: it does not depend on the frequency of the classes."""
    return "auroc" if classes == 2 else "balanced_accuracy"


class _Width(TypedDict):
    groups: int | None
    counted: bool


def width_of(metric: str, groups: int | None) -> _Width:
    """What `band` must know of a metric: groups where it lies between 0 and 1, as what each contributes, and whether it counts examples."""
    counted = metric.endswith("accuracy")
    return {"groups": groups if counted or metric == "auroc" else None, "counted": counted}


def chance_levels(codes: NDArray[np.intp], classes: int) -> dict[str, float]:
    """Score of a guess that knows the frequencies of the classes and nothing else."""
    share = np.bincount(codes, minlength=classes) / len(codes)
    entropy = -float((share[share > 0] * np.log(share[share > 0])).sum())
    return {"accuracy": float(share.max()), "balanced_accuracy": 1 / classes, "auroc": 0.5, "log_loss": entropy}


def score_layers(
    logits: Floats,
    codes: NDArray[np.intp],
    folds: NDArray[np.integer],
    classes: int,
    bootstrap: Bootstrap,
    noise_share: Floats | None = None,
    decision_share: Floats | None = None,
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Values (layer,) and draws (draw, layer) of each metric.

    Parameters
    ----------
    logits
        (layer, output, example).
    codes, folds
        (example,).
    noise_share, decision_share
        (layer,) of `OutOfFold`; draws are widened by sqrt(1 + share): those of accuracies by that of the decisions, where given. A
        bootstrap of out-of-fold predictions takes examples for independent, but two examples of different folds meet twice: once each
        trains the model that tests the other. As far as the logits are made by chance of training, that doubles the variance of a
        score. Without any signal probes say one class nearly always, which chance of training hardly turns.
    """
    predicted = predict(logits)
    right = (predicted == codes).T.astype(np.float64)
    loss = np.clip(loss_for(classes).each(logits.astype(np.float64), np.broadcast_to(codes, predicted.shape)), 0, 100).T
    present = [c for c in range(classes) if (codes == c).any()]
    recall = [right[codes == c].mean(axis=0) for c in present]
    # a draw may miss a rare class altogether: its recall then counts as not known, not as zero
    recall_draws = np.zeros((len(bootstrap.weights), len(logits)))
    drawn = np.zeros((len(bootstrap.weights), 1))
    for c in present:
        there = bootstrap.weights @ np.bincount(bootstrap.groups[codes == c], minlength=bootstrap.count).astype(np.float32) > 0
        recall_draws += np.where(there[:, None], bootstrap.mean(right, codes == c), 0)
        drawn += there[:, None]
    values = {"accuracy": right.mean(axis=0), "balanced_accuracy": np.mean(recall, axis=0), "log_loss": loss.mean(axis=0)}
    draws = {"accuracy": bootstrap.mean(right), "balanced_accuracy": recall_draws / np.maximum(drawn, 1), "log_loss": bootstrap.mean(loss)}
    if classes == 2:
        positive = codes == 1
        values["auroc"] = np.array([auroc(layer[0], positive, folds) for layer in logits])
        draws["auroc"] = np.stack([bootstrap.auroc(layer[0], positive, folds) for layer in logits], axis=1)
    if noise_share is not None:
        decided = noise_share if decision_share is None else decision_share
        for metric in draws:
            width = np.sqrt(1 + (decided if metric.endswith("accuracy") else noise_share))
            draws[metric] = values[metric] + (draws[metric] - values[metric]) * width
    return values, draws


def predict(logits: Floats) -> NDArray[np.intp]:
    """(..., example) class codes of (..., output, example) logits; a single output is the logit of class 1."""
    if logits.shape[-2] == 1:
        return (logits[..., 0, :] > 0).astype(np.intp)
    return np.asarray(logits.argmax(axis=-2))


def score_table(
    layers: NDArray[np.integer],
    values: dict[str, Floats],
    draws: dict[str, Floats],
    chance: dict[str, float],
    groups: int,
    level: float,
    certain: NDArray[np.bool_] | None = None,
) -> pd.DataFrame:
    """Rows (metric, layer) with value, own and simultaneous interval, and chance; `certain` as in `band`."""
    parts = []
    for metric in values:
        found = band(values[metric], draws[metric], level=level, **width_of(metric, groups), certain=certain)
        bottom, top = -np.inf if metric.startswith("r2") else 0.0, np.inf if metric == "log_loss" else 1.0
        intervals = {name: np.clip(end, bottom, top) for name, end in found.ends.items()}
        parts.append(
            pd.DataFrame(
                {
                    "layer": layers,
                    "metric": metric,
                    "value": values[metric],
                    **intervals,
                    "chance": chance[metric],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
