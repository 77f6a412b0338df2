"""Linear probes: at which layer and position can something be read, and where no longer."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratascope.probe.advantage import Advantage
    from stratascope.probe.curve import LayerCurve
    from stratascope.probe.estimator import LogisticProbe
    from stratascope.probe.events import LayerEvent
    from stratascope.probe.folds import Folds, grouped_folds
    from stratascope.probe.plan import ProbeSettings
    from stratascope.probe.study import layer_curve, probe_study
    from stratascope.probe.tasks import Task, task_from_values

_MODULES = {
    "Advantage": "advantage",
    "Folds": "folds",
    "LayerCurve": "curve",
    "LayerEvent": "events",
    "LogisticProbe": "estimator",
    "ProbeSettings": "plan",
    "Task": "tasks",
    "grouped_folds": "folds",
    "layer_curve": "study",
    "probe_study": "study",
    "task_from_values": "tasks",
}

__all__ = [
    "Advantage",
    "Folds",
    "LayerCurve",
    "LayerEvent",
    "LogisticProbe",
    "ProbeSettings",
    "Task",
    "grouped_folds",
    "layer_curve",
    "probe_study",
    "task_from_values",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
