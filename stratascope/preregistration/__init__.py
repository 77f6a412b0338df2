"""Plans of pre-registered studies: what is extracted, probed and claimed, fixed before the data are seen."""

from stratascope.preregistration.plan_file import parse_plan, presets, read_plan
from stratascope.preregistration.study_plan import (
    CausalPart,
    ExtractionPart,
    PrimaryOutcome,
    ProbedArray,
    StudyPlan,
    StudyStore,
    StudyTask,
)

__all__ = [
    "CausalPart",
    "ExtractionPart",
    "PrimaryOutcome",
    "ProbedArray",
    "StudyPlan",
    "StudyStore",
    "StudyTask",
    "parse_plan",
    "presets",
    "read_plan",
]
