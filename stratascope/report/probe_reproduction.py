"""The commands that make the results of probes again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from stratascope.results.collection import Findings
from stratascope.results.view import Found
from stratascope.store import ActivationStore, choice_options
from stratascope.store.io.selection import stretches

_OPTIONS: Mapping[str, tuple[str, Any]] = {
    "array": ("--array", "residual"),
    "method": ("--method", "logistic"),
    "strengths": ("--strengths", None),
    "split": ("--split", []),
    "folds": ("--folds", object()),
    "groups": ("--groups", "image"),
    "minimum": ("--minimum", 20),
    "types": ("--types", ["relation", "subject", "object"]),
    "seed": ("--seed", object()),
}
"""Setting of a curve -> its option, and what that is where it is not given; folds and seed are always said."""

_PYTHON_ONLY: Mapping[str, Any] = {"draws": 2000, "level": 0.95, "directions": True}

_TASKS = ("truth", "choice", "category", "answer", "geometry")
"""What can be asked of a store besides its columns; any other task is of a table of one's own."""


def probe_commands(store: ActivationStore, findings: Findings) -> list[str]:
    """One command for all curves of the same settings, baselines, measures and positions."""
    every = findings.of("layer_curve")
    # types are those of a control task alone; a control goes with its task, so that one command makes both
    controlled = {_uncontrolled(curve.task) for curve in every if ":control" in curve.task}
    alike: dict[tuple[str, str], list[Found]] = {}
    for curve in every:
        task = _uncontrolled(curve.task)
        alike.setdefault((_options(store, curve, typed=task in controlled), task), []).append(curve)
    together: dict[tuple[str, ...], list[str]] = {}
    for (settings, _), curves in alike.items():
        positions = list(dict.fromkeys(c.position for c in curves if c.position and not c.position.startswith("head ")))
        at = f" --positions {shlex.quote(','.join(positions))}" if positions else ""
        together.setdefault((at, settings, _besides(store, findings, curves)), []).extend(dict.fromkeys(_bare(c.task) for c in curves))
    return [f"stratascope probe {_name(store.name)}{_asked(tasks)}{''.join(options)}" for options, tasks in together.items()]


def settings_of_python(curve: Found) -> str:
    """What a curve was made with that no option says; "" where there is nothing of that kind."""
    own = curve.attributes
    changed = [f"{name}={own[name]!r}" for name, usual in _PYTHON_ONLY.items() if name in own and own[name] != usual]
    return f"{curve.name} with {', '.join(changed)}" if changed else ""


def _asked(tasks: list[str]) -> str:
    """Tasks, and their controls where all have the same ones."""
    controls: dict[str, list[str]] = {task: [] for task in tasks if ":" not in task}
    for task, _, control in (task.partition(":") for task in tasks if ":" in task):
        controls.setdefault(task, ["alone"]).append(control)
    sets = {",".join(sorted(names, reverse=True)) for names in controls.values()}
    if len(sets) > 1 or any("alone" in names for names in sets):
        return f" --tasks {shlex.quote(','.join(tasks))}"
    shared = next(iter(sets))
    return f" --tasks {shlex.quote(','.join(controls))}" + (f" --controls {shared}" if shared else "")


def _options(store: ActivationStore, curve: Found, *, typed: bool) -> str:
    own = curve.attributes
    text = _layers(store, curve)
    for name, (option, usual) in _OPTIONS.items():
        if name in own and own[name] != usual and (name != "types" or typed):
            text += f" {option} {shlex.quote(_value(own[name]))}"
    return text + choice_options(curve.only)


def _besides(store: ActivationStore, findings: Findings, curves: list[Found]) -> str:
    """Baselines, and what else the same command made: by, measures, transfer, the metric and the margin of its differences."""
    task, positions = _uncontrolled(curves[0].task), {curve.position for curve in curves}
    same = [f for f in findings.own if f.task == task and f.position in positions]
    columns = {str(f.attributes["by"]): None for f in same if f.kind == "accuracy_by" and f.attributes["by"] != "relation"}
    text = "".join(f" --by {shlex.quote(column)}" for column in columns)
    advantages = [f for f in same if f.kind == "advantage"]
    for f in advantages[:1]:
        metric, margin = str(f.table("table")["metric"].iloc[0]), float(f.table("events")["margin"].iloc[0])
        text += f" --metric {metric}" if metric not in ("accuracy", "r2") else ""
        text += f" --margin {margin:g}" if margin else ""
    measures = [option for option, kind in (("mdl", "codelength"), ("calibration", "calibration")) if any(f.kind == kind for f in same)]
    text += f" --measures {','.join(measures)}" if measures else ""
    moved = [f.attributes.get("to") for f in same if f.kind == "transfer"]
    text += " --transfer" if None in moved else ""
    elsewhere = sorted({str(place) for place in moved if place is not None})
    text += f" --transfer-to {shlex.quote(','.join(elsewhere))}" if elsewhere else ""
    name = _bare(task)
    if name not in (*_TASKS, *store.examples.columns):
        text += f" --values {shlex.quote(name)}=FILE.csv"
    stores = {PurePath(str(f.attributes.get("store"))).name for f in findings.beside if f.task == task and f.position in positions}
    return text + "".join(f" --baseline {_name(name)}" for name in sorted(stores))


def _layers(store: ActivationStore, curve: Found) -> str:
    dim = store.layout.array(curve.attributes.get("array", "residual")).layer_dim
    held = sorted({int(layer) for layer in curve.table("table")["layer"]})
    return "" if dim is None or held == sorted(store.layout.layers_of(dim)) else f" --layers {','.join(stretches(held, '-'))}"


def _uncontrolled(task: str) -> str:
    """The task that a control is one of, with its choice of examples."""
    return re.sub(r":(shuffled|control)\b", "", task)


def _bare(task: str) -> str:
    """Without the choice of examples."""
    return re.sub(r" \(.*\)", "", task)


def _value(value: Any) -> str:
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in value) if isinstance(value, list) else str(value)


def _name(store: str) -> str:
    return shlex.quote(PurePath(store).name)
