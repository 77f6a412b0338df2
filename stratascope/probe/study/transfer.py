"""Transfer: probes trained at one layer, position or store and tested at another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.figures.drawing import new_figure
from stratascope.figures.style import paper_style
from stratascope.probe.curve.advantage import DERIVED
from stratascope.probe.curve.curve_table import CurveTable
from stratascope.probe.curve.metrics import chance_levels, main_metric, score_layers, score_table
from stratascope.probe.study.batch import Batch
from stratascope.probe.study.layer_task import unmeasured_share
from stratascope.probe.study.positions import Position, available_at, is_pair, position_text, read_at
from stratascope.probe.study.study import SCHEDULER, Study, plan_study
from stratascope.probe.study.study_plan import ProbeOptions, ProbeSettings, layers_of, shows_probe_options
from stratascope.probe.tasks.task import Task
from stratascope.probe.validation.cross_validation import METHODS
from stratascope.results.result import new_axes, table_field
from stratascope.results.schema import columns
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import INTERVAL, constant_within_folds
from stratascope.store import ActivationStore
from stratascope.store.io.example_identity import group_labels, refuse_other_examples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Transfer(CurveTable, kind="transfer", command="probe", prefix="transfer", schema={**DERIVED, "to?": str | None}):
    """Scores of probes trained at each layer of one place and tested at each layer of another."""

    table: pd.DataFrame = table_field(
        columns(text="metric", ints="layer to_layer", floats=f"value {INTERVAL} chance", grid="metric layer to_layer")
    )
    """layer (trained), to_layer (tested), metric, value, low, high, low_simultaneous, high_simultaneous, chance."""

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """Task, position and where the probes are tested."""
        to = self.attributes.get("to")
        return (*super().name_parts, *(("to", to) if to else ()))

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the matrix: layer of training by layer of test."""
        from stratascope.figures.score_grids import draw_transfer

        to = self.attributes.get("to")
        return draw_transfer(self.table, new_axes(ax, width=3.4), title=f"{self.title} to {to}" if to else self.title)

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """The matrix on a column's width."""
        figure, (ax,) = new_figure(1, width=3.4, height=2.9)
        with paper_style():
            self.plot(ax)
        return figure


@shows_probe_options
def transfer_matrix(
    store: ActivationStore | str | Path,
    task: str | Task = "truth",
    position: Position = "final",
    *,
    array: str = "residual",
    to: ActivationStore | str | Path | None = None,
    to_position: Position = None,
    layers: int | Sequence[int] | None = None,
    to_layers: int | Sequence[int] | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    values: Mapping[str, Mapping[str, object]] | None = None,
    scheduler: str | None = SCHEDULER,
    workers: int | None = None,
    progress: bool = False,
    output: str | Path | None = None,
    **options: Unpack[ProbeOptions],
) -> pd.DataFrame:
    """Train probes at each layer and test them at each layer, position or store.

    Every example is tested by the model of its fold, which was trained neither on it nor on another example of its image.

    Parameters
    ----------
    store, task, position, array, layers, examples, values
        Training: as of `plan_study`.
    to
        Another store of the same examples, such as another condition; the same one by default.
    to_position, to_layers
        Position of the test, the same by default, and its layers, all by default.
    scheduler, workers, progress, output
        As of `probe_study`.
    options
        Fields of `ProbeSettings`.

    Returns
    -------
    pandas.DataFrame
        One row per pair of layers: layer (trained), to_layer (tested), metric, value, low, high, ..., chance. Intervals are
        widened for the noise of training as those of the probes are where they were trained.

    Raises
    ------
    InvalidInputError
        The other store holds other examples (id, image, caption, relation or label), or vectors of another width.

    Examples
    --------
    >>> table = transfer_matrix(store, layers=(1, 3), to_layers=3, draws=200)
    >>> table[["layer", "to_layer"]].to_numpy().tolist()
    [[1, 3], [3, 3]]
    """
    source = store if isinstance(store, ActivationStore) else ActivationStore.open(store)
    target = source if to is None else to if isinstance(to, ActivationStore) else ActivationStore.open(to)
    refuse_other_examples(source, target, "a second store")
    wanted = np.zeros(source.layout.examples, dtype=bool)
    wanted[slice(None) if examples is None else np.asarray(examples)] = True
    there = np.flatnonzero(wanted & available_at(target, array, position_text(to_position or position)))
    study = plan_study(source, (task,), (position,), array=array, layers=layers, examples=there, values=values, **options)
    run: dict[str, Any] = {"scheduler": scheduler, "workers": workers, "progress": progress, "output": output}
    return transfer_of(study, to=target, to_position=position_text(to_position), to_layers=to_layers, **run)


