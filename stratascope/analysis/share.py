"""How the final token's attention is divided among the spans of the prompt, by layer and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stratascope.errors import InvalidInputError
from stratascope.store import ActivationStore, ResultFile, load_result, save_result

RESULT_KIND = "attention_share"

PARTS = ("system", "image", "subject", "relation", "object", "caption_rest", "template")
"""A partition of the tokens: the caption without its three parts is `caption_rest`, what is in no span is `template`."""


def token_parts(spans: dict[str, np.ndarray], n_tokens: np.ndarray, longest: int) -> np.ndarray:
    """To which of `PARTS` each token belongs.

    Parameters
    ----------
    spans
        Name -> (example, 2) half-open intervals, -1 where absent.
    n_tokens
        (example,).
    longest
        Length of the padded token axis.

    Returns
    -------
    numpy.ndarray
        (example, token) int8 index into `PARTS`, -1 beyond an example's own tokens.
    """
    token = np.arange(longest)[None]
    parts = np.full((len(n_tokens), longest), PARTS.index("template"), np.int8)
    for part, span in (
        ("system", "system"),
        ("image", "image"),
        ("caption_rest", "caption"),
        *((p, p) for p in ("subject", "relation", "object")),
    ):
        if span in spans:
            inside = (token >= spans[span][:, :1]) & (token < spans[span][:, 1:])
            parts[inside] = PARTS.index(part)
    parts[token >= n_tokens[:, None]] = -1
    return parts


@dataclass(frozen=True)
class AttentionShare:
    """The final token's attention by part of the prompt, and each part's share of the tokens."""

    values: np.ndarray
    """(example, layer, head, part) float32; sums to 1 over parts; the layers are `attributes["layers"]`."""
    tokens: np.ndarray
    """(example, part) float32: share of the example's tokens."""
    examples: np.ndarray
    """(example,) example numbers."""
    attributes: dict[str, Any]

    @property
    def parts(self) -> tuple[str, ...]:
        return PARTS

    def save(self, path: Path | str) -> None:
        arrays = {
            "share": (("example", "layer", "head", "part"), self.values),
            "token_share": (("example", "part"), self.tokens),
            "example": (("example",), self.examples),
        }
        save_result(path, ResultFile(RESULT_KIND, {}, arrays, {**self.attributes, "parts": list(PARTS)}))

    @classmethod
    def load(cls, path: Path | str) -> AttentionShare:
        """Raises InvalidInputError if the file holds results of another kind."""
        file = load_result(path)
        if file.kind != RESULT_KIND or tuple(file.attributes.get("parts", ())) != PARTS:
            raise InvalidInputError(f"{path}: expected results of kind {RESULT_KIND!r} with parts {', '.join(PARTS)}, found {file.kind!r}")
        return cls(file.arrays["share"][1], file.arrays["token_share"][1], file.arrays["example"][1], dict(file.attributes))


def attention_share(store: ActivationStore, examples: Sequence[int] | None = None) -> AttentionShare:
    """Share of the final token's attention on each part of the prompt (AdaptVis, figure a, but per head).

    Parameters
    ----------
    store
        With attention rows.
    examples
        Example numbers; all whose rows are recorded by default.

    Raises
    ------
    NotRecordedError
        If the store holds no attention rows, or not of one of the examples.
    """
    chosen = np.flatnonzero(store.available("attention_rows")) if examples is None else np.asarray(examples, np.int64)
    layout = store.layout
    parts = token_parts({name: span[chosen] for name, span in store.spans.items()}, store.n_tokens[chosen], layout.tokens)
    member = (parts[..., None] == np.arange(len(PARTS))).astype(np.float32)
    values = np.empty((len(chosen), len(layout.attention_layers), layout.heads, len(PARTS)), np.float32)
    for start in range(0, len(chosen), layout.block):
        stop = start + layout.block
        for k, layer in enumerate(layout.attention_layers):
            rows = np.nan_to_num(store.read("attention_rows", layer=layer, examples=chosen[start:stop]), copy=False)
            values[start:stop, k] = rows @ member[start:stop]
    values /= values.sum(-1, keepdims=True)
    tokens = member.sum(1) / store.n_tokens[chosen][:, None].astype(np.float32)
    attributes = {"store": store.fingerprint(), "layers": list(layout.attention_layers), "condition": store.provenance["condition"]}
    return AttentionShare(values, tokens, chosen, attributes)
