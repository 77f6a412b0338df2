"""Probes on single image tokens of the decoder: what lies in a cell, where the cell is, and how two cells lie to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError, StoreError, TooFewExamplesError
from stratascope.figures.drawing import draw_layer_curves, metric_name, new_figure
from stratascope.figures.style import paper_style
from stratascope.probe.cell_scores import GAIN, LEAST, score_rows, solve
from stratascope.probe.solver.blas_threads import one_blas_thread
from stratascope.probe.study.study import SCHEDULER
from stratascope.probe.tasks.image_cells import CELL_TASKS, CellSample, CellTask
from stratascope.probe.validation.out_of_fold import OutOfFold
from stratascope.results.file import made_from
from stratascope.results.layer_intervals import LayerIntervals
from stratascope.results.result import Result, new_axes, table_field
from stratascope.results.schema import columns
from stratascope.scheduling import run_all
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import INTERVAL
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import each
from stratascope.store.io.selection import listing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[Any]
CELLS = 64
"""Cells of an example that are probed, and pairs of cells, at most."""
FEWEST_CELLS, FEWEST_IMAGES = 2, 20


class PatchProbes(
    Result,
    kind="patch_probes",
    command="patches",
    schema={
        **each(str, "store condition"),
        **each(int, "examples images cells folds seed draws"),
        **each(float, "level"),
        "tasks": list[str],
        "layers": list[int],
    },
):
    """Scores of probes on single image tokens, by layer, with simultaneous bands over layers."""

    table: pd.DataFrame = table_field(
        columns(
            text="curve metric",
            ints="layer rows",
            floats=f"value {INTERVAL} chance {' '.join(GAIN)} {LEAST}",
            keys=["curve layer"],
            values={"curve": "on_subject on_object row column direction", "metric": "auroc r2 balanced_accuracy"},
        )
    )
    """curve (`on_subject`, `on_object`; `row`, `column` of coordinates; `direction`), metric (auroc, r2, balanced_accuracy), layer, rows
    (cells or pairs), value with pointwise and simultaneous interval, chance, baseline (the same score from the position of the cell alone;
    NaN where the label is a function of positions), advantage over it with its simultaneous interval; minimum_detectable_effect (over
    the baseline where it is known, else over chance, with 80 % power)."""
    attributes: Mapping[str, Any]
    """store, condition, examples, images, cells (at most, of an example), tasks, layers, folds, seed, draws, level."""
    selects_examples: ClassVar[bool] = True

    def rows(self, curve: str) -> pd.DataFrame:
        """Rows of one curve, by layer.

        Parameters
        ----------
        curve
            As in the table.

        Raises
        ------
        InvalidInputError
            If the table has no such curve.
        """
        found = self.table[self.table["curve"] == curve]
        if found.empty:
            raise InvalidInputError(f"expected a curve of {', '.join(dict.fromkeys(self.table['curve']))}, found {curve!r}")
        return found.sort_values("layer").reset_index(drop=True)

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `patch_probes`."""
        given = {name: self.attributes[name] for name in ("cells", "folds", "seed", "draws", "level")}
        return given | {name: tuple(self.attributes[name]) for name in ("tasks", "layers")}

    @property
    def example_count(self) -> int:
        """Number of examples with patches."""
        return int(self.attributes["examples"])

    @property
    def _heading(self) -> str:
        return f"Probes on the image tokens of {self.attributes['examples']} examples at layers {listing(self.attributes['layers'])}"

    def summary(self) -> str:
        """Examples and cells; the highest score of each curve with its band, and where it exceeds its baseline and chance."""
        own = self.attributes
        lines = [
            f"{own['examples']:,} examples of {own['images']:,} images, at most {own['cells']} cells each; "
            f"{own['level']:.0%} simultaneous bands over layers {listing(own['layers'])}"
        ]
        return "\n".join([*lines, *(_curve_text(self.rows(curve)) for curve in dict.fromkeys(self.table["curve"]))])

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def plot(self, ax: Axes | None = None, *, metric: str = "") -> Axes:
        """Draw the curves of one metric with their bands; the baseline of cell positions is dashed.

        Parameters
        ----------
        ax
            Axes to draw on; a new figure's by default.
        metric
            auroc, r2 or balanced_accuracy; the first of the table by default.
        """
        metric = metric or str(self.table["metric"].iloc[0])
        curves, muted = {}, []
        for curve in dict.fromkeys(self.table.loc[self.table["metric"] == metric, "curve"]):
            rows = self.rows(curve)
            curves[LABELS[curve]] = rows.assign(low=rows["low_simultaneous"], high=rows["high_simultaneous"])
            if rows["baseline"].notna().all():
                muted.append(f"{LABELS[curve]}, position alone")
                curves[muted[-1]] = rows.assign(value=rows["baseline"], low=rows["baseline"], high=rows["baseline"])
        chance = float(self.table.loc[self.table["metric"] == metric, "chance"].iloc[0])
        ax = draw_layer_curves(curves, new_axes(ax), metric=metric, chance=chance, muted=muted, title=TITLES[metric])
        ax.set_xlabel("Decoder layer (0: vision output)")
        return ax

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """One panel for each metric."""
        metrics = list(dict.fromkeys(self.table["metric"]))
        figure, axes = new_figure(len(metrics), width=2.9 * len(metrics), height=2.9)
        with paper_style():
            for metric, ax in zip(metrics, axes, strict=True):
                self.plot(ax, metric=metric)
                ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22))
        return figure


