"""Attention rollout of examples of a store, from their maps or weighted by gradients, and its result."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import Window, checked_window, require_maps
from stratascope.analysis.example_images import MOST_EXAMPLES, ON_IMAGE, answer_text, example_table, on_image, picture, relative_boxes
from stratascope.analysis.parallel import held_examples, over_blocks
from stratascope.analysis.rollout import Form, gradient_rollout_packed, rollout, rollout_packed
from stratascope.analysis.sinks import places_of, sinks_of_maps
from stratascope.analysis.tower_rollout import has_tower, patch_picture, require_tower, stored_tower_rollout
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.figures.gallery import Tile, draw_gallery
from stratascope.results.file import made_from
from stratascope.results.result import Result, array_field, table_field
from stratascope.store import ActivationStore, decode_maps
from stratascope.store.format.json_schema import each

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Tower = Literal["auto", "decoder", "vision"]

FOUND = "found"
PIECE = 16
"""Examples in one task."""
GRADIENT = "gradient"
"""Form of a rollout of maps weighted by gradients."""


class RolloutResult(
    Result,
    kind="rollout",
    command="rollout",
    schema={
        **each(str, "store condition fusion"),
        **each(float, "discard"),
        "window": tuple[int, int] | None,
        "form": Literal["raw", "dropped", "conditional", "gradient"],
        "sinks": str | list[int],
        "tower?": Literal["decoder", "vision"],
    },
):
    """Attention rollout of the final token, for several examples."""

    selects_examples: ClassVar[bool] = True

    examples: pd.DataFrame = table_field(ON_IMAGE)
    """example (number), id, n_tokens, image_start, image_stop, rows, columns, sinks (token numbers of the sinks left out, as text)."""
    values: NDArray[np.float64] = array_field("float", "example layer token", name="rollout")
    """(example, layer, token) float64: row 0 is the rollout onto the inputs; NaN after the prompt. Rows sum to 1, but those of the form
    `gradient` to more."""
    attributes: Mapping[str, Any]
    """store, condition, fusion, window, form, discard; tower where it was chosen."""
    patches: NDArray[np.float64] | None = array_field("float", "example view patch", default=None)
    """(example, view, patch) float64: rollout through the vision tower onto the patches of each view in raster order; NaN beyond. None: it
    ends at the decoder's inputs."""
    view_grids: NDArray[np.int32] | None = array_field("int", "example view grid_axis", default=None)
    """(example, view, 2): rows and columns of patches; -1 where an image has no such view."""
    view_boxes: NDArray[np.float32] | None = array_field("float", "example view side", default=None)
    """(example, view, 4): left, top, right, bottom of each view as shares of what the image cells cover; NaN where there is none."""

    def onto_patches(self, k: int) -> NDArray[np.float64]:
        """(rows, columns): the k-th example's rollout onto the image through the vision tower, in cells of the finest view's patches.

        Raises
        ------
        NotRecordedError
            If the rollout ends at the decoder's inputs.
        """
        if self.patches is None or self.view_grids is None or self.view_boxes is None:
            raise NotRecordedError(
                "expected a rollout through the vision tower, found one onto the decoder's inputs; roll out with `tower`"
            )
        return patch_picture(self.patches[k], self.view_grids[k], self.view_boxes[k])

    def onto_image(self, k: int, layer: int = 0) -> NDArray[np.float64]:
        """(rows, columns): the k-th example's rollout onto its image cells at `layer`."""
        return on_image(self.examples, self.values[:, layer], k)

    @property
    def window(self) -> tuple[int, int]:
        """Half-open range of decoder blocks."""
        first, stop = self.attributes["window"] or (0, self.values.shape[1] - 1)
        return int(first), int(stop)

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `rollout_examples`."""
        held = {name: self.attributes[name] for name in ("window", "form", "discard")}
        if held["form"] == GRADIENT:
            held = {"window": held["window"], "gradient": True}
        if "tower" in self.attributes:
            held["tower"] = self.attributes["tower"]
        return {"examples": self.examples["example"].tolist(), **held}

    def to_frame(self) -> pd.DataFrame:
        """example, id, n_tokens, onto_the_image and, through the vision tower, onto_the_patches (shares of the rollout)."""
        table = self.examples[["example", "id", "n_tokens"]].assign(onto_the_image=self._image_shares())
        return table if self.patches is None else table.assign(onto_the_patches=self._patch_shares())

    def summary(self) -> str:
        """Rollout on the image and on the first token, mean over examples."""
        first, stop = self.window
        shares = self._image_shares()
        return (
            f"{self.attributes['form']} rollout, blocks {first} to {stop - 1}, {len(shares)} examples: "
            f"{sum(shares) / len(shares):.1%} on the image, {float((self.values[:, 0, 0] / self._totals()).mean()):.1%} on the first token"
            + ("" if self.patches is None else f"; through the vision tower {self._patch_shares().mean():.1%} on the image's patches")
        )

    def figure(self, store: ActivationStore | None = None) -> Figure | None:
        """Up to eight examples: rollout on the image cells, caption, label, answer; None without the store or a grid of cells.

        Through the vision tower: up to four examples, each with the rollout on its cells and on its patches, or on its patches alone where
        image tokens have no known place.
        """
        placed = bool(self.examples["rows"].all())
        if store is None or not (placed or self.patches is not None):
            return None
        most = MOST_EXAMPLES if self.patches is None or not placed else MOST_EXAMPLES // 2
        numbers = [int(number) for number in self.examples["example"].iloc[:most]]
        tiles = []
        for k, (number, boxes) in enumerate(zip(numbers, relative_boxes(store, numbers), strict=True)):
            cells = self.onto_image(k)
            caption = textwrap.fill(f"#{number} {store.examples['caption'].iloc[number]}", 34)
            share = cells.sum() / self._totals()[k]
            text = f"{caption}\n{textwrap.fill(answer_text(store, number), 40)}\n{share:.0%} on the image"
            shown = picture(store, number)
            if placed:
                tiles.append(Tile(shown, cells, text, boxes))
            if self.patches is not None:
                share_text = f"{self._patch_shares()[k]:.0%} on the patches"
                tiles.append(Tile(shown, self.onto_patches(k), share_text if placed else f"{caption}\n{share_text}", boxes))
        first, stop = self.window
        title = (
            f"{self.attributes['form']} rollout of the final token, blocks {first} to {stop - 1}, {self.attributes['fusion']} over heads; "
            "colour scale: 0 to the largest cell of each image"
        )
        columns = len(tiles) if len(tiles) <= 5 else min((4, 3), key=lambda n: -len(tiles) % n)
        heads = ["onto image tokens", "onto patches"] * 2 if placed and self.patches is not None else []
        return draw_gallery(tiles, columns=4 if heads else columns, title=title, heads=heads)

    def _image_shares(self) -> list[float]:
        return [float(self.onto_image(k).sum() / total) for k, total in enumerate(self._totals())]

    def _patch_shares(self) -> NDArray[np.float64]:
        """(example,) share of the rollout on patches of the image."""
        return np.asarray(np.nansum(np.asarray(self.patches), (1, 2)) / self._totals())

    def _totals(self) -> NDArray[np.float64]:
        """(example,) sums of the rollouts onto the inputs."""
        return np.asarray(np.nansum(self.values[:, 0], -1))


def rollout_examples(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    window: Window | None = None,
    form: Form = "raw",
    sinks: Sequence[int] | str = FOUND,
    discard: float = 0.0,
    gradient: bool = False,
    tower: Tower = "auto",
    scheduler: str | None = None,
    progress: bool = False,
) -> RolloutResult:
    """Attention rollout of the final token, from stored maps.

    Parameters
    ----------
    examples
        Example numbers or a mask; all examples with maps by default.
    window, form, discard
        As of `rollout`.
    sinks
        Token numbers that the forms `dropped` and `conditional` leave out. "found": the sinks of each example at the first token and at
        the image's edge, found by `sinks.find_sinks` from the final rows of all layers.
    gradient
        Roll out the maps weighted by the gradient of the answer's logit difference (Chefer et al. 2021) instead of the maps themselves:
        `gradient_rollout` of the store, whose window ends with the last block, or for other windows the packed `gradient_maps`. `form`,
        `sinks` and `discard` do not apply.
    tower
        How far down: `decoder`, onto the prompt's tokens; `vision`, also through the vision tower onto the image's patches, which needs
        vision_maps in the store, a window from block 0 and neither `gradient` nor `discard`; `auto`: the latter where it can be.
    scheduler
        None or `synchronous`, `threads`, `processes`, or the address of a Dask scheduler.
    progress
        Show a progress bar where stderr is a terminal.

    Raises
    ------
    NotRecordedError
        If the store holds no maps, or none of an example. Final-token rows are not enough: rollout needs the rows of all tokens.
    InvalidInputError
        If `rollout` refuses a parameter, there are no examples, or `gradient` is given with a parameter that does not apply to it.
    """
    if gradient:
        _refuse_with_gradient(form, sinks, discard, "" if tower == "auto" else tower)
        return _gradient_rollouts(store, examples, window)
    require_maps(store, "rollout")
    if isinstance(sinks, str) and sinks != FOUND:
        raise InvalidInputError(f"expected token numbers or {FOUND!r} for sinks, found {sinks!r}")
    first, last = checked_window(window, store.layout.layers)
    chosen = held_examples(store, "attention_maps", examples)
    through = _through_tower(store, tower, first, discard)
    options: dict[str, Any] = {"window": (first, last), "form": form, "sinks": sinks, "discard": discard, "through": through}
    parts = over_blocks(_rolled, store, chosen, at_most=PIECE, scheduler=scheduler, progress=progress, label="rollout", **options)
    longest = int(store.n_tokens[chosen].max())
    values = np.full((len(chosen), last - first + 1, longest), np.nan)
    dropped: list[str] = []
    patches: list[NDArray[np.float64]] = []
    for k, (rolled, left_out, onto) in enumerate(found for part in parts for found in part):
        values[k, :, : rolled.shape[1]] = rolled
        dropped.append(" ".join(map(str, left_out)))
        patches += [] if onto is None else [onto]
    attributes = {
        **made_from(store),
        "fusion": store.layout.fusion,
        "window": [first, last] if window else None,
        "form": form,
        "sinks": sinks if isinstance(sinks, str) else list(sinks),
        "discard": discard,
        **({} if tower == "auto" else {"tower": tower}),
    }
    views = (np.stack(patches), *(store.read(name, examples=chosen) for name in ("vision_grid", "vision_box"))) if through else ()
    return RolloutResult(example_table(store, chosen).assign(sinks=dropped), values, attributes, *views)


def _through_tower(store: ActivationStore, tower: Tower, first: int, discard: float) -> bool:
    """Whether to roll out through the vision tower; an error where it was chosen and cannot be."""
    if tower not in ("auto", "decoder", "vision"):
        raise InvalidInputError(f"expected `tower` auto, decoder or vision, found {tower!r}")
    if tower != "vision":
        return tower == "auto" and has_tower(store) and not first and not discard
    require_tower(store, "rollout")
    if first:
        raise InvalidInputError(
            f"expected a `window` from block 0 for rollout through the vision tower, whose output enters there, found block {first}"
        )
    if discard:
        raise InvalidInputError(f"expected no `discard` for rollout through the vision tower, found {discard:g}; leave it out")
    return True


def _refuse_with_gradient(form: Form, sinks: Sequence[int] | str, discard: float, tower: str) -> None:
    found = {
        "form": form != "raw" and form,
        "sinks": sinks != FOUND and sinks,
        "discard": discard,
        "tower": tower,
    }
    for name, value in found.items():
        if value:
            raise InvalidInputError(f"expected no `{name}` beside `gradient`, found {value}; leave one of them out")


def gradient_array(store: ActivationStore, window: Window | None = None) -> str:
    """Array from which a gradient rollout is taken: the rollout itself where it ends with the last block, else the packed maps.

    Raises
    ------
    NotRecordedError
        If the store has neither.
    InvalidInputError
        If the window ends before the last block, and the store has no maps.
    """
    layout = store.layout
    last = checked_window(window, layout.layers)[1]
    if (
        "gradient_maps" in layout.record
        and "gradient_scale" in layout.record
        and not ("gradient_rollout" in layout.record and last == layout.layers)
    ):
        return "gradient_maps"
    if "gradient_rollout" not in layout.record:
        raise NotRecordedError(
            "expected gradient_rollout or gradient_maps in the store for the rollout of maps weighted by gradients, found none; extract "
            "again with gradient_rollout in `record`, in addition to the present arrays"
        )
    if last != layout.layers:
        raise InvalidInputError(
            f"expected a `window` that ends with the last block, {layout.layers - 1}, for a gradient rollout without gradient_maps in the "
            f"store, found one that ends with {last - 1}: record gradient_maps for other windows"
        )
    return "gradient_rollout"


def _gradient_rollouts(store: ActivationStore, examples: Sequence[int] | NDArray[Any] | None, window: Window | None) -> RolloutResult:
    layout, array = store.layout, gradient_array(store, window)
    if layout.residual_layers != tuple(range(layout.layers + 1)):
        raise NotRecordedError(
            f"expected the gradient rollout of all {layout.layers} blocks, found a copy of some; copy the store again with all layers"
        )
    first, last = checked_window(window, layout.layers)
    chosen = held_examples(store, array, examples)
    longest = int(store.n_tokens[chosen].max())
    if array == "gradient_rollout":
        values = np.asarray(store.read(array, examples=chosen)[:, first:, :longest], np.float64)
    else:
        values = np.full((len(chosen), last - first + 1, longest), np.nan)
        for k, number in enumerate(chosen.tolist()):
            tokens = int(store.n_tokens[number])
            packed = store.read(array, examples=number)[:, :tokens, :tokens]
            scale = store.read("gradient_scale", examples=number)[:, :tokens]
            values[k, :, :tokens] = gradient_rollout_packed(packed, scale, window=(first, last))
    attributes = {
        **made_from(store),
        "fusion": "mean",
        "window": [first, last] if window else None,
        "form": GRADIENT,
        "sinks": [],
        "discard": 0.0,
    }
    return RolloutResult(example_table(store, chosen).assign(sinks=""), values, attributes)


def _rolled(
    store: ActivationStore,
    numbers: NDArray[np.int64],
    *,
    window: Window,
    form: Form,
    sinks: Sequence[int] | str,
    discard: float,
    through: bool,
) -> list[tuple[NDArray[np.float64], tuple[int, ...], NDArray[np.float64] | None]]:
    """Rollout, sinks that it leaves out, and (view, patch) rollout onto patches of each example."""
    places = places_of(store, numbers)
    out = []
    for k, number in enumerate(numbers):
        tokens = int(store.n_tokens[number])
        packed = store.read("attention_maps", examples=int(number))[:, :tokens, :tokens]
        dropped: tuple[int, ...] = ()
        if form != "raw":
            rows = np.square(packed[:, -1], dtype=np.float64)
            rows /= rows.sum(-1, keepdims=True)
            dropped = sinks_of_maps(rows, places[k]) if isinstance(sinks, str) else tuple(sinks)
        if discard:
            rolled = rollout(decode_maps(packed, tokens), window=window, form=form, sinks=dropped, discard=discard)
        else:
            rolled = rollout_packed(packed, window=window, form=form, sinks=dropped)
        out.append((rolled, dropped, stored_tower_rollout(store, int(number), rolled[0]) if through else None))
    return out
