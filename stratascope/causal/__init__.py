"""Causal tests of what a probe reads: directions, erasure, design and results of interventions; running them is in `extract`. No torch."""

from stratascope.causal.design import InterventionDesign
from stratascope.causal.directions import class_mean_difference, haufe_pattern
from stratascope.causal.encoding_use import EncodingUse, encoding_use
from stratascope.causal.erasure import Erasure, leace, mean_projection, one_hot
from stratascope.causal.intervention import Intervention
from stratascope.causal.intervention_settings import InterventionSettings
from stratascope.causal.labels import FoldLabels

__all__ = [
    "EncodingUse",
    "Erasure",
    "FoldLabels",
    "Intervention",
    "InterventionDesign",
    "InterventionSettings",
    "class_mean_difference",
    "encoding_use",
    "haufe_pattern",
    "leace",
    "mean_projection",
    "one_hot",
]
