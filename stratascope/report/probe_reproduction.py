"""Options of the `probe` commands that reproduce the layer curves of a store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import PurePath
from typing import Any

from stratascope.probe.curve.metrics import main_metric
from stratascope.probe.study.detection_by_size import usual_sizes
from stratascope.probe.study.study_plan import ProbeSettings
from stratascope.probe.tasks.geometry import GEOMETRY
from stratascope.probe.validation.cross_validation import METHODS
from stratascope.probe.validation.estimators import NAMED
from stratascope.report.result_set import ResultSet
from stratascope.results.stored_result import StoredResult
from stratascope.store import ActivationStore

_TASKS = ("truth", "choice", "category", "answer", "geometry")
"""Tasks of every store besides its columns; any other task is from a table of the user's own (--values)."""
_SETTINGS = {field.name: field.default for field in fields(ProbeSettings) if field.default is not MISSING}
"""Setting of a curve -> its default in Python."""


def probe_options(store: ActivationStore, results: ResultSet) -> Iterator[Mapping[str, Any]]:
    """Options of one command for all curves of the same settings, baselines, measures and positions.

    Every option is a parameter of `ProbeRequest` or `ProbeSettings`.
    """
    every = [curve for curve in results.of("layer_curve") if not curve.task.endswith(f":{GEOMETRY}")]  # comes with its task
    # types matter to the control task alone; a control goes with its task, so that one command makes both
    controlled = {_uncontrolled(curve.task) for curve in every if ":control" in curve.task}
    alike: dict[tuple[str, str], list[StoredResult]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for curve in every:
        task = _uncontrolled(curve.task)
        own = _settings(store, curve, typed=task in controlled)
        settings[repr(own)] = own
        alike.setdefault((repr(own), task), []).append(curve)
    together: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for (key, _), curves in alike.items():
        positions = dict.fromkeys(c.position for c in curves if c.position and not c.position.startswith("head "))
        for besides in _besides(store, results, curves):
            options = {"positions": tuple(positions), **settings[key], **besides}
            together.setdefault(repr(options), (options, []))[1].extend(dict.fromkeys(_bare(c.task) for c in curves))
    for options, tasks in together.values():
        yield {**_tasks(tasks), **options}


def python_settings(curve: StoredResult, options: frozenset[str]) -> dict[str, Any]:
    """Settings of a curve that are not their defaults and not among a command's `options`."""
    own = curve.attributes
    lacking = {name for name in _SETTINGS if name in own and name not in options}
    if own.get("method") not in (None, *METHODS, *NAMED):
        lacking.add("method")  # an estimator
    return {name: own[name] for name, usual in _SETTINGS.items() if name in lacking and own[name] != usual}


def _tasks(tasks: list[str]) -> dict[str, tuple[str, ...]]:
    """Tasks, and their controls where all have the same ones."""
    controls: dict[str, list[str]] = {task: [] for task in tasks if ":" not in task}
    for task, _, control in (task.partition(":") for task in tasks if ":" in task):
        controls.setdefault(task, ["alone"]).append(control)
    sets = {tuple(sorted(names, reverse=True)) for names in controls.values()}
    if len(sets) > 1 or any("alone" in names for names in sets):
        return {"tasks": tuple(tasks)}
    return {"tasks": tuple(controls), "controls": next(iter(sets))}


def _settings(store: ActivationStore, curve: StoredResult, *, typed: bool) -> dict[str, Any]:
    own = {name: value for name, value in curve.attributes.items() if name in _SETTINGS and (name != "types" or typed)}
    if own.get("method") not in (*METHODS, *NAMED):
        own.pop("method", None)
    dim = store.layout.array(curve.attributes.get("array", "residual")).layer_dim
    held = sorted({int(layer) for layer in curve.table("table")["layer"]})
    layers = None if dim is None or held == sorted(store.layout.layers_of(dim)) else tuple(held)
    return {"layers": layers, **own, "only": curve.only}


def _besides(store: ActivationStore, results: ResultSet, curves: list[StoredResult]) -> Iterator[dict[str, Any]]:
    """Baselines, and the other results of the same command: by column, measures, transfer, metric and margin of its differences."""
    task, positions = _uncontrolled(curves[0].task), {curve.position for curve in curves}
    same = [f for f in results.own if f.task == task and f.position in positions]
    found: dict[str, Any] = {}
    own = curves[0].attributes
    usual = "r2" if own.get("targets") else main_metric(len(own["classes"]))
    for f in [f for f in [*same, curves[0]] if f.kind in ("advantage", "layer_curve")][:1]:
        events = f.table("events")
        metric = str(f.table("table" if f.kind == "advantage" else "events")["metric"].iloc[0])
        found["metric"] = None if metric == usual else metric
        found["margin"] = float(events["margin"].iloc[0])
        found["equivalence_margin"] = f.attributes.get("equivalence_margin")
    kinds = {"mdl": "codelength", "calibration": "calibration", "sizes": "detection_by_size"}
    found["measures"] = tuple(option for option, kind in kinds.items() if any(f.kind == kind for f in same))
    sizes = [sorted({*f.table("table")["size"].tolist()}) for f in same if f.kind == "detection_by_size"]
    found["sizes"] = () if not sizes or sizes[0] == usual_sizes(sizes[0][-1]) else tuple(sizes[0])
    tested = [f.attributes.get("to") for f in same if f.kind == "transfer"]
    found["transfer"] = None in tested
    found["transfer_to"] = tuple(sorted({str(place) for place in tested if place is not None}))
    elsewhere = [f.attributes for f in same if f.kind == "cross_transfer"]
    found["test_on"] = tuple(sorted({f"{told['to']}={told['tested']['store']}" for told in elsewhere}))
    name = _bare(task)
    found["values"] = () if name in (*_TASKS, *store.examples.columns) else (f"{name}=FILE.csv",)
    stores = {PurePath(str(f.attributes.get("store"))).name for f in results.beside if f.task == task and f.position in positions}
    found["baselines"] = tuple(sorted(stores))
    columns = dict.fromkeys(str(f.attributes["by"]) for f in same if f.kind == "accuracy_by")
    for column in columns or ["relation"]:
        yield {**found, "by": column}


def _uncontrolled(task: str) -> str:
    """The task of a control, with its selection of examples."""
    return re.sub(r":(shuffled|control)\b", "", task)


def _bare(task: str) -> str:
    """The task without its selection of examples."""
    return re.sub(r" \(.*\)", "", task)