LABELS = {"on_subject": "on the subject", "on_object": "on the object", "row": "row", "column": "column", "direction": "direction"}
TITLES = {"auroc": "Cell in the gold box", "r2": "Coordinates of the cell", "balanced_accuracy": "Direction between two cells"}


def _curve_text(rows: pd.DataFrame) -> str:
    best = rows.iloc[int(rows["value"].to_numpy().argmax())]
    interval = f"[{best['low_simultaneous']:.3f}, {best['high_simultaneous']:.3f}]"
    text = f"{best['curve']:<10} {metric_name(best['metric'])} {best['value']:.3f} {interval} at layer {int(best['layer'])}, the highest; "
    over, what = rows["low_simultaneous"] > rows["chance"], f"chance ({best['chance']:g})"
    if np.isfinite(best["baseline"]):
        text += f"position alone {best['baseline']:.3f}; "
        over, what = over & (rows["advantage_low"] > 0), "position alone"
    layers = LayerIntervals.of(rows["layer"], over)
    if layers:
        return f"{text}significantly above {what} in {layers}"
    least = float(rows[LEAST].max())
    power = f"an advantage of {least:.2f} would" if least <= 1 - best["chance"] else "not even the best possible score would"
    return f"{text}not detected above {what} in any layer ({power} have been detected with 80 % power)"


@dataclass(frozen=True, eq=False)
class PatchLayer:
    """One layer with its tasks; pickles to the store's address and small arrays."""

    store: ActivationStore
    layer: int
    examples: NDArray[np.intp]
    """(row,) example of each row."""
    tasks: tuple[CellTask, ...]


