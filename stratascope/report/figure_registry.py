"""Figures by name: the results that each needs, the command that computes them, and the function that draws it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.figures.column_layout import place_legend
from stratascope.figures.drawing import new_figure, save_figure
from stratascope.figures.style import COLUMN_WIDTH, paper_style
from stratascope.report import figure_drawing as drawing
from stratascope.report.figure_drawing import FIRST, FigureSelection
from stratascope.report.result_set import ResultSet, gather, gather_results
from stratascope.results.locations import ENDING, file_name
from stratascope.store import ActivationStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class NamedFigure:
    """A figure with a name."""

    name: str
    shows: str
    kind: str
    """Kind of the results that it needs."""
    command: str
    """Command that computes them."""
    draw: Callable[[ResultSet, Axes, FigureSelection], Axes] | None = None
    """Draws on the axes; `Result.plot` of the first result of the kind by default."""
    height: float = 2.3
    """Inches; the width is a column's."""
    needs: tuple[str, str] | None = None
    """For a result that its command may leave out: a result that it always makes, and what the other one needs."""

    def figure(
        self, results: ResultSet, selection: FigureSelection = FIRST, *, width: float = COLUMN_WIDTH, height: float | None = None
    ) -> Figure:
        """Draw the figure on a canvas of its own.

        Parameters
        ----------
        results
            Results of a store.
        selection
            Task and position.
        width, height
            Inches; a paper's column, and the figure's own height by default.

        Raises
        ------
        NotRecordedError
            The results are missing.
        """
        if self.needs and results.of(self.needs[0]) and not results.of(self.kind):
            raise NotRecordedError(
                f"expected a result of kind {self.kind}, found that `{self.command}` ran and left it out: it needs {self.needs[1]}"
            )
        stored = results.one(self.kind, self.command)
        figure, (ax,) = new_figure(1, width=width, height=height or self.height)
        with paper_style():
            if self.draw is not None:
                self.draw(results, ax, selection)
            else:
                stored.result.plot(ax).set_title("")
                if ax.get_legend_handles_labels()[0]:
                    place_legend(ax, columns=1 if self.height > 3 else 2, above=self.height > 3)
        return figure


_POINTING = "stratascope pointing STORE --boxes instances.json"
_OVERLAP = "stratascope overlap STORE"
_PROBE = "stratascope probe STORE"
FIGURES: dict[str, NamedFigure] = {
    figure.name: figure
    for figure in (
        NamedFigure("curves", "probe score by layer, with controls and baselines", "layer_curve", _PROBE, drawing.draw_curves),
        NamedFigure("positions", "probe score, position by layer", "layer_curve", _PROBE, drawing.draw_positions, 1.9),
        NamedFigure(
            "advantage", "advantage of a probe over its baselines, by layer", "advantage", f"{_PROBE} --baseline BLANK",
            drawing.draw_selected_advantages,
        ),
        NamedFigure(
            "relations", "probe accuracy, relation by layer", "accuracy_by", f"{_PROBE} --tasks truth", drawing.draw_by_relation, 3.0
        ),
        NamedFigure("codelength", "online codelength (MDL) by layer", "codelength", f"{_PROBE} --measures mdl", drawing.draw_codelength),
        NamedFigure(
            "calibration", "reliability diagram of a probe", "calibration", f"{_PROBE} --measures calibration", drawing.draw_calibration
        ),
        NamedFigure(
            "sizes", "detected layers of a probe by number of examples", "detection_by_size", f"{_PROBE} --measures sizes",
            drawing.draw_sizes, 2.6,
        ),
        NamedFigure(
            "answers", "accuracy of the model's answers, by relation", "answer_confidence", "stratascope answers STORE",
            drawing.draw_answers, 3.0,
        ),
        NamedFigure(
            "share", "attention share of image and text, one dot per head", "attention_share", "stratascope share STORE", height=2.6
        ),
        NamedFigure(
            "parts", "attention share by part of the prompt, stacked", "attention_share", "stratascope share STORE",
            drawing.draw_shares_by_part,
        ),
        NamedFigure(
            "heads", "attention share of the image, head by block", "attention_share", "stratascope share STORE", drawing.draw_image_heads
        ),
        NamedFigure(
            "knockouts", "knockout effects by window of blocks, first reading tokens", "knockout_effects", "stratascope knockouts STORE",
        ),
        NamedFigure(
            "faithfulness", "rank correlation of attribution methods with knockout effects", "faithfulness",
            "stratascope faithfulness STORE", height=3.2,
        ),
        NamedFigure("pointing", "localisation of attribution methods on the named objects", "pointing", _POINTING, height=3.2),
        NamedFigure(
            "components", "first two principal components of the residual stream, last layer", "principal_components",
            "stratascope pca STORE",
        ),
        NamedFigure("lens", "accuracy of the logit lens by layer, with that of the probe", "logit_lens", "stratascope lens STORE"),
        NamedFigure(
            "carried", "direct logit attribution by decoder block", "logit_attribution", "stratascope attribution STORE"
        ),
        NamedFigure(
            "writers", "direct logit attribution, head by block", "logit_attribution", "stratascope attribution STORE",
            drawing.draw_attribution_heads,
        ),
        NamedFigure(
            "entanglement", "probes on the image cells of an object, by block of the vision tower", "entanglement",
            "stratascope entanglement STORE", drawing.draw_entanglement, 2.6,
        ),
        NamedFigure("patches", "probes on single image tokens, by decoder layer", "patch_probes", "stratascope patches STORE"),
        NamedFigure("overlap", "overlap of attention with the boxes, head by block", "box_overlap", _OVERLAP, drawing.draw_overlap_heads),
        NamedFigure(
            "prediction", "AUROC of attention on the boxes for a right answer", "answer_prediction", _OVERLAP,
            needs=(
                "box_overlap",
                "at least 20 right and 20 wrong answers with known boxes; take more examples, or a store where the model errs",
            ),
        ),
    )
}  # fmt: skip
"""Name -> figure, in the order of a report."""


