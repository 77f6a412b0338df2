"""Direct logit attribution: contributions of heads, blocks and tokens to the logit difference of the answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import Window, check_layer, checked_window, shaped_maps
from stratascope.analysis.parallel import held_examples, over_blocks
from stratascope.analysis.weighting import require_recorded, weighted_rows
from stratascope.errors import InvalidInputError
from stratascope.figures.attributions import draw_carried
from stratascope.results.file import ResultFile, made_from
from stratascope.results.result import CHOICE, Result, array_field, new_axes, titled
from stratascope.results.schema import ResultSchema, columns
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import Along, each
from stratascope.store.format.prompt_parts import PARTS, parts_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LISTED_HEADS = 5
"""Heads that a summary lists."""
PIECE = 16
"""Examples in one task."""

Floats = NDArray[np.float32]


class LogitAttribution(
    Result,
    kind="logit_attribution",
    command="attribution",
    schema={
        **each(str, "store condition"),
        **CHOICE,
        "choices": tuple[str, str],
        "layers": Along("layer", int),
        "parts": Along("part", str),
    },
):
    """Contributions to the first choice's logit minus the second's, at the final token.

    With the scale of the final norm fixed, the logits are a sum over the writes to the residual stream: the embedding, each head, and the
    rest of each block. heads + blocks + embedding = difference.
    """

    heads: Floats = array_field("float", "example layer head")
    """(example, layer, head) <W_O^h o_h, gamma * (W_U[first] - W_U[second])> / rms."""
    blocks: Floats = array_field("float", "example layer")
    """(example, layer) the rest of each block: MLP and biases; NaN if not recorded."""
    embedding: Floats = array_field("float", "example")
    """(example,) the embedding of the final token and the constant of the output; NaN if not recorded."""
    difference: Floats = array_field("float", "example")
    """(example,) the first choice's logit minus the second's, as the model computed it."""
    parts: Floats = array_field("float", "attributed_example layer head part")
    """(example, layer, head, part) attribution of each head by the attended part of the prompt; no example without `value_logits`."""
    examples: NDArray[np.int64] = array_field("int", "example", name="example")
    """(example,) example numbers."""
    attributes: Mapping[str, Any]
    """store, condition, choices, layers, parts, only."""

    @property
    def remainder(self) -> NDArray[np.float64]:
        """(example,) the difference minus all contributions; 0 up to rounding, NaN if not all are recorded."""
        added = self.heads.sum((1, 2), dtype=np.float64) + self.blocks.sum(1, dtype=np.float64) + self.embedding
        return np.asarray(self.difference - added)

    @property
    def carried(self) -> NDArray[np.float64]:
        """(layer, head) share of the variance of the difference over examples: covariance with the difference / its variance.

        Constant contributions do not count. The shares of heads, blocks and embedding sum to 1.
        """
        return _carried(self.heads, self.difference)

    @property
    def carried_by_blocks(self) -> NDArray[np.float64]:
        """(layer,) the same for the rest of each block; NaN if not recorded."""
        return _carried(self.blocks, self.difference)

    @property
    def support(self) -> NDArray[np.float64]:
        """(layer, head) mean contribution of each head in favour of the model's answer."""
        return np.asarray((self.heads * np.where(self.difference >= 0, 1, -1)[:, None, None]).mean(0, dtype=np.float64))

    def head_table(self) -> pd.DataFrame:
        """layer, head, mean (for the first choice), support (for the model's answer), carried; with token attribution also support_PART
        for each part of the prompt."""
        layers, heads = self.attributes["layers"], self.heads.shape[2]
        index = pd.MultiIndex.from_product([layers, range(heads)], names=["layer", "head"])
        columns = {"mean": self.heads.mean(0, dtype=np.float64), "support": self.support, "carried": self.carried}
        if len(self.parts):
            given = (self.parts * np.where(self.difference >= 0, 1, -1)[:, None, None, None]).mean(0, dtype=np.float64)
            columns |= {f"support_{part}": given[..., k] for k, part in enumerate(PARTS)}
        return pd.DataFrame({name: values.ravel() for name, values in columns.items()}, index=index).reset_index()

    @classmethod
    def schema(cls) -> ResultSchema:
        """Schema of the file, with tables by head and by block for readers without Python."""
        schema = super().schema()
        tables = {
            "heads": columns(ints="layer head", floats="mean support carried", grid="layer head"),
            "blocks": columns("layer", ints="layer", floats="carried", keys=["layer"]),
        }
        return replace(schema, tables=tables)

    def contents(self) -> ResultFile:
        """What `save` writes."""
        blocks = pd.DataFrame({"layer": self.attributes["layers"], "carried": self.carried_by_blocks})
        return replace(super().contents(), tables={"heads": self.head_table(), "blocks": blocks})

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `logit_attribution`."""
        return {"only": self.only}

    def to_frame(self) -> pd.DataFrame:
        """One row per head, see `head_table`."""
        return self.head_table()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the share of the variance of heads and of the rest of each block, by block."""
        first, second = self.attributes["choices"]
        return draw_carried(
            self.carried,
            self.carried_by_blocks,
            self.attributes["layers"],
            new_axes(ax),
            label="Share of the variance",
            title=titled(f"logit({first}) - logit({second})", self.only),
        )

    def summary(self) -> str:
        """Completeness of the sum, shares of the variance of heads and blocks, and the strongest heads."""
        first, second = self.attributes["choices"]
        lines = [f"contributions to logit({first}) - logit({second}) at the final token, {len(self.examples)} examples"]
        if np.isfinite(self.remainder).all():
            typical = float(np.abs(self.difference).mean())
            lines.append(
                f"heads + blocks + embedding equal the difference of the model within {np.abs(self.remainder).max():.1g}; "
                f"mean absolute difference {typical:.2f}"
            )
        else:
            lines.append("the sum is incomplete: the store lacks mlp_logits and embedding_logits")
        heads, rest = self.carried.sum(), self.carried_by_blocks.sum()
        others = f", rest of the blocks {rest:.0%}" if np.isfinite(rest) else ""
        lines.append(f"share of the variance of the difference over examples: all heads {heads:.0%}{others}")
        table = self.head_table().sort_values("carried", ascending=False, key=abs, kind="stable").head(LISTED_HEADS)
        parts = [name for name in table.columns if name.startswith("support_")]
        for row in table.to_dict("records"):
            through = f", mainly through {max(parts, key=lambda name: abs(row[name])).removeprefix('support_')}" if parts else ""
            lines.append(f"  block {row['layer']} head {row['head']}: {row['carried']:+.1%} of the variance{through}")
        return "\n".join(lines)


