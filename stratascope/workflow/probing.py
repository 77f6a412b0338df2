"""Probing as one command does it: curves computed, saved, drawn, and said in a few words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import InvalidInputError
from stratascope.figures.drawing import METRIC_LABELS
from stratascope.workflow import probe_figures
from stratascope.workflow.probe_checks import (
    check_asked,
    check_baselines,
    check_transfer,
    check_values,
    results_of_others,
    values_elsewhere,
    without_values,
)
from stratascope.workflow.probe_files import keep_advantage, save_accuracy_by, save_curve, save_spreadsheet, save_table, shown_metric
from stratascope.workflow.probe_measures import check_measures, measure
from stratascope.workflow.probe_request import ProbeRequest
from stratascope.workflow.probed import Probed
from stratascope.workflow.telling import told

if TYPE_CHECKING:
    from stratascope.probe import Advantage, LayerCurve, Study
    from stratascope.store import ActivationStore


def probe_and_draw(
    store: ActivationStore,
    request: ProbeRequest,
    folder: Path,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: bool = False,
    say: Callable[[str], object] = lambda text: None,
) -> str:
    """Probe every task at every position, save each result, draw; the text names peaks, onsets and files.

    Parameters
    ----------
    say
        Told the memory that it will take, before it begins.

    Raises
    ------
    InvalidInputError
        If transfer is asked for of an array by head.
    """
    from stratascope.probe.study.study import holds_heads

    run: dict[str, Any] = {"scheduler": scheduler, "workers": workers, "progress": progress, "output": folder / "layers"}
    by_head = holds_heads(store, request.array)
    check_measures(request.measures, by_head=by_head)
    check_baselines(store, request)
    check_values(store, request)
    check_transfer(store, request)
    if (request.transfer or request.transfer_to) and by_head:
        raise InvalidInputError(f"expected an array of one vector a position for --transfer, found {request.array}; leave --transfer out")
    beside = list(results_of_others(store, request, folder))
    studies = _studies(store, request)
    check_asked(store, request, studies)
    say(_cost(list(studies.values()), run))
    found: dict[str, list[LayerCurve]] = {}
    for (name, _), study in studies.items():
        found.setdefault(name, []).extend(study.run(**run))
    for name, curves in found.items():
        for curve in curves:
            save_curve(curve, folder, name)
    probed = Probed(request, found.pop(""), found)
    lines = _head_lines(probed) if by_head else []
    lines[:0] = [*beside, *values_elsewhere(store, request), *without_values(store, request), *probed.own[0].attributes.get("remarks", [])]
    for curve in [] if by_head else probed.plain:
        lines += _compare(probed, curve, folder, store.layout.examples)
        if not curve.targets:
            save_accuracy_by(curve, store, request.by, folder)
    if "leakage_text" in probed.own[0].attributes:
        lines.append(f"the split is {' and '.join(request.settings['split'])}: {probed.own[0].attributes['leakage_text']}")
    figures = probe_figures.draw_all(probed, store, folder, by_head=by_head)
    said, more = measure(probed, studies, folder, run)
    lines, figures = [*lines, *said], [*figures, *more]
    figures += list(_transfer(probed, studies, folder, run))
    lines += [f"table {path}" for path in _spreadsheets(probed, store, folder)]
    return told(folder, lines, figures)


def _studies(store: ActivationStore, request: ProbeRequest) -> dict[tuple[str, str | None], Study]:
    """By name of the baseline ("" for the store itself) and position, over the examples that all of them have."""
    from stratascope.probe import plan_study
    from stratascope.probe.study.study import holds_heads, positions_of

    places: Sequence[str | None] = request.positions or positions_of(store, request.array)
    options = {
        "array": request.array, "layers": request.layers, "values": request.values, "by_head": holds_heads(store, request.array),
        **request.settings,
    }  # fmt: skip
    studies = {}
    for name, which in {"": store, **request.baselines}.items():
        for place in places:
            shared = np.ones(store.layout.examples, dtype=bool)
            if request.baselines:
                shared &= np.all([s.available(request.array, place) for s in (store, *request.baselines.values())], axis=0)
            for other in request.transfer_to:
                if other not in request.baselines:
                    shared &= store.available(request.array, other)
            examples = None if shared.all() else np.flatnonzero(shared)
            tasks = request.tasks if name else request.all_tasks
            studies[name, place] = plan_study(which, tasks, (place,), examples=examples, **options)
    return studies


def _spreadsheets(probed: Probed, store: ActivationStore, folder: Path) -> Iterator[Path]:
    """A table a task, of the store and its baselines, with what controls there are."""
    for name in map(probed.name_of, probed.request.tasks):
        mine = {
            place: [curve for curve in some if curve.task == name or curve.task.startswith(f"{name}:")]
            for place, some in {Path(store.name).name: probed.own, **probed.others}.items()
        }
        yield save_spreadsheet(name, mine, folder)


def _cost(studies: Sequence[Study], run: Mapping[str, Any]) -> str:
    costs = [study.cost(scheduler=run["scheduler"], workers=run["workers"]) for study in studies]
    largest = max(costs, key=lambda cost: cost.bytes_each)
    return str(replace(largest, tasks=sum(cost.tasks for cost in costs)))


def _compare(probed: Probed, curve: LayerCurve, folder: Path, store_examples: int) -> Iterator[str]:
    """Advantages over chance, controls, embeddings and baselines, saved; yields the peak, and onset and offset over each."""
    request = probed.request
    yield f"{curve.task} at {curve.position or request.array}: {peak_text(curve, probed.metric_of(curve))}"
    if len(curve.examples) < store_examples:
        yield f"  from {len(curve.examples):,} of {store_examples:,} examples"
    over = probed.advantages_of(curve)
    for name, advantage in over.items():
        if name != "chance":  # the curve's own file tells it
            keep_advantage(advantage, curve, folder, name)
    by_span: dict[str, list[str]] = {}
    for name, advantage in over.items():
        by_span.setdefault(_span(advantage, request.margin), []).append("all of these" if name == "all" else name)
    for span, names in by_span.items():
        yield f"  above {', '.join(names)}: {span}"
    yield from (f"  note: {note}" for note in curve.notes)


def _span(advantage: Advantage, margin: float) -> str:
    if len(advantage.table) == 1:
        row = advantage.table.iloc[0]
        return f"{'yes' if row['low'] > margin else 'no'}, by {row['value']:+.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    onset, offset = advantage.onset(margin), advantage.offset(margin)
    return str(onset) if onset.layer is None or offset.layer is None else f"{onset}, {offset}"


def peak_text(curve: LayerCurve, metric: str | None = None) -> str:
    """The best layer's accuracy, or R2, with its interval, chance, and the layers that may be as good."""
    metric = shown_metric(curve, metric)
    rows = curve.rows(metric)
    best = rows.iloc[int(rows["value"].to_numpy().argmax())]
    interval = f"[{best['low']:.3f}, {best['high']:.3f}]"
    where = f" at layer {int(best['layer'])}" if len(rows) > 1 else ""
    score = f"{METRIC_LABELS.get(metric, metric)} {best['value']:.3f} {interval}{where}"
    alike = [layer for layer in curve.difference(metric=metric).peak().candidates if layer != best["layer"]]
    rest = f", not surely above layer {', '.join(map(str, alike))}" if 0 < len(alike) <= 4 else ""
    return f"{score}{rest} (chance {best['chance']:.3f})"