def transfer_of(
    study: Study,
    task: str | None = None,
    *,
    to: ActivationStore | None = None,
    to_position: str | None = None,
    to_layers: int | Sequence[int] | None = None,
    scheduler: str | None = SCHEDULER,
    workers: int | None = None,
    progress: bool = False,
    output: str | Path | None = None,
) -> pd.DataFrame:
    """Transfer matrix of one task of a study at its first position.

    Parameters
    ----------
    study
        From `plan_study`.
    task
        One of its tasks; the first by default.
    to, to_position, to_layers
        Where probes are tested: as of `transfer_matrix`.
    scheduler, workers, progress, output
        As of `probe_study`.

    Raises
    ------
    InvalidInputError
        The task has values, each head is a probe of its own, the probe is not linear, or the other store holds other examples.
    """
    (position, batches), *_ = study.plans.items()
    name = task or study.tasks[0]
    number = next(k for k, batch in enumerate(batches) if name in batch.tasks)
    batch = batches[number]
    place = batch.tasks.index(name)
    if batch.targets or study.by_head:
        raise InvalidInputError(f"expected a task of classes and one vector a position, found {name!r}, which has values or heads")
    target, settings = to or study.store, study.settings
    refuse_other_examples(study.store, target, "a second store")
    refuse_without_directions(settings, position)
    found = study.answers(scheduler=scheduler, workers=workers, progress=progress, output=output)[position]
    answers = [answer.answers[number][place] for answer in found]
    weights = np.stack([answer.fold_directions for answer in answers])
    biases = np.stack([answer.fold_intercepts for answer in answers])
    alone = replace(batch, tasks=(name,), labels=batch.labels[[place]])
    shares = np.array([answer.shares(0, unknown=unmeasured_share(batch)) for answer in answers])[..., 0]
    parts = []
    for layer in layers_of(target, settings.array, to_layers):
        table = _test(target, alone, layer, to_position or position, weights, biases, shares, np.asarray(study.layers), settings)
        parts.append(table[table["metric"] == main_metric(len(batch.classes))].assign(to_layer=layer))
    return pd.concat(parts, ignore_index=True)


def refuse_without_directions(settings: ProbeSettings, position: str | None) -> None:
    """Raise InvalidInputError where a probe has no weights on activations."""
    if settings.method not in METHODS or (settings.pair == "bilinear" and is_pair(position)):
        raise InvalidInputError(
            "expected a linear probe, whose weights can be applied to other activations, found another `method` or a bilinear `pair`; "
            "give method logistic, and concatenation or difference for a pair"
        )


def apply_probes(weights: NDArray[Any], biases: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """Logits (probe, output, row) of probes with weights (probe, output, column) and biases (probe, output) on x (row, column).

    Raises
    ------
    InvalidInputError
        The rows have another number of columns.
    """
    if x.shape[1] != weights.shape[-1]:
        raise InvalidInputError(
            f"expected vectors of {weights.shape[-1]} numbers as in training, found {x.shape[1]}; probes cannot be applied there"
        )
    # centre first: outlier channels of 1e4 would drown a float32 sum
    centre = x.mean(axis=0, dtype=np.float64)
    offset = weights @ centre + biases
    return np.asarray(weights @ (x - centre).astype(np.float32).T + offset[:, :, None], np.float32)


def _test(
    store: ActivationStore,
    batch: Batch,
    layer: int,
    position: str | None,
    weights: NDArray[Any],
    biases: NDArray[Any],
    shares: NDArray[Any],
    trained: NDArray[np.intp],
    settings: ProbeSettings,
) -> pd.DataFrame:
    used = np.flatnonzero(batch.folds.tested)
    held = store.layout.array(settings.array).layer_dim
    x = read_at(store, settings.array, position, layer=layer if held else None, examples=used, pair=settings.pair).reshape(len(used), -1)
    folds = batch.folds.of[used]
    logits = np.zeros((len(trained), weights.shape[2], len(used)), np.float32)
    for number, fold in enumerate(np.unique(folds)):
        index = np.flatnonzero(folds == fold)
        logits[:, :, index] = apply_probes(weights[:, number], biases[:, number], x[index])
    codes = batch.labels[0, used]
    groups = group_labels(store.examples, settings.groups)[used]
    bootstrap = Bootstrap(groups, draws=settings.draws, seed=settings.seed)
    values, draws = score_layers(logits, codes, folds, len(batch.classes), bootstrap, *shares.T)
    certain = constant_within_folds(logits, folds)
    return score_table(trained, values, draws, chance_levels(codes, len(batch.classes)), bootstrap.count, settings.level, certain)
