"""Layer curves from a store: one task per layer and position, on this machine or any Dask cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.probe.assemble import assemble
from stratascope.probe.curve import LayerCurve
from stratascope.probe.finished import FinishedLayers
from stratascope.probe.layer_task import LayerAnswer, LayerTask, run_heads, run_layer
from stratascope.probe.plan import ProbeSettings, plan_position
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
    values: Mapping[str, Mapping[str, object]] | None = None,
    scheduler: str | None = None,
    progress: bool = False,
    output: str | Path | None = None,
    **settings: Any,
) -> list[LayerCurve]:
    """Probe every layer for every task at every position.

    Parameters
    ----------
    store : an open store, or its path or address
    tasks : truth, relation, category, answer, geometry, a column of the examples, a `Task`, or a name in `values`; with `:shuffled` or
        `:control` for its controls, which are solved in the same go
    positions : all of the array by default
    array : any recorded array with one vector an example, layer and position
    layers : all by default
    examples : numbers or mask, all by default
    values : task name -> mapping from example id to class
    scheduler : None for one after another in this process, `threads`, `processes`, or the address of a Dask scheduler
    progress : show a bar, where there is a terminal
    output : folder in which finished layers are kept; the same study run again takes them from there
    settings : fields of `ProbeSettings`: folds, seed, strengths, method, split, groups, minimum, types, tolerance, draws, level,
        directions

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
    places = _positions(opened, array) if positions is None else tuple(positions)
    numbers = _layers(opened, array, layers)
    plans = {place: plan_position(opened, tasks, place, chosen, examples=examples, values=values) for place in places}
    work = [LayerTask(opened, layer, place, plans[place], chosen) for place in places for layer in numbers]
    answers = _solve(work, scheduler, progress, output)
    curves = []
    for number, place in enumerate(places):
        found = answers[number * len(numbers) : (number + 1) * len(numbers)]
        named = {curve.task: curve for curve in assemble(opened, place, plans[place], found, chosen)}
        curves += [named[name] for name in dict.fromkeys(t.name if isinstance(t, Task) else t for t in tasks)]
    return curves


def head_curves(
    store: ActivationStore | str | Path,
    task: str | Task = "truth",
    *,
    array: str = "head_outputs",
    layers: Sequence[int] | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    scheduler: str | None = None,
    progress: bool = False,
    **settings: Any,
) -> list[LayerCurve]:
    """One probe per head: a curve by layer for each, whose position is `head 0`, `head 1`, ...

    A heatmap of head by layer is `pd.concat(c.rows() for c in curves).pivot(index="position", columns="layer", values="value")`.
    Every head has an interval and a band of its own layers; over all heads together, the best of them is biased upwards.

    Parameters
    ----------
    array : with vectors by head at the final token
    """
    opened = store if isinstance(store, ActivationStore) else ActivationStore.open(store)
    spec = opened.layout.array(array)
    if "head" not in spec.dims or spec.dims[-1] == "head":
        raise InvalidInputError(f"{array}: expected vectors by head, found dimensions {spec.dims}; give array='head_outputs'")
    chosen = ProbeSettings(array=array, **settings)
    numbers = _layers(opened, array, layers)
    plan = plan_position(opened, (task,), None, chosen, examples=examples)
    work = [LayerTask(opened, layer, None, plan, chosen) for layer in numbers]
    answers = run_all(run_heads, work, scheduler=scheduler, progress=progress)
    return [assemble(opened, f"head {head}", plan, [layer[head] for layer in answers], chosen)[0] for head in range(len(answers[0]))]


def _solve(work: list[LayerTask], scheduler: str | None, progress: bool, output: str | Path | None) -> list[LayerAnswer]:
    if output is None:
        return run_all(run_layer, work, scheduler=scheduler, progress=progress)
    finished = FinishedLayers(output)
    kept = {number: answer for number, task in enumerate(work) if (answer := finished.load(task)) is not None}
    open_numbers = [number for number in range(len(work)) if number not in kept]

    def keep(place: int, answer: LayerAnswer) -> None:
        finished.save(work[open_numbers[place]], answer)

    fresh = run_all(run_layer, [work[n] for n in open_numbers], scheduler=scheduler, progress=progress, finished=keep)
    kept |= dict(zip(open_numbers, fresh, strict=True))
    return [kept[number] for number in range(len(work))]


def _positions(store: ActivationStore, array: str) -> tuple[str | None, ...]:
    dim = store.layout.array(array).position_dim
    return (None,) if dim is None else tuple(store.layout.positions_of(dim))


def _layers(store: ActivationStore, array: str, layers: Sequence[int] | None) -> list[int]:
    spec = store.layout.array(array)
    if spec.layer_dim is None:
        raise InvalidInputError(f"{array}: expected an array by layer, found dimensions {spec.dims}; give array='residual'")
    return sorted(store.layout.layers_of(spec.layer_dim) if layers is None else layers)
