"""Layer curves from a store: one task per layer and position, on this machine or any Dask cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.probe.bootstrap import Bootstrap
from stratascope.probe.cross_validation import OutOfFold
from stratascope.probe.curve import LayerCurve
from stratascope.probe.layer_task import LayerAnswer, LayerTask, run_layer
from stratascope.probe.metrics import chance_levels, predict, score_layers, score_table
from stratascope.probe.plan import Batch, ProbeSettings, plan_position
from stratascope.probe.scheduling import run_all
from stratascope.probe.tasks import Task
from stratascope.store import ActivationStore


def layer_curve(
    store: ActivationStore | str | Path, task: str | Task = "truth", position: str | None = "final", **options: Any
) -> LayerCurve:
    """The score of a task by layer at one position; options are those of `probe_study`.

    `layer_curve(store, "truth:shuffled")` is the curve of labels shuffled within folds and groups, `"truth:control"` that of
    the control task.
    """
    return probe_study(store, (task,), (position,), **options)[0]


def probe_study(
    store: ActivationStore | str | Path,
    tasks: Sequence[str | Task] = ("truth",),
    positions: Sequence[str | None] | None = None,
    *,
    array: str = "residual",
    layers: Sequence[int] | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    values: Mapping[str, object] | None = None,
    scheduler: str | None = None,
    progress: bool = False,
    output: str | Path | None = None,
    **settings: Any,
) -> list[LayerCurve]:
    """Probe every layer for every task at every position.

    Parameters
    ----------
    store : an open store, or its path or address
    tasks : truth, relation, category, answer, a column of the examples, a `Task`, or a name in `values`; with `:shuffled` or
        `:control` for its controls, which are solved in the same go
    positions : all of the store by default
    array : any recorded array with one vector an example, layer and position
    layers : all by default
    examples : numbers or mask, all by default
    values : task name -> mapping from example id to class
    scheduler : None for one after another in this process, `threads`, `processes`, or the address of a Dask scheduler
    progress : show a bar, where there is a terminal
    output : folder in which finished layers are kept; the same study run again takes them from there
    settings : fields of `ProbeSettings`: folds, seed, strengths, groups, minimum, types, tolerance, draws, level, directions

    Returns
    -------
    One curve per position and task, in this order.
    """
    opened = store if isinstance(store, ActivationStore) else ActivationStore.open(store)
    try:
        chosen = ProbeSettings(array=array, **settings)
    except TypeError as error:
        raise InvalidInputError(f"expected settings of {', '.join(ProbeSettings.__dataclass_fields__)}, found another: {error}") from error
    if not tasks:
        raise InvalidInputError("expected at least one task, found none; give tasks=('truth',)")
    places = tuple(opened.layout.positions) if positions is None else tuple(positions)
    numbers = _layers(opened, array, layers)
    plans = {place: plan_position(opened, tasks, place, chosen, examples=examples, values=values) for place in places}
    work = [
        LayerTask(opened, array, layer, place, plans[place], chosen.strengths, chosen.tolerance) for place in places for layer in numbers
    ]
    answers = run_all(run_layer, work, scheduler=scheduler, progress=progress)
    curves = []
    for number, place in enumerate(places):
        found = answers[number * len(numbers) : (number + 1) * len(numbers)]
        named = {c.task: c for batch, c in _curves(opened, place, plans[place], found, chosen)}
        curves += [named[name] for name in dict.fromkeys(t.name if isinstance(t, Task) else t for t in tasks)]
    return curves


def _layers(store: ActivationStore, array: str, layers: Sequence[int] | None) -> list[int]:
    spec = store.layout.array(array)
    if spec.layer_dim is None:
        raise InvalidInputError(f"{array}: expected an array by layer, found dimensions {spec.dims}; give array='residual'")
    return sorted(store.layout.layers_of(spec.layer_dim) if layers is None else layers)


def _curves(
    store: ActivationStore, position: str | None, batches: list[Batch], answers: list[LayerAnswer], settings: ProbeSettings
) -> list[tuple[Batch, LayerCurve]]:
    layers = np.array([answer.layer for answer in answers])
    attributes = asdict(settings) | {
        "store": store.name,
        "fingerprint": store.fingerprint(),
        "condition": store.provenance.get("condition"),
        "seconds": [round(answer.seconds, 3) for answer in answers],
    }
    curves = []
    for b, batch in enumerate(batches):
        used = np.flatnonzero(batch.used)
        groups = store.examples[settings.groups].to_numpy(dtype=str)[used]
        bootstrap = Bootstrap(groups, draws=settings.draws, seed=settings.seed)
        for j, name in enumerate(batch.tasks):
            found = [answer.answers[b][j] for answer in answers]
            logits = np.stack([f.logits[:, used] for f in found])
            codes, folds = batch.labels[j, used], batch.folds.of[used]
            # where it was not measured (2 folds), the widest
            share = np.array([np.nan_to_num(f.noise_share, nan=1.0).mean() for f in found])
            values, draws = score_layers(logits, codes, folds, len(batch.classes), bootstrap, share)
            chance = chance_levels(codes, len(batch.classes))
            table = score_table(layers, values, draws, chance, bootstrap.count, settings.level)
            table.insert(1, "position", position or "")
            table.insert(2, "task", name)
            curves.append(
                (
                    batch,
                    LayerCurve(
                        task=name,
                        position=position,
                        classes=batch.classes,
                        table=table,
                        folds=_fold_table(layers, found, logits, codes, folds, batch.classes, settings.strengths),
                        examples=pd.DataFrame(
                            {
                                "example": used,
                                "id": store.examples["id"].to_numpy(dtype=str)[used],
                                "group": groups,
                                "fold": folds,
                                "label": codes,
                            }
                        ),
                        logits=logits,
                        draws={metric: drawn.T.astype(np.float32) for metric, drawn in draws.items()},
                        directions=np.stack([f.direction for f in found]).astype(np.float32)
                        if settings.directions
                        else np.zeros((len(layers), logits.shape[1], 0), np.float32),
                        intercepts=np.stack([f.intercept for f in found]),
                        attributes=attributes,
                    ),
                )
            )
    return curves


def _fold_table(
    layers: NDArray[np.integer],
    found: list[OutOfFold],
    logits: NDArray[Any],
    codes: NDArray[np.intp],
    folds: NDArray[np.intp],
    classes: tuple[str, ...],
    strengths: tuple[float, ...],
) -> pd.DataFrame:
    right = predict(logits) == codes
    rows = []
    for layer, answer, hit in zip(layers, found, right, strict=True):
        for fold in range(len(answer.strength)):
            inner = answer.inner_loss[:, fold]
            strength = float(answer.strength[fold])
            rows.append(
                {
                    "layer": int(layer),
                    "fold": fold,
                    "strength": strength,
                    # an optimum at the top of the grid may lie beyond it; at the bottom it means that nothing can be read
                    "at_edge": len(strengths) > 1 and strength in (strengths[0], strengths[-1]),
                    "inner_loss": float(np.nanmin(inner)) if np.isfinite(inner).any() else np.nan,
                    "accuracy": float(hit[folds == fold].mean()),
                    "gap": float(answer.gap[fold]),
                    "certificate": float(answer.certificate[fold]),
                    "iterations": int(answer.iterations[fold]),
                    "noise_share": float(answer.noise_share[fold]),
                    "absent_classes": ", ".join(c for c, gone in zip(classes, answer.absent[fold], strict=True) if gone),
                }
            )
    return pd.DataFrame(rows)
