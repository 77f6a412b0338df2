"""From results to what a person looks at."""

from stratascope.report.figures import draw_attention_share, draw_layer_curves, draw_overlay, new_figure, save_figure
from stratascope.report.style import paper_style

__all__ = ["draw_attention_share", "draw_layer_curves", "draw_overlay", "new_figure", "paper_style", "save_figure"]
