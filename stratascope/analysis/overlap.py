"""Overlap of maps over image cells with the gold boxes of subject and object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.box_cells import BOXES, box_tokens
from stratascope.analysis.parallel import held_examples, over_blocks
from stratascope.analysis.weighting import WEIGHINGS, checked_weighing, require_recorded, weighted_rows
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.figures.drawing import new_figure
from stratascope.figures.heatmaps import draw_heads
from stratascope.figures.predictions import draw_overlap
from stratascope.figures.style import paper_style
from stratascope.results.file import ResultFile, made_from
from stratascope.results.result import CHOICE, Result, array_field, new_axes
from stratascope.store import ActivationStore, choice_text
from stratascope.store.format.json_schema import Along, each

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measure = Literal["share", "lift", "cosine", "auc"]
MEASURES: tuple[Measure, ...] = ("share", "lift", "cosine", "auc")
"""`share`: share of the map's weight on the image that lies in the box. `lift`: that share over the box's share of cells, 1 for a uniform
map. `cosine`: cosine similarity of the map and the box's indicator (AdaptVis). `auc`: AUROC of the map for cells in the box, 0.5 for a
uniform map."""
PIECE = 16


def cell_overlap(weights: NDArray[Any], inside: NDArray[np.bool_], measure: Measure = "share") -> NDArray[np.float64]:
    """Measure the overlap of maps with one set of cells.

    Parameters
    ----------
    weights
        (..., cell) weights of at least 0.
    inside
        (cell,) bool.
    measure
        One of `MEASURES`.

    Returns
    -------
    numpy.ndarray
        (...,); NaN for a zero map and where no cell is inside (for `lift` and `auc` also where every cell is).

    Raises
    ------
    InvalidInputError
        If the measure is unknown, the shapes do not fit, or a weight is negative.
    """
    if measure not in MEASURES:
        raise InvalidInputError(f"expected a measure of {', '.join(MEASURES)}, found {measure!r}")
    weights = np.asarray(weights, np.float64)
    if weights.shape[-1] != len(inside):
        raise InvalidInputError(f"expected weights of {len(inside)} cells, found shape {weights.shape}")
    if (weights < 0).any():
        raise InvalidInputError("expected weights of at least 0, found negative ones; pass positive and negative parts apart")
    blank = np.full(weights.shape[:-1], np.nan)
    count, total = int(inside.sum()), weights.sum(-1)
    if not count or (count == len(inside) and measure in ("lift", "auc")):
        return blank
    within = weights[..., inside].sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        if measure == "cosine":
            found = within / (np.sqrt(count) * np.linalg.norm(weights, axis=-1))
        elif measure == "auc":
            found = _pairs_won(weights, inside)
        else:
            found = within / total * (1 if measure == "share" else len(inside) / count)
    return np.asarray(np.where(total > 0, found, np.nan))


def _pairs_won(weights: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    from scipy.stats import rankdata

    count = int(inside.sum())
    ranks = rankdata(weights, axis=-1)[..., inside].sum(-1)
    return np.asarray((ranks - count * (count + 1) / 2) / (count * (len(inside) - count)))


MEASURE_LABELS = {
    "share": "Share in both boxes",
    "lift": "Lift in both boxes",
    "cosine": "Cosine with both boxes",
    "auc": "AUROC of both boxes",
}
EVEN = {"lift": 1.0, "auc": 0.5}
"""Measure -> its value for a uniform map."""


class BoxOverlap(
    Result,
    kind="box_overlap",
    command="overlap",
    schema={
        **each(str, "store condition map measure"),
        **CHOICE,
        "layers": Along("layer", int),
        "heads": Along("head", int),
        "boxes": Along("box", str),
    },
):
    """Overlap of maps with the gold boxes, by layer and head."""

    values: NDArray[np.float32] = array_field("float", "example layer head box", name="overlap")
    """(example, layer, head, box) for `box_cells.BOXES`; NaN for an unknown box or a map that is zero on the image."""
    examples: NDArray[np.int64] = array_field("int", "example", name="example")
    """(example,) example numbers."""
    attributes: Mapping[str, Any]
    """store, condition, map (weighting or name of the map), measure, layers, heads (numbers; -1 for maps fused over heads), only
    (COLUMN=VALUE that chose the examples)."""

    @property
    def boxes(self) -> tuple[str, ...]:
        """Names of the last axis."""
        return BOXES

    def mean(self, box: str = "both") -> NDArray[np.float64]:
        """(layer, head) mean over the examples with a known `box`; InvalidInputError for another name."""
        if box not in BOXES:
            raise InvalidInputError(f"expected a box of {', '.join(BOXES)}, found {box!r}")
        values = self.values[..., BOXES.index(box)].astype(np.float64)
        known = ~np.isnan(values)
        count = known.sum(0)
        return np.asarray(np.where(count > 0, np.where(known, values, 0).sum(0) / np.maximum(count, 1), np.nan))

    @property
    def known(self) -> NDArray[np.bool_]:
        """(example,) whether both boxes are known."""
        return known_boxes(self, "both")

    def contents(self) -> ResultFile:
        """What `save` writes: the fields and the names of the boxes."""
        file = super().contents()
        return replace(file, attributes={**file.attributes, "boxes": list(BOXES)})

    @classmethod
    def from_contents(cls, file: ResultFile) -> BoxOverlap:
        """The overlap that a file holds."""
        return super().from_contents(replace(file, attributes={k: v for k, v in file.attributes.items() if k != "boxes"}))

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `attention_overlap`."""
        return {"weighing": self.attributes["map"], "measure": self.attributes["measure"], "only": self.only}

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """The weighting, where it is not attention alone, and the selection of examples."""
        return (None if self.attributes["map"] == "attention" else self.attributes["map"], *self.only)

    def to_frame(self) -> pd.DataFrame:
        """box, mean (over heads), highest, and its layer and head."""
        rows = []
        for box in BOXES:
            means = self.mean(box)
            if np.isfinite(means).any():
                layer, head = np.unravel_index(int(np.nanargmax(means)), means.shape)
                highest, named = float(means[layer, head]), (self.attributes["layers"][int(layer)], self.attributes["heads"][int(head)])
                rows.append((box, float(np.nanmean(means)), highest, *named))
        return pd.DataFrame(rows, columns=["box", "mean", "highest", "layer", "head"])

    def summary(self) -> str:
        """The mean over heads and the head with the highest overlap with both boxes."""
        means, measure = self.mean("both"), self.attributes["measure"]
        if not np.isfinite(means).any():
            return f"{self.attributes['map']} in the boxes: no example has both"
        layer, head = np.unravel_index(int(np.nanargmax(means)), means.shape)
        where = f"block {self.attributes['layers'][int(layer)]} head {self.attributes['heads'][int(head)]}"
        return (
            f"{self.attributes['map']} in the boxes of subject and object, {int(self.known.sum())} of {len(self.examples)} examples with "
            f"both: mean {measure} over heads {np.nanmean(means):.2f}, highest {means[layer, head]:.2f} ({where})"
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the overlap with both boxes by decoder block, one line per head."""
        measure = self.attributes["measure"]
        return draw_overlap(
            self.mean("both"), self.attributes["layers"], new_axes(ax), label=MEASURE_LABELS[measure], even=EVEN.get(measure)
        )

    def figure(self, store: ActivationStore | None = None, *, prediction: Result | None = None) -> Figure:
        """Overlap by head and layer, and the AUROC of the overlap for a right answer where it is given.

        Parameters
        ----------
        store
            Unused.
        prediction
            The answer prediction of this overlap.
        """
        columns_ = 2 + (prediction is not None)
        figure, axes = new_figure(columns_, width=3.1 * columns_, height=2.7)
        with paper_style():
            draw_heads(self.mean("both"), self.attributes["layers"], axes[0], label=MEASURE_LABELS[self.attributes["measure"]])
            self.plot(axes[1])
            if prediction is not None:
                prediction.plot(axes[2])
            if self.only:
                figure.suptitle(f"only {choice_text(self.only)}")
        return figure


def box_overlap(
    store: ActivationStore,
    maps: NDArray[Any],
    examples: Sequence[int] | NDArray[Any],
    *,
    name: str,
    measure: Measure = "share",
    layers: Sequence[int] | None = None,
) -> BoxOverlap:
    """Overlap of any maps over tokens (rollout, flow, attribution) with the gold boxes.

    Parameters
    ----------
    maps
        (example, token), (example, layer, token) or (example, layer, head, token); the image cells count.
    examples
        (example,) example numbers of the first axis.
    name
        Name of the maps in the result.
    measure
        One of `MEASURES`.
    layers
        Layer numbers; 0, 1, ... by default.

    Raises
    ------
    NotRecordedError
        If the store holds no boxes.
    InvalidInputError
        If shapes do not match, or as `cell_overlap`.
    """
    chosen = held_examples(store, "status", examples)
    values = np.asarray(maps)
    if not 2 <= values.ndim <= 4 or len(values) != len(chosen) or values.shape[-1] > store.layout.tokens:
        raise InvalidInputError(f"expected maps of {len(chosen)} examples over at most {store.layout.tokens} tokens, found {values.shape}")
    if values.ndim < 4:
        values = values[:, None, :] if values.ndim == 2 else values
        values = values[:, :, None]
    named = list(range(values.shape[1])) if layers is None else [int(k) for k in layers]
    if len(named) != values.shape[1]:
        raise InvalidInputError(f"expected {values.shape[1]} layer numbers, found {len(named)}")
    heads = list(range(values.shape[2])) if maps.ndim == 4 else [-1]
    return BoxOverlap(_overlaps(store, values, chosen, measure), chosen, _attributes(store, name, measure, named, heads))


def attention_overlap(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    only: Sequence[str] = (),
    weighing: str = "attention",
    measure: Measure = "lift",
    fused: bool = False,
    scheduler: str | None = None,
    progress: bool = False,
) -> BoxOverlap:
    """Overlap of the final token's attention with the gold boxes, by layer and head (AdaptVis, figure b).

    Parameters
    ----------
    examples
        Example numbers or a mask; all with recorded rows by default.
    only
        COLUMN=VALUE: keep the examples with one of the given values of each column; see `store.chosen_examples`.
    weighing
        One of `weighting.WEIGHINGS`; of `attribution`, the part in favour of the model's answer.
    measure
        One of `MEASURES`.
    fused
        Whether to average rows over heads first.
    scheduler
        None or `synchronous`, `threads`, `processes`, or the address of a Dask scheduler.
    progress
        Show a progress bar where stderr is a terminal.

    Raises
    ------
    NotRecordedError
        If the store holds no boxes, no attention rows, or lacks an array of the weighting.
    InvalidInputError
        As `cell_overlap`, or if no examples are left.
    """
    array = "attention_mean" if fused and weighing == "attention" else "attention_rows"
    needed = (array,) if weighing == "attention" else WEIGHINGS[checked_weighing(weighing)]
    require_recorded(store, needed, f"the weighting {weighing!r}")
    chosen = held_examples(store, array, examples, only)
    options: dict[str, Any] = {"measure": measure, "weighing": weighing, "fused": fused}
    parts = over_blocks(_of_rows, store, chosen, at_most=PIECE, scheduler=scheduler, progress=progress, label="overlap", **options)
    layout = store.layout
    heads = [-1] if fused else list(range(layout.heads))
    return BoxOverlap(np.concatenate(parts), chosen, _attributes(store, weighing, measure, list(layout.attention_layers), heads, only))


def _of_rows(store: ActivationStore, numbers: NDArray[np.int64], *, measure: Measure, weighing: str, fused: bool) -> NDArray[np.float32]:
    if fused and weighing == "attention":
        return _overlaps(store, store.read("attention_mean", examples=numbers)[:, :, None], numbers, measure)
    rows = weighted_rows(store, numbers, weighing)
    if fused:
        rows = rows.mean(2, keepdims=True)
    if weighing == "attribution":
        logits = store.read("answer_logits", examples=numbers)
        rows = np.maximum(rows * np.where(logits[:, 0] >= logits[:, 1], 1, -1)[:, None, None, None], 0)
    return _overlaps(store, rows, numbers, measure)


def _overlaps(store: ActivationStore, maps: NDArray[Any], numbers: NDArray[np.int64], measure: Measure) -> NDArray[np.float32]:
    """(example, layer, head, box) from maps (example, layer, head, token)."""
    inside = box_tokens(store, numbers)
    image = store.spans["image"][numbers]
    if (image[:, 1] > maps.shape[-1]).any():
        raise InvalidInputError(f"expected maps that cover the image's tokens, up to {image[:, 1].max()}, found {maps.shape[-1]} tokens")
    out = np.full((*maps.shape[:3], len(BOXES)), np.nan, np.float32)
    for k, (start, stop) in enumerate(image):
        for b in range(len(BOXES)):
            if inside[k, b].any():
                out[k, ..., b] = cell_overlap(maps[k, ..., start:stop], inside[k, b, start:stop], measure)
    return out


def _attributes(
    store: ActivationStore, name: str, measure: Measure, layers: list[int], heads: list[int], only: Sequence[str] = ()
) -> dict[str, Any]:
    source = made_from(store)
    return {**source, "map": name, "measure": measure, "layers": layers, "heads": heads, "only": list(only)}


def known_boxes(overlap: BoxOverlap, box: str) -> NDArray[np.bool_]:
    """(example,) whether the overlap with `box` is known in some layer and head; NotRecordedError if it never is."""
    known = np.isfinite(overlap.values[..., BOXES.index(box)]).any((1, 2))
    if not known.any():
        raise NotRecordedError(
            f"expected overlaps with the box {box!r}, found none in {len(overlap.examples)} examples; "
            "extract with `boxes` (COCO instances), or choose others"
        )
    return np.asarray(known)
