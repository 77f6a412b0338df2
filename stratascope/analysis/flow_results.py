"""Attention flow of several examples of a store, with figure and summary."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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
from stratascope.analysis.tower_flow import TowerFlow, stored_tower_flow
from stratascope.analysis.tower_rollout import require_tower
from stratascope.errors import InvalidInputError, NotRecordedError
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
    schema={
        **each(str, "store condition fusion"),
        "window": tuple[int, int] | None,
        "exact": bool,
        "cuts": list[str],
        "tower?": Literal["vision"],
    },
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
    """store, condition, fusion, window, exact; tower if flow runs through the vision tower."""
    patches: NDArray[np.float64] | None = array_field("float", "example view patch", default=None)
    """(example, view, patch) maximum flow through the vision tower to the patches of each view in raster order; NaN beyond. None: the flow
    ends at the decoder's inputs."""
    patch_bounds: NDArray[np.float64] | None = array_field("float", "example view patch", default=None)
    """(example, view, patch) upper bound in closed form, but for one flow through the decoder."""
    patch_cuts: NDArray[np.int8] | None = array_field("int", "example view patch", default=None)
    """(example, view, patch) index into `flow.CUTS`; -1 beyond the patches of a view."""
    view_grids: NDArray[np.int32] | None = array_field("int", "example view grid_axis", default=None)
    """(example, view, 2): rows and columns of patches; -1 where an image has no such view."""
    view_boxes: NDArray[np.float32] | None = array_field("float", "example view side", default=None)
    """(example, view, 4): left, top, right, bottom of each view as shares of what the image cells cover; NaN where there is none."""

    def of(self, k: int) -> Flow:
        """Flow of the k-th example."""
        own = slice(0, int(self.examples["n_tokens"].iloc[k]))
        cuts = self.cuts[k, own]
        return Flow(self.values[k, own], self.bounds[k, own], cuts != CUTS.index("unproven"), np.array(CUTS)[cuts])

    def onto_image(self, k: int) -> NDArray[np.float64]:
        """(rows, columns): the k-th example's flow to its image cells."""
        return on_image(self.examples, self.values, k)

    def onto_patches(self, k: int) -> NDArray[np.float64]:
        """(rows, columns): the k-th example's flow to the patches of the view of the whole image.

        Flows into single patches do not add up over views.

        Raises
        ------
        NotRecordedError
            If the flow ends at the decoder's inputs.
        """
        if self.patches is None or self.view_grids is None or self.view_boxes is None:
            raise NotRecordedError("expected flow through the vision tower, found flow to the prompt's tokens; pass `tower` vision")
        whole = int(np.flatnonzero((self.view_boxes[k] == [0, 0, 1, 1]).all(-1))[-1])
        rows, columns = self.view_grids[k, whole]
        return np.asarray(self.patches[k, whole, : rows * columns].reshape(rows, columns))

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
        through = {"tower": self.attributes["tower"]} if "tower" in self.attributes else {}
        return {
            "examples": self.examples["example"].tolist(),
            "window": self.attributes["window"],
            "exact": self.attributes["exact"],
            **through,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row per example and span."""
        return self.spans

    def summary(self) -> str:
        """Kinds of minimum cuts, correlation with token position, and flow into spans."""
        first, stop = self.attributes["window"] or (0, None)
        blocks = f"blocks {first} to {stop - 1}" if stop else "all blocks"
        lines = [
            f"flow through {blocks}, {len(self.examples)} examples; minimum cut at: {_cut_shares(self.cuts)}",
            "median rank correlation of flow with token position: "
            f"{self.examples['position_correlation'].median():.2f} (near -1: flow depends on position only)",
        ]
        if self.patches is not None and self.patch_cuts is not None:
            lines.append(f"through the vision tower to the image's patches: minimum cut at: {_cut_shares(self.patch_cuts)}")
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
        most = MOST_EXAMPLES if self.patches is None else MOST_EXAMPLES // 2
        numbers = [int(number) for number in self.examples["example"].iloc[:most]]
        tiles = []
        for k, (number, boxes) in enumerate(zip(numbers, relative_boxes(store, numbers), strict=True)):
            row, cells = store.examples.iloc[number], self.onto_image(k)
            follows = self.examples["position_correlation"].iloc[k]
            text = f"{textwrap.fill(row.caption, 34)}\n{label_text(store, number)}; correlation with position {follows:.2f}"
            marks = np.array(CUTS)[on_image(self.examples, self.cuts, k)]
            # the smallest flow is common to all cells
            tiles.append(Tile(picture(store, number), cells - float(cells.min()), text, boxes, marks))
            if self.patches is not None:
                patches = self.onto_patches(k)
                tiles.append(Tile(tiles[-1].image, patches - float(patches.min()), "patches of the whole image", boxes))
        first, stop = self.attributes["window"]
        title = f"flow from the final token, blocks {first} to {stop - 1}; colour scale: lowest to highest cell of each image"
        heads = [] if self.patches is None else ["to image tokens", "to patches"] * 2
        return draw_gallery(tiles, title=title, marks=LIMITS, heads=heads)


def _cut_shares(cuts: NDArray[np.int8]) -> str:
    """Shares of the kinds of minimum cuts, as text."""
    found = cuts[cuts >= 0]
    return ", ".join(f"{name} {np.mean(found == CUTS.index(name)):.0%}" for name in CUTS if (found == CUTS.index(name)).any())


def flow_examples(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    window: Window | None = None,
    exact: bool = True,
    tower: Literal["decoder", "vision"] = "decoder",
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
        How far down: `decoder`, to the prompt's tokens; `vision`, also through the vision tower to the image's patches, exactly, which
        needs vision_maps in the store and a window of all blocks, and takes a maximum flow for every patch.
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
    through = _through_tower(store, tower, window, exact)
    window = checked_window(window, store.layout.layers)
    chosen = held_examples(store, "attention_maps", examples)
    options: dict[str, Any] = {"window": window, "exact": exact, "through": through}
    parts = over_blocks(_flows, store, chosen, at_most=PIECE, scheduler=scheduler, progress=progress, label="flow", **options)
    found = [pair for part in parts for pair in part]
    longest = int(store.n_tokens[chosen].max())
    values, bounds = (np.full((len(chosen), longest), np.nan) for _ in range(2))
    cuts = np.full((len(chosen), longest), -1, np.int8)
    for k, (one, _, _) in enumerate(found):
        own = slice(0, len(one.value))
        values[k, own], bounds[k, own] = one.value, one.bound
        cuts[k, own] = [CUTS.index(name) for name in one.cut]
    table = example_table(store, chosen)
    table["position_correlation"] = [one.position_correlation for one, _, _ in found]
    table["warning"] = [one.warning or "" for one, _, _ in found]
    spans = pd.concat([part.assign(example=number) for number, (_, part, _) in zip(chosen, found, strict=True)], ignore_index=True)
    attributes = {
        **made_from(store),
        "fusion": store.layout.fusion,
        "window": list(window),
        "exact": exact,
        **({"tower": tower} if through else {}),
    }
    views: tuple[NDArray[Any], ...] = ()
    if through:
        onto = [patches for _, _, patches in found if patches is not None]
        views = tuple(np.stack([getattr(each, name) for each in onto]) for name in ("value", "bound", "cut"))
        views += tuple(store.read(name, examples=chosen) for name in ("vision_grid", "vision_box"))
    return FlowResult(table, values, bounds, cuts, spans, attributes, *views)


def _through_tower(store: ActivationStore, tower: str, window: Window | None, exact: bool) -> bool:
    """Whether flow runs through the vision tower; an error where it cannot."""
    if tower not in ("decoder", "vision"):
        raise InvalidInputError(f"expected `tower` decoder or vision, found {tower!r}")
    if tower == "decoder":
        return False
    require_tower(store, "flow")
    if checked_window(window, store.layout.layers) != (0, store.layout.layers):
        raise InvalidInputError("expected a `window` of all blocks for flow through the vision tower, found fewer; leave it out")
    if not exact:
        raise InvalidInputError("expected `exact` flow through the vision tower, found it off; leave one of them out")
    return True


def _flows(
    store: ActivationStore, numbers: NDArray[np.int64], *, window: Window, exact: bool, through: bool
) -> list[tuple[Flow, pd.DataFrame, TowerFlow | None]]:
    """Flow, table of spans, and flow to patches of each example."""
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
        patches = stored_tower_flow(store, int(number)) if through else None
        out.append((flow(maps, tokens=None if exact else ()), span_flow(maps, groups), patches))
    return out
