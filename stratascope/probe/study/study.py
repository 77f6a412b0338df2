"""Layer curves from a store: one task per layer and position, on this machine or any Dask cluster."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.study.cost import StudyCost, largest_task
from stratascope.probe.study.curve_assembly import assemble
from stratascope.probe.study.layer_cache import Answer, Finished, FinishedLayers, run_unfinished
from stratascope.probe.study.layer_task import LayerAnswer, LayerTask, run_layer
from stratascope.probe.study.study_plan import Batch, ProbeSettings, plan_position, task_name
from stratascope.probe.tasks.task import Task
from stratascope.scheduling import workers_of
from stratascope.store import ActivationStore
from stratascope.store.io.selection import listing


def layer_curve(
    store: ActivationStore | str | Path, task: str | Task = "truth", position: str | None = "final", **options: Any
) -> LayerCurve:
    """The score of a task by layer at one position.

    `layer_curve(store, "truth:shuffled")` is the curve of labels shuffled within folds and groups, `"truth:control"` that of
    the control task.

    Parameters
    ----------
    store
        An open store, or its path or address.
    task, position
        As of `plan_study`.
    options
        All others of `probe_study`, such as `layers`, `seed` or `scheduler`; errors are its own, too.
    """
    return probe_study(store, (task,), (position,), **options)[0]


def probe_study(
    store: ActivationStore | str | Path,
    tasks: Sequence[str | Task] = ("truth",),
    positions: Sequence[str | None] | None = None,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: bool = False,
    output: str | Path | None = None,
    **options: Any,
) -> list[LayerCurve]:
    """Probe every layer for every task at every position.

    Parameters
    ----------
    store, tasks, positions, options
        Of `plan_study`.
    scheduler
        None for one after another in this process, `threads`, `processes`, or the address of a Dask scheduler.
    workers
        Threads or processes at once, one a core by default.
    progress
        Show a bar, where there is a terminal.
    output
        Folder in which finished layers are kept; the same study run again takes them from there.

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
    """
    study = plan_study(store, tasks, positions, **options)
    return study.run(scheduler=scheduler, workers=workers, progress=progress, output=output)


def plan_study(
    store: ActivationStore | str | Path,
    tasks: Sequence[str | Task] = ("truth",),
    positions: Sequence[str | None] | None = None,
    *,
    array: str = "residual",
    layers: int | Sequence[int] | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    values: Mapping[str, Mapping[str, object]] | None = None,
    by_head: bool = False,
    **settings: Any,
) -> Study:
    """Examples, folds and labels of a study; reads no activations.

    Parameters
    ----------
    store
        An open store, or its path or address.
    tasks
        `truth`, `choice` (the right one of several answers), `relation`, `category`, `answer`, `geometry`, a column of the examples, a
        `Task`, or a name in `values`; with `:shuffled` or `:control` for its controls, which are solved in the same go.
    positions
        All of the array by default.
    array
        Any recorded array with one vector an example, by layer and position where it has them; else there is one layer, 0.
    layers
        All by default.
    examples
        Numbers or mask, all by default.
    values
        Task name -> mapping from example id to class.
    by_head
        One probe for each head of an array such as `head_outputs`; positions are then `head 0`, `head 1`, ...
    settings
        Fields of `ProbeSettings`: folds, seed, strengths, method, split, groups, minimum, only, types, tolerance, draws, level, directions.

    Raises
    ------
    InvalidInputError
        There is no task, a setting is unknown, or the array has no vectors, or none by head.
    NotRecordedError
        The store lacks the array, a position, a layer, or what a task asks for.
    UnwrittenBlockError
        Some of the examples are not written yet.
    TooFewExamplesError
        There are too few examples, groups or classes for the folds.
    """
    opened = store if isinstance(store, ActivationStore) else ActivationStore.open(store)
    chosen = _settings(array, settings)
    if not tasks:
        raise InvalidInputError("expected at least one task, found none; give one (--tasks truth)", in_python="tasks=('truth',)")
    if by_head:
        _refuse_without_heads(opened, array)
    places = positions_of(opened, array) if positions is None else tuple(positions)
    plans = {place: plan_position(opened, tasks, place, chosen, examples=examples, values=values) for place in places}
    names = tuple(dict.fromkeys(task_name(task.name if isinstance(task, Task) else task, chosen.only) for task in tasks))
    return Study(opened, names, tuple(layers_of(opened, array, layers)), plans, chosen, by_head)


def _settings(array: str, settings: Mapping[str, Any]) -> ProbeSettings:
    try:
        return ProbeSettings(array=array, **settings)
    except TypeError as error:
        raise InvalidInputError(f"expected settings of {', '.join(ProbeSettings.__dataclass_fields__)}, found another: {error}") from error


@dataclass(frozen=True, eq=False)
class Study:
    """All that is to be solved, before any activation is read."""

    store: ActivationStore
    tasks: tuple[str, ...]
    layers: tuple[int, ...]
    plans: Mapping[str | None, list[Batch]]
    """Position -> batches."""
    settings: ProbeSettings
    by_head: bool = False
    _contents: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    """Digests of the activations read so far, by the key of the finished layer."""

    def cost(self, *, scheduler: str | None = None, workers: int | None = None) -> StudyCost:
        """Tasks and memory, of so many workers at once."""
        spec = self.store.layout.array(self.settings.array)
        apart = {"example", spec.layer_dim, spec.position_dim, *(("head",) if self.by_head else ())}
        columns = math.prod(n for dim, n in zip(spec.dims, spec.shape, strict=True) if dim not in apart)
        each = max(largest_task(batches, columns, self.settings) for batches in self.plans.values())
        return StudyCost(len(self.plans) * len(self.layers), each, workers_of(scheduler, workers))

    def answers(
        self, *, scheduler: str | None = None, workers: int | None = None, progress: bool = False, output: str | Path | None = None
    ) -> dict[str | None, list[LayerAnswer]]:
        """Position -> the answers of its layers; parameters of `probe_study`."""
        kept = None if output is None else FinishedLayers(output)
        return self.over_layers(run_layer, self.plans, kept, scheduler=scheduler, workers=workers, progress=progress, label="layers")

    def over_layers(
        self,
        function: Callable[[LayerTask], Answer],
        plans: Mapping[str | None, list[Batch]],
        finished: Finished[Answer] | None,
        **options: Any,
    ) -> dict[str | None, list[Answer]]:
        """Position -> what a function makes of each of its layers.

        Parameters
        ----------
        function
            Of a layer's task.
        plans
            Position -> batches, all of this study or some.
        finished
            Where answers are kept and taken from.
        options
            Of `run_all`.
        """
        work = [
            LayerTask(self.store, layer, place, plan, self.settings, self.by_head) for place, plan in plans.items() for layer in self.layers
        ]
        found, count = run_unfinished(function, work, finished, self._contents, **options), len(self.layers)
        return {place: found[number * count : (number + 1) * count] for number, place in enumerate(plans)}

    def run(
        self, *, scheduler: str | None = None, workers: int | None = None, progress: bool = False, output: str | Path | None = None
    ) -> list[LayerCurve]:
        """Solve everything; parameters and result of `probe_study`."""
        answers = self.answers(scheduler=scheduler, workers=workers, progress=progress, output=output)
        curves = []
        for place, found in answers.items():
            plan = self.plans[place]
            heads = len(found[0].answers) // len(plan)
            for head in range(heads):
                mine = [replace(layer, answers=layer.answers[head * len(plan) : (head + 1) * len(plan)]) for layer in found]
                named = {c.task: c for c in assemble(self.store, f"head {head}" if self.by_head else place, plan, mine, self.settings)}
                curves += [named[name] for name in self.tasks]
        return curves


def head_curves(
    store: ActivationStore | str | Path, task: str | Task = "truth", *, array: str = "head_outputs", **options: Any
) -> list[LayerCurve]:
    """One probe per head: a curve by layer for each, whose position is `head 0`, `head 1`, ...

    Every head has an interval and a band of its own layers. Over all heads together, the best of them is biased upwards:
    `ScoreGrid` has a band that holds for all.

    Parameters
    ----------
    store, task, options
        As of `probe_study`.
    array
        One with vectors by head at the final token.
    """
    return probe_study(store, (task,), array=array, by_head=True, **options)


def holds_heads(store: ActivationStore, array: str) -> bool:
    """Whether the array has a vector for each head."""
    dims = store.layout.array(array).dims
    return "head" in dims and dims[-1] != "head"


def _refuse_without_heads(store: ActivationStore, array: str) -> None:
    if not holds_heads(store, array):
        dims = store.layout.array(array).dims
        raise InvalidInputError(
            f"{array}: expected an array with a vector for each head, found one of {' by '.join(dims)}; give another (--array head_outputs)"
        )


def positions_of(store: ActivationStore, array: str) -> tuple[str | None, ...]:
    """Every position of the array; None alone for an array without."""
    dim = store.layout.array(array).position_dim
    return (None,) if dim is None else tuple(store.layout.positions_of(dim))


def layers_of(store: ActivationStore, array: str, layers: int | Sequence[int] | None) -> list[int]:
    """The layers asked for, all of the array by default; 0 for an array without. InvalidInputError where it holds no vectors.

    NotRecordedError where it lacks one of them.
    """
    spec = store.layout.array(array)
    if "example" not in spec.dims or len(set(spec.dims) - {"example", spec.layer_dim, spec.position_dim}) == 0:
        found = " by ".join(spec.dims)
        raise InvalidInputError(
            f"{array}: expected an array of one vector an example, found one of {found}; give another (--array residual)"
        )
    if spec.layer_dim is None:
        return [0]  # such as the vision tower's output
    held = store.layout.layers_of(spec.layer_dim)
    layers = [int(layers)] if isinstance(layers, int | np.integer) else layers
    absent = [] if layers is None else [layer for layer in layers if layer not in held]
    if absent:
        raise NotRecordedError(f"{array}: expected layers that the store holds, found {absent[0]}; it holds {listing(held)}")
    return sorted(held if layers is None else layers)
