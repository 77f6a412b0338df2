"""Linear probes: at which layer and position can something be read, and where no longer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratascope.probe.advantage import Advantage
    from stratascope.probe.breakdown import accuracy_by, confusion
    from stratascope.probe.codelength import Codelength, online_codelength
    from stratascope.probe.codelength_study import codelength_by_layer, codelength_of
    from stratascope.probe.cost import StudyCost
    from stratascope.probe.curve import LayerCurve
    from stratascope.probe.estimator import LogisticProbe
    from stratascope.probe.events import LayerEvent
    from stratascope.probe.folds import Folds, grouped_folds
    from stratascope.probe.grid import ScoreGrid
    from stratascope.probe.plan import ProbeSettings
    from stratascope.probe.reliability import calibration
    from stratascope.probe.splits import Leakage, official_split, split_leakage
    from stratascope.probe.study import Study, head_curves, layer_curve, plan_study, probe_study
    from stratascope.probe.tasks import Task, task_from_values
    from stratascope.probe.tidy import tidy_table
    from stratascope.probe.tower import Entanglement, entanglement
    from stratascope.probe.transfer import transfer_matrix, transfer_of

_MODULES = {
    "Advantage": "advantage",
    "Codelength": "codelength",
    "Entanglement": "tower",
    "Folds": "folds",
    "LayerCurve": "curve",
    "LayerEvent": "events",
    "Leakage": "splits",
    "LogisticProbe": "estimator",
    "ProbeSettings": "plan",
    "ScoreGrid": "grid",
    "Study": "study",
    "StudyCost": "cost",
    "Task": "tasks",
    "accuracy_by": "breakdown",
    "calibration": "reliability",
    "codelength_by_layer": "codelength_study",
    "codelength_of": "codelength_study",
    "confusion": "breakdown",
    "entanglement": "tower",
    "grouped_folds": "folds",
    "head_curves": "study",
    "layer_curve": "study",
    "official_split": "splits",
    "online_codelength": "codelength",
    "plan_study": "study",
    "probe_study": "study",
    "split_leakage": "splits",
    "task_from_values": "tasks",
    "tidy_table": "tidy",
    "transfer_matrix": "transfer",
    "transfer_of": "transfer",
}

__all__ = [
    "Advantage",
    "Codelength",
    "Entanglement",
    "Folds",
    "LayerCurve",
    "LayerEvent",
    "Leakage",
    "LogisticProbe",
    "ProbeSettings",
    "ScoreGrid",
    "Study",
    "StudyCost",
    "Task",
    "accuracy_by",
    "calibration",
    "codelength_by_layer",
    "codelength_of",
    "confusion",
    "entanglement",
    "grouped_folds",
    "head_curves",
    "layer_curve",
    "official_split",
    "online_codelength",
    "plan_study",
    "probe_study",
    "split_leakage",
    "task_from_values",
    "tidy_table",
    "transfer_matrix",
    "transfer_of",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
