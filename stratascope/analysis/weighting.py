"""What a head's look at a token weighs: the attention weight alone, the norm of what it carries, or what it adds to the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.analysis.norm_attention import norm_attention, token_attribution
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store import ActivationStore

WEIGHINGS: dict[str, tuple[str, ...]] = {
    "attention": ("attention_rows",),
    "norm": ("attention_rows", "value_norms"),
    "attribution": ("attention_rows", "value_logits"),
}
"""Name -> the arrays it is computed from. `attention`: post-softmax weights. `norm`: weight times norm of what the head would write for
that key (Kobayashi et al. 2020), rows sum to 1. `attribution`: what the head adds through that key to the first choice's logit less the
second's, of either sign; rows sum to the head's own attribution."""


def require_recorded(store: ActivationStore, arrays: Sequence[str], what: str) -> None:
    """NotRecordedError, naming what to record, where the store lacks one of the arrays."""
    held = {spec.name for spec in store.layout.arrays()}
    missing = [name for name in arrays if name not in held]
    if missing:
        raise NotRecordedError(
            f"expected {' and '.join(missing)} in the store for {what}, found none; extract again with --record {','.join(missing)} "
            "beside what you record now"
        )


def checked_weighing(name: str) -> str:
    """The name; InvalidInputError where there is no such weighing."""
    if name not in WEIGHINGS:
        raise InvalidInputError(f"expected a weighing of {', '.join(WEIGHINGS)}, found {name!r}")
    return name


def weighted_rows(store: ActivationStore, examples: NDArray[np.int64], weighing: str = "attention") -> NDArray[np.float32]:
    """The final token's row of every layer and head.

    Parameters
    ----------
    weighing
        One of `WEIGHINGS`.

    Returns
    -------
    numpy.ndarray
        (example, layer, head, token) float32; 0 beyond the prompt.

    Raises
    ------
    NotRecordedError
        If the store does not hold what the weighing needs, or not of one of the examples.
    """
    require_recorded(store, WEIGHINGS[checked_weighing(weighing)], f"the weighing {weighing!r}")
    rows = np.moveaxis(store.read("attention_rows", examples=examples), 0, 1)
    if weighing == "attention":
        rows = np.nan_to_num(rows, copy=False)
        # stored in half precision: scaled back to sum to 1
        rows /= rows.sum(-1, keepdims=True)
        return np.asarray(rows)
    values = np.moveaxis(store.read(WEIGHINGS[weighing][1], examples=examples), 0, 1)
    weighted: NDArray[Any] = norm_attention(rows, values) if weighing == "norm" else token_attribution(rows, values)
    return np.asarray(np.nan_to_num(weighted, copy=False), np.float32)
