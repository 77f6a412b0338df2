"""Attention share: attention of the final token by part of the prompt, layer and head, with and without sinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.parallel import held_examples, over_blocks
from stratascope.analysis.sinks import DROPPED, PLACES, TIMES, checked_places, find_sinks, places_of
from stratascope.analysis.weighting import WEIGHINGS, checked_weighing, require_recorded, weighted_rows
from stratascope.errors import InvalidInputError
from stratascope.results.file import made_from
from stratascope.results.lazy_arrays import Arrays
from stratascope.results.result import CHOICE, Result, array_field, new_axes, titled
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import Along, each
from stratascope.store.format.prompt_parts import PARTS, parts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REMOVABLE = ("first_token", "image_edge", "image_inside")
EMPTY = 1e-5
"""Attention without sinks below which shares are undefined."""
_AT_A_TIME = 256
"""Examples in float64 at once."""
PIECE = 16
"""Examples in one task: rows of all layers, 22 MB for a 7B model."""


def _of_these_parts(attributes: Mapping[str, Any], _: Mapping[str, pd.DataFrame], __: Arrays) -> str | None:
    if attributes["parts"] == list(PARTS) and attributes["places"] == list(PLACES):
        return None
    return f"expected shares of {', '.join(PARTS)} and their sinks, found {', '.join(attributes['parts'])}"


class AttentionShare(
    Result,
    kind="attention_share",
    command="share",
    schema={
        **each(str, "store condition weighing"),
        **each(float, "times"),
        **CHOICE,
        "layers": Along("layer", int),
        "parts": Along("part", str),
        "places": Along("place", str),
    },
    rules=(_of_these_parts,),
):
    """Attention of the final token by part of the prompt, and each part's share of the tokens."""

    values: NDArray[np.float32] = array_field("share", "example layer head part", name="share")
    """(example, layer, head, part); sums to 1 over parts; layer numbers: `attributes["layers"]`."""
    tokens: NDArray[np.float32] = array_field("share", "example part", name="token_share")
    """(example, part) share of the example's tokens."""
    examples: NDArray[np.int64] = array_field("int", "example", name="example")
    """(example,) example numbers."""
    entropy: NDArray[np.float32] = array_field("float", "example layer head")
    """(example, layer, head) entropy of the row in nats: 0 for one token, log(n_tokens) for a uniform row."""
    sinks: NDArray[np.float32] = array_field("share", "example layer head place")
    """(example, layer, head, place) attention to the sinks at each of `sinks.PLACES`."""
    sink_counts: NDArray[np.int16] = array_field("int", "example place")
    """(example, place) number of sinks, the same for all layers and heads; see `sinks.find_sinks`."""
    first_part: NDArray[np.int8] = array_field("int", "example")
    """(example,) index of the part of the first token."""
    attributes: Mapping[str, Any]
    """store, layers, condition, weighing, only, times, parts, places."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the last axis of `values`."""
        return PARTS

    def without_sinks(self, places: Sequence[str] = DROPPED) -> NDArray[np.float32]:
        """(example, layer, head, part) shares without the sinks at `places`; sums to 1 over parts, NaN where less than 1e-5 is left.

        Raises
        ------
        InvalidInputError
            If a place is unknown or in text: sinks in text lie in several parts and may be content.
        """
        if set(checked_places(places)) - set(REMOVABLE):
            raise InvalidInputError(f"expected places among {', '.join(REMOVABLE)}, found {', '.join(places)}: sinks in text stay")
        shares = np.empty(self.values.shape, np.float32)
        for start in range(0, len(shares), _AT_A_TIME):
            some = slice(start, start + _AT_A_TIME)
            left = self.values[some].astype(np.float64)
            for place in places:
                drawn = self.sinks[some, ..., PLACES.index(place)]
                if place == "first_token":
                    left[np.arange(len(left)), ..., self.first_part[some]] -= drawn
                else:
                    left[..., PARTS.index("image")] -= drawn
            # float32 sums may differ in the last place
            np.clip(left, 0, None, out=left)
            total = left.sum(-1, keepdims=True)
            shares[some] = np.where(total > EMPTY, left / np.where(total > EMPTY, total, 1), np.nan)
        return shares

    def head_table(self, places: Sequence[str] = DROPPED) -> pd.DataFrame:
        """Means over examples, one row per layer, head and part: share, share_without_sinks, token_share, entropy, sinks (attention to the
        sinks at `places`)."""
        layers, heads = self.attributes["layers"], self.values.shape[2]
        index = pd.MultiIndex.from_product([layers, range(heads), PARTS], names=["layer", "head", "part"])
        drawn = self.sinks[..., [PLACES.index(place) for place in places]].sum(-1).mean(0)
        columns = {
            "share": self.values.mean(0, dtype=np.float64).ravel(),
            "share_without_sinks": _mean_of_known(self.without_sinks(places)).ravel(),
            "token_share": np.tile(self.tokens.mean(0, dtype=np.float64), len(layers) * heads),
            "entropy": np.repeat(self.entropy.mean(0, dtype=np.float64).ravel(), len(PARTS)),
            "sinks": np.repeat(drawn.ravel(), len(PARTS)),
        }
        return pd.DataFrame(columns, index=index).reset_index()

    def sink_table(self) -> pd.DataFrame:
        """One row per place: examples_with (share of examples with a sink), count (mean number), attention (mean over examples, layers and
        heads), highest (mean attention of the strongest head), layer and head of that head."""
        rows = []
        for k, place in enumerate(PLACES):
            by_head = self.sinks[..., k].mean(0, dtype=np.float64)
            layer, head = np.unravel_index(int(by_head.argmax()), by_head.shape)
            counts = self.sink_counts[:, k]
            named = self.attributes["layers"][int(layer)]
            rows.append((place, (counts > 0).mean(), counts.mean(), by_head.mean(), by_head.max(), named, int(head)))
        return pd.DataFrame(rows, columns=["place", "examples_with", "count", "attention", "highest", "layer", "head"])

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `attention_share`."""
        return {"only": self.only, "weighing": self.attributes["weighing"], "times": self.attributes["times"]}

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """Weighting unless `attention`, and the selection of examples."""
        weighing = self.attributes["weighing"]
        return (None if weighing == "attention" else weighing, *self.only)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer, head and part, see `head_table`."""
        return self.head_table()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw each part's share of the attention by decoder block, stacked."""
        from stratascope.figures.drawing import draw_attention_share

        title = "attention of the final token" + (", weighted by norm" if self.attributes["weighing"] == "norm" else "")
        return draw_attention_share(self.values, self.tokens, self.parts, new_axes(ax), title=titled(title, self.only))

    def summary(self) -> str:
        """Attention share of the image, sinks by place, and the share of the image without sinks."""
        image = self.parts.index("image")
        by_block = self.values[..., image].mean((0, 2))
        best = int(by_block.argmax())
        lines = [
            f"attention share of the image: {by_block.mean():.1%} over all blocks, highest {by_block[best]:.1%} in block "
            f"{self.attributes['layers'][best]} (mean over heads); {self.tokens[:, image].mean():.1%} of the tokens"
        ]
        sinks = self.sink_table()
        for row in sinks.to_dict("records"):
            if row["count"] > 0:
                lines.append(
                    f"sinks at {row['place'].replace('_', ' ')}: {row['count']:.2f} per example, {row['examples_with']:.0%} of examples; "
                    f"{row['attention']:.1%} of the attention, highest {row['highest']:.1%} in block {row['layer']} head {row['head']}"
                )
        if len(lines) == 1:
            return f"{lines[0]}\nno sinks: no token takes {self.attributes['times']:g} times its fair share"
        if not sinks.loc[sinks["place"].isin(DROPPED), "count"].any():
            return "\n".join(lines)
        means = self.head_table()
        without = float(means.loc[means["part"] == "image", "share_without_sinks"].mean())
        if np.isnan(without):
            return "\n".join([*lines, "the sinks take all attention: the share without sinks is undefined"])
        return "\n".join(
            [*lines, f"attention share of the image without sinks at the first token and the image edge: {without:.1%} over all blocks"]
        )


