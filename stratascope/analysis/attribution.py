"""Direct logit attribution: the terms that heads, blocks and tokens add to the difference of the answers' logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
"""Examples in one task, where rows are read."""

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
    """Terms of the first choice's logit minus the second's, at the final token.

    With the final norm's scale held fixed the logits are a sum over what was written to the residual stream: the embedding, each head
    of each block, and the rest of each block. heads + blocks + embedding = difference.
    """

    heads: Floats = array_field("float", "example layer head")
    """(example, layer, head) <W_O^h o_h, gamma * (W_U[first] - W_U[second])> / rms."""
    blocks: Floats = array_field("float", "example layer")
    """(example, layer) the rest of each block: its MLP and biases; NaN where the store does not hold it."""
    embedding: Floats = array_field("float", "example")
    """(example,) the final token's embedding and the output's own constant; NaN where the store does not hold it."""
    difference: Floats = array_field("float", "example")
    """(example,) the first choice's logit less the second's, as the model computed it."""
    parts: Floats = array_field("float", "attributed_example layer head part")
    """(example, layer, head, part) each head's attribution by the part of the prompt that it looks at; no example where the store does
    not hold `value_logits`."""
    examples: NDArray[np.int64] = array_field("int", "example", name="example")
    """(example,) example numbers."""
    attributes: Mapping[str, Any]
    """store, condition, choices, layers, parts, only."""

    @property
    def remainder(self) -> NDArray[np.float64]:
        """(example,) the difference less all that was attributed; 0 but for rounding, NaN where not all is stored."""
        added = self.heads.sum((1, 2), dtype=np.float64) + self.blocks.sum(1, dtype=np.float64) + self.embedding
        return np.asarray(self.difference - added)

    @property
    def carried(self) -> NDArray[np.float64]:
        """(layer, head) share of the difference's variance over examples that each head carries: its covariance with the difference
        over the difference's variance.

        Blind to what a head adds whatever is asked. Over heads, blocks and embedding it sums to 1.
        """
        return _carried(self.heads, self.difference)

    @property
    def carried_by_blocks(self) -> NDArray[np.float64]:
        """(layer,) the same of the rest of each block; NaN where the store does not hold it."""
        return _carried(self.blocks, self.difference)

    @property
    def support(self) -> NDArray[np.float64]:
        """(layer, head) mean over examples of what each head adds in favour of the answer that the model gives."""
        return np.asarray((self.heads * np.where(self.difference >= 0, 1, -1)[:, None, None]).mean(0, dtype=np.float64))

    def head_table(self) -> pd.DataFrame:
        """layer, head, mean (towards the first choice), support (towards the answer given), carried; and, where tokens are attributed,
        support_PART for each part of the prompt."""
        layers, heads = self.attributes["layers"], self.heads.shape[2]
        index = pd.MultiIndex.from_product([layers, range(heads)], names=["layer", "head"])
        columns = {"mean": self.heads.mean(0, dtype=np.float64), "support": self.support, "carried": self.carried}
        if len(self.parts):
            given = (self.parts * np.where(self.difference >= 0, 1, -1)[:, None, None, None]).mean(0, dtype=np.float64)
            columns |= {f"support_{part}": given[..., k] for k, part in enumerate(PARTS)}
        return pd.DataFrame({name: values.ravel() for name, values in columns.items()}, index=index).reset_index()

    @classmethod
    def schema(cls) -> ResultSchema:
        """The schema of the file, which also holds tables by head and by block for readers without Python."""
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
        """One row for each head, see `head_table`."""
        return self.head_table()

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the share of the variance that heads and the rest of each block carry, by block."""
        first, second = self.attributes["choices"]
        return draw_carried(
            self.carried,
            self.carried_by_blocks,
            self.attributes["layers"],
            new_axes(ax),
            label="share of the variance",
            title=titled(f"logit({first}) - logit({second})", self.only),
        )

    def summary(self) -> str:
        """The completeness of the sum, the variance that heads and blocks carry, and the heads that carry most."""
        first, second = self.attributes["choices"]
        lines = [f"terms of logit({first}) - logit({second}) at the final token, {len(self.examples)} examples"]
        if np.isfinite(self.remainder).all():
            typical = float(np.abs(self.difference).mean())
            lines.append(
                f"heads + blocks + embedding equal the model's own difference within {np.abs(self.remainder).max():.1g}; "
                f"its mean size is {typical:.2f}"
            )
        else:
            lines.append("the store lacks the terms of blocks and embedding (mlp_logits, embedding_logits): the sum is incomplete")
        heads, rest = self.carried.sum(), self.carried_by_blocks.sum()
        others = f", the rest of the blocks {rest:.0%}" if np.isfinite(rest) else ""
        lines.append(f"of the difference's variance over examples all heads carry {heads:.0%}{others}")
        table = self.head_table().sort_values("carried", ascending=False, key=abs, kind="stable").head(LISTED_HEADS)
        parts = [name for name in table.columns if name.startswith("support_")]
        for row in table.to_dict("records"):
            through = f", most through {max(parts, key=lambda name: abs(row[name])).removeprefix('support_')}" if parts else ""
            lines.append(f"  block {row['layer']} head {row['head']}: {row['carried']:+.1%} of the variance{through}")
        return "\n".join(lines)


def logit_attribution(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    only: Sequence[str] = (),
    by_part: bool | None = None,
    scheduler: str | None = None,
) -> LogitAttribution:
    """Attribution of the answers' logit difference to heads, blocks, embedding and the parts of the prompt.

    Parameters
    ----------
    examples
        Numbers or a mask; all that are recorded by default.
    only
        COLUMN=VALUE: of these examples those that have one of the values given for each column; see `store.chosen_examples`.
    by_part
        Whether to attribute to parts of the prompt through every head; where the store can give it by default.
    scheduler
        Where the work is done: None for here, `threads`, `processes`, or the address of a Dask scheduler.

    Raises
    ------
    NotRecordedError
        If the store holds no `head_logits` or, where parts are asked for, no `value_logits` and attention rows.
    InvalidInputError
        If there are no examples, or none that `only` chooses.
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
        parts = np.concatenate(over_blocks(_by_part, store, chosen, at_most=PIECE, scheduler=scheduler))
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
    """Covariance of each column with the whole over the whole's variance, over examples; NaN where the whole does not vary."""
    centred = whole.astype(np.float64) - whole.mean(dtype=np.float64)
    variance = float(centred @ centred)
    if variance == 0:
        return np.full(part.shape[1:], np.nan)
    return np.asarray(np.tensordot(centred, part.astype(np.float64), 1) / variance)
