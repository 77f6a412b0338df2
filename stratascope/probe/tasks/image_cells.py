"""Labels of single image cells and of pairs of cells: what lies there, where they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stratascope.datasets.boxes import cells_in_box
from stratascope.errors import NotRecordedError, TooFewExamplesError
from stratascope.probe.validation.folds import Folds, grouped_folds
from stratascope.store.format.prompt_parts import grouped_cells, shown_boxes
from stratascope.store.io.example_identity import group_labels

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

Floats = NDArray[Any]
CELL_TASKS = ("on_subject", "on_object", "coordinates", "direction")
"""Whether the centre of a cell lies in the box of subject or object; its row and column; where one of two cells lies from the other."""
DIRECTIONS = ("above", "below", "left", "right")


@dataclass(frozen=True, eq=False)
class CellTask:
    """One labelling of cells or of pairs of cells."""

    name: str
    cells: tuple[NDArray[np.intp], ...]
    """(row,) cells, or of pairs both cells: the input is the first less the second."""
    labels: NDArray[Any]
    """(row,) class codes, or (row, target) values."""
    classes: tuple[str, ...]
    """Empty for values."""
    folds: Folds
    position: Floats
    """(row, feature) what the position of the cell tells; no features where the label is a function of it."""


class CellSample:
    """Cells and pairs of cells of the examples with patches, drawn once for all layers."""

    def __init__(self, store: ActivationStore, cells: int, folds: int, seed: int) -> None:
        self.store, self._folds, self._seed = store, folds, seed
        self.numbers = np.flatnonzero(store.available("patch_residual"))
        if not len(self.numbers):
            raise NotRecordedError("expected examples with patches, found none recorded; let the extraction finish")
        first, other, examples = [], [], []
        for number in self.numbers:
            count = int(store.patch_counts[number])
            rng = np.random.default_rng([seed, int(number)])
            drawn = rng.choice(count, min(cells, count), replace=False)
            first.append(drawn)
            # another cell than the first one
            other.append((drawn + rng.integers(1, max(count, 2), len(drawn))) % count)
            examples.append(np.full(len(drawn), number))
        self.examples, self.first, self.other = (np.concatenate(each).astype(np.intp) for each in (examples, first, other))
        self.groups = group_labels(store.examples)[self.examples]

    @cached_property
    def grid(self) -> NDArray[np.intp]:
        """(row, 2) rows and columns of the image of each cell."""
        return np.asarray(self.store.grid[self.examples], np.intp)

    def coordinates(self, cells: NDArray[np.intp]) -> Floats:
        """(row, 2) centre of each cell as shares of height and width."""
        place = np.stack(np.divmod(cells, self.grid[:, 1]), 1)
        return np.asarray((place + 0.5) / self.grid)

    def task(self, name: str) -> CellTask:
        """The task of a name with its folds."""
        if name == "coordinates":
            return self._task(name, (self.first,), self.coordinates(self.first), ())
        if name == "direction":
            down, across = (np.stack(np.divmod(self.first, self.grid[:, 1])) - np.stack(np.divmod(self.other, self.grid[:, 1]))).astype(int)
            codes = np.where(abs(down) > abs(across), np.where(down < 0, 0, 1), np.where(across < 0, 2, 3))
            return self._task(name, (self.first, self.other), np.where(abs(down) == abs(across), -1, codes), DIRECTIONS)
        boxes, which = shown_boxes(self.store), 0 if name == "on_subject" else 1
        codes = np.full(len(self.examples), -1, np.intp)
        for number in self.numbers:
            box = boxes[number, which]
            if np.isfinite(box).all():
                x0, y0, x1, y1 = box.tolist()
                rows, across_ = (int(n) for n in self.store.grid[number])
                mine = self.examples == number
                codes[mine] = np.isin(self.first[mine], cells_in_box((x0, y0, x1, y1), (1, 1), (rows, across_)))
        return self._task(name, (self.first,), codes, ("elsewhere", name), self._place_features())

    def _task(
        self, name: str, cells: tuple[NDArray[np.intp], ...], labels: NDArray[Any], classes: tuple[str, ...], position: Floats | None = None
    ) -> CellTask:
        for code, what in enumerate(classes):
            if (images := len(np.unique(self.groups[labels == code]))) < self._folds:
                raise TooFewExamplesError(
                    f"task {name}: expected cells of the class {what!r} in at least {self._folds} images, one a fold, found {images}; draw "
                    "more `cells`, save the image tokens of more examples, or give fewer `folds`"
                )
        folds = grouped_folds(
            self.groups, labels if classes else None, folds=self._folds, seed=self._seed, class_names=classes or None, by="image"
        )
        return CellTask(name, cells, labels, classes, folds, np.zeros((len(labels), 0)) if position is None else position)

    def _place_features(self) -> Floats:
        """(row, feature) coordinates, their squares and product, and the group of the cell."""
        y, x = self.coordinates(self.first).T
        names: dict[str, int] = {}
        groups = np.zeros(len(self.first), np.intp)
        for rows, across in np.unique(self.grid, axis=0):
            mine = np.flatnonzero((self.grid == (rows, across)).all(1))
            group = np.zeros(rows * across, np.intp)
            for cell, members in grouped_cells(int(rows), int(across)).items():
                group[members] = names.setdefault(cell, len(names))
            groups[mine] = group[self.first[mine]]
        return np.column_stack([y, x, y * y, x * x, x * y, groups[:, None] == np.arange(len(names))]).astype(np.float64)