def attention_share(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    only: Sequence[str] = (),
    weighing: str = "attention",
    times: float = TIMES,
    scheduler: str | None = None,
    progress: bool = False,
) -> AttentionShare:
    """Attention of the final token by part of the prompt (AdaptVis, figure a, per head), its entropy and sinks.

    Parameters
    ----------
    store
        With attention rows.
    examples
        Example numbers or a mask; all with recorded rows by default.
    only
        COLUMN=VALUE: keep the examples with one of the given values of each column; see `store.chosen_examples`.
    weighing
        `attention`, or `norm` for norm-based attention, see `weighting.WEIGHINGS`. Attributions are signed and have no shares.
    times
        A sink takes at least this multiple of its fair share; see `sinks.find_sinks`.
    scheduler
        None or `synchronous`, `threads`, `processes`, or the address of a Dask scheduler.
    progress
        Show a progress bar where stderr is a terminal.

    Raises
    ------
    NotRecordedError
        If the store lacks attention rows (for `norm` also value norms), or those of an example.
    InvalidInputError
        If no examples are left, or the weighting has no shares.
    """
    if checked_weighing(weighing) == "attribution":
        raise InvalidInputError("expected a weighting of attention or norm, found attribution: it is signed; use `logit_attribution`")
    require_recorded(store, WEIGHINGS[weighing], f"the weighting {weighing!r}")
    chosen = held_examples(store, "attention_rows", examples, only)
    layout = store.layout
    parts = parts_of(store, chosen)
    tokens = (parts[..., None] == np.arange(len(PARTS))).mean(1) * layout.tokens / store.n_tokens[chosen][:, None]
    options: dict[str, Any] = {"times": times, "weighing": weighing}
    found = over_blocks(_shares, store, chosen, at_most=PIECE, scheduler=scheduler, progress=progress, label="share", **options)
    pieces = [list(piece) for piece in zip(*found, strict=True)]
    del found
    values, entropy, sinks, counts = (_joined(piece) for piece in pieces)
    attributes = {
        **made_from(store),
        "layers": list(layout.attention_layers),
        "weighing": weighing,
        "only": list(only),
        "times": times,
        "parts": list(PARTS),
        "places": list(PLACES),
    }
    return AttentionShare(values, tokens.astype(np.float32), chosen, entropy, sinks, counts, parts[:, 0], attributes)


