"""Examples through a model into a store. Importing this unit, and planning with it, needs no torch; extracting does."""

from stratascope.extract.extraction import ExtractionReport, run_extraction
from stratascope.extract.plan import ExtractionPlan
from stratascope.extract.planning import plan_extraction
from stratascope.extract.settings import ExtractionSettings

__all__ = ["ExtractionPlan", "ExtractionReport", "ExtractionSettings", "plan_extraction", "run_extraction"]
