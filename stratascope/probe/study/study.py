"""Layer curves from a store: one task per layer and position, on this machine or any Dask cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.study.batch import Batch
from stratascope.probe.study.cost import StudyCost, largest_task
from stratascope.probe.study.curve_assembly import assemble, geometry_baseline
from stratascope.probe.study.layer_cache import Answer, Finished, FinishedLayers, run_unfinished
from stratascope.probe.study.layer_task import LayerAnswer, LayerTask, run_layer
from stratascope.probe.study.positions import Position, columns_at, position_text
from stratascope.probe.study.study_plan import (
    ProbeOptions,
    ProbeSettings,
    layers_of,
    plan_position,
    positions_of,
    refuse_without_heads,
    shows_probe_options,
    task_name,
)
from stratascope.probe.tasks.task import Task
from stratascope.scheduling import workers_of
from stratascope.store import ActivationStore

TASKS = ("truth", "relation")
"""Tasks of a study by default."""
SCHEDULER = "threads"
"""Where layers are solved by default."""


@shows_probe_options
def layer_curve(
    store: ActivationStore | str | Path,
    task: str | Task = "truth",
    position: Position = "final",
    *,
    array: str = "residual",
    layers: int | Sequence[int] | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    values: Mapping[str, Mapping[str, object]] | None = None,
    scheduler: str | None = SCHEDULER,
    workers: int | None = None,
    progress: bool = False,
    output: str | Path | None = None,
    **options: Unpack[ProbeOptions],
) -> LayerCurve:
    """Probe one task at one position: its score by layer.

    `"truth:shuffled"` is the curve of labels shuffled within folds and groups, `"truth:control"` that of the control task.

    Parameters
    ----------
    store
        An open store, or its path or address.
    task, position, array, layers, examples, values
        As of `plan_study`.
    scheduler, workers, progress, output
        As of `probe_study`.
    options
        Fields of `ProbeSettings`.

    Raises
    ------
    InvalidInputError, NotRecordedError, UnwrittenBlockError, TooFewExamplesError, ClusterLostError
        As of `probe_study`.

    Examples
    --------
    >>> curve = layer_curve(store, "truth", "final", layers=(1, 3), draws=200)
    >>> curve
    LayerCurve of truth at final: 240 examples, 2 layers
      AUROC 1.000 [0.9..., 1.000] at layer 3 (peak); chance level 0.5
      above chance: detected in layer 3; AUROC first above 0.53 in one of layers 1-3; still detected in the last layer
      95 % simultaneous band over layers
    """
    study = plan_study(store, (task,), (position,), array=array, layers=layers, examples=examples, values=values, **options)
    return study.run(scheduler=scheduler, workers=workers, progress=progress, output=output)[0]


@shows_probe_options
def probe_study(
    store: ActivationStore | str | Path,
    tasks: Sequence[str | Task] = TASKS,
    positions: Sequence[Position] | None = None,
    *,
    array: str = "residual",
    layers: int | Sequence[int] | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    values: Mapping[str, Mapping[str, object]] | None = None,
    by_head: bool = False,
    scheduler: str | None = SCHEDULER,
    workers: int | None = None,
    progress: bool = False,
    output: str | Path | None = None,
    **options: Unpack[ProbeOptions],
) -> list[LayerCurve]:
    """Probe every layer for every task at every position.

    Parameters
    ----------
    store, tasks, positions, array, layers, examples, values, by_head
        As of `plan_study`.
    scheduler
        `threads`, `processes`, `synchronous` (one after another in this process), or the address of a Dask scheduler.
    workers
        Threads or processes at once; one per core by default.
    progress
        Show a progress bar in a terminal.
    output
        Folder that caches finished layers; the same study run again loads them from there.
    options
        Fields of `ProbeSettings`.

    Returns
    -------
    list of LayerCurve
        One per position and task, in this order; with `by_head` one per head and task.

    Raises
    ------
    InvalidInputError
        As of `plan_study`, or the scheduler is unknown or does not answer.
    ClusterLostError
        The scheduler or its workers died; finished layers are kept where `output` is given.
    NotRecordedError, UnwrittenBlockError, TooFewExamplesError
        As of `plan_study`.

    Examples
    --------
    >>> curves = probe_study(store, ("truth", "truth:shuffled"), ("final",), layers=3, draws=200)
    >>> [curve.task for curve in curves]
    ['truth', 'truth:shuffled']
    """
    study = plan_study(store, tasks, positions, array=array, layers=layers, examples=examples, values=values, by_head=by_head, **options)
    return study.run(scheduler=scheduler, workers=workers, progress=progress, output=output)


@shows_probe_options
def plan_study(
    store: ActivationStore | str | Path,
    tasks: Sequence[str | Task] = TASKS,
    positions: Sequence[Position] | None = None,
    *,
    array: str = "residual",
    layers: int | Sequence[int] | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    values: Mapping[str, Mapping[str, object]] | None = None,
    by_head: bool = False,
    **options: Unpack[ProbeOptions],
) -> Study:
    """Select examples, folds and labels of a study; reads no activations.

    Parameters
    ----------
    store
        An open store, or its path or address.
    tasks
        `truth`, `choice` (the right one of several answers), `relation`, `category`, `answer`, `geometry`, a column of the examples, a
        `Task`, or a name in `values`; with `:shuffled` or `:control` for its controls, which are solved together with it.
    positions
        All of the array by default. A pair of positions, as text (`"subject_box+object_box"`) or tuple, is one probe on both vectors, over
        the examples that have both; `pair` is its form.
    array
        Any recorded array with one vector per example, by layer and position where it has them; else there is one layer, 0.
    layers
        One layer or several; all by default.
    examples
        Numbers or mask; all by default.
    values
        Task name -> mapping from example id to class.
    by_head
        One probe for each head of an array such as `head_outputs`; positions are then `head 0`, `head 1`, ...
    options
        Fields of `ProbeSettings`.

    Raises
    ------
    InvalidInputError
        There is no task, a setting is unknown, or the array has no vectors, or none by head.
    NotRecordedError
        The store lacks the array, a position, a layer, or the data of a task.
    UnwrittenBlockError
        Some of the examples are not written yet.
    TooFewExamplesError
        There are too few examples, groups or classes for the folds.

    Examples
    --------
    >>> study = plan_study(store, ("truth",), ("final",), layers=(1, 3))
    >>> study.cost(scheduler="synchronous").tasks
    2
    """
    opened = store if isinstance(store, ActivationStore) else ActivationStore.open(store)
    settings = _settings(array, options)
    if not tasks:
        raise InvalidInputError("expected at least one task, found none; give one, such as truth (`tasks`)")
    if by_head:
        refuse_without_heads(opened, array)
    places = positions_of(opened, array) if positions is None else tuple(position_text(position) for position in positions)
    plans = {place: plan_position(opened, tasks, place, settings, examples=examples, values=values) for place in places}
    names = tuple(dict.fromkeys(task_name(task.name if isinstance(task, Task) else task, settings.only) for task in tasks))
    return Study(opened, names, tuple(layers_of(opened, array, layers)), plans, settings, by_head)


def _settings(array: str, options: ProbeOptions) -> ProbeSettings:
    try:
        return ProbeSettings(array=array, **options)
    except TypeError as error:
        raise InvalidInputError(f"expected settings of {', '.join(ProbeSettings.__dataclass_fields__)}, found another: {error}") from error


@dataclass(frozen=True, eq=False)
class Study:
    """Examples, folds and labels of every task and position, before any activation is read."""

    store: ActivationStore
    tasks: tuple[str, ...]
    layers: tuple[int, ...]
    plans: Mapping[str | None, list[Batch]]
    """Position -> batches."""
    settings: ProbeSettings
    by_head: bool = False
    _contents: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    """Digests of the activations read so far, by the key of the finished layer."""

    def cost(self, *, scheduler: str | None = SCHEDULER, workers: int | None = None) -> StudyCost:
        """Number of layer tasks and peak memory with a scheduler and its workers."""
        spec = self.store.layout.array(self.settings.array)
        apart = {"example", spec.layer_dim, spec.position_dim, *(("head",) if self.by_head else ())}
        columns = math.prod(n for dim, n in zip(spec.dims, spec.shape, strict=True) if dim not in apart)
        pair, rank = self.settings.pair, self.settings.rank
        each = max(
            largest_task(batches, columns_at(columns, place, pair=pair, rank=rank), self.settings) for place, batches in self.plans.items()
        )
        return StudyCost(len(self.plans) * len(self.layers), each, workers_of(scheduler, workers))

    def answers(
        self, *, scheduler: str | None = SCHEDULER, workers: int | None = None, progress: bool = False, output: str | Path | None = None
    ) -> dict[str | None, list[LayerAnswer]]:
        """Position -> the answers of its layers; parameters as of `probe_study`."""
        kept = None if output is None else FinishedLayers(output)
        return self.over_layers(run_layer, self.plans, kept, scheduler=scheduler, workers=workers, progress=progress)

    def over_layers(
        self,
        function: Callable[[LayerTask], Answer],
        plans: Mapping[str | None, list[Batch]],
        finished: Finished[Answer] | None,
        *,
        scheduler: str | None = SCHEDULER,
        workers: int | None = None,
        progress: bool = False,
        label: str = "layers",
    ) -> dict[str | None, list[Answer]]:
        """Position -> a function's answer for each of its layers.

        Parameters
        ----------
        function
            Of a layer's task.
        plans
            Position -> batches, all of this study or some.
        finished
            The cache of answers; none by default.
        scheduler, workers, progress, label
            As of `scheduling.run_all`.
        """
        work = [
            LayerTask(self.store, layer, place, plan, self.settings, self.by_head) for place, plan in plans.items() for layer in self.layers
        ]
        run: dict[str, Any] = {"scheduler": scheduler, "workers": workers, "progress": progress, "label": label}
        found, count = run_unfinished(function, work, finished, self._contents, **run), len(self.layers)
        return {place: found[number * count : (number + 1) * count] for number, place in enumerate(plans)}

    def run(
        self, *, scheduler: str | None = SCHEDULER, workers: int | None = None, progress: bool = False, output: str | Path | None = None
    ) -> list[LayerCurve]:
        """Solve everything; parameters and result as of `probe_study`."""
        answers = self.answers(scheduler=scheduler, workers=workers, progress=progress, output=output)
        curves = []
        for place, found in answers.items():
            plan = self.plans[place]
            heads = len(found[0].answers) // len(plan)
            for head in range(heads):
                mine = [replace(layer, answers=layer.answers[head * len(plan) : (head + 1) * len(plan)]) for layer in found]
                curves += self.curves_of(place, mine, f"head {head}" if self.by_head else place)
        return curves

    def curves_of(self, place: str | None, answers: Sequence[LayerAnswer], called: str | None = None) -> list[LayerCurve]:
        """Curves of the tasks at a position (`place`), from its answers by layer; `called` names it in the curves, itself by default."""
        named = {c.task: c for c in assemble(self.store, called or place, self.plans[place], answers, self.settings)}
        return [named[name] for name in self.tasks]

    def geometry_baseline(self, position: str) -> list[LayerCurve]:
        """Curves of probes on the coordinates of the gold boxes of a position: `curve_assembly.geometry_baseline`."""
        return geometry_baseline(self.store, position, self.plans[position], self.layers, self.settings)


@shows_probe_options
def head_curves(
    store: ActivationStore | str | Path,
    task: str | Task = "truth",
    *,
    array: str = "head_outputs",
    layers: int | Sequence[int] | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    values: Mapping[str, Mapping[str, object]] | None = None,
    scheduler: str | None = SCHEDULER,
    workers: int | None = None,
    progress: bool = False,
    output: str | Path | None = None,
    **options: Unpack[ProbeOptions],
) -> list[LayerCurve]:
    """Probe each head: one curve by layer per head, whose position is `head 0`, `head 1`, ...

    The interval and band of a curve are of its own layers. The best of all heads is biased upwards: `ScoreGrid` has a band over all heads.

    Parameters
    ----------
    store, task, layers, examples, values, scheduler, workers, progress, output, options
        As of `probe_study`.
    array
        One with vectors by head at the final token.

    Examples
    --------
    >>> [curve.position for curve in head_curves(store, layers=3, draws=200)]
    ['head 0', 'head 1']
    """
    study = plan_study(store, (task,), array=array, layers=layers, examples=examples, values=values, by_head=True, **options)
    return study.run(scheduler=scheduler, workers=workers, progress=progress, output=output)
