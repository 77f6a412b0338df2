"""One figure by name, from the results of a store or from results files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stratascope.errors import InvalidInputError
from stratascope.figures.drawing import save_figure
from stratascope.report.figure_registry import named_figure
from stratascope.report.figure_selection import Choice
from stratascope.results.collection import gather, gather_results
from stratascope.results.locations import ENDING
from stratascope.store import ActivationStore


def draw_named(
    name: str,
    sources: Sequence[str],
    out: Path,
    *,
    task: str | None = None,
    position: str | None = None,
    width: float = 3.4,
    height: float | None = None,
) -> str:
    """Draw and save a figure.

    Parameters
    ----------
    sources
        A store, with results beside it or after it, or results alone.
    width, height
        In inches.

    Raises
    ------
    InvalidInputError
        If there is no such figure, it would be smaller than an inch or larger than twenty, or results are of several stores.
    """
    figure = named_figure(name)
    if not 1 <= width <= 20 or not 1 <= (height or figure.height) <= 20:
        raise InvalidInputError(f"expected a width and height of 1 to 20 inches, found {width:g} and {height or figure.height:g}")
    first = sources[0]
    is_results = first.endswith(ENDING) or (Path(first).is_dir() and not (Path(first) / "zarr.json").exists())
    findings = gather_results(sources) if is_results else gather(ActivationStore.open(first), sources[1:], where=first)
    drawn = figure.figure(findings, Choice(task, position), width=width, height=height)
    left_out = f"left out, being of other stores in the same folder: {findings.others} results files\n" if findings.others else ""
    return f"{left_out}figure {save_figure(drawn, out)}"
