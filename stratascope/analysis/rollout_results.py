"""Rollouts of several examples of a store."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import Window, checked_window, require_maps
from stratascope.analysis.example_pictures import answer_text, picture, relative_boxes
from stratascope.analysis.parallel import held_examples, over_blocks
from stratascope.analysis.rollout import Form, rollout, rollout_packed
from stratascope.analysis.sinks import places_of, sinks_of_maps
from stratascope.errors import InvalidInputError
from stratascope.figures.drawing import draw_overlay
from stratascope.figures.style import paper_style
from stratascope.results.file import made_from
from stratascope.results.result import Result, array_field, table_field
from stratascope.results.schema import columns
from stratascope.store import ActivationStore, decode_maps
from stratascope.store.format.json_schema import each

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOUND = "found"
MOST_EXAMPLES = 8
"""Examples in one figure."""


ON_IMAGE = columns("example", text="id", ints="example n_tokens image_start image_stop rows columns", keys=["example"])
"""Schema of the table that `example_table` gives."""


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
    """Rollouts of the final token of several examples."""

    selects_examples: ClassVar[bool] = True

    examples: pd.DataFrame = table_field(ON_IMAGE)
    """example (number), id, n_tokens, image_start, image_stop, rows, columns, sinks (numbers of the tokens dropped, as text)."""
    values: NDArray[np.float64] = array_field("float", "example layer token", name="rollout")
    """(example, layer, token) float64: row 0 onto the inputs; NaN beyond an example's own tokens."""
    attributes: Mapping[str, Any]
    """store, condition, fusion, window, form, discard."""

    def onto_image(self, k: int, layer: int = 0) -> NDArray[np.float64]:
        """(rows, columns): the k-th example's rollout onto its image cells at `layer`."""
        return on_image(self.examples, self.values[:, layer], k)

    @property
    def window(self) -> tuple[int, int]:
        """Half-open range of the blocks."""
        first, stop = self.attributes["window"] or (0, self.values.shape[1] - 1)
        return int(first), int(stop)

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `rollout_examples`."""
        held = {name: self.attributes[name] for name in ("window", "form", "discard")}
        return {"examples": self.examples["example"].tolist(), **held}

    def to_frame(self) -> pd.DataFrame:
        """example, id, n_tokens, onto_the_image (the rollout on the image)."""
        onto = [float(self.onto_image(k).sum()) for k in range(len(self.examples))]
        return self.examples[["example", "id", "n_tokens"]].assign(onto_the_image=onto)

    def summary(self) -> str:
        """The rollout on the image and on the first token, mean over examples."""
        first, stop = self.window
        count = len(self.examples)
        onto = sum(float(self.onto_image(k).sum()) for k in range(count)) / count
        return (
            f"{self.attributes['form']} rollout, blocks {first} to {stop - 1}, {count} examples: {onto:.1%} on the image, "
            f"{float(self.values[:, 0, 0].mean()):.1%} on the first token"
        )

    def figure(self, store: ActivationStore | None = None) -> Figure | None:
        """Up to eight examples with their rollout over the image, caption, label and answer; None without the store."""
        return None if store is None else rollout_gallery(self, store)


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
) -> RolloutResult:
    """Final-token rollout of chosen examples from their stored maps.

    Parameters
    ----------
    examples
        Numbers or a mask; all that have a map by default.
    window, form, discard
        As of `rollout`.
    sinks
        Token numbers that the forms `dropped` and `conditional` leave out, or "found": each example's own, by `sinks.find_sinks`
        from the final rows of all layers, at the first token and at the image's edge.
    tower
        `decoder`; `vision` is refused with the reason.
    scheduler
        Where the work is done: None for here, `threads`, `processes`, or the address of a Dask scheduler.

    Raises
    ------
    NotRecordedError
        If the store holds no maps (final-token rows alone cannot give a rollout: the lower layers' other rows are needed), or
        not of one of the examples.
    InvalidInputError
        For an option that `rollout` refuses, or no examples.
    """
    require_maps(store, "rollout", tower)
    if isinstance(sinks, str) and sinks != FOUND:
        raise InvalidInputError(f"expected token numbers or {FOUND!r} for sinks, found {sinks!r}")
    first, last = checked_window(window, store.layout.layers)
    chosen = held_examples(store, "attention_maps", examples)
    parts = over_blocks(_rolled, store, chosen, scheduler=scheduler, window=(first, last), form=form, sinks=sinks, discard=discard)
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
            dropped = sinks_of_maps(_final_rows(packed), places[k]) if isinstance(sinks, str) else tuple(sinks)
        if discard:
            rolled = rollout(decode_maps(packed, tokens), window=window, form=form, sinks=dropped, discard=discard)
        else:
            rolled = rollout_packed(packed, window=window, form=form, sinks=dropped)
        out.append((rolled, dropped))
    return out


def _final_rows(packed: NDArray[np.uint8]) -> NDArray[np.float64]:
    rows = np.square(packed[:, -1], dtype=np.float64)
    return np.asarray(rows / rows.sum(-1, keepdims=True))


def example_table(store: ActivationStore, chosen: NDArray[np.int64]) -> pd.DataFrame:
    """What a result must know of its examples to be drawn without the store: number, id, length, the image's place and grid."""
    image = store.spans["image"][chosen]
    return pd.DataFrame(
        {
            "example": chosen,
            "id": store.examples["id"].to_numpy(object)[chosen],
            "n_tokens": store.n_tokens[chosen].astype(np.int64),
            "image_start": image[:, 0].astype(np.int64),
            "image_stop": image[:, 1].astype(np.int64),
            "rows": store.grid[chosen, 0].astype(np.int64),
            "columns": store.grid[chosen, 1].astype(np.int64),
        }
    )


def on_image(examples: pd.DataFrame, values: NDArray[Any], k: int) -> NDArray[Any]:
    """(rows, columns) of the k-th example's values (example, token) on its image cells."""
    row = examples.iloc[k]
    cells = values[k, int(row["image_start"]) : int(row["image_stop"])]
    return cells.reshape(int(row["rows"]), int(row["columns"]))


def rollout_gallery(found: RolloutResult, store: ActivationStore) -> Figure:
    """Up to eight examples: image, rollout on its cells, boxes where known, number, caption, label and the model's answer."""
    shown = range(min(len(found.examples), MOST_EXAMPLES))
    from matplotlib.figure import Figure

    columns = len(shown) if len(shown) <= 5 else min((4, 3), key=lambda n: -len(shown) % n)
    with paper_style():
        lines = -(-len(shown) // columns)
        figure = Figure(figsize=(1.85 * columns, 2.25 * lines + 0.25))
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for ax in axes[len(shown) :]:
            ax.remove()
        numbers = [int(found.examples["example"].iloc[k]) for k in shown]
        for k, (number, boxes) in enumerate(zip(numbers, relative_boxes(store, numbers), strict=True)):
            row = store.examples.iloc[number]
            cells = found.onto_image(k)
            caption = textwrap.fill(f"#{number} {row.caption}", 34)
            text = f"{caption}\n{textwrap.fill(answer_text(store, number), 40)}\n{cells.sum():.0%} of it on the image"
            draw_overlay(picture(store, number), cells, axes[k], boxes=boxes)
            axes[k].set_title(text, fontsize=6.5, fontweight="normal")
        span = found.attributes["window"] or [0, store.layout.layers]
        figure.suptitle(
            f"{found.attributes['form']} rollout of the final token, blocks {span[0]} to {span[1] - 1}, "
            f"{found.attributes['fusion']} over heads; full tint: the image's largest cell",
            fontsize=8,
            x=0.01,
            ha="left",
        )
    return figure
