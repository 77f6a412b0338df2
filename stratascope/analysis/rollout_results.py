"""Rollouts of several examples of a store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import Window, checked_window, require_maps
from stratascope.analysis.parallel import held_examples, over_blocks
from stratascope.analysis.rollout import Form, rollout, rollout_packed
from stratascope.analysis.sinks import places_of, sinks_of_maps
from stratascope.errors import InvalidInputError
from stratascope.results.display import Shown, Summary
from stratascope.results.file import ResultFile, made_from
from stratascope.results.registry import load_result, save_result
from stratascope.store import ActivationStore, decode_maps

RESULT_KIND = "rollout"
FOUND = "found"


@dataclass(frozen=True, repr=False)
class RolloutResult(Shown):
    """Rollouts of the final token of several examples."""

    examples: pd.DataFrame
    """example (number), id, n_tokens, image_start, image_stop, rows, columns, sinks (numbers of the tokens dropped, as text)."""
    values: NDArray[np.float64]
    """(example, layer, token) float64: row 0 onto the inputs; NaN beyond an example's own tokens."""
    attributes: dict[str, Any]
    """store, condition, fusion, window, form, discard."""

    def onto_image(self, k: int, layer: int = 0) -> NDArray[np.float64]:
        """(rows, columns): the k-th example's rollout onto its image cells at `layer`."""
        return on_image(self.examples, self.values[:, layer], k)

    def summary(self) -> Summary:
        """What the rollouts show of themselves in a notebook."""
        onto = [float(self.onto_image(k).sum()) for k in range(len(self.examples))]
        table = self.examples[["example", "id", "n_tokens"]].assign(onto_the_image=onto)
        first, last = self.attributes["window"] or (0, self.values.shape[1] - 1)
        facts = [f"{self.attributes['form']}, blocks {first} to {last - 1}, {self.attributes['fusion']} over heads"]
        return Summary(f"RolloutResult: {len(self.examples)} examples", facts, table)

    def save(self, path: Path | str) -> None:
        """Write the result to one file."""
        arrays = {"rollout": (("example", "layer", "token"), self.values)}
        save_result(path, ResultFile(RESULT_KIND, {"examples": self.examples}, arrays, self.attributes))

    @classmethod
    def load(cls, path: Path | str) -> RolloutResult:
        """What `save` wrote; StoreError for any other file."""
        file = load_result(path, RESULT_KIND)
        return cls(file.tables["examples"], file.arrays["rollout"][1], dict(file.attributes))


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
