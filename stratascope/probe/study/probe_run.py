"""A probe run: curves of every task and position with controls and baselines, and the results derived from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stratascope.errors import NotRecordedError
from stratascope.figures.drawing import metric_name
from stratascope.probe.curve import curve_figures
from stratascope.probe.curve.breakdown import AccuracyBy, Confusion
from stratascope.probe.curve.calibration import Calibration
from stratascope.probe.curve.claims import band_text
from stratascope.probe.curve.curve_set import CurveSet, tidy_table
from stratascope.probe.curve.curve_table import curve_facts
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.curve.metrics import best_row
from stratascope.probe.curve.score_grid import ScoreGrid
from stratascope.probe.study import request as checks
from stratascope.probe.study.codelength_study import CodelengthCurve, codelength_of
from stratascope.probe.study.cross_transfer import cross_transfer
from stratascope.probe.study.detection_by_size import detection_by_size
from stratascope.probe.study.positions import available_at, position_text
from stratascope.probe.study.request import ProbeRequest
from stratascope.probe.study.study import SCHEDULER, Study, plan_study
from stratascope.probe.study.study_plan import holds_heads, positions_of, task_name
from stratascope.probe.study.transfer import Transfer, transfer_of
from stratascope.probe.tasks.geometry import reads_boxes
from stratascope.results.locations import file_name
from stratascope.store import column_texts
from stratascope.store.io.example_filter import NO_VALUE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stratascope.results.result import Result
    from stratascope.store import ActivationStore

Studies = Mapping[tuple[str, str | None], Study]
"""(name of the baseline, "" for the store itself; position) -> study."""


@dataclass(frozen=True, eq=False)
class ProbeRun:
    """Results, tables and figures of a run by file name, and its summary."""

    request: ProbeRequest
    curves: CurveSet
    lines: list[str] = field(default_factory=list)
    """Summary: peak and detected layers of each curve."""
    results: dict[str, Result] = field(default_factory=dict)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    """All scores of a task as one long table (CSV)."""
    figures: dict[str, Callable[[], Figure]] = field(default_factory=dict)
    """File name -> function that draws the figure."""


def run_probes(
    store: ActivationStore,
    request: ProbeRequest,
    *,
    scheduler: str | None = SCHEDULER,
    workers: int | None = None,
    progress: bool = False,
    output: str | Path | None = None,
    on_cost: Callable[[str], object] = lambda text: None,
) -> ProbeRun:
    """Probe every task at every position, with controls, baselines and the requested measures.

    Parameters
    ----------
    store
        Of the examples.
    request
        Tasks, positions, baselines, measures.
    scheduler, workers, progress, output
        As of `probe_study`.
    on_cost
        Called with the number of layer tasks and their memory before they start.

    Raises
    ------
    InvalidInputError
        The request does not fit the stores.
    """
    run: dict[str, Any] = {"scheduler": scheduler, "workers": workers, "progress": progress, "output": output}
    by_head = holds_heads(store, request.array)
    checks.check_measures(request, by_head=by_head)
    checks.check_baselines(store, request)
    checks.check_values(store, request)
    checks.check_transfer(store, request)
    checks.check_pairs(request)
    studies = plan_studies(store, request)
    checks.check_asked(store, request, studies)
    on_cost(_cost(list(studies.values()), scheduler, workers))
    found: dict[str, list[LayerCurve]] = {}
    unboxed: list[str] = []
    for (name, place), study in studies.items():
        found.setdefault(name, []).extend(study.run(**run))
        if not name and reads_boxes(place) and not by_head:
            try:
                found[name].extend(study.geometry_baseline(str(place)))
            except NotRecordedError as error:
                unboxed.append(f"no baseline of box geometry: {error}")
    curves = CurveSet(found.pop(""), found, request.metric)
    done = ProbeRun(request, curves.with_family(margin=request.margin, equivalence_margin=request.equivalence_margin))
    done.results.update({curve.file_name: curve for curve in done.curves.own})
    done.results.update({file_name(c.file_name, name): c for name, curves in found.items() for c in curves})
    named = done.curves.plain or done.curves.own[:1]
    remarks = dict.fromkeys(remark for curve in named for remark in curve.attributes.get("remarks", []))
    done.lines.extend([*checks.values_elsewhere(store, request), *checks.without_values(store, request), *remarks, *unboxed])
    if not by_head:
        for curve in done.curves.plain:
            _add_curve(done, curve, store)
    if family := done.curves.plain and done.curves.plain[0].attributes.get("family"):
        done.lines.append(f"intervals and layers: {band_text(done.curves.plain[0].level, family)}")
    first = done.curves.own[0].attributes
    if "leakage_text" in first:
        done.lines.append(f"the split is {' and '.join(request.settings['split'])}: {first['leakage_text']}")
    for task in request.tasks:
        _add_task(done, task_name(task, request.settings.get("only", ())), store, by_head=by_head)
    _add_measures(done, studies, run)
    _add_transfer(done, studies, run)
    _add_test_on(done, store, run)
    run_name = done.curves.digest
    done.results.update({name: _of_run(result, run_name) for name, result in done.results.items()})
    return done


def _of_run(result: Result, run: str) -> Result:
    """The result with the name of its run, so that results of several runs in one folder are told apart."""
    with_run: Result = replace(result, attributes={**result.attributes, "run": run})  # type: ignore[type-var]
    return with_run


def plan_studies(store: ActivationStore, request: ProbeRequest) -> Studies:
    """A study for each store and position, over the examples that all stores hold."""
    places = [position_text(place) for place in request.positions or positions_of(store, request.array)]
    options: dict[str, Any] = {
        "array": request.array,
        "layers": request.layers,
        "values": request.values,
        "by_head": holds_heads(store, request.array),
        **request.settings,
    }
    studies = {}
    for name, which in {"": store, **request.baselines}.items():
        for place in places:
            shared = np.ones(store.layout.examples, dtype=bool)
            if request.baselines:
                shared &= np.all([available_at(s, request.array, place) for s in (store, *request.baselines.values())], axis=0)
            for other in request.transfer_to:
                if other not in request.baselines:
                    shared &= available_at(store, request.array, other)
            examples = None if shared.all() else np.flatnonzero(shared)
            tasks = request.tasks if name else request.all_tasks
            studies[name, place] = plan_study(which, tasks, (place,), examples=examples, **options)
    return studies


def peak_text(curve: LayerCurve) -> str:
    """Highest score with its simultaneous interval and chance level, and the layers that are not significantly worse."""
    rows = curve.rows()
    best = best_row(rows, curve.metric)
    where = f" at layer {int(best['layer'])}" if len(rows) > 1 else ""
    name = metric_name(curve.metric)
    score = f"{name} {best['value']:.3f} [{best['low_simultaneous']:.3f}, {best['high_simultaneous']:.3f}]{where}"
    alike = [layer for layer in curve.peak.candidates if layer != best["layer"]]
    rest = f", not significantly better than layer {', '.join(map(str, alike))}" if 0 < len(alike) <= 4 else ""
    return f"{score}{rest} (chance {best['chance']:.3f}){_ranked(curve, int(best['layer']))}"


def _ranked(curve: LayerCurve, layer: int) -> str:
    """The Spearman correlation beside another metric of a task of values, at a layer; empty for classes."""
    if not curve.targets or curve.metric != "r2":
        return ""
    row = curve.rows("spearman").set_index("layer").loc[layer]
    return f"; {metric_name('spearman')} {row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def _cost(studies: Sequence[Study], scheduler: str | None, workers: int | None) -> str:
    costs = [study.cost(scheduler=scheduler, workers=workers) for study in studies]
    largest = max(costs, key=lambda cost: cost.bytes_each)
    return str(replace(largest, tasks=sum(cost.tasks for cost in costs)))


def _add_curve(done: ProbeRun, curve: LayerCurve, store: ActivationStore) -> None:
    """Add advantages, accuracies by value, and their summary."""
    request, over = done.request, done.curves.advantages_of(curve)
    done.lines.append(f"{curve.task} at {curve.position or request.array}: {peak_text(curve)}")
    if len(curve.examples) < store.layout.examples:
        done.lines.append(
            f"  from {len(curve.examples):,} of {store.layout.examples:,} examples{checks.rare_classes(store, request, curve)}"
        )
    for name, advantage in over.items():
        if name != "chance":  # the curve's own file holds it
            done.results[file_name("advantage", curve.task, curve.position, "over", name)] = advantage
    # those over chance and over all baselines in full, the others by the layers alone
    named = {name: a.claims.sentence if name in ("chance", "all") else a.claims.detection for name, a in over.items()}
    by_claim: dict[str, list[str]] = {}
    for name, claim in named.items():
        by_claim.setdefault(claim, []).append("all of these" if name == "all" else name)
    done.lines.extend(f"  above {', '.join(names)}: {claim}" for claim, names in by_claim.items())
    notes = (f"  note: {note}" for note in (*curve.notes, *done.curves.notes_of(curve)))
    done.lines.extend(note for note in notes if note not in done.lines)
    if not curve.targets:
        values = dict(zip(store.examples["id"], column_texts(store, request.by).fillna(NO_VALUE), strict=True))
        accuracy = AccuracyBy.of(curve, values, request.by)
        done.results[accuracy.file_name] = accuracy


def _add_task(done: ProbeRun, task: str, store: ActivationStore, *, by_head: bool) -> None:
    """Add score grid, figures, confusion matrix and long table of a task."""
    request, curves = done.request, done.curves
    mine = curves.of_task(task)
    stores = {Path(store.name).name: curves.own, **curves.baselines}
    of_task = {place: [c for c in some if c.task == task or c.task.startswith(f"{task}:")] for place, some in stores.items()}
    done.tables[file_name("probe", task)] = tidy_table(of_task)
    if not mine:
        return
    if not by_head and len(mine[0].layers) == 1:
        named = request.layers is not None
        done.figures[file_name("probe", task)] = lambda: curve_figures.single_layer_figure(curves, mine, name_layer=named)
        return
    if len(mine) > 1 or by_head:
        grid = ScoreGrid.of(mine)
        done.results[grid.file_name] = grid
        done.figures[grid.file_name] = grid.figure
        if by_head:
            done.lines.append(grid.summary())
    if by_head:
        return
    done.figures[file_name("probe", task)] = lambda: curve_figures.positions_figure(curves, mine)
    shown = next((curve for curve in mine if curve.position == "final"), mine[0])
    if shown.targets or ":" in task:
        return
    if len(shown.classes) > 2:
        confusion = Confusion.of(shown)
        done.results[confusion.file_name] = confusion
        done.figures[confusion.file_name] = confusion.figure
    if request.by != task:
        accuracy = done.results[file_name("probe", *(shown.task, shown.position, "by", request.by))]
        assert isinstance(accuracy, AccuracyBy)
        if accuracy.table["by"].nunique() > 1:
            done.figures[accuracy.file_name] = lambda: _figure(curve_figures.values_figure(shown, accuracy))


def _figure(figure: Figure | None) -> Figure:
    assert figure is not None, "a column of several values has a figure"
    return figure


def _by_task(curves: Sequence[LayerCurve]) -> Iterator[tuple[str, list[LayerCurve]]]:
    for task in dict.fromkeys(curve.task for curve in curves):
        yield task, [curve for curve in curves if curve.task == task]


def _add_measures(done: ProbeRun, studies: Studies, run: Mapping[str, Any]) -> None:
    """Add calibration, codelength and detection by size if requested."""
    if "sizes" in done.request.measures:
        _add_sizes(done, studies[next(iter(studies))], run)
    plain = [curve for curve in done.curves.plain if not curve.targets]
    if plain and "calibration" in done.request.measures:
        for task, mine in _by_task(plain):
            found = [Calibration.of(curve) for curve in mine]
            best = [int(best_row(curve.rows(), curve.metric)["layer"]) for curve in mine]
            done.results.update({one.file_name: one for one in found})
            done.lines.extend(
                f"{curve.title}: expected calibration error {one.error(layer):.3f} at layer {layer}"
                for curve, one, layer in zip(mine, found, best, strict=True)
            )
            done.figures[file_name("calibration", task)] = partial(curve_figures.calibration_figure, mine, found, best)
    if plain and "mdl" in done.request.measures:
        table = pd.concat([codelength_of(study, **run).assign(store=name) for (name, _), study in studies.items()])
        for task, mine in _by_task(plain):
            codes = [CodelengthCurve(_rows_of(table, curve), curve_facts(curve)) for curve in mine]
            done.results.update({one.file_name: one for one in codes})
            done.lines.extend(one.summary() for one in codes)
            pairs = [(curve, one) for curve, one in zip(mine, codes, strict=True) if len(curve.layers) > 1]
            if pairs:
                done.figures[file_name("codelength", task)] = partial(
                    curve_figures.codelength_figure, [curve for curve, _ in pairs], [one for _, one in pairs]
                )


def _add_sizes(done: ProbeRun, study: Study, run: Mapping[str, Any]) -> None:
    """Add the layers detected by number of examples for every curve that is no control."""
    request = done.request
    options: dict[str, Any] = {name: value for name, value in request.settings.items() if name != "directions"}
    given: dict[str, Any] = {
        "sizes": request.sizes,
        "metric": request.metric,
        "margin": request.margin,
        "array": request.array,
        "layers": request.layers,
    }
    tasks = {task_name(task, request.settings.get("only", ())): task for task in request.tasks}
    for curve in done.curves.plain:
        found = detection_by_size(
            study.store, tasks[curve.task], curve.position, examples=curve.examples["example"].to_numpy(), **given, **options,
            **run,
        )  # fmt: skip
        done.results[found.file_name] = found
        done.lines.append(found.summary())
        done.figures[found.file_name] = found.figure


def _rows_of(table: pd.DataFrame, curve: LayerCurve) -> pd.DataFrame:
    """Rows of the task and position of a curve, with its controls and baselines."""
    task = table["task"].str.partition(":")[0] == curve.task
    return table[task & (table["position"] == (curve.position or ""))].reset_index(drop=True)


def _add_transfer(done: ProbeRun, studies: Studies, run: Mapping[str, Any]) -> None:
    """Add the transfer matrices of each task and position."""
    request = done.request
    for curve in [curve for curve in done.curves.plain if not curve.targets]:
        for name in [*([""] if request.transfer else []), *(to for to in request.transfer_to if to != curve.position)]:
            there: dict[str, Any] = {"to": request.baselines[name]} if name in request.baselines else {"to_position": name or None}
            table = transfer_of(studies["", curve.position], curve.task, **there, **run)
            transfer = Transfer(table, curve_facts(curve, **({"to": name} if name else {})))
            done.results[transfer.file_name] = transfer
            done.figures[transfer.file_name] = transfer.figure


def _add_test_on(done: ProbeRun, store: ActivationStore, run: Mapping[str, Any]) -> None:
    """Add the scores of each task and position on the examples of other stores."""
    request = done.request
    named = {task_name(task, request.settings.get("only", ())): task for task in request.tasks}
    options: dict[str, Any] = {"array": request.array, "layers": request.layers, "values": request.values, **request.settings, **run}
    for curve in done.curves.plain:
        for name, other in request.test_on.items():
            metric = done.curves.metric_of(curve)
            found = cross_transfer(
                store, other, named[curve.task], curve.position, name=name, metric=metric, matrix=request.transfer, **options
            )
            done.results[found.file_name] = found
            done.figures[found.file_name] = found.figure
            done.lines.append(found.summary())
