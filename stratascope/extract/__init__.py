"""Examples through a model into a store. Importing this unit, and planning with it, needs no torch; extracting does."""

from stratascope.extract.extraction import ExtractionReport, run_extraction
from stratascope.extract.plan import ExtractionPlan, plan_extraction
from stratascope.extract.settings import ExtractionSettings

__all__ = ["ExtractionPlan", "ExtractionReport", "ExtractionSettings", "plan_extraction", "run_extraction"]
