"""Examples through a model into a store. Importing this unit, and planning with it, needs no torch; extracting does."""

from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.planning import plan_extraction
from stratascope.extract.plan.settings import ExtractionSettings
from stratascope.extract.run.extraction import ExtractionReport, run_extraction

__all__ = ["ExtractionPlan", "ExtractionReport", "ExtractionSettings", "plan_extraction", "run_extraction"]