def _shares(
    store: ActivationStore, numbers: NDArray[np.int64], *, times: float, weighing: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.int16]]:
    parts = parts_of(store, numbers)
    places = places_of(store, numbers)
    rows = weighted_rows(store, numbers, weighing)
    sinks = find_sinks(rows.mean((1, 2)), places, times=times)
    at_place = sinks[..., None] & (places[..., None] == np.arange(len(PLACES)))
    members = np.concatenate([parts[..., None] == np.arange(len(PARTS)), at_place], -1).astype(np.float32)
    sums = np.matmul(rows.reshape(len(numbers), -1, rows.shape[-1]), members).reshape(*rows.shape[:-1], -1)
    values, drawn = sums[..., : len(PARTS)], sums[..., len(PARTS) :]
    return values, row_entropy(rows), drawn, at_place.sum(1).astype(np.int16)


def row_entropy(rows: NDArray[Any]) -> NDArray[Any]:
    """(...,) entropy in nats of rows (..., token) that sum to 1; Shannon 1948."""
    logarithms = np.log(np.maximum(rows, np.finfo(rows.dtype).tiny))
    return np.asarray(-np.einsum("...t,...t->...", rows, logarithms))


def _joined(pieces: list[NDArray[Any]]) -> NDArray[Any]:
    """Concatenate pieces and empty their list, so that one array at most is in memory twice."""
    whole = np.concatenate(pieces)
    pieces.clear()
    return whole


def _mean_of_known(values: NDArray[Any]) -> NDArray[np.float64]:
    """Mean over examples without NaN; NaN where all are."""
    known = ~np.isnan(values)
    total = values.sum(0, dtype=np.float64, where=known)
    count = known.sum(0)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))
