"""Attention rollout (Abnar & Zuidema 2020) of the final token, as a vector chain over fused attention maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store import ActivationStore, ResultFile, load_result, save_result

RESULT_KIND = "rollout"


def rollout(maps: np.ndarray, *, window: tuple[int, int] | None = None) -> np.ndarray:
    """Rollout of the final token onto the tokens of every layer below.

    Abnar & Zuidema 2020, equation 1, for one row: with A~ = (A + I) / 2 the final row of the product A~[L-1] ... A~[0] is a
    chain of vector-matrix products from the top down, O(layers x tokens^2) instead of O(layers x tokens^3).

    Parameters
    ----------
    maps
        (layer, query, key), fused over heads; rows sum to 1.
    window
        (first, last) half-open range of layers to roll through; all by default.

    Returns
    -------
    numpy.ndarray
        (layers in the window + 1, token) float64. Row 0 is the rollout onto the inputs of the window's first layer, the last
        row the final token itself; every row sums to 1.

    Raises
    ------
    InvalidInputError
        If the shape is not (layer, token, token), a row does not sum to 1, or the window is empty or outside.
    """
    maps = _checked(maps)
    first, last = (0, len(maps)) if window is None else window
    if not 0 <= first < last <= len(maps):
        raise InvalidInputError(f"expected a window of layers within 0..{len(maps)}, first before last, found {window}")
    out = np.zeros((last - first + 1, maps.shape[-1]))
    out[-1, -1] = 1.0
    for layer in range(last - 1, first - 1, -1):
        above = out[layer - first + 1]
        out[layer - first] = 0.5 * (above @ maps[layer] + above)
    return out


def _checked(maps: np.ndarray) -> np.ndarray:
    maps = np.asarray(maps, np.float64)
    if maps.ndim != 3 or maps.shape[1] != maps.shape[2] or not maps.size:
        raise InvalidInputError(f"expected maps of shape (layer, token, token), found {maps.shape}")
    sums = maps.sum(-1)
    if not np.allclose(sums, 1, atol=1e-3):
        worst = np.unravel_index(np.abs(sums - 1).argmax(), sums.shape)
        raise InvalidInputError(f"expected rows that sum to 1, found {sums[worst]:.4f} in layer {worst[0]}, query {worst[1]}")
    return maps


@dataclass(frozen=True)
class RolloutResult:
    """Rollouts of the final token of several examples."""

    examples: pd.DataFrame
    """example (number), id, n_tokens, image_start, image_stop, rows, columns."""
    values: np.ndarray
    """(example, layer, token) float64: row 0 onto the inputs; NaN beyond an example's own tokens."""
    attributes: dict[str, Any]

    def onto_image(self, k: int, layer: int = 0) -> np.ndarray:
        """(rows, columns): the k-th example's rollout onto its image cells at `layer`."""
        row = self.examples.iloc[k]
        cells = self.values[k, layer, int(row.image_start) : int(row.image_stop)]
        return cells.reshape(int(row.rows), int(row.columns))

    def save(self, path: Path | str) -> None:
        save_result(
            path,
            ResultFile(
                RESULT_KIND, {"examples": self.examples}, {"rollout": (("example", "layer", "token"), self.values)}, self.attributes
            ),
        )

    @classmethod
    def load(cls, path: Path | str) -> RolloutResult:
        """Raises InvalidInputError if the file holds results of another kind."""
        file = load_result(path)
        if file.kind != RESULT_KIND:
            raise InvalidInputError(f"{path}: expected results of kind {RESULT_KIND!r}, found {file.kind!r}")
        return cls(file.tables["examples"], file.arrays["rollout"][1], dict(file.attributes))


def rollout_examples(store: ActivationStore, examples: Sequence[int], *, window: tuple[int, int] | None = None) -> RolloutResult:
    """Final-token rollout of chosen examples from their stored maps.

    Raises
    ------
    NotRecordedError
        If the store holds no maps (final-token rows alone cannot give a rollout: the lower layers' other rows are needed), or
        not of one of the examples.
    """
    if "attention_maps" not in store.layout.record:
        raise NotRecordedError(
            "expected attention maps in the store, found none: rollout needs every token's attention, and final-token rows cannot stand "
            "in for it; extract again with --record attention_maps"
        )
    if store.layout.attention_layers != tuple(range(store.layout.layers)):
        raise NotRecordedError(
            f"expected the maps of all {store.layout.layers} blocks, found those of {list(store.layout.attention_layers)}: a rollout "
            "through a gap would be wrong; copy the store again with all layers"
        )
    chosen = list(examples)
    image = store.spans["image"]
    rows, values = [], []
    longest = max((int(store.n_tokens[k]) for k in chosen), default=0)
    for k in chosen:
        rolled = rollout(store.maps(k), window=window)
        padded = np.full((len(rolled), longest), np.nan)
        padded[:, : rolled.shape[1]] = rolled
        values.append(padded)
        grid = store.grid[k]
        rows.append(
            {
                "example": k,
                "id": store.examples["id"].iloc[k],
                "n_tokens": int(store.n_tokens[k]),
                "image_start": int(image[k, 0]),
                "image_stop": int(image[k, 1]),
                "rows": int(grid[0]),
                "columns": int(grid[1]),
            }
        )
    if not rows:
        raise InvalidInputError("expected at least one example, found none")
    attributes = {
        "store": store.fingerprint(),
        "condition": store.provenance["condition"],
        "fusion": store.layout.fusion,
        "window": list(window) if window else None,
        "form": "raw",
    }
    return RolloutResult(pd.DataFrame(rows), np.stack(values), attributes)
