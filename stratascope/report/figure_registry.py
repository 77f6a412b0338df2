"""All figures by name: which results each needs, by which command they are made, and what draws it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.figures.drawing import new_figure
from stratascope.figures.style import COLUMN_WIDTH, paper_style
from stratascope.report.attention_figures import (
    draw_answer_prediction,
    draw_entangled,
    draw_image_heads,
    draw_overlap_heads,
    draw_share,
    draw_share_parts,
)
from stratascope.report.attribution_figures import COMMAND, draw_carried_by_block, draw_faithfulness, draw_pointing, draw_writers
from stratascope.report.figure_selection import FIRST, Choice
from stratascope.report.probe_figures import (
    draw_advantages,
    draw_answers,
    draw_by_relation,
    draw_calibration_of,
    draw_codelength_of,
    draw_curves_of_task,
    draw_positions,
)
from stratascope.results.collection import Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class NamedFigure:
    """A figure that can be asked for by name."""

    name: str
    shows: str
    kind: str
    """Of the results it needs."""
    command: str
    """What makes them."""
    draw: Callable[[Findings, Axes, Choice], Axes]
    height: float = 2.3
    """Inches; the width is a column's."""
    needs: tuple[str, str] | None = None
    """Where the command may leave its results out: what it makes nonetheless, and what it would need."""

    def figure(self, findings: Findings, choice: Choice = FIRST, *, width: float = COLUMN_WIDTH, height: float | None = None) -> Figure:
        """The figure on a canvas of its own.

        Parameters
        ----------
        findings
            Where its results are.
        choice
            Which of several to show.
        width, height
            In inches; a paper's column, and the figure's own height by default.

        Raises
        ------
        NotRecordedError
            If its results are absent.
        """
        if self.needs and findings.of(self.needs[0]) and not findings.of(self.kind):
            raise NotRecordedError(
                f"expected results of kind {self.kind}, found that `{self.command}` was run and left them out: they need {self.needs[1]}"
            )
        findings.one(self.kind, f"results of kind {self.kind}", self.command)
        figure, (ax,) = new_figure(1, width=width, height=height or self.height)
        with paper_style():
            self.draw(findings, ax, choice)
        return figure


FIGURES: dict[str, NamedFigure] = {
    figure.name: figure
    for figure in (
        NamedFigure(
            "curves",
            "a task's score by layer at each position, with baselines",
            "layer_curve",
            "stratascope probe STORE",
            draw_curves_of_task,
        ),
        NamedFigure("positions", "position by layer", "layer_curve", "stratascope probe STORE", draw_positions, 1.9),
        NamedFigure(
            "advantage",
            "how far a curve is above its baselines",
            "advantage",
            "stratascope probe STORE --baseline BLANK",
            draw_advantages,
        ),
        NamedFigure(
            "relations",
            "a probe's accuracy by relation and layer",
            "accuracy_by",
            "stratascope probe STORE --tasks truth",
            draw_by_relation,
            3.0,
        ),
        NamedFigure(
            "codelength",
            "how short a task's labels can be told, by layer",
            "codelength",
            "stratascope probe STORE --measures mdl",
            draw_codelength_of,
        ),
        NamedFigure(
            "calibration",
            "how sure a probe is and how often right",
            "calibration",
            "stratascope probe STORE --measures calibration",
            draw_calibration_of,
        ),
        NamedFigure(
            "answers", "how often the model is right, by relation", "answer_confidence", "stratascope answers STORE", draw_answers, 3.0
        ),
        NamedFigure(
            "share", "attention on image and text, every head a dot", "attention_share", "stratascope share STORE", draw_share, 2.6
        ),
        NamedFigure("parts", "attention by part of the prompt", "attention_share", "stratascope share STORE", draw_share_parts),
        NamedFigure("heads", "the image's share of each head's attention", "attention_share", "stratascope share STORE", draw_image_heads),
        NamedFigure(
            "faithfulness",
            "which method ranks tokens as hiding them does",
            "faithfulness",
            "stratascope faithfulness STORE",
            draw_faithfulness,
            3.2,
        ),
        NamedFigure("pointing", "which method points at the things that are named", "pointing", COMMAND, draw_pointing, 3.2),
        NamedFigure(
            "carried",
            "what heads and blocks write of the answer",
            "logit_attribution",
            "stratascope attribution STORE",
            draw_carried_by_block,
        ),
        NamedFigure("writers", "what each head writes of the answer", "logit_attribution", "stratascope attribution STORE", draw_writers),
        NamedFigure(
            "entanglement",
            "what the vision tower holds of the two things' places",
            "entanglement",
            "stratascope entanglement STORE",
            draw_entangled,
            2.6,
        ),
        NamedFigure("overlap", "each head's attention in the boxes", "box_overlap", "stratascope overlap STORE", draw_overlap_heads),
        NamedFigure(
            "prediction",
            "whether attention on the boxes predicts a right answer",
            "answer_prediction",
            "stratascope overlap STORE",
            draw_answer_prediction,
            needs=(
                "box_overlap",
                "at least 20 right and 20 wrong answers with known boxes; take more examples, or a store where the model errs",
            ),
        ),
    )
}
"""Name -> figure, in the order of a report."""


def named_figure(name: str) -> NamedFigure:
    """A figure by name; InvalidInputError listing them all."""
    if name not in FIGURES:
        raise InvalidInputError(f"expected a figure of {', '.join(FIGURES)}, found {name!r}; see `stratascope figure --list`")
    return FIGURES[name]
