"""Linear probes: in which layers and at which positions a label can be decoded, with intervals, controls and baselines."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratascope.preregistration import StudyPlan, read_plan
    from stratascope.probe.curve.advantage import Advantage
    from stratascope.probe.curve.breakdown import accuracy_by, confusion
    from stratascope.probe.curve.calibration import calibration
    from stratascope.probe.curve.claims import LayerClaims
    from stratascope.probe.curve.curve_set import CurveSet, tidy_table
    from stratascope.probe.curve.layer_curve import LayerCurve
    from stratascope.probe.curve.onset_offset import LayerEvent
    from stratascope.probe.curve.score_grid import ScoreGrid
    from stratascope.probe.estimator import BilinearFeatures, LogisticProbe
    from stratascope.probe.patches import PatchProbes, patch_probes
    from stratascope.probe.preregistered.preregistered_study import StudyRun, preregistered_study
    from stratascope.probe.preregistered.study_result import StudyResult
    from stratascope.probe.study.codelength import Codelength, online_codelength
    from stratascope.probe.study.codelength_study import codelength_by_layer, codelength_of
    from stratascope.probe.study.cost import StudyCost
    from stratascope.probe.study.cross_transfer import CrossTransfer, cross_transfer
    from stratascope.probe.study.detection_by_size import DetectionBySize, detection_by_size
    from stratascope.probe.study.study import Study, head_curves, layer_curve, plan_study, probe_study
    from stratascope.probe.study.study_plan import ProbeSettings
    from stratascope.probe.study.transfer import transfer_matrix, transfer_of
    from stratascope.probe.tasks.geometry import geometry_features
    from stratascope.probe.tasks.numeric_values import ColumnTypes
    from stratascope.probe.tasks.task import Task, task_from_values
    from stratascope.probe.validation.folds import Folds, grouped_folds
    from stratascope.probe.validation.official_splits import Leakage, official_split, split_leakage
    from stratascope.probe.vision_change import VisionChanges, vision_changes
    from stratascope.probe.vision_tower import Entanglement, entanglement
    from stratascope.results.layer_intervals import LayerIntervals


_MODULES = {
    "Advantage": "curve.advantage",
    "BilinearFeatures": "estimator",
    "Codelength": "study.codelength",
    "ColumnTypes": "tasks.numeric_values",
    "CrossTransfer": "study.cross_transfer",
    "CurveSet": "curve.curve_set",
    "DetectionBySize": "study.detection_by_size",
    "Entanglement": "vision_tower",
    "Folds": "validation.folds",
    "LayerClaims": "curve.claims",
    "LayerCurve": "curve.layer_curve",
    "LayerEvent": "curve.onset_offset",
    "LayerIntervals": "stratascope.results.layer_intervals",
    "Leakage": "validation.official_splits",
    "LogisticProbe": "estimator",
    "PatchProbes": "patches",
    "ProbeSettings": "study.study_plan",
    "ScoreGrid": "curve.score_grid",
    "Study": "study.study",
    "StudyCost": "study.cost",
    "StudyPlan": "stratascope.preregistration",
    "StudyResult": "preregistered.study_result",
    "StudyRun": "preregistered.preregistered_study",
    "Task": "tasks.task",
    "VisionChanges": "vision_change",
    "accuracy_by": "curve.breakdown",
    "calibration": "curve.calibration",
    "codelength_by_layer": "study.codelength_study",
    "codelength_of": "study.codelength_study",
    "confusion": "curve.breakdown",
    "cross_transfer": "study.cross_transfer",
    "detection_by_size": "study.detection_by_size",
    "entanglement": "vision_tower",
    "geometry_features": "tasks.geometry",
    "grouped_folds": "validation.folds",
    "head_curves": "study.study",
    "layer_curve": "study.study",
    "official_split": "validation.official_splits",
    "online_codelength": "study.codelength",
    "patch_probes": "patches",
    "plan_study": "study.study",
    "preregistered_study": "preregistered.preregistered_study",
    "probe_study": "study.study",
    "read_plan": "stratascope.preregistration",
    "split_leakage": "validation.official_splits",
    "task_from_values": "tasks.task",
    "tidy_table": "curve.curve_set",
    "transfer_matrix": "study.transfer",
    "transfer_of": "study.transfer",
    "vision_changes": "vision_change",
}

__all__ = [
    "Advantage",
    "BilinearFeatures",
    "Codelength",
    "ColumnTypes",
    "CrossTransfer",
    "CurveSet",
    "DetectionBySize",
    "Entanglement",
    "Folds",
    "LayerClaims",
    "LayerCurve",
    "LayerEvent",
    "LayerIntervals",
    "Leakage",
    "LogisticProbe",
    "PatchProbes",
    "ProbeSettings",
    "ScoreGrid",
    "Study",
    "StudyCost",
    "StudyPlan",
    "StudyResult",
    "StudyRun",
    "Task",
    "VisionChanges",
    "accuracy_by",
    "calibration",
    "codelength_by_layer",
    "codelength_of",
    "confusion",
    "cross_transfer",
    "detection_by_size",
    "entanglement",
    "geometry_features",
    "grouped_folds",
    "head_curves",
    "layer_curve",
    "official_split",
    "online_codelength",
    "patch_probes",
    "plan_study",
    "preregistered_study",
    "probe_study",
    "read_plan",
    "split_leakage",
    "task_from_values",
    "tidy_table",
    "transfer_matrix",
    "transfer_of",
    "vision_changes",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES[name]
    return getattr(import_module(module if module.startswith("stratascope.") else f"{__name__}.{module}"), name)
