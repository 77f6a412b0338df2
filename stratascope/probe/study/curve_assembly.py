"""Assembly of layer curves with intervals from the answers of single layers."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import NotRecordedError
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.curve.metrics import chance_levels, main_metric, predict, score_layers, score_table
from stratascope.probe.curve.value_metrics import score_values
from stratascope.probe.study.batch import Batch
from stratascope.probe.study.layer_task import LayerAnswer, LayerTask, solve_features, unmeasured_share
from stratascope.probe.study.positions import is_pair
from stratascope.probe.study.study_plan import ProbeSettings
from stratascope.probe.tasks.geometry import GEOMETRY, geometry_features
from stratascope.probe.validation.estimators import nonlinear_remark
from stratascope.probe.validation.official_splits import split_leakage
from stratascope.probe.validation.out_of_fold import OutOfFold
from stratascope.results.file import written_counts
from stratascope.stats.bootstrap import Bootstrap, repetition_weights
from stratascope.stats.intervals import constant_within_folds
from stratascope.store import ActivationStore
from stratascope.store.io.example_identity import IMAGE, example_digests, group_labels, image_groups

Floats = NDArray[Any]


def assemble(
    store: ActivationStore, position: str | None, batches: Sequence[Batch], answers: Sequence[LayerAnswer], settings: ProbeSettings
) -> list[LayerCurve]:
    """Curves of all labellings at a position, from answers in ascending layers."""
    bilinear = is_pair(position) and settings.pair == "bilinear"
    remark = nonlinear_remark(settings.method, bilinear=bilinear)
    attributes = settings.attributes | {
        "store": store.name.rstrip("/").rsplit("/", 1)[-1],  # not its path: the same result has the same bytes anywhere
        "fingerprint": store.fingerprint(),
        "provenance": store.provenance,
        **written_counts(store),
    }
    images = image_groups(store.examples)
    attributes["grouped_by"] = images.by if settings.groups == IMAGE else settings.groups
    attributes |= {"duplicate_images": images.extra_names, "remarks": images.lines() if settings.groups == IMAGE else []}
    if remark is not None:
        attributes |= {"nonlinear": True, "remarks": [*attributes["remarks"], remark]}
    if settings.split:
        train, test = settings.split
        leakage = split_leakage(store.examples, train=(train,), test=(test,), groups=settings.groups)
        attributes |= {"leakage": leakage.share, "leakage_text": str(leakage)}
    layers = np.array([answer.layer for answer in answers])
    curves = []
    for b, batch in enumerate(batches):
        used = np.flatnonzero(batch.folds.tested)
        bootstrap = Bootstrap(_groups(store, settings, used), draws=settings.draws, seed=settings.seed)
        for j, name in enumerate(batch.tasks):
            found = [answer.answers[b][j] for answer in answers]
            curves.append(_curve(store, position, layers, batch, j, name, found, used, bootstrap, settings, attributes))
    return curves


def geometry_baseline(
    store: ActivationStore, position: str, batches: Sequence[Batch], layers: Sequence[int], settings: ProbeSettings
) -> list[LayerCurve]:
    """Curves of the same probes on the coordinates of the gold boxes that select a position: one per task, without controls.

    Folds, labels and resamples are those of the study; every layer has the same score. A score above it is information that the
    activations hold beyond where the boxes are.

    Parameters
    ----------
    store, position
        As of `geometry_features`.
    batches
        Of the study at this position.
    layers
        Of the study.
    settings
        Of the study.

    Raises
    ------
    NotRecordedError
        The store has no boxes, or not those of all examples of the study.
    InvalidInputError
        No gold box selects the position.
    """
    features = geometry_features(store, position)
    plain = [_renamed(batch) for batch in batches if ":" not in batch.tasks[0]]
    used = np.flatnonzero(np.any([batch.used for batch in batches], axis=0))
    unknown = used[~np.isfinite(features[used]).all(axis=1)]
    if len(unknown):
        raise NotRecordedError(
            f"box geometry at {position}: expected boxes of all {len(used)} examples, found none of {len(unknown)}, first of id "
            f"{str(store.examples['id'].iloc[unknown[0]])!r}; extract again with their boxes, or leave these examples out (`only`)"
        )
    if settings.pair == "bilinear":
        # a bilinear probe of two boxes reads products of their coordinates; differences are sums that every form has
        of_two = features.shape[1] > 8
        features, settings = features[:, :8], replace(settings, pair="bilinear" if of_two else "concatenation")
    answer = solve_features(LayerTask(store, layers[0], position, plain, settings), features[used], used)
    return assemble(store, position, plain, [replace(answer, layer=layer) for layer in layers], settings)


def _renamed(batch: Batch) -> Batch:
    """The first task of a batch alone, as its baseline."""
    return replace(batch, tasks=(f"{batch.tasks[0]}:{GEOMETRY}",), labels=batch.labels[:1], further=())


def _groups(store: ActivationStore, settings: ProbeSettings, used: NDArray[np.intp]) -> NDArray[Any]:
    return group_labels(store.examples, settings.groups)[used]


def _curve(
    store: ActivationStore,
    position: str | None,
    layers: NDArray[np.intp],
    batch: Batch,
    labelling: int,
    name: str,
    found: list[OutOfFold],
    used: NDArray[np.intp],
    bootstrap: Bootstrap,
    settings: ProbeSettings,
    attributes: dict[str, Any],
) -> LayerCurve:
    logits = np.stack([answer.logits[:, used] for answer in found])
    labels, folds = batch.labels[labelling, used], batch.folds.of[used]
    examples = {
        "example": used,
        "id": store.examples["id"].to_numpy(dtype=str)[used],
        "group": _groups(store, settings, used),
        "fold": folds,
        "digest": example_digests(store.examples)[used],
    }
    shares = [answer.shares(len(batch.targets), unknown=unmeasured_share(batch)) for answer in found]
    share, turned = (np.array(measured) for measured in zip(*shares, strict=True))
    if batch.targets:
        values, draws = score_values(logits, labels, batch.targets, bootstrap, share, folds)
        chance = dict.fromkeys(values, 0.0)
        examples |= {target: labels[:, number] for number, target in enumerate(batch.targets)}
    else:
        values, draws = score_layers(logits, labels, folds, len(batch.classes), bootstrap, share[:, 0], turned[:, 0])
        drawn = [chance_levels(batch.labels[number, used], len(batch.classes)) for number in batch.draws_of(labelling)]
        chance = {metric: float(np.mean([one[metric] for one in drawn])) for metric in drawn[0]}
        examples["label"] = labels
    controls = _control_scores(batch, labelling, found)
    if controls:
        values = {metric: controls[metric].mean(axis=1) for metric in values}
        draws = _control_draws(name, batch, controls, [answer.control_influence[:, used] for answer in found], bootstrap, settings.seed)
        attributes = attributes | {"remarks": [*attributes["remarks"], _spread_text(controls[main_metric_of(batch)])]}
    certain = constant_within_folds(logits, folds)
    table = score_table(layers, values, draws, chance, bootstrap.count, settings.level, certain)
    table.insert(1, "position", position or "")
    table.insert(2, "task", name)
    folded = _fold_table(layers, batch, found, logits, labels, folds)
    table["at_edge"] = table["layer"].map(folded.groupby("layer")["at_edge"].any())
    kept = settings.directions
    return LayerCurve(
        task=name,
        position=position,
        classes=batch.classes,
        targets=batch.targets,
        table=table,
        folds=folded,
        examples=pd.DataFrame(examples),
        logits=logits,
        draws={metric: drawn.T.astype(np.float32) for metric, drawn in draws.items()},
        directions=np.stack([a.direction if kept else a.direction[:, :0] for a in found]).astype(np.float32),
        intercepts=np.stack([a.intercept for a in found]),
        attributes=attributes,
        controls=controls,
    )


def main_metric_of(batch: Batch) -> str:
    """The main metric of a batch's curves."""
    return "r2" if batch.targets else main_metric(len(batch.classes))


