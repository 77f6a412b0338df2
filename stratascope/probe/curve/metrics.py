"""Scores of out-of-fold predictions, with bootstrap draws paired over layers, labellings and stores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.probe.solver.losses import loss_for, probabilities
from stratascope.stats.auroc import auroc, auroc_influence
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import Band, band, skewed_band

Floats = NDArray[Any]


def main_metric(classes: int) -> str:
    """The metric of onset and plots, which does not depend on class frequencies."""
    return "auroc" if classes == 2 else "balanced_accuracy"


def best_row(rows: pd.DataFrame, metric: str) -> pd.Series[Any]:
    """Row of the best value, the first of equal ones: the lowest log loss, the highest of other metrics."""
    value = rows["value"].to_numpy()
    return rows.iloc[int(value.argmin() if metric == "log_loss" else value.argmax())]


def better_than_chance(rows: pd.DataFrame, metric: str, *, worse: bool = False) -> NDArray[np.bool_]:
    """(row,) whether the simultaneous interval excludes chance on the better side, below it for the log loss; or on the worse side."""
    if (metric == "log_loss") != worse:
        return (rows["high_simultaneous"] < rows["chance"]).to_numpy()
    return (rows["low_simultaneous"] > rows["chance"]).to_numpy()


class _Width(TypedDict):
    groups: int | None
    counted: bool


def width_of(metric: str, groups: int | None) -> _Width:
    """Parameters of `band` for a metric: groups where it is a mean of values between 0 and 1, and whether it counts examples."""
    counted = metric.endswith("accuracy")
    return {"groups": groups if counted or metric == "auroc" else None, "counted": counted}


def score_range(metric: str) -> tuple[float, float]:
    """Lowest and highest possible score of a metric."""
    bottom = -np.inf if metric.startswith("r2") else -1.0 if metric.startswith("spearman") else 0.0
    return bottom, np.inf if metric == "log_loss" else 1.0


def advantage_range(metric: str, chance: float | None = None) -> tuple[float, float]:
    """Smallest and largest possible advantage in a metric.

    Over a constant score `chance`, it is limited by the range of the score alone. A measured baseline is uncertain itself: the best
    possible score minus the measured one is no limit of the expected advantage.
    """
    low, high = score_range(metric)
    if metric == "log_loss":  # lower is better
        low, high = -high, low
        chance = None if chance is None else -chance
    return (low - high, high - low) if chance is None else (low - chance, high - chance)


def chance_levels(codes: NDArray[np.intp], classes: int) -> dict[str, float]:
    """Chance level of each metric: a guess from the class frequencies alone."""
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
        (layer,) of `OutOfFold`; the spread of draws is multiplied by sqrt(1 + share), for accuracies with the share of the decisions
        where given. A bootstrap of out-of-fold predictions takes examples as independent. But each of two examples of different folds
        is in the training set of the model that tests the other. Where the logits depend on the training sample alone, this doubles the
        variance of a score. Without signal, probes predict nearly always one class, and the training sample hardly changes that.
    """
    predicted = predict(logits)
    right = (predicted == codes).T.astype(np.float64)
    loss = np.clip(loss_for(classes).each(logits.astype(np.float64), np.broadcast_to(codes, predicted.shape)), 0, 100).T
    present = [c for c in range(classes) if (codes == c).any()]
    recall = [right[codes == c].mean(axis=0) for c in present]
    # a resample without a rare class has no recall of it
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


