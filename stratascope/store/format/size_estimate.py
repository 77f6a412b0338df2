"""Estimate of a store's size on disk, before a model is run.

The constants were measured with the encoders of this package on attention of SmolLM2-135M and of the demo's model, on residuals with the
outlier channels and heavy tails of Qwen2.5-VL, and on photographs; tests hold them within 10 % of what is written. Another model's
attention may be sharper or flatter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.store.format.arrays import ArraySpec
from stratascope.store.format.layout import StoreLayout
from stratascope.store.format.prompt_parts import is_mean
from stratascope.store.format.shards import encode_chunk, index_size

_FLOATS = {"float32": 0.91, "float16": 0.51, "bfloat16": 0.415}
"""Compression ratio of float32 numbers, by the model's dtype; means over tokens are float32 numbers even if that is bfloat16."""
_PATCHES = {"float32": 0.94, "float16": 0.61, "bfloat16": 0.48}
"""The same with zstd, which leaves next to nothing of examples without patches."""
_VISION = {"vision_maps": 0.8, "vision_parent": 0.2}
"""Compression ratio of attention maps of a vision tower, of tiny random ones."""
_CHANGES = 0.8
"""The same of relative changes in a vision tower; they are zero in windows that the box does not touch."""
_LOGITS = {"float32": 1.0, "float16": 0.7, "bfloat16": 0.6}
_SAME_TOKEN, _FEW_WORDS = 0.04, 0.35
"""Layer 0 holds embeddings: the final token is the same in every example, words recur. Share of what other layers take."""
_WORDS = ("subject", "relation", "object")
_EFFECTS = 0.75
"""Knockouts of one target in windows where it is not seen are zero to the last bit, or nearly."""
_TOKEN_IDS = 0.3
"""A few tokens are likely again and again."""
_PHOTOGRAPH = 0.87
_CREATED_PER_EXAMPLE, _CREATED_PER_ARRAY, _CREATED_PER_WORD, _CREATED = 150, 1_300, 6, 20_000
"""Bytes of tables, tokens and spans by example; of metadata by array, and of the table of examples; of the vocabulary by word."""


_LENS_METADATA = 14_000
"""Bytes of the metadata and words of the group `lens`."""


