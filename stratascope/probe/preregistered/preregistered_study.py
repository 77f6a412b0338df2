"""Run a pre-registered study: check its stores against the plan, train all probes, and state the claims of the family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.preregistration import StudyPlan, StudyStore, read_plan
from stratascope.probe.curve.advantage import Advantage
from stratascope.probe.curve.family import ALL, family_table
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.preregistered.study_result import StudyResult
from stratascope.probe.preregistered.study_stores import check_stores, expanded_positions, missing_positions, study_stores
from stratascope.probe.study.positions import available_at
from stratascope.probe.study.probe_run import ProbeRun, plan_studies, run_probes
from stratascope.probe.study.request import ProbeRequest
from stratascope.probe.study.study import SCHEDULER, plan_study
from stratascope.probe.study.study_plan import task_name
from stratascope.probe.study.transfer import transfer_of
from stratascope.results.locations import file_name
from stratascope.store import ActivationStore, chosen_examples

if TYPE_CHECKING:
    from stratascope.results.result import Result

STUDY = "study"
"""Attribute of every result of a study: the digest of its plan."""
_TRANSFERS = ("task", "array", "position", "store", "metric", "layer", "value", "low", "high", "chance")


@dataclass(frozen=True, eq=False)
class StudyRun:
    """The result of a study, and the results of its probes by file name."""

    result: StudyResult
    results: dict[str, Result] = field(default_factory=dict)


def preregistered_study(
    plan: StudyPlan | str | Path,
    stores: Mapping[str, ActivationStore] | str | Path,
    *,
    scheduler: str | None = SCHEDULER,
    workers: int | None = None,
    progress: bool = False,
    output: str | Path | None = None,
    on_cost: Callable[[str], object] = lambda text: None,
) -> StudyRun:
    """Run a study as it was planned.

    Every curve of the plan is compared with chance, its controls, its own embeddings and the stores with the role `baseline`; one
    simultaneous band covers all curves, baselines and layers.

    Parameters
    ----------
    plan
        A plan, its file, or the name of a built-in one.
    stores
        Name in the plan -> open store, or the folder that `extract --for` filled.
    scheduler, workers, progress, output
        As of `probe_study`.
    on_cost
        As of `run_probes`.

    Raises
    ------
    InvalidInputError
        A store was recorded with other settings than the plan's, or the stores are of other models or examples.
    NotRecordedError
        A store, an array, or the position of the primary outcome is missing.
    UnwrittenBlockError
        A store is not finished.

    Examples
    --------
    >>> run = preregistered_study(study_plan, study_stores)
    >>> run.result.primary["detected"]
    'layers 3-5'
    """
    plan = plan if isinstance(plan, StudyPlan) else read_plan(plan)
    opened = dict(stores) if isinstance(stores, Mapping) else study_stores(plan, stores)
    check_stores(plan, opened)
    own = opened[plan.original.name]
    missing = missing_positions(plan, opened)
    run: dict[str, Any] = {"scheduler": scheduler, "workers": workers, "progress": progress, "output": output}
    curves: list[LayerCurve] = []
    over: list[Mapping[str, Advantage]] = []
    results: dict[str, Result] = {}
    transfers: list[pd.DataFrame] = []
    deviations = [f"no example has the position {name}: its curves are missing" for name in missing]
    requests = list(_requests(plan, opened, missing))
    for request in requests:
        _check_metric(plan, own, request)
    for request in requests:
        done = run_probes(own, request, on_cost=on_cost, **run)
        for curve in done.curves.plain:
            curves.append(curve)
            over.append(done.curves.advantages_of(curve))
        other = "" if request.array == "residual" else request.array
        results.update({file_name(name, other): _marked(result, plan.digest) for name, result in done.results.items()})
        deviations += _excluded(own, request, done)
        transfers += [rows for store in _of_role(plan, "transfer") for rows in _transferred(own, opened[store.name], store.name, done, run)]
    limits = {"level": plan.level, "margin": plan.margin, "equivalence_margin": plan.equivalence_margin}
    layers = family_table(curves, over, **limits)
    _check_primary(plan, layers)
    sizes: dict[tuple[str, ...], tuple[int, int, float]] = {
        (c.task, str(c.attributes.get("array", "residual")), c.position or ""): (
            len(c.examples),
            int(c.examples["group"].nunique()),
            float(c.rows(plan.metric)["chance"].iloc[0]),
        )
        for c in curves
    }
    facts = {
        "title": plan.title,
        "question": plan.question,
        "plan": plan.text,
        "canonical": plan.canonical,
        "digest": plan.digest,
        "metric": plan.metric,
        **limits,
        "family": _family_text(plan, layers),
        "primary": _primary_facts(plan),
        "deviations": [*deviations, *_library_differences(opened)],
        "store": PurePath(own.name).name,
        "fingerprint": own.fingerprint(),
        "stores": {name: store.fingerprint() for name, store in opened.items()},
    }
    table = pd.concat(transfers, ignore_index=True) if transfers else _no_transfers()
    return StudyRun(StudyResult.of(layers, sizes, table, facts), results)


def _of_role(plan: StudyPlan, role: str) -> list[StudyStore]:
    return [store for store in plan.stores if store.role == role]


def _requests(plan: StudyPlan, stores: Mapping[str, ActivationStore], missing: Sequence[str]) -> Iterator[ProbeRequest]:
    """A request for each array and selection of examples."""
    baselines = {store.name: stores[store.name] for store in _of_role(plan, "baseline")}
    selections = dict.fromkeys(task.only for task in plan.tasks)
    for probed in plan.probes:
        every = expanded_positions(stores[plan.original.name], probed.positions)
        positions = tuple(position for position in every if position not in missing)
        for only in selections if positions else ():
            yield ProbeRequest(
                tasks=tuple(task.task for task in plan.tasks if task.only == only),
                positions=positions,
                array=probed.array,
                layers=probed.layers,
                controls=plan.controls,
                baselines=baselines,
                metric=plan.metric,
                margin=plan.margin,
                equivalence_margin=plan.equivalence_margin,
                settings=_settings(plan, only),
            )


def _check_metric(plan: StudyPlan, store: ActivationStore, request: ProbeRequest) -> None:
    """Refuse, before any probe is trained, a task that lacks the metric of the plan."""
    for study in plan_studies(store, request).values():
        for batch in (batch for batches in study.plans.values() for batch in batches):
            if plan.metric not in batch.metrics:
                raise InvalidInputError(
                    f"task {batch.tasks[0]!r}: expected a metric that every task of the plan has, found {plan.metric!r}; it has "
                    f"{', '.join(batch.metrics)}: correct 'metric', or give the task a plan of its own"
                )


def _settings(plan: StudyPlan, only: tuple[str, ...]) -> dict[str, Any]:
    names = ("folds", "seed", "minimum", "draws", "level", "control_draws")
    return {"only": only, **{name: getattr(plan, name) for name in names}}


def _marked(result: Result, digest: str) -> Result:
    return replace(result, attributes={**result.attributes, STUDY: digest})  # type: ignore[type-var]


def _excluded(store: ActivationStore, request: ProbeRequest, done: ProbeRun) -> Iterator[str]:
    """Selected examples that curves do not hold, with the reason; curves that lack the same number for the same reason together."""
    only = request.settings["only"]
    titles: dict[str, list[str]] = {}
    chosen = chosen_examples(store, only) if only else np.ones(store.layout.examples, bool)
    for curve in done.curves.plain:
        there = chosen.copy()
        for one in (store, *request.baselines.values()):
            there &= available_at(one, request.array, curve.position)
        absent, rare = int((chosen & ~there).sum()), int(there.sum()) - len(curve.examples)
        reasons = [f"{absent:,} without {request.array} there"] if absent else []
        if rare:
            column = curve.task.partition(" (")[0]
            values = set(store.examples[column][there].dropna().astype(str)) if column in store.examples and curve.classes else set()
            lost = f" ({', '.join(sorted(values - set(curve.classes)))})" if values - set(curve.classes) else ""
            reasons.append(f"{rare:,} of classes with fewer than {request.settings['minimum']} examples{lost}, or without a label")
        if reasons:
            text = f"{absent + rare:,} of {int(chosen.sum()):,} selected examples are excluded ({'; '.join(reasons)})"
            titles.setdefault(text, []).append(curve.title)
    yield from (f"{', '.join(curves)}: {text}" for text, curves in titles.items())


def _transferred(own: ActivationStore, other: ActivationStore, name: str, done: ProbeRun, run: Mapping[str, Any]) -> Iterator[pd.DataFrame]:
    """Scores of each curve's probes on another store, at their own layers."""
    request = done.request
    options: dict[str, Any] = {"array": request.array, "layers": request.layers, **request.settings}
    for curve in [curve for curve in done.curves.plain if not curve.targets]:
        shared = np.all([available_at(one, request.array, curve.position) for one in (own, other, *request.baselines.values())], axis=0)
        # the same tasks and examples as in the run, so that the cache holds their layers
        examples = None if shared.all() else np.flatnonzero(shared)
        study = plan_study(own, request.all_tasks, (curve.position,), examples=examples, **options)
        table = transfer_of(study, curve.task, to=other, **run)
        same = table[table["layer"] == table["to_layer"]]
        key = {"task": curve.task, "array": request.array, "position": curve.position or "", "store": name}
        yield same.assign(**key)[list(_TRANSFERS)]


