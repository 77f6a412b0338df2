"""Attention flow of several examples of a store, with figure and summary."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import Window, checked_window, require_maps
from stratascope.analysis.box_cells import BOXES, box_tokens
from stratascope.analysis.example_images import (
    MOST_EXAMPLES,
    ON_IMAGE,
    example_table,
    label_text,
    on_image,
    picture,
    relative_boxes,
)
from stratascope.analysis.flow import CUTS, Flow, flow, span_flow
from stratascope.analysis.parallel import held_examples, over_blocks
from stratascope.errors import NotRecordedError
from stratascope.figures.gallery import Tile, draw_gallery
from stratascope.results.file import ResultFile, made_from
from stratascope.results.result import Result, array_field, table_field
from stratascope.results.schema import columns
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import each

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIECE = 8
"""Examples in one task: an example of a 7B model takes a second or more."""


LIMITS = {
    "source": "minimum cut at the final token",
    "target": "minimum cut at the cell",
    "other": "other minimum cut",
}
"""Kind of minimum cut -> its label in a figure."""


class FlowResult(
    Result,
    kind="flow",
    command="flow",
    schema={**each(str, "store condition fusion"), "window": tuple[int, int] | None, "exact": bool, "cuts": list[str]},
):
    """Attention flow from the final token to every input token and into spans and boxes, for several examples."""

    selects_examples: ClassVar[bool] = True

    examples: pd.DataFrame = table_field(ON_IMAGE)
    """example (number), id, n_tokens, image_start, image_stop, rows, columns, position_correlation, warning ("" for none)."""
    values: NDArray[np.float64] = array_field("float", "example token", name="flow")
    """(example, token) maximum flow, or the bound where it was not computed; NaN after the prompt."""
    bounds: NDArray[np.float64] = array_field("float", "example token", name="bound")
    """(example, token) upper bound in closed form."""
    cuts: NDArray[np.int8] = array_field("int", "example token", name="cut")
    """(example, token) index into `flow.CUTS`; -1 after the prompt."""
    spans: pd.DataFrame = table_field(columns(text="span cut", ints="example tokens", floats="value bound", flags="saturated", empty=True))
    """example, span (of the store; `subject_box`, `object_box` where known), tokens, value, bound, cut, saturated."""
    attributes: Mapping[str, Any]
    """store, condition, fusion, window, exact."""

    def of(self, k: int) -> Flow:
        """Flow of the k-th example."""
        own = slice(0, int(self.examples["n_tokens"].iloc[k]))
        cuts = self.cuts[k, own]
        return Flow(self.values[k, own], self.bounds[k, own], cuts != CUTS.index("unproven"), np.array(CUTS)[cuts])

    def onto_image(self, k: int) -> NDArray[np.float64]:
        """(rows, columns): the k-th example's flow to its image cells."""
        return on_image(self.examples, self.values, k)

    def contents(self) -> ResultFile:
        """What `save` writes: the fields and the names of the cuts."""
        file = super().contents()
        return replace(file, attributes={**file.attributes, "cuts": list(CUTS)})

    @classmethod
    def from_contents(cls, file: ResultFile) -> FlowResult:
        """The flows that a file holds."""
        return super().from_contents(replace(file, attributes={k: v for k, v in file.attributes.items() if k != "cuts"}))

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `flow_examples`."""
        return {"examples": self.examples["example"].tolist(), "window": self.attributes["window"], "exact": self.attributes["exact"]}

    def to_frame(self) -> pd.DataFrame:
        """One row per example and span."""
        return self.spans

    def summary(self) -> str:
        """Kinds of minimum cuts, correlation with token position, and flow into spans."""
        first, stop = self.attributes["window"] or (0, None)
        blocks = f"blocks {first} to {stop - 1}" if stop else "all blocks"
        limits = self.cuts[self.cuts >= 0]
        shares = ", ".join(f"{name} {np.mean(limits == CUTS.index(name)):.0%}" for name in CUTS if (limits == CUTS.index(name)).any())
        lines = [
            f"flow through {blocks}, {len(self.examples)} examples; minimum cut at: {shares}",
            "median rank correlation of flow with token position: "
            f"{self.examples['position_correlation'].median():.2f} (near -1: flow depends on position only)",
        ]
        spans = self.spans.groupby("span", sort=False).agg(value=("value", "mean"), saturated=("saturated", "mean"))
        for name, value, saturated in zip(spans.index, spans["value"], spans["saturated"], strict=True):
            full = f"  saturated in {saturated:.0%} of examples: the whole outflow of the final token reaches it" if saturated else ""
            lines.append(f"  into {name:<14} {value:.3f}{full}")
        warned = int((self.examples["warning"] != "").sum())
        if warned:
            lines.append(f"warning ({warned} of {len(self.examples)} examples): {self.examples['warning'].max()}")
        return "\n".join(lines)

    def figure(self, store: ActivationStore | None = None) -> Figure | None:
        """Up to eight examples: flow to each image cell and its minimum cut; None without the store, or where
        image tokens have no known place."""
        if store is None or not self.examples["rows"].all():
            return None
        numbers = [int(number) for number in self.examples["example"].iloc[:MOST_EXAMPLES]]
        tiles = []
        for k, (number, boxes) in enumerate(zip(numbers, relative_boxes(store, numbers), strict=True)):
            row, cells = store.examples.iloc[number], self.onto_image(k)
            follows = self.examples["position_correlation"].iloc[k]
            text = f"{textwrap.fill(row.caption, 34)}\n{label_text(store, number)}; correlation with position {follows:.2f}"
            marks = np.array(CUTS)[on_image(self.examples, self.cuts, k)]
            # the smallest flow is common to all cells
            tiles.append(Tile(picture(store, number), cells - float(cells.min()), text, boxes, marks))
        first, stop = self.attributes["window"]
        title = f"flow from the final token, blocks {first} to {stop - 1}; colour scale: lowest to highest cell of each image"
        return draw_gallery(tiles, title=title, marks=LIMITS)


def flow_examples(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    window: Window | None = None,
    exact: bool = True,
    tower: str = "decoder",
    scheduler: str | None = None,
    progress: bool = False,
) -> FlowResult:
    """Attention flow of several examples, from stored maps.

    Parameters
    ----------
    examples
        Example numbers or a mask; all examples with maps by default.
    window
        Half-open range of blocks; all by default. Flow through all blocks mostly follows token position: see the column `warning`.
    exact
        False gives only the closed-form bound, in milliseconds, and no table of spans.
    tower
        `decoder`; `vision` raises with the reason.
    scheduler
        None or `synchronous`, `threads` (the solver releases the lock), `processes`, or the address of a Dask scheduler.
    progress
        Show a progress bar where stderr is a terminal.

    Raises
    ------
    NotRecordedError
        If the store holds no maps, or none of an example.
    InvalidInputError
        If the window is empty or outside, or there are no examples.
    MissingExtraError
        If `exact` is asked for without numba.
    """
    require_maps(store, "flow")
    window = checked_window(window, store.layout.layers)
    chosen = held_examples(store, "attention_maps", examples)
    options: dict[str, Any] = {"window": window, "exact": exact}
    parts = over_blocks(_flows, store, chosen, at_most=PIECE, scheduler=scheduler, progress=progress, label="flow", **options)
    found = [pair for part in parts for pair in part]
    longest = int(store.n_tokens[chosen].max())
    values, bounds = (np.full((len(chosen), longest), np.nan) for _ in range(2))
    cuts = np.full((len(chosen), longest), -1, np.int8)
    for k, (one, _) in enumerate(found):
        own = slice(0, len(one.value))
        values[k, own], bounds[k, own] = one.value, one.bound
        cuts[k, own] = [CUTS.index(name) for name in one.cut]
    table = example_table(store, chosen)
    table["position_correlation"] = [one.position_correlation for one, _ in found]
    table["warning"] = [one.warning or "" for one, _ in found]
    spans = pd.concat([part.assign(example=number) for number, (_, part) in zip(chosen, found, strict=True)], ignore_index=True)
    attributes = {
        **made_from(store),
        "fusion": store.layout.fusion,
        "window": list(window),
        "exact": exact,
    }
    return FlowResult(table, values, bounds, cuts, spans, attributes)


def _flows(store: ActivationStore, numbers: NDArray[np.int64], *, window: Window, exact: bool) -> list[tuple[Flow, pd.DataFrame]]:
    spans = {name: span[numbers] for name, span in store.spans.items()}
    try:
        boxes = box_tokens(store, numbers)
    except NotRecordedError:
        boxes = np.zeros((len(numbers), len(BOXES), store.layout.tokens), np.bool_)
    out = []
    for k, number in enumerate(numbers):
        maps = store.maps(int(number), range(*window))
        groups: dict[str, Sequence[int]] = {}
        if exact:
            groups = {name: range(*span[k]) for name, span in spans.items() if span[k, 0] >= 0}
            groups |= {f"{BOXES[b]}_box": np.flatnonzero(boxes[k, b]).tolist() for b in range(2) if boxes[k, b].any()}
        out.append((flow(maps, tokens=None if exact else ()), span_flow(maps, groups)))
    return out
