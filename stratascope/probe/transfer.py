"""Probes trained in one place and tested in another: another layer, position, condition or store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.probe.bootstrap import Bootstrap
from stratascope.probe.layer_task import LayerTask, run_layer
from stratascope.probe.metrics import chance_levels, main_metric, score_layers, score_table
from stratascope.probe.plan import Batch, ProbeSettings, plan_position
from stratascope.probe.scheduling import run_all
from stratascope.probe.tasks import Task
from stratascope.store import ActivationStore


def transfer_matrix(
    store: ActivationStore | str | Path,
    task: str | Task = "truth",
    position: str | None = "final",
    *,
    to: ActivationStore | str | Path | None = None,
    to_position: str | None = None,
    layers: Sequence[int] | None = None,
    to_layers: Sequence[int] | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    scheduler: str | None = None,
    progress: bool = False,
    **settings: Any,
) -> pd.DataFrame:
    """Train at every layer of one place, test at every layer of another.

    Every example is tested by the model of its fold, which saw neither it nor its image, wherever the test happens.

    Parameters
    ----------
    to : another store of the same examples, such as another condition; the same one by default
    to_position : the same by default
    settings : fields of `ProbeSettings`

    Returns
    -------
    One row per pair of layers: layer (trained), to_layer (tested), metric, value, low, high, ..., chance. Not widened for the
    noise of training, which is that of the trained layer.

    Raises
    ------
    InvalidInputError
        The other store holds other examples or vectors of another width.
    """
    source = store if isinstance(store, ActivationStore) else ActivationStore.open(store)
    target = source if to is None else to if isinstance(to, ActivationStore) else ActivationStore.open(to)
    place = to_position or position
    if not np.array_equal(source.examples["id"].to_numpy(), target.examples["id"].to_numpy()):
        raise InvalidInputError("expected two stores of the same examples in the same order, found other ids; extract both from one file")
    chosen = ProbeSettings(**({"draws": 200} | settings))
    there = target.available(chosen.array, place)
    wanted = np.zeros(len(there), dtype=bool)
    wanted[slice(None) if examples is None else np.asarray(examples)] = True
    batch = plan_position(source, (task,), position, chosen, examples=np.flatnonzero(wanted & there))[0]
    if batch.targets:
        raise InvalidInputError(f"expected a task of classes, found {batch.tasks[0]!r}, which has values")
    trained = _held(source, chosen.array, layers)
    work = [LayerTask(source, layer, position, (batch,), chosen) for layer in trained]
    answers = [answer.answers[0][0] for answer in run_all(run_layer, work, scheduler=scheduler, progress=progress)]
    weights = np.stack([answer.fold_directions for answer in answers])
    biases = np.stack([answer.fold_intercepts for answer in answers])
    parts = []
    for layer in _held(target, chosen.array, to_layers):
        table = _test(target, batch, layer, place, weights, biases, np.asarray(trained), chosen)
        parts.append(table[table["metric"] == main_metric(len(batch.classes))].assign(to_layer=layer))
    return pd.concat(parts, ignore_index=True)


def _held(store: ActivationStore, array: str, layers: Sequence[int] | None) -> list[int]:
    return sorted(store.layout.layers_of(store.layout.array(array).layer_dim or "") if layers is None else layers)


def _test(
    store: ActivationStore,
    batch: Batch,
    layer: int,
    position: str | None,
    weights: NDArray[Any],
    biases: NDArray[Any],
    trained: NDArray[np.intp],
    settings: ProbeSettings,
) -> pd.DataFrame:
    used = np.flatnonzero(batch.folds.tested)
    x = store.read(settings.array, layer=layer, position=position, examples=used).reshape(len(used), -1)
    if x.shape[1] != weights.shape[-1]:
        raise InvalidInputError(
            f"expected vectors of {weights.shape[-1]} numbers as in training, found {x.shape[1]}; probes cannot be moved there"
        )
    folds = batch.folds.of[used]
    logits = np.zeros((len(trained), weights.shape[2], len(used)), np.float32)
    for number, fold in enumerate(np.unique(folds)):
        index = np.flatnonzero(folds == fold)
        # centre first: outlier channels of 1e4 would drown a float32 sum
        centre = x[index].mean(axis=0, dtype=np.float64)
        offset = weights[:, number] @ centre + biases[:, number]
        logits[:, :, index] = weights[:, number] @ (x[index] - centre).astype(np.float32).T + offset[:, :, None]
    codes = batch.labels[0, used]
    groups = store.examples[settings.groups].to_numpy(dtype=str)[used]
    bootstrap = Bootstrap(groups, draws=settings.draws, seed=settings.seed)
    values, draws = score_layers(logits, codes, folds, len(batch.classes), bootstrap)
    return score_table(trained, values, draws, chance_levels(codes, len(batch.classes)), bootstrap.count, settings.level)