def estimate_sizes(
    layout: StoreLayout,
    n_tokens: NDArray[Any] | None = None,
    has_map: NDArray[Any] | None = None,
    position_present: NDArray[Any] | None = None,
    thumbnails: NDArray[np.uint8] | None = None,
    words: int = 0,
    knocked: float = 1.0,
    patches: NDArray[Any] | None = None,
    readout_words: int = 0,
    vision_weights: NDArray[Any] | None = None,
    changed_cells: int | None = None,
) -> pd.DataFrame:
    """Estimate the size on disk of every array, before a model is run.

    Parameters
    ----------
    layout
        Shapes of the store.
    n_tokens
        (example,) lengths of the prompts; None: all as long as the longest.
    has_map
        (example,) which examples have maps; None: all.
    position_present
        (example, position) which positions each example has; None: all.
    thumbnails
        (some, height, width, 3) pictures whose compressed size stands for all; None: photographs.
    words
        Token texts in the store's vocabulary.
    knocked
        Share of the examples whose knockouts are measured.
    patches
        (example,) image tokens of each example in patch_residual, 0 for examples without; None: all have the most.
    readout_words
        Rows of the unembedding in the group `lens`; 0: it is not written.
    vision_weights
        (example,) weights in vision_maps that are not zero, 0 for examples without; None: every token sees all of its view.
    changed_cells
        Image cells of the examples in vision_change, all together; None: every example has the most.

    Returns
    -------
    pandas.DataFrame
        array, shape, raw_bytes, estimated_bytes (on disk): one row for each array that is filled by block, and the row "created" for all
        that is written at creation; with `readout_words` also "lens".

    Raises
    ------
    InvalidInputError
        If an array has another shape.

    Examples
    --------
    >>> from stratascope.store import StoreLayout, estimate_sizes
    >>> layout = StoreLayout(100, 6, 64, 4, 40, ("final",), ("image",), ("true", "false"))
    >>> estimate_sizes(layout).query("array == 'residual'")["raw_bytes"].item()
    179200
    """
    lengths = np.full(layout.examples, layout.tokens) if n_tokens is None else np.asarray(n_tokens)
    mapped = np.ones(layout.examples, dtype=bool) if has_map is None else np.asarray(has_map, dtype=bool)
    present = np.ones(len(layout.positions)) if position_present is None else np.asarray(position_present).mean(0)
    for name, found in (("n_tokens", lengths), ("has_map", mapped)):
        if found.shape != (layout.examples,):
            raise InvalidInputError(f"{name}: expected {layout.examples} values, one an example, found shape {found.shape}")
    share = dict(zip(layout.positions, present.tolist(), strict=True))
    rows = []
    for spec in layout.arrays():
        if not spec.by_block:
            continue
        filled = _filled_bytes(spec, lengths, mapped, share)
        if spec.name in ("attention_maps", "gradient_maps"):
            values = _maps(layout, spec, lengths, mapped)
        elif spec.name == "patch_residual":
            values = _patches(layout, spec, patches)
        elif spec.mask == "has_map":
            filled = mapped.mean() if spec.name != "vision_maps" or vision_weights is None else np.sum(vision_weights) / spec.raw_bytes
            values = spec.raw_bytes * float(filled) * _VISION.get(spec.name, 1.0)
        elif spec.name in ("gradient_input", "hiding_estimate", "gradient_rollout"):
            values = filled * _LOGITS["float32"]
        elif "token" in spec.dims:
            values = filled * _row_share(layout, spec, lengths)
        elif spec.position_dim is not None:
            values = _residuals(layout, spec, share)
        elif spec.name == "thumbnail":
            values = spec.raw_bytes * _picture_share(spec, thumbnails)
        elif spec.name == "status":
            values = layout.blocks * 5.0
        elif spec.name == "knockout":
            values = spec.raw_bytes * knocked * _EFFECTS
        elif spec.name == "vision_change":
            filled = layout.examples * layout.change_cells if changed_cells is None else changed_cells
            values = 4.0 * filled * math.prod(spec.shape[1:3]) * _CHANGES
        elif spec.name == "top_tokens":
            values = spec.raw_bytes * _TOKEN_IDS
        else:
            values = spec.raw_bytes * _LOGITS[layout.computed_dtype]
        rows.append((spec.name, spec.shape, spec.raw_bytes, round(values + _overhead(layout, spec))))
    created = [s.raw_bytes for s in layout.arrays() if s.when == "creation"]
    metadata = _CREATED + _CREATED_PER_ARRAY * len(layout.arrays())
    rows.append(("created", (), sum(created), metadata + _CREATED_PER_EXAMPLE * layout.examples + _CREATED_PER_WORD * words))
    if readout_words:
        raw = 4 * layout.hidden * (readout_words + 2)
        rows.append(("lens", (readout_words, layout.hidden), raw, round(raw * _PATCHES[layout.computed_dtype]) + _LENS_METADATA))
    return pd.DataFrame(rows, columns=["array", "shape", "raw_bytes", "estimated_bytes"])


def _residuals(layout: StoreLayout, spec: ArraySpec, present: dict[str, float]) -> float:
    dim = spec.position_dim
    assert dim is not None
    layers = layout.layers_of(spec.layer_dim) if spec.layer_dim else (0,)
    whole = spec.raw_bytes / len(layers) / len(layout.positions_of(dim))
    total = 0.0
    for position in layout.positions_of(dim):
        averaged = is_mean(position)
        share = _FLOATS["float32" if averaged else layout.computed_dtype]
        for layer in layers:
            embedding = layer == 0 and spec.name == "residual" and not averaged
            recurring = (_FEW_WORDS if position.split("_")[0] in _WORDS else _SAME_TOKEN) if embedding else 1.0
            total += whole * share * recurring * present.get(position, 1.0)
    return total


