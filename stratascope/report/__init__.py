"""Reports and figures of the results of a store.

Every drawing function takes axes and returns them. Names are imported when they are first used.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratascope.figures.drawing import draw_attention_share, draw_layer_curves, draw_overlay, new_figure, save_figure
    from stratascope.figures.gallery import Tile, draw_gallery
    from stratascope.figures.score_grids import draw_confusion, draw_score_grid, draw_transfer
    from stratascope.figures.style import paper_style
    from stratascope.report.figure_drawing import FigureSelection
    from stratascope.report.figure_registry import FIGURES, NamedFigure, figure_of, named_figure
    from stratascope.report.page import Page
    from stratascope.report.result_set import ResultSet, gather, gather_results
    from stratascope.report.store_report import report_page
    from stratascope.results.stored_result import StoredResult

_MODULES = {
    "FIGURES": "figure_registry",
    "FigureSelection": "figure_drawing",
    "NamedFigure": "figure_registry",
    "Page": "page",
    "ResultSet": "result_set",
    "StoredResult": "stratascope.results.stored_result",
    "Tile": "stratascope.figures.gallery",
    "draw_attention_share": "stratascope.figures.drawing",
    "draw_confusion": "stratascope.figures.score_grids",
    "draw_gallery": "stratascope.figures.gallery",
    "draw_layer_curves": "stratascope.figures.drawing",
    "draw_overlay": "stratascope.figures.drawing",
    "draw_score_grid": "stratascope.figures.score_grids",
    "draw_transfer": "stratascope.figures.score_grids",
    "figure_of": "figure_registry",
    "gather": "result_set",
    "gather_results": "result_set",
    "named_figure": "figure_registry",
    "new_figure": "stratascope.figures.drawing",
    "paper_style": "stratascope.figures.style",
    "report_page": "store_report",
    "save_figure": "stratascope.figures.drawing",
}

_OLD_NAMES = {"Choice": "FigureSelection", "Findings": "ResultSet", "Found": "StoredResult"}
"""Name in version 0.1 -> name today."""

__all__ = [
    "FIGURES",
    "FigureSelection",
    "NamedFigure",
    "Page",
    "ResultSet",
    "StoredResult",
    "Tile",
    "draw_attention_share",
    "draw_confusion",
    "draw_gallery",
    "draw_layer_curves",
    "draw_overlay",
    "draw_score_grid",
    "draw_transfer",
    "figure_of",
    "gather",
    "gather_results",
    "named_figure",
    "new_figure",
    "paper_style",
    "report_page",
    "save_figure",
]


def __getattr__(name: str) -> Any:
    if name in _OLD_NAMES:
        warnings.warn(f"stratascope.report.{name} is now {_OLD_NAMES[name]}", DeprecationWarning, stacklevel=2)
        name = _OLD_NAMES[name]
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES[name]
    return getattr(import_module(module if module.startswith("stratascope.") else f"{__name__}.{module}"), name)
