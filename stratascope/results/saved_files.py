"""Save a result with its figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from stratascope.figures.drawing import save_figure
from stratascope.results.locations import ENDING
from stratascope.results.result import Result

if TYPE_CHECKING:
    from stratascope.store import ActivationStore


class SavedFiles(NamedTuple):
    """Paths of a result and its figure."""

    result: Path
    figure: Path | None


def save_with_figure(
    result: Result, folder: Path, *, store: ActivationStore | None = None, name: str = "", draw: bool = True
) -> SavedFiles:
    """Save a result as NAME.zarr.zip and its figure as NAME.png.

    Parameters
    ----------
    result
        The result.
    folder
        Output folder; created if missing.
    store
        Store of the result, for figures with its images.
    name
        Name of the files without ending; that of the result by default.
    draw
        Whether to draw the figure.

    Raises
    ------
    StoreError
        A file cannot be written.
    """
    name = name or result.file_name
    path = folder / f"{name}{ENDING}"
    result.save(path)
    figure = result.figure(store) if draw else None
    return SavedFiles(path, None if figure is None else save_figure(figure, folder / f"{name}.png"))