def _patches(layout: StoreLayout, spec: ArraySpec, patches: NDArray[Any] | None) -> float:
    counts = np.full(layout.examples, layout.patches) if patches is None else np.asarray(patches)
    if counts.shape != (layout.examples,):
        raise InvalidInputError(f"patches: expected {layout.examples} values, one an example, found shape {counts.shape}")
    vector = spec.raw_bytes / layout.examples / max(layout.patches, 1)  # of one image token, at all layers
    return float(counts.sum() * vector * _PATCHES[layout.computed_dtype] + spec.raw_bytes / layout.examples * (counts == 0).sum() * 1e-4)


def _spread(layout: StoreLayout) -> float:
    """1 for models of few layers, whose heads have no sinks and differ in nothing but sharpness, falling to 0 at 28 layers."""
    return float(np.clip((28 - layout.layers) / 22, 0, 1))


def _row_share(layout: StoreLayout, spec: ArraySpec, lengths: NDArray[Any]) -> float:
    """float16 weights: a short chunk pays for the tables of its own code."""
    chunk = math.prod(n for n, d in zip(spec.chunk, spec.dims, strict=True) if d != "token") * float(lengths.mean())
    if spec.name == "attention_mean":
        return 0.91 + 43 / chunk - 0.13 * _spread(layout)
    if spec.name == "value_logits":  # of either sign and every size
        return 0.93 + 50 / chunk
    return 0.885 + 90 / chunk - 0.26 * _spread(layout)


def _maps(layout: StoreLayout, spec: ArraySpec, lengths: NDArray[Any], mapped: NDArray[np.bool_]) -> float:
    """The triangle below the diagonal, sparser in long prompts, whose rows hold more small weights; next to nothing without a map."""
    t = lengths[mapped].astype(np.float64)
    share = np.clip(0.916 - 0.16 * np.log(t / 60) + 0.14 * _spread(layout), 0.3, 1.1)
    return float((t * (t + 1) / 2 * share).sum() * spec.shape[1] + 30 * spec.shape[1] * (~mapped).sum())


def _filled_bytes(spec: ArraySpec, lengths: NDArray[Any], mapped: NDArray[np.bool_], present: Mapping[str, float]) -> float:
    """Bytes of values that are not padding and not absent."""
    if spec.name == "attention_maps":
        t = lengths[mapped].astype(np.float64)
        return float((t * (t + 1) / 2).sum() * spec.shape[1])
    if "token" in spec.dims:
        return spec.raw_bytes * float(lengths.sum()) / (len(lengths) * spec.shape[-1])
    if spec.position_dim == "position":
        return spec.raw_bytes * sum(present.values()) / len(present)
    return float(spec.raw_bytes)


def _picture_share(spec: ArraySpec, thumbnails: NDArray[np.uint8] | None) -> float:
    if thumbnails is None or not len(thumbnails):
        return _PHOTOGRAPH
    if thumbnails.shape[1:] != spec.shape[1:]:
        raise InvalidInputError(f"thumbnails: expected pictures of shape {spec.shape[1:]}, found {thumbnails.shape[1:]}")
    return sum(len(encode_chunk(spec, t[None])) for t in thumbnails) / thumbnails.nbytes


def _overhead(layout: StoreLayout, spec: ArraySpec) -> float:
    """Checksums, headers and indices."""
    axes = zip(spec.shape, spec.chunk, spec.dims, strict=True)
    chunks = math.prod(-(-n // c) for n, c, _ in axes)
    return chunks * (28.0 if spec.codec == "floats" else 16.0) + layout.blocks * (index_size(spec) if spec.shard else 0)
