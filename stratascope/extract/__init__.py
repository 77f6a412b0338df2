"""Run examples through a model and save its activations to a store. Planning needs no torch; extracting does."""

from stratascope.extract.imports.import_store import ImportReport, import_activations
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.settings import ExtractionSettings
from stratascope.extract.run.extraction import ExtractionReport, extract, plan_extraction, run_extraction

__all__ = [
    "ExtractionPlan",
    "ExtractionReport",
    "ExtractionSettings",
    "ImportReport",
    "extract",
    "import_activations",
    "plan_extraction",
    "run_extraction",
]