def _head_lines(probed: Probed) -> list[str]:
    """The best heads of each task, by a band that holds for all heads and layers together."""
    from stratascope.probe import ScoreGrid

    lines = []
    for task in dict.fromkeys(curve.task for curve in probed.own):
        mine = [curve for curve in probed.own if curve.task == task]
        grid = ScoreGrid.of(mine, probed.metric_of(mine[0]))
        name = METRIC_LABELS.get(str(grid.attributes["metric"]), str(grid.attributes["metric"]))
        best = [f"{row.row} of block {row.layer} {row.value:.3f}" for row in grid.best(3).itertuples()]
        lines.append(
            f"{task:<16} {int(grid.table['found'].sum())} of {len(grid.table)} heads above chance in {name}: {', '.join(best) or 'none'}"
        )
    return lines


def _transfer(probed: Probed, studies: Mapping[tuple[str, str | None], Study], folder: Path, run: Mapping[str, Any]) -> Iterator[Path]:
    """The layer by layer matrix of each task and position, to itself and to each other place, saved and drawn."""
    from stratascope.probe import transfer_of

    request = probed.request
    for curve in [curve for curve in probed.plain if not curve.targets]:
        for name in [*([""] if request.transfer else []), *(to for to in request.transfer_to if to != curve.position)]:
            there: dict[str, Any] = {"to": request.baselines[name]} if name in request.baselines else {"to_position": name or None}
            table = transfer_of(studies["", curve.position], curve.task, **there, **run)
            parts = ("transfer", curve.task, curve.position, *(("to", name) if name else ()))
            save_table(folder, "transfer", table, curve, *parts, **({"to": name} if name else {}))
            yield probe_figures.draw_transfer_figure(table, curve, folder, parts)
