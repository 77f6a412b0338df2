"""From results to what a person looks at: figures, pages, and results gathered from their files.

Every drawing function takes axes and returns them. Names are imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratascope.report.chosen import Choice
    from stratascope.report.figures import draw_attention_share, draw_layer_curves, draw_overlay, new_figure, save_figure
    from stratascope.report.findings import Findings, gather, gather_results
    from stratascope.report.found import Found
    from stratascope.report.gallery import Tile, draw_gallery
    from stratascope.report.named import FIGURES, NamedFigure, named_figure
    from stratascope.report.page import Page
    from stratascope.report.score_grids import draw_confusion, draw_score_grid, draw_transfer
    from stratascope.report.store_report import report_page
    from stratascope.report.style import paper_style

_MODULES = {
    "Choice": "chosen",
    "FIGURES": "named",
    "Findings": "findings",
    "Found": "found",
    "NamedFigure": "named",
    "Page": "page",
    "Tile": "gallery",
    "draw_attention_share": "figures",
    "draw_confusion": "score_grids",
    "draw_gallery": "gallery",
    "draw_layer_curves": "figures",
    "draw_overlay": "figures",
    "draw_score_grid": "score_grids",
    "draw_transfer": "score_grids",
    "gather": "findings",
    "gather_results": "findings",
    "named_figure": "named",
    "new_figure": "figures",
    "paper_style": "style",
    "report_page": "store_report",
    "save_figure": "figures",
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
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