def logit_attribution(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    only: Sequence[str] = (),
    by_part: bool | None = None,
    scheduler: str | None = None,
    progress: bool = False,
) -> LogitAttribution:
    """Attribute the logit difference of the answers to heads, blocks, embedding and parts of the prompt.

    Parameters
    ----------
    examples
        Example numbers or a mask; all recorded ones by default.
    only
        COLUMN=VALUE: keep the examples with one of the given values of each column; see `store.chosen_examples`.
    by_part
        Whether to attribute each head to parts of the prompt; by default where the store holds the arrays.
    scheduler
        None or `synchronous`, `threads`, `processes`, or the address of a Dask scheduler.
    progress
        Show a progress bar where stderr is a terminal.

    Raises
    ------
    NotRecordedError
        If the store holds no `head_logits` or, with `by_part`, no `value_logits` and attention rows.
    InvalidInputError
        If no examples are left.
    """
    require_recorded(store, ("head_logits",), "direct logit attribution")
    held = {spec.name for spec in store.layout.arrays()}
    if by_part is None:
        by_part = {"attention_rows", "value_logits"} <= held
    if by_part:
        require_recorded(store, ("attention_rows", "value_logits"), "attribution to tokens")
    chosen = held_examples(store, "head_logits", examples, only)
    if not len(chosen):
        raise InvalidInputError("expected at least one recorded example, found none")
    layout = store.layout
    heads = np.moveaxis(store.read("head_logits", examples=chosen), 0, 1)
    blocks = np.full(heads.shape[:2], np.nan, np.float32)
    embedding = np.full(len(chosen), np.nan, np.float32)
    if {"mlp_logits", "embedding_logits"} <= held and len(layout.attention_layers) == layout.layers:
        blocks = store.read("mlp_logits", examples=chosen).T
        embedding = store.read("embedding_logits", examples=chosen)
    logits = store.read("answer_logits", examples=chosen)
    parts = np.zeros((0, *heads.shape[1:], len(PARTS)), np.float32)
    if by_part:
        parts = np.concatenate(
            over_blocks(_by_part, store, chosen, at_most=PIECE, scheduler=scheduler, progress=progress, label="attribution")
        )
    attributes = {
        **made_from(store),
        "choices": list(layout.choices[:2]),
        "layers": list(layout.attention_layers),
        "parts": list(PARTS),
        "only": list(only),
    }
    return LogitAttribution(heads, np.ascontiguousarray(blocks), embedding, logits[:, 0] - logits[:, 1], parts, chosen, attributes)