def _no_transfers() -> pd.DataFrame:
    kinds = dict.fromkeys(("value", "low", "high", "chance"), "float64") | {"layer": "int64"}
    return pd.DataFrame({name: pd.Series([], dtype=kinds.get(name, "object")) for name in _TRANSFERS})


def _primary_facts(plan: StudyPlan) -> dict[str, str]:
    own = plan.primary
    task = next(task for task in plan.tasks if task.task == own.task)
    names = {name: str(getattr(own, name)) for name in ("position", "array", "baseline", "hypothesis")}
    return {"task": task_name(own.task, task.only), **names}


def _check_primary(plan: StudyPlan, layers: pd.DataFrame) -> None:
    """Refuse a primary baseline that the primary curve is not compared with."""
    own = _primary_facts(plan)
    mine = layers[(layers[["task", "array", "position"]] == [own["task"], own["array"], own["position"]]).all(axis=1)]
    known = list(dict.fromkeys(mine["baseline"]))
    if own["baseline"] not in known:
        raise InvalidInputError(
            f"expected a primary baseline among {', '.join(known)}, found {own['baseline']!r}; correct [primary] in the plan"
        )


def _family_text(plan: StudyPlan, layers: pd.DataFrame) -> str:
    every = layers[layers["baseline"] != ALL]
    curves = len(every[["task", "array", "position"]].drop_duplicates())
    return f"{100 * plan.level:g} % simultaneous band over {len(every):,} comparisons: {curves} curves, each with its baselines and layers"


def _library_differences(stores: Mapping[str, ActivationStore]) -> Iterator[str]:
    """Libraries with different versions in the stores."""
    held = {name: dict(store.provenance.get("libraries") or {}) for name, store in stores.items()}
    for library in dict.fromkeys(key for own in held.values() for key in own):
        versions = {name: str(own.get(library)) for name, own in held.items()}
        if len(set(versions.values())) > 1:
            yield f"stores of different {library}: {', '.join(f'{name} {version}' for name, version in versions.items())}"