def patch_probes(
    store: ActivationStore,
    *,
    tasks: Sequence[str] = CELL_TASKS,
    layers: Sequence[int] | None = None,
    cells: int = CELLS,
    folds: int = 5,
    seed: int = 0,
    draws: int = 2000,
    level: float = 0.95,
    scheduler: str | None = SCHEDULER,
    workers: int | None = None,
    progress: bool = False,
) -> PatchProbes:
    """Probe single image tokens of the residual stream, with all cells of an image in one fold.

    `on_subject` and `on_object` ask whether the centre of the cell lies in the gold box (AUROC). Their baseline is a probe of the same rows
    on the position of the cell alone: its coordinates, their squares and product, and its group among 6 x 6, because named objects tend to
    be in the middle. In a causal model image tokens precede the caption, so that no cell can tell which of two objects is the subject.
    `coordinates` asks for row and column as shares of the image (ridge regression, R2). `direction` asks whether the first of two cells is
    above, below, left or right of the second, by the larger of the two distances in cells, from the difference of their vectors (balanced
    accuracy); pairs with equal distances are left out.

    Parameters
    ----------
    tasks
        Of `CELL_TASKS`.
    layers
        Of `patch_residual`; all by default.
    cells
        Cells of an example, and pairs of cells, that are drawn at random, at most.
    folds
        Number of cross-validation folds; groups are images by content.
    seed
        Of cells, folds and resamples.
    draws
        Bootstrap resamples of images.
    level
        Of the intervals.
    scheduler, workers, progress
        As of `probe_study`.

    Raises
    ------
    NotRecordedError
        The store holds no image tokens one by one, not these layers, or no boxes.
    InvalidInputError
        A task is unknown, or fewer than two cells are to be drawn.
    TooFewExamplesError
        There are fewer than 20 images, or too few for the folds.

    Examples
    --------
    >>> found = patch_probes(patched, tasks=("coordinates",), layers=(0, 3), cells=16, draws=200)
    >>> found.rows("column")["layer"].tolist()
    [0, 3]
    """
    unknown = [task for task in tasks if task not in CELL_TASKS]
    if unknown or not tasks:
        raise InvalidInputError(f"expected `tasks` of {', '.join(CELL_TASKS)}, found {', '.join(unknown) or 'none'}")
    if cells < FEWEST_CELLS:
        raise InvalidInputError(f"expected at least {FEWEST_CELLS} `cells` of an example, found {cells}")
    if "patch_residual" not in store.arrays:
        raise NotRecordedError(
            "expected patch_residual in the store, found none; extract again with --patches N", in_python="set `patches` of the settings"
        )
    held = store.layout.layers_of("patch_layer")
    chosen = list(held) if layers is None else sorted({int(layer) for layer in layers})
    if absent := [layer for layer in chosen if layer not in held]:
        raise NotRecordedError(f"expected `layers` of patch_residual, found {absent[0]}; it holds {listing(held)}")
    sample = CellSample(store, cells, folds, seed)
    if (images := len(np.unique(sample.groups))) < FEWEST_IMAGES:
        raise TooFewExamplesError(
            f"expected image tokens of at least {FEWEST_IMAGES} images for intervals over images, found {images}; extract with a larger "
            "--patches",
            in_python="set `patches` of the settings higher",
        )
    cell_tasks = tuple(sample.task(name) for name in dict.fromkeys(tasks))
    work = [PatchLayer(store, layer, sample.examples, cell_tasks) for layer in chosen]
    answers = run_all(solve_layer, work, scheduler=scheduler, workers=workers, progress=progress, label="layers")
    parts = []
    for task, *found in zip(cell_tasks, *answers, strict=True):
        parts += score_rows(task, np.array(chosen), found, Bootstrap(sample.groups[task.folds.of >= 0], draws=draws, seed=seed), level)
    attributes: dict[str, Any] = {
        **made_from(store),
        "examples": len(sample.numbers),
        "images": images,
        "cells": int(cells),
        "tasks": list(dict.fromkeys(tasks)),
        "layers": chosen,
        "folds": int(folds),
        "seed": int(seed),
        "draws": int(draws),
        "level": float(level),
    }
    return PatchProbes(pd.concat(parts, ignore_index=True), attributes)


def solve_layer(work: PatchLayer) -> list[OutOfFold]:
    """Read the image tokens of one layer and solve its tasks, with one BLAS thread; StoreError where some are no numbers."""
    with one_blas_thread():
        wanted = list({id(cells): cells for task in work.tasks for cells in task.cells}.values())
        gathered = [np.empty((len(work.examples), work.store.layout.hidden), np.float32) for _ in wanted]
        for number in np.unique(work.examples):  # one image at a time: all tokens of all images may not fit into memory
            mine = np.flatnonzero(work.examples == number)
            tokens, count = work.store.read("patch_residual", layer=work.layer, examples=int(number)), int(work.store.patch_counts[number])
            if len(tokens) < count or not np.isfinite(tokens[:count]).all():
                raise StoreError(f"expected numbers in the {count} image cells of example {number}, found fewer; run `stratascope verify`")
            for cells, out in zip(wanted, gathered, strict=True):
                out[mine] = tokens[cells[mine]]
        found = {id(cells): out for cells, out in zip(wanted, gathered, strict=True)}
        answers = []
        for task in work.tasks:
            x = found[id(task.cells[0])]
            answers.append(solve(task, x if len(task.cells) == 1 else x - found[id(task.cells[1])]))
        return answers