def _by_part(store: ActivationStore, numbers: NDArray[np.int64]) -> Floats:
    members = (parts_of(store, numbers)[..., None] == np.arange(len(PARTS))).astype(np.float32)
    rows = weighted_rows(store, numbers, "attribution")
    return np.asarray(np.matmul(rows.reshape(len(numbers), -1, rows.shape[-1]), members).reshape(*rows.shape[:-1], -1))


def _carried(part: Floats, whole: Floats) -> NDArray[np.float64]:
    """Covariance of each column with the whole / variance of the whole, over examples; NaN without variance."""
    centred = whole.astype(np.float64) - whole.mean(dtype=np.float64)
    variance = float(centred @ centred)
    if variance == 0:
        return np.full(part.shape[1:], np.nan)
    return np.asarray(np.tensordot(centred, part.astype(np.float64), 1) / variance)


def carried_back(
    maps: NDArray[Any], tokens: NDArray[Any], blocks: NDArray[Any], embedding: float = 0.0, *, window: Window | None = None
) -> NDArray[np.float64]:
    """Token attribution with rollout: shares of the logit difference by input token.

    Token attribution ends at the token that a head attends to. Rollout (Abnar & Zuidema 2020) passes each share on to the tokens that this
    token attended to in earlier blocks: half stays, half follows the attention, averaged over heads. Nothing is lost, so that the
    shares of the inputs sum to the logit difference. One pass goes from the top block down.

    With r the shares above block l: r <- (r + blocks[l] e_t) (A[l] + I) / 2 + tokens[l], where e_t is the final token.

    Parameters
    ----------
    maps
        (layer, query, key), fused over heads; rows sum to 1.
    tokens
        (layer, token) `token_attribution` of each block, summed over heads.
    blocks
        (layer,) contribution of the rest of each block.
    embedding
        Contribution of the final token's embedding and the output's constant; counts if the window begins with the first block.
    window
        (first, last) half-open range of blocks; all by default. The inputs are those of its first block.

    Returns
    -------
    numpy.ndarray
        (token,) shares that sum to all contributions of the window.

    Raises
    ------
    InvalidInputError
        If shapes differ, a row of a map does not sum to 1, or the window is empty or outside.
    """
    maps = shaped_maps(maps)
    tokens, blocks = np.asarray(tokens, np.float64), np.asarray(blocks, np.float64)
    if tokens.shape != maps.shape[:2] or blocks.shape != maps.shape[:1]:
        raise InvalidInputError(
            f"expected attributions of shape {maps.shape[:2]} and {maps.shape[:1]}, found {tokens.shape}, {blocks.shape}"
        )
    first, last = checked_window(window, len(maps))
    shares = np.zeros(maps.shape[-1])
    for layer in range(last - 1, first - 1, -1):
        check_layer(maps, layer)
        shares[-1] += blocks[layer]
        shares = 0.5 * (shares @ maps[layer] + shares) + tokens[layer]
    if first == 0:
        shares[-1] += embedding
    return shares
