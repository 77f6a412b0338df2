"""From results to what a person looks at: figures, pages, and results gathered from their files.

Every drawing function takes axes and returns them. Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratascope.figures.drawing import draw_attention_share, draw_layer_curves, draw_overlay, new_figure, save_figure
    from stratascope.figures.gallery import Tile, draw_gallery
    from stratascope.figures.score_grids import draw_confusion, draw_score_grid, draw_transfer
    from stratascope.figures.style import paper_style
    from stratascope.report.figure_registry import FIGURES, NamedFigure, named_figure
    from stratascope.report.figure_selection import Choice
    from stratascope.report.page import Page
    from stratascope.report.store_report import report_page
    from stratascope.results.collection import Findings, gather, gather_results
    from stratascope.results.view import Found

_MODULES = {
    "Choice": "figure_selection",
    "FIGURES": "figure_registry",
    "Findings": "stratascope.results.collection",
    "Found": "stratascope.results.view",
    "NamedFigure": "figure_registry",
    "Page": "page",
    "Tile": "stratascope.figures.gallery",
    "draw_attention_share": "stratascope.figures.drawing",
    "draw_confusion": "stratascope.figures.score_grids",
    "draw_gallery": "stratascope.figures.gallery",
    "draw_layer_curves": "stratascope.figures.drawing",
    "draw_overlay": "stratascope.figures.drawing",
    "draw_score_grid": "stratascope.figures.score_grids",
    "draw_transfer": "stratascope.figures.score_grids",
    "gather": "stratascope.results.collection",
    "gather_results": "stratascope.results.collection",
    "named_figure": "figure_registry",
    "new_figure": "stratascope.figures.drawing",
    "paper_style": "stratascope.figures.style",
    "report_page": "store_report",
    "save_figure": "stratascope.figures.drawing",
}

__all__ = [
    "FIGURES",
    "Choice",
    "Findings",
    "Found",
    "NamedFigure",
    "Page",
    "Tile",
    "draw_attention_share",
    "draw_confusion",
    "draw_gallery",
    "draw_layer_curves",
    "draw_overlay",
    "draw_score_grid",
    "draw_transfer",
    "gather",
    "gather_results",
    "named_figure",
    "new_figure",
    "paper_style",
    "report_page",
    "save_figure",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULES[name]
    return getattr(import_module(module if module.startswith("stratascope.") else f"{__name__}.{module}"), name)
