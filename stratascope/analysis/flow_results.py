"""Flows of several examples of a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import Window, checked_window, require_maps
from stratascope.analysis.box_cells import BOXES, box_tokens
from stratascope.analysis.flow import CUTS, Flow, flow, span_flow
from stratascope.analysis.parallel import held_examples, over_blocks
from stratascope.analysis.rollout_results import example_table, on_image
from stratascope.errors import NotRecordedError
from stratascope.results.file import ResultFile, made_from
from stratascope.results.registry import load_result, save_result
from stratascope.store import ActivationStore

RESULT_KIND = "flow"
PIECE = 8
"""Examples in one task: a 7B example takes a second or more."""


@dataclass(frozen=True)
class FlowResult:
    """Flow from the final token of several examples, to every input token and into spans and boxes."""

    examples: pd.DataFrame
    """example (number), id, n_tokens, image_start, image_stop, rows, columns, position_correlation, warning ("" where there is none)."""
    values: NDArray[np.float64]
    """(example, token) maximum flow, or the bound where it was not computed; NaN beyond an example's own tokens."""
    bounds: NDArray[np.float64]
    """(example, token) upper bound in closed form."""
    cuts: NDArray[np.int8]
    """(example, token) index into `flow.CUTS` of what limits it; -1 beyond an example's own tokens."""
    spans: pd.DataFrame
    """example, span (those of the store, `subject_box` and `object_box` where known), tokens, value, bound, cut, saturated."""
    attributes: dict[str, Any]
    """store, condition, fusion, window, exact."""

    def of(self, k: int) -> Flow:
        """Flow of the k-th example."""
        own = slice(0, int(self.examples["n_tokens"].iloc[k]))
        cuts = self.cuts[k, own]
        return Flow(self.values[k, own], self.bounds[k, own], cuts != CUTS.index("unproven"), np.array(CUTS)[cuts])

    def onto_image(self, k: int) -> NDArray[np.float64]:
        """(rows, columns): the k-th example's flow to its image cells."""
        return on_image(self.examples, self.values, k)

    def save(self, path: Path | str) -> None:
        """Write the result to one file."""
        dims = ("example", "token")
        arrays: dict[str, Any] = {"flow": (dims, self.values), "bound": (dims, self.bounds), "cut": (dims, self.cuts)}
        tables = {"examples": self.examples, "spans": self.spans}
        save_result(path, ResultFile(RESULT_KIND, tables, arrays, {**self.attributes, "cuts": list(CUTS)}))

    @classmethod
    def load(cls, path: Path | str) -> FlowResult:
        """What `save` wrote; StoreError for any other file."""
        file = load_result(path, RESULT_KIND)
        values, bounds, cuts = (file.arrays[name][1] for name in ("flow", "bound", "cut"))
        attributes = {name: value for name, value in file.attributes.items() if name != "cuts"}
        return cls(file.tables["examples"], values, bounds, cuts, file.tables["spans"], attributes)


def flow_examples(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    window: Window | None = None,
    exact: bool = True,
    tower: str = "decoder",
    scheduler: str | None = None,
) -> FlowResult:
    """Flow of chosen examples from their stored maps.

    Parameters
    ----------
    examples
        Numbers or a mask; all that have a map by default.
    window
        Half-open range of blocks; all by default. Full depth mostly shows the token's position: see the column `warning`.
    exact
        False gives the closed-form bound alone, in milliseconds; the table of spans is then empty.
    tower
        `decoder`; `vision` is refused with the reason.
    scheduler
        Where the work is done: None for here, `threads` (the solver holds no lock), `processes`, or the address of a Dask scheduler.

    Raises
    ------
    NotRecordedError
        If the store holds no maps, or not of one of the examples.
    InvalidInputError
        For a window that is empty or outside, or no examples.
    MissingExtraError
        If numba is not installed and `exact` is asked for.
    """
    require_maps(store, "flow", tower)
    window = checked_window(window, store.layout.layers)
    chosen = held_examples(store, "attention_maps", examples)
    parts = over_blocks(_flows, store, chosen, at_most=PIECE, scheduler=scheduler, window=window, exact=exact)
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
