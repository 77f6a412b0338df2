"""Attention rollout (Abnar & Zuidema 2020) of the final token, as a vector chain over fused attention maps."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import Window, check_layer, checked_window, discard_weakest, require_maps, shaped_maps
from stratascope.analysis.example_images import (
    MOST_EXAMPLES,
    ON_IMAGE,
    answer_text,
    example_table,
    has_places,
    on_image,
    picture,
    relative_boxes,
)
from stratascope.analysis.parallel import held_examples, over_blocks
from stratascope.analysis.sinks import places_of, sinks_of_maps
from stratascope.errors import InvalidInputError
from stratascope.figures.gallery import Tile, draw_gallery
from stratascope.results.file import made_from
from stratascope.results.result import Result, array_field, table_field
from stratascope.store import ActivationStore, decode_maps
from stratascope.store.format.json_schema import each

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Form = Literal["raw", "dropped", "conditional"]
FORMS: tuple[Form, ...] = ("raw", "dropped", "conditional")
"""`raw`: as defined. `dropped`: the rollout without the sinks, scaled to sum to 1. `conditional`: maps without attention to the sinks,
rows scaled to sum to 1."""
FOUND = "found"
PIECE = 16
"""Examples in one task."""

Step = Callable[[Floats, int], Floats]
"""(..., token) above block `layer`, layer -> (..., token) below it."""


def rollout(
    maps: NDArray[Any], *, window: Window | None = None, form: Form = "raw", sinks: Sequence[int] = (0,), discard: float = 0.0
) -> Floats:
    """Rollout of the final token onto the tokens of every layer below.

    Abnar & Zuidema 2020, equation 1, for one row: the final row of A~[L-1] ... A~[0] with A~ = rownorm(A + I), as vector-matrix products
    from the top down, O(layers x tokens^2) instead of O(layers x tokens^3).

    Parameters
    ----------
    maps
        (layer, query, key), fused over heads; rows sum to 1.
    window
        (first, last) half-open range of layers to roll through; all by default.
    form
        One of `FORMS`: how sinks are treated.
    sinks
        Token numbers; the first token by default. The raw form ignores them.
    discard
        Share of each map's weights, the smallest, that is set to zero first; see `discard_weakest`.

    Returns
    -------
    numpy.ndarray
        (layers in the window + 1, token) float64. Row 0 is the rollout onto the inputs of the window's first layer, the last
        row the final token itself; every row sums to 1.

    Raises
    ------
    InvalidInputError
        If the shape is not (layer, token, token), a row within the window does not sum to 1, the window is empty or outside, the
        form is unknown, or the final token is among the sinks.
    """
    maps = shaped_maps(maps)
    first, last = checked_window(window, len(maps))
    return _from_the_top(_step(maps, form, sinks, discard), first, last, maps.shape[-1], form, sinks)


def rollout_stops(
    maps: NDArray[Any], *, window: Window | None = None, form: Form = "raw", sinks: Sequence[int] = (0,), discard: float = 0.0
) -> Floats:
    """Rollout onto the inputs for every depth at which the model could stop.

    One pass from the top down computes all depths.

    Parameters and errors are those of `rollout`.

    Returns
    -------
    numpy.ndarray
        (layers in the window + 1, token) float64. Row k is row 0 of `rollout` through the window's first k blocks; row 0 is the
        final token itself.
    """
    maps = shaped_maps(maps)
    first, last = checked_window(window, len(maps))
    step = _step(maps, form, sinks, discard)
    rows = np.zeros((last - first + 1, maps.shape[-1]))
    rows[:, -1] = 1.0
    for layer in range(last - 1, first - 1, -1):
        # a model that stops below this block skips it
        rows[layer - first + 1 :] = step(rows[layer - first + 1 :], layer)
    return _without(rows, sinks) if form == "dropped" else rows


def rollout_packed(packed: NDArray[np.uint8], *, window: Window | None = None, form: Form = "raw", sinks: Sequence[int] = (0,)) -> Floats:
    """Rollout of one example from packed maps; decodes one layer at a time.

    Parameters
    ----------
    packed
        (layer, query, key) uint8, cut to the prompt's own tokens: round(255 * sqrt(weight / row maximum)).
    window, form, sinks
        As of `rollout`.

    Returns
    -------
    numpy.ndarray
        (layers in the window + 1, token) float64, as of `rollout`.

    Raises
    ------
    InvalidInputError
        As `rollout`, or if a map is empty.
    """
    first, last = checked_window(window, len(packed))
    _check_sinks(form, sinks, packed.shape[-1])
    if not packed.any(-1).all():
        raise InvalidInputError("expected a packed map, found an empty row: this example has no map")

    def step(above: Floats, layer: int) -> Floats:
        weights = np.square(packed[layer], dtype=np.float64)
        if form == "conditional":
            weights[:, list(sinks)] = 0
        return _mixed(above, weights)

    return _from_the_top(step, first, last, packed.shape[-1], form, sinks)


def _from_the_top(step: Step, first: int, last: int, tokens: int, form: Form, sinks: Sequence[int]) -> Floats:
    out = np.zeros((last - first + 1, tokens))
    out[-1, -1] = 1.0
    for layer in range(last - 1, first - 1, -1):
        out[layer - first] = step(out[layer - first + 1], layer)
    return _without(out, sinks) if form == "dropped" else out


def _step(maps: Floats, form: Form, sinks: Sequence[int], discard: float) -> Step:
    _check_sinks(form, sinks, maps.shape[-1])
    if not 0 <= discard < 1:
        raise InvalidInputError(f"expected a discard ratio of at least 0 and below 1, found {discard:g}")

    def plain(above: Floats, layer: int) -> Floats:
        check_layer(maps, layer)
        return np.asarray(0.5 * (above @ maps[layer] + above))

    def discarding(above: Floats, layer: int) -> Floats:
        check_layer(maps, layer)
        weights = discard_weakest(maps[layer], discard)
        # A + I with the discarded weights missing: its rows are normalised, never its columns
        shares = above / (1 + weights.sum(-1))
        return np.asarray(shares @ weights + shares)

    def conditional(above: Floats, layer: int) -> Floats:
        check_layer(maps, layer)
        weights = discard_weakest(maps[layer], discard) if discard else maps[layer].copy()
        weights[:, list(sinks)] = 0
        return _mixed(above, weights)

    return conditional if form == "conditional" else discarding if discard else plain


def _mixed(above: Floats, weights: Floats) -> Floats:
    """above @ (rownorm(weights) + I) / 2; a token without attention keeps its rollout."""
    totals = weights.sum(-1)
    empty = totals == 0
    if not empty.any():
        return np.asarray(0.5 * ((above / totals) @ weights + above))
    moved = np.where(empty, 0, above / np.where(empty, 1, totals))
    return np.asarray(0.5 * (moved @ weights + above + np.where(empty, above, 0)))


def _without(rows: Floats, sinks: Sequence[int]) -> Floats:
    rows = rows.copy()
    rows[:, list(sinks)] = 0
    return np.asarray(rows / rows.sum(-1, keepdims=True))


def _check_sinks(form: Form, sinks: Sequence[int], tokens: int) -> None:
    if form not in FORMS:
        raise InvalidInputError(f"expected a form of {', '.join(FORMS)}, found {form!r}")
    outside = [k for k in sinks if not 0 <= k < tokens - 1]
    if form != "raw" and outside:
        raise InvalidInputError(f"expected sinks among tokens 0..{tokens - 2} (the final token is never a sink), found {outside}")


class RolloutResult(
    Result,
    kind="rollout",
    command="rollout",
    schema={
        **each(str, "store condition fusion"),
        **each(float, "discard"),
        "window": tuple[int, int] | None,
        "form": Literal["raw", "dropped", "conditional"],
        "sinks": str | list[int],
    },
):
    """Attention rollout of the final token, for several examples."""

    selects_examples: ClassVar[bool] = True

    examples: pd.DataFrame = table_field(ON_IMAGE)
    """example (number), id, n_tokens, image_start, image_stop, rows, columns, sinks (token numbers of the sinks left out, as text)."""
    values: NDArray[np.float64] = array_field("float", "example layer token", name="rollout")
    """(example, layer, token) float64: row 0 is the rollout onto the inputs; NaN after the prompt."""
    attributes: Mapping[str, Any]
    """store, condition, fusion, window, form, discard."""

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
        return {"examples": self.examples["example"].tolist(), **held}

    def to_frame(self) -> pd.DataFrame:
        """example, id, n_tokens, onto_the_image (the rollout on the image)."""
        return self.examples[["example", "id", "n_tokens"]].assign(onto_the_image=self._image_shares())

    def summary(self) -> str:
        """Rollout on the image and on the first token, mean over examples."""
        first, stop = self.window
        shares = self._image_shares()
        return (
            f"{self.attributes['form']} rollout, blocks {first} to {stop - 1}, {len(shares)} examples: "
            f"{sum(shares) / len(shares):.1%} on the image, {float(self.values[:, 0, 0].mean()):.1%} on the first token"
        )

    def figure(self, store: ActivationStore | None = None) -> Figure | None:
        """Up to eight examples: rollout on the image cells, boxes, caption, label and answer; None without the store, or where
        image tokens have no known place."""
        if store is None or not has_places(self.examples):
            return None
        numbers = [int(number) for number in self.examples["example"].iloc[:MOST_EXAMPLES]]
        tiles = []
        for k, (number, boxes) in enumerate(zip(numbers, relative_boxes(store, numbers), strict=True)):
            cells = self.onto_image(k)
            caption = textwrap.fill(f"#{number} {store.examples['caption'].iloc[number]}", 34)
            text = f"{caption}\n{textwrap.fill(answer_text(store, number), 40)}\n{cells.sum():.0%} on the image"
            tiles.append(Tile(picture(store, number), cells, text, boxes))
        first, stop = self.window
        title = (
            f"{self.attributes['form']} rollout of the final token, blocks {first} to {stop - 1}, {self.attributes['fusion']} over heads; "
            "colour scale: 0 to the largest cell of each image"
        )
        columns = len(tiles) if len(tiles) <= 5 else min((4, 3), key=lambda n: -len(tiles) % n)
        return draw_gallery(tiles, columns=columns, title=title)

    def _image_shares(self) -> list[float]:
        return [float(self.onto_image(k).sum()) for k in range(len(self.examples))]


def rollout_examples(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    window: Window | None = None,
    form: Form = "raw",
    sinks: Sequence[int] | str = FOUND,
    discard: float = 0.0,
    tower: str = "decoder",
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
    tower
        `decoder`; `vision` raises with the reason.
    scheduler
        None or `synchronous`, `threads`, `processes`, or the address of a Dask scheduler.
    progress
        Show a progress bar where stderr is a terminal.

    Raises
    ------
    NotRecordedError
        If the store holds no maps, or none of an example. Final-token rows are not enough: rollout needs the rows of all tokens.
    InvalidInputError
        If `rollout` refuses a parameter, or there are no examples.
    """
    require_maps(store, "rollout", tower)
    if isinstance(sinks, str) and sinks != FOUND:
        raise InvalidInputError(f"expected token numbers or {FOUND!r} for sinks, found {sinks!r}")
    first, last = checked_window(window, store.layout.layers)
    chosen = held_examples(store, "attention_maps", examples)
    options: dict[str, Any] = {"window": (first, last), "form": form, "sinks": sinks, "discard": discard}
    parts = over_blocks(_rolled, store, chosen, at_most=PIECE, scheduler=scheduler, progress=progress, label="rollout", **options)
    longest = int(store.n_tokens[chosen].max())
    values = np.full((len(chosen), last - first + 1, longest), np.nan)
    dropped = []
    for k, (rolled, left_out) in enumerate(pair for part in parts for pair in part):
        values[k, :, : rolled.shape[1]] = rolled
        dropped.append(" ".join(map(str, left_out)))
    attributes = {
        **made_from(store),
        "fusion": store.layout.fusion,
        "window": [first, last] if window else None,
        "form": form,
        "sinks": sinks if isinstance(sinks, str) else list(sinks),
        "discard": discard,
    }
    return RolloutResult(example_table(store, chosen).assign(sinks=dropped), values, attributes)


def _rolled(
    store: ActivationStore, numbers: NDArray[np.int64], *, window: Window, form: Form, sinks: Sequence[int] | str, discard: float
) -> list[tuple[NDArray[np.float64], tuple[int, ...]]]:
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
        out.append((rolled, dropped))
    return out