def named_figure(name: str) -> NamedFigure:
    """A figure by name; InvalidInputError with all names."""
    if name not in FIGURES:
        raise _unknown(name, FIGURES)
    return FIGURES[name]


def _unknown(name: str, known: Sequence[str] | dict[str, NamedFigure]) -> InvalidInputError:
    close = get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]}?" if close else "see `stratascope figure --list`"
    return InvalidInputError(f"expected a figure of {', '.join(FIGURES)} or the name of a results file, found {name!r}; {hint}")


def figure_of(
    name: str,
    results: ResultSet,
    selection: FigureSelection = FIRST,
    *,
    store: ActivationStore | None = None,
    width: float | None = None,
    height: float | None = None,
) -> Figure:
    """A figure by its name, or by the name of a file that commands write, such as `rollout`, `probe-truth` or `share.png`.

    Parameters
    ----------
    name
        Name of a `NamedFigure`, of a results file or its figure or table, with or without ending and folder, or probe-TASK.
    results, selection
        Results of a store, and the task and position to show.
    store
        The store, for figures that show its images.
    width, height
        Inches; a paper's column, or the figure's own size, by default.

    Raises
    ------
    InvalidInputError
        There is no such figure, or its size is not within 1 to 20 inches.
    NotRecordedError
        Its results or the store are missing.
    """
    for size in (width, height):
        if size is not None and not 1 <= size <= 20:
            raise InvalidInputError(f"expected a width and height of 1 to 20 inches, found {size:g}")
    selection = selection.resolved(results)
    if name in FIGURES:
        return FIGURES[name].figure(results, selection, width=width or COLUMN_WIDTH, height=height)
    name = PurePath(name).name.removesuffix(ENDING).removesuffix(".png").removesuffix(".csv")
    tasks = {called: task for task in results.tasks for called in (task, file_name("probe", task))}
    if name in tasks:
        of_task = FigureSelection(tasks[name], selection.position)
        return FIGURES["curves"].figure(results, of_task, width=width or COLUMN_WIDTH, height=height)
    files = {f.name.removesuffix(ENDING): f for f in (*results.own, *results.beside)}
    if name not in files:
        raise _unknown(name, [*FIGURES, *tasks, *files])
    found = files[name]
    if found.kind == "accuracy_by" and found.attributes["by"] == "relation":
        of_curve = FigureSelection(found.task, found.position)
        return FIGURES["relations"].figure(results, of_curve, width=width or COLUMN_WIDTH, height=height)
    drawn: Figure | None = found.result.figure(store)
    if drawn is None:
        raise NotRecordedError(
            f"expected the store, whose images figure {name} shows, found only results; name the store before them: "
            f"stratascope figure {name} STORE RESULTS"
            if store is None
            else f"expected a result with a figure, found {name}, which has none; see `stratascope figure --list`"
        )
    drawn.set_size_inches(width or drawn.get_figwidth(), height or drawn.get_figheight())
    return drawn


def draw_named(
    name: str,
    sources: Sequence[str],
    out: Path,
    *,
    task: str | None = None,
    position: str | None = None,
    width: float | None = None,
    height: float | None = None,
) -> tuple[Path, ResultSet]:
    """Draw and save a figure.

    Parameters
    ----------
    sources
        A store, with its results in the default folder or named after it, or results alone.
    out
        Path of the figure.
    name, task, position, width, height
        As of `figure_of`.

    Returns
    -------
    tuple
        Path of the figure, and the results that it was drawn from.
    """
    first = sources[0]
    is_results = first.endswith(ENDING) or (Path(first).is_dir() and not (Path(first) / "zarr.json").exists())
    store = None if is_results else ActivationStore.open(first)
    results = gather_results(sources) if store is None else gather(store, sources[1:], where=first)
    figure = figure_of(name, results, FigureSelection(task, position), store=store, width=width, height=height)
    return save_figure(figure, out), results