def _control_scores(batch: Batch, labelling: int, found: list[OutOfFold]) -> dict[str, Floats]:
    """Metric -> (layer, draw) scores of every draw of a control; none for a task with one labelling."""
    if len(batch.draws_of(labelling)) == 1:
        return {}
    return {metric: np.stack([answer.control_values[number] for answer in found]) for number, metric in enumerate(batch.metrics)}


def _control_draws(
    name: str, batch: Batch, controls: dict[str, Floats], influences: list[Floats], bootstrap: Bootstrap, seed: int
) -> dict[str, Floats]:
    """Metric -> (draw, layer) resamples of a control's mean score: of the images, and of its draws of labels.

    The variance is that between images, to first order, plus the variance between draws of labels over their number. Layers and
    positions share the resamples.
    """
    weights = label_draw_weights(name, next(iter(controls.values())).shape[1], len(bootstrap.weights), seed)
    by_group = np.zeros((bootstrap.count, len(influences) * len(batch.metrics)))
    np.add.at(by_group, bootstrap.groups, np.concatenate(influences).T)
    images = (bootstrap.weights @ by_group).reshape(len(weights), len(influences), -1)
    return {
        metric: values.mean(axis=1) + images[:, :, batch.metrics.index(metric)] + weights @ values.T for metric, values in controls.items()
    }


def label_draw_weights(control: str, count: int, resamples: int, seed: int) -> Floats:
    """`repetition_weights` of the draws of a control's labels, the same for every layer and position."""
    return repetition_weights(count, resamples, [seed, zlib.crc32(control.encode())])


def _spread_text(values: Floats) -> str:
    spread = values.std(axis=1, ddof=1).max()
    return f"mean of {values.shape[1]} draws of the control's labels; standard deviation between draws up to {spread:.3f}"


def _fold_table(
    layers: NDArray[np.intp],
    batch: Batch,
    found: list[OutOfFold],
    logits: Floats,
    labels: NDArray[Any],
    folds: NDArray[np.intp],
) -> pd.DataFrame:
    hit = None if batch.targets else predict(logits) == labels
    numbers = range(batch.folds.count) if batch.folds.test is None else (batch.folds.test,)
    rows = []
    for place, (layer, answer) in enumerate(zip(layers, found, strict=True)):
        for number, (target, fold) in enumerate(product(batch.targets or ("",), numbers)):
            inner, strength = answer.inner_loss[:, number], float(answer.strength[number])
            rows.append(
                {
                    "layer": int(layer),
                    "target": target,
                    "fold": fold,
                    "strength": strength,
                    # for ridge regression the largest strength is close to no regularisation
                    "at_edge": not batch.targets and bool(answer.at_edge[number]),
                    "inner_loss": float(np.nanmin(inner)) if np.isfinite(inner).any() else np.nan,
                    "accuracy": np.nan if hit is None else float(hit[place, folds == fold].mean()),
                    "gap": float(answer.gap[number]),
                    "certificate": float(answer.certificate[number]),
                    "iterations": int(answer.iterations[number]),
                    "noise_share": float(answer.noise_share[number]),
                    "absent_classes": ", ".join(c for c, gone in zip(batch.classes, answer.absent[number], strict=True) if gone),
                }
            )
    return pd.DataFrame(rows)
