"""Assembly of layer curves with intervals from the answers of single layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.curve.metrics import chance_levels, predict, score_layers, score_table
from stratascope.probe.study.layer_task import LayerAnswer
from stratascope.probe.study.study_plan import Batch, ProbeSettings
from stratascope.probe.tasks.geometry import score_values
from stratascope.probe.validation.official_splits import split_leakage
from stratascope.probe.validation.out_of_fold import OutOfFold
from stratascope.results.file import written_counts
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import constant_within_folds
from stratascope.store import ActivationStore
from stratascope.store.io.example_identity import IMAGE, example_digests, group_labels, image_groups

Floats = NDArray[Any]


def assemble(
    store: ActivationStore, position: str | None, batches: Sequence[Batch], answers: Sequence[LayerAnswer], settings: ProbeSettings
) -> list[LayerCurve]:
    """Curves of all labellings at a position, from answers in ascending layers."""
    attributes = asdict(settings) | {
        "store": store.name.rstrip("/").rsplit("/", 1)[-1],  # not its path: the same result has the same bytes anywhere
        "fingerprint": store.fingerprint(),
        "provenance": store.provenance,
        **written_counts(store),
    }
    images = image_groups(store.examples)
    attributes["grouped_by"] = images.by if settings.groups == IMAGE else settings.groups
    attributes |= {"duplicate_images": images.extra_names, "remarks": images.lines() if settings.groups == IMAGE else []}
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
    # 0 for a fixed test set, which no model trains on; 1, the upper limit, where it is unknown (2 folds)
    unknown = 0.0 if batch.folds.test is not None else 1.0
    share, turned = (
        np.array([np.nan_to_num(by_fold, nan=unknown).reshape(max(len(batch.targets), 1), -1).mean(1) for by_fold in measured])
        for measured in ([answer.noise_share for answer in found], [answer.decision_share for answer in found])
    )
    if batch.targets:
        values, draws = score_values(logits, labels, batch.targets, bootstrap, share)
        chance = dict.fromkeys(values, 0.0)
        examples |= {target: labels[:, number] for number, target in enumerate(batch.targets)}
    else:
        values, draws = score_layers(logits, labels, folds, len(batch.classes), bootstrap, share[:, 0], turned[:, 0])
        chance = chance_levels(labels, len(batch.classes))
        examples["label"] = labels
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
    )


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
