"""`VisionChanges`: which image cells change, by block of the vision tower, when the box of one object is painted over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.datasets.boxes import cells_in_box
from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError
from stratascope.figures.drawing import new_figure
from stratascope.figures.layer_profiles import draw_tower
from stratascope.figures.style import paper_style
from stratascope.probe.vision_tower import MERGED, known_blocks
from stratascope.results.file import made_from
from stratascope.results.result import Result, new_axes, table_field
from stratascope.results.schema import columns
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import INTERVAL, interval_text
from stratascope.stats.mean_ratio import mean_ratio
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import each
from stratascope.store.format.layout import CHANGED
from stratascope.store.format.prompt_parts import shown_boxes
from stratascope.store.io.example_identity import image_groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[Any]
CELLS = ("own", "other", "background")
"""Cells of the changed box, of the other object's box, and of neither."""
_READ = 32
"""Examples that are read at once."""


class VisionChanges(
    Result,
    kind="vision_changes",
    command="entanglement",
    prefix="vision-changes",
    schema={**each(str, "store condition"), **each(int, "draws seed"), **each(float, "level"), "full_attention": list[int]},
):
    """Relative change of image cells when the box of one object is painted over, by block of the vision tower."""

    table: pd.DataFrame = table_field(
        columns(
            text="changed cells stage",
            ints="layer examples images",
            floats=f"value {INTERVAL}",
            flags="whole_image",
            keys=["changed cells stage layer"],
            values={"changed": "subject object", "cells": "own other background", "stage": "tower merged"},
        )
    )
    """changed (`subject` or `object`: whose box is painted over), cells (`own`: of that box, `other`: of the other object's box,
    `background`: of neither), stage (`tower` or `merged`, as handed to the decoder), layer (blocks passed), whole_image (whether the last
    block passed attends to the whole image), examples, images, value (mean of |r' - r| / |r|), low, high, low_simultaneous,
    high_simultaneous."""
    attributes: Mapping[str, Any]
    """store, condition, full_attention (blocks), draws, seed, level."""

    def rows(self, changed: str, cells: str) -> pd.DataFrame:
        """Rows of one curve, by layer, the merged one last.

        Parameters
        ----------
        changed, cells
            As in the table.

        Raises
        ------
        InvalidInputError
            If the table has no such curve.
        """
        found = self.table[(self.table["changed"] == changed) & (self.table["cells"] == cells)]
        if found.empty:
            raise InvalidInputError(f"expected a curve of the table, found {changed}, {cells}")
        return found.reset_index(drop=True)

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `vision_changes`."""
        return {name: self.attributes[name] for name in ("full_attention", "draws", "seed", "level")}

    @property
    def _heading(self) -> str:
        return (
            f"VisionChanges: image cells after {self.table['layer'].max()} blocks of the vision tower, {self.table['images'].max()} images"
        )

    def summary(self) -> str:
        """For each object: how much its own cells, those of the other object and the background change, and from which block on."""
        return "\n".join(self._summary(changed) for changed in dict.fromkeys(self.table["changed"]))

    def _summary(self, changed: str) -> str:
        held = [cells for cells in CELLS if ((self.table["changed"] == changed) & (self.table["cells"] == cells)).any()]
        names = {"own": "its own cells", "other": f"cells of the {_other(changed)}", "background": "the background"}
        texts = [f"{names[cells]} {_curve_text(self.rows(changed, cells), cells)}" for cells in held]
        text = f"{changed} painted over: mean relative change of " + "; ".join(texts)
        if not {"own", "other"} <= set(held):
            return text
        own, other = (float(self._tower(changed, cells)["value"].iloc[-1]) for cells in ("own", "other"))
        if not other > 0 or not own > 0:
            return f"{text}. No information about the {changed} has spread to cells of the {_other(changed)}."
        return (
            f"{text}. After the last block, information about the {changed} has spread to cells of the {_other(changed)}: they change "
            f"{other / own:.0%} as much as its own."
        )

    def _tower(self, changed: str, cells: str) -> pd.DataFrame:
        rows = self.rows(changed, cells)
        return rows[rows["stage"] == "tower"]

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def plot(self, ax: Axes | None = None, *, changed: str = "") -> Axes:
        """Draw the curves of one changed object; blocks that attend to the whole image are marked, unless all do.

        Parameters
        ----------
        ax
            Axes to draw on; a new figure's by default.
        changed
            `subject` or `object`; the first of the table by default.
        """
        changed = changed or str(self.table["changed"].iloc[0])
        table, marked = self.table[self.table["changed"] == changed], self.attributes["full_attention"]
        labels = {"own": "cells of the changed box", "other": "cells of the other box", "background": "background"}
        curves = {labels[str(cells)]: rows.assign(chance=0.0) for cells, rows in table.groupby("cells", sort=False)}
        marked = [] if len(marked) >= self.table["layer"].max() else marked
        ax = draw_tower(curves, new_axes(ax), full_attention=marked, title=f"{changed} painted over")
        ax.set_ylabel("Relative change of the residual stream")
        return ax

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """One panel for each changed object."""
        changed = list(dict.fromkeys(self.table["changed"]))
        figure, axes = new_figure(len(changed), width=3.3 * len(changed), height=2.7)
        with paper_style():
            for who, ax in zip(changed, axes, strict=True):
                self.plot(ax, changed=who)
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return figure


def vision_changes(
    store: ActivationStore, *, full_attention: Sequence[int] | None = None, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> VisionChanges:
    """Mean relative change of image cells when the box of one object is painted over, by block of the vision tower.

    The cells of the other object and of the background change only by what the tower moves between cells: those whose own pixels changed,
    which are not 0 before the first block, are left out, as are cells in both boxes.

    Parameters
    ----------
    full_attention
        Blocks with attention over the whole image, to be marked; by default those that the store names, none where unknown.
    draws, seed, level
        Bootstrap resamples of images, their seed, and the level of the intervals (`stats.mean_ratio`).

    Raises
    ------
    NotRecordedError
        If the store holds no changes.
    TooFewExamplesError
        If they were measured for no example.
    """
    layout = store.layout
    if "vision_change" not in layout.record:
        raise NotRecordedError("expected vision_change in the store, found none; extract again with --record vision_change and --boxes")
    numbers, means = _example_means(store)
    if not len(numbers):
        raise TooFewExamplesError("expected examples with changes in the vision tower, found none; extract with a larger `changes`")
    images = image_groups(store.examples.iloc[numbers]).labels
    bootstrap = Bootstrap(images, draws=draws, seed=seed)
    marked = [int(k) for k in (full_attention if full_attention is not None else known_blocks(store))]
    parts = []
    for k, changed in enumerate(CHANGED):
        for c, cells in enumerate(CELLS):
            values = means[:, k, :, c].T
            held = np.isfinite(values).all(0)
            if not held.any():
                continue
            value, _, bands = mean_ratio(values, np.where(held, 1.0, np.nan) + 0 * values, bootstrap, level=level)
            layer = np.minimum(np.arange(len(values)), layout.change_blocks)
            stage = np.where(np.arange(len(values)) > layout.change_blocks, MERGED, "tower").astype(object)
            about: dict[str, Any] = {"changed": changed, "cells": cells, "stage": stage, "layer": layer}
            about["whole_image"] = (stage == "tower") & np.isin(layer - 1, marked)
            about |= {"examples": int(held.sum()), "images": len(np.unique(images[held])), "value": value, **bands.ends}
            parts.append(pd.DataFrame(about))
    attributes: dict[str, Any] = {**made_from(store), "full_attention": marked, "draws": draws, "seed": seed, "level": level}
    return VisionChanges(pd.concat(parts, ignore_index=True), attributes)


def _example_means(store: ActivationStore) -> tuple[NDArray[np.int64], Floats]:
    """Numbers of the examples with changes, and (example, changed, layer, cells) means over their cells; NaN where there is none."""
    boxes, numbers, means = shown_boxes(store), [], []
    able = np.flatnonzero(store.available("vision_change") & np.isfinite(boxes).all((1, 2)))
    for start in range(0, len(able), _READ):
        some = able[start : start + _READ]
        for number, changes in zip(some, store.read("vision_change", examples=some), strict=True):
            rows, columns_ = (int(size) for size in store.grid[number])
            changes = changes[..., : rows * columns_].astype(np.float64)
            if np.isnan(changes).all():
                continue
            inside = np.zeros((2, rows * columns_), bool)
            for k in range(2):
                x0, y0, x1, y1 = boxes[number, k].tolist()
                inside[k, cells_in_box((x0, y0, x1, y1), (1, 1), (rows, columns_))] = True
            found = np.full((2, changes.shape[1], len(CELLS)), np.nan)
            for k in range(2):
                unchanged = ~inside[k] & (changes[k, 0] == 0)
                for c, chosen in enumerate((inside[k] & ~inside[1 - k], unchanged & inside[1 - k], unchanged & ~inside[1 - k])):
                    if chosen.any():
                        found[k, :, c] = changes[k][:, chosen].mean(-1)
            numbers.append(int(number))
            means.append(found)
    return np.array(numbers, np.int64), np.array(means)


def _other(changed: str) -> str:
    return CHANGED[1 - CHANGED.index(changed)]


def _curve_text(rows: pd.DataFrame, cells: str) -> str:
    tower, merged = rows[rows["stage"] == "tower"], rows[rows["stage"] == MERGED]
    last = tower.iloc[-1]
    ends = interval_text(last["low"], last["high"], absent="(too few images for an interval)")
    text = f"{last['value']:.2f} {ends} after {int(last['layer'])} blocks"
    if cells == "own":
        text = f"{tower['value'].iloc[0]:.2f} before the first block, {text}"
    else:
        moved = tower[tower["value"] > 0]
        whole = ", which attends to the whole image" if len(moved) and moved["whole_image"].iloc[0] else ""
        text = f"0 before block {int(moved['layer'].iloc[0]) - 1}{whole}, {text}" if len(moved) else f"0 in all {int(last['layer'])} blocks"
    return f"{text}, merged {merged['value'].iloc[0]:.2f}" if len(merged) else text