def score_influences(
    logits: Floats, codes: NDArray[np.intp], folds: NDArray[np.integer], classes: int, noise_share: float, decision_share: float
) -> dict[str, tuple[float, Floats]]:
    """Metric -> its value, and the influence (example,) of each example on it.

    A resample that draws examples w times scores the value plus sum((w - 1) * influence), to first order. Influences are widened as the
    draws of `score_layers` are.

    Parameters
    ----------
    logits
        (output, example).
    codes, folds
        (example,).
    """
    predicted = predict(logits)
    right = (predicted == codes).astype(np.float64)
    loss = np.clip(loss_for(classes).each(logits[None].astype(np.float64), codes[None])[0], 0, 100)
    recall_influence, recalls, n = np.zeros(len(codes)), [], len(codes)
    for c in np.unique(codes):
        member = codes == c
        recalls.append(right[member].mean())
        recall_influence[member] = (right[member] - recalls[-1]) / member.sum()
    found = {
        "accuracy": (float(right.mean()), (right - right.mean()) / n),
        "balanced_accuracy": (float(np.mean(recalls)), recall_influence / len(recalls)),
        "log_loss": (float(loss.mean()), (loss - loss.mean()) / n),
    }
    if classes == 2:
        found["auroc"] = (auroc(logits[0], codes == 1, folds), auroc_influence(logits[0], codes == 1, folds))
    width = {metric: np.sqrt(1 + (decision_share if metric.endswith("accuracy") else noise_share)) for metric in found}
    return {metric: (value, influence * width[metric]) for metric, (value, influence) in found.items()}


def predict(logits: Floats) -> NDArray[np.intp]:
    """(..., example) class codes of (..., output, example) logits; a single output is the logit of class 1."""
    if logits.shape[-2] == 1:
        return (logits[..., 0, :] > 0).astype(np.intp)
    return np.asarray(logits.argmax(axis=-2))


def prediction_table(
    logits: Floats, examples: pd.DataFrame, layers: NDArray[np.integer], classes: tuple[str, ...], targets: tuple[str, ...]
) -> pd.DataFrame:
    """One row per layer and example; see `LayerCurve.predictions`.

    Parameters
    ----------
    logits
        (layer, output, example).
    examples
        Columns example, id, fold, and label in a task of classes.
    layers
        (layer,) layer numbers.
    classes, targets
        Names of classes, or of the targets of a task of values.
    """
    if targets:
        parts = [examples[["example", "id", "fold"]].assign(layer=layer) for layer in layers]
        found = pd.concat(parts, ignore_index=True)
        return found.assign(**{name: logits[:, number].ravel() for number, name in enumerate(targets)})
    predicted, label = predict(logits), examples["label"].to_numpy()
    names, of_label = np.asarray(classes, dtype=object), np.broadcast_to(label[:, None], (*predicted.shape, 1))
    return pd.DataFrame(
        {
            "layer": np.repeat(layers, len(examples)),
            **{name: np.tile(examples[name].to_numpy(), len(layers)) for name in ("example", "id", "fold")},
            "label": np.tile(names[label], len(layers)),
            "predicted": names[predicted.ravel()],
            "right": (predicted == label).ravel(),
            "probability": np.take_along_axis(probabilities(logits), of_label, axis=2).ravel(),
        }
    )


def score_table(
    layers: NDArray[np.integer],
    values: dict[str, Floats],
    draws: dict[str, Floats],
    chance: dict[str, float],
    groups: int,
    level: float,
    certain: NDArray[np.bool_] | None = None,
) -> pd.DataFrame:
    """Rows (metric, layer) with value, pointwise and simultaneous interval, and chance level; `certain` as in `band`."""
    parts = []
    for metric in values:
        intervals = score_band(values[metric], draws[metric], metric, groups, level, certain).ends
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


def score_band(
    value: Floats,
    draws: Floats,
    metric: str,
    groups: int,
    level: float,
    certain: NDArray[np.bool_] | None = None,
    family: Mapping[str, Any] | None = None,
) -> Band:
    """Intervals of a score by layer, on the scale and within the range of its metric; `family` as of `CurveSet.with_family`."""
    wide = {name: family[name] for name in ("critical", "comparisons")} if family else {}
    bands = band(value, draws, level=level, **width_of(metric, groups), certain=certain, **wide)
    scale = metric.partition("_")[0]
    if scale in ("auroc", "r2"):
        bands = skewed_band(bands, value, draws.std(axis=0), scale, groups, level)
    return bands.within(score_range(metric))
