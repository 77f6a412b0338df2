"""Table of a store's arrays: content, dimensions, chunks, codec, and when each is written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

Codec = Literal["floats", "zstd", "text", "marker"]
When = Literal["creation", "block", "derived", "marker"]

LAYER_DIMS = ("layer", "attention_layer", "vision_layer", "patch_layer", "vision_block")
"""Dimensions that `layer=` selects on: residual stream at positions, attention, residual stream of the vision tower and at image tokens,
attention of the vision tower."""
POSITION_DIMS = ("position", "vision_position")


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store with the shape that a layout gives it."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    """NumPy name, or "str" for text of any length."""
    fill: float | int | bool | str
    chunk: tuple[int, ...]
    """Shape of a chunk, the unit of compression and checksums."""
    shard: tuple[int, ...] | None
    """Shape of the file that holds the chunks; None where a file is one chunk."""
    codec: Codec
    when: When
    """`creation`: known before the model runs; `block`: passed to the writer; `derived`: computed by the writer; `marker`: `written`."""
    description: str
    gaps: bool = False
    """Whether recorded examples may have NaN, or the fill of whole numbers."""
    mask: str = ""
    """Array that says which examples have values; others are neither passed to the writer nor returned. Empty: all examples."""

    @property
    def by_block(self) -> bool:
        """Whether each shard block is one file of this array."""
        return self.when in ("block", "derived")

    @property
    def example_axis(self) -> int:
        """Axis of the examples; ValueError if the array has none."""
        return self.dims.index("example")

    @property
    def layer_dim(self) -> str | None:
        """Dimension that `layer=` selects on; None if there is none."""
        return next((d for d in self.dims if d in LAYER_DIMS), None)

    @property
    def position_dim(self) -> str | None:
        """Dimension that `position=` selects on; None if there is none."""
        return next((d for d in self.dims if d in POSITION_DIMS), None)

    @property
    def raw_bytes(self) -> int:
        """Bytes of all values before compression (16 a value for text)."""
        return math.prod(self.shape) * (16 if self.dtype == "str" else np.dtype(self.dtype).itemsize)

    def block_shape(self, examples: int) -> tuple[int, ...]:
        """The array's shape with `examples` along its example axis."""
        axis = self.example_axis
        return (*self.shape[:axis], examples, *self.shape[axis + 1 :])

    def key(self, block: int) -> str:
        """Path of a shard block's file, relative to the store."""
        parts = [str(block) if i == self.example_axis else "0" for i in range(len(self.dims))]
        return f"{self.name}/c/{'/'.join(parts)}"


@dataclass(frozen=True)
class ArrayKind:
    """A row of the table: an array without sizes."""

    name: str
    dims: tuple[str, ...]
    dtype: str
    fill: float | int | bool | str
    pieces: Mapping[str, int]
    """Chunk length by dimension; other dimensions are never split. Along `example` at most a shard block."""
    codec: Codec
    when: When
    description: str
    optional: bool = False
    """In the store only if the layout's `record` names it."""
    beside: tuple[str, ...] = ()
    """In the store only if `record` names one of these arrays, whose axis it labels."""
    gaps: bool = False
    """Whether a recorded example may have NaN."""
    mask: str = ""
    """Array that says which examples have values; all if empty."""

    def shaped(self, sizes: Mapping[str, int], block: int) -> ArraySpec:
        """The array with a length for every dimension and its chunks."""
        by_block = self.when in ("block", "derived")
        file = tuple(block if d == "example" and by_block else max(sizes[d], 1) for d in self.dims)
        wanted = {d: self.pieces.get(d, n) if by_block else paged(self.pieces.get(d, n), n) for d, n in zip(self.dims, file, strict=True)}
        chunk = tuple(_piece(n, wanted[d], tiled=by_block) for d, n in zip(self.dims, file, strict=True))
        shape = tuple(sizes[d] for d in self.dims)
        shard = file if by_block and file != chunk else None
        return ArraySpec(
            self.name, self.dims, shape, self.dtype, self.fill, chunk, shard, self.codec, self.when, self.description, self.gaps, self.mask
        )


_NAN = math.nan
_ROW = ("attention_layer", "example", "head", "token")
_PAGE = {"example": 512}
"""Chunk length of arrays written at creation, which readers page through; see `paged`."""
_MANY = 32_768
TABLE = (
    ArrayKind(
        "residual", ("layer", "position", "example", "hidden"), "float32", _NAN,
        {"layer": 1, "position": 1, "example": 32}, "floats", "block",
        "residual stream after `layer` decoder blocks, before the final norm; NaN where the position is absent", True,
    ),
    ArrayKind(
        "patch_residual", ("patch_layer", "example", "patch", "hidden"), "float32", _NAN,
        {"patch_layer": 1, "example": 1}, "zstd", "block",
        "residual stream of every image token, in raster order, of the examples in has_patches; NaN beyond an example's image tokens",
        True, mask="has_patches",
    ),
    ArrayKind(
        "vision_residual", ("vision_layer", "vision_position", "example", "vision_hidden"), "float32", _NAN,
        {"vision_layer": 1, "vision_position": 1, "example": 32}, "floats", "block",
        "residual stream of the vision tower after `vision_layer` blocks", True,
    ),
    ArrayKind(
        "vision_output", ("vision_position", "example", "hidden"), "float32", _NAN,
        {"vision_position": 1, "example": 32}, "floats", "block", "what the vision tower hands to the decoder", True,
    ),
    ArrayKind(
        "attention_rows", _ROW, "float16", _NAN, {"attention_layer": 1, "example": 4}, "zstd", "block",
        "the final token's post-softmax weights over all tokens, by head; NaN beyond n_tokens", True,
    ),
    ArrayKind(
        "attention_mean", ("example", "attention_layer", "token"), "float16", _NAN, {"example": 1}, "zstd", "derived",
        "attention_rows averaged over heads; NaN beyond n_tokens", True,
    ),
    ArrayKind(
        "attention_maps", ("example", "attention_layer", "query", "key"), "uint8", 0,
        {"example": 1, "attention_layer": 1}, "zstd", "block",
        "whole attention matrix fused over heads, packed: round(255 * sqrt(value / row maximum))", True,
    ),
    ArrayKind(
        "vision_maps", ("example", "vision_block", "view", "vision_query", "vision_key"), "uint8", 0,
        {"example": 1, "vision_block": 1, "view": 1}, "zstd", "block",
        "attention of the vision tower fused over heads, packed as attention_maps: tokens without a place in the image, then the patches "
        "in raster order, of the examples in has_map; zeros beyond the tokens of a view", True, mask="has_map",
    ),
    ArrayKind(
        "vision_parent", ("example", "view", "vision_token"), "int32", -1, {"example": 1}, "zstd", "block",
        "prompt token that a token of the vision tower is part of, with the same weight as the others of that prompt token; -1: none",
        True, gaps=True, mask="has_map",
    ),
    ArrayKind(
        "vision_grid", ("example", "view", "grid_axis"), "int32", -1, {"example": 1}, "zstd", "block",
        "rows and columns of patches of each view of the vision tower; -1 beyond the views of an image", True, gaps=True, mask="has_map",
    ),
    ArrayKind(
        "vision_box", ("example", "view", "side"), "float32", _NAN, {"example": 1}, "zstd", "block",
        "what a view shows: left, top, right, bottom as shares of what the image cells cover; NaN beyond the views of an image", True,
        gaps=True, mask="has_map",
    ),
    ArrayKind(
        "vision_change", ("example", "changed", "change_layer", "cell"), "float32", _NAN, {"example": 1}, "zstd", "block",
        "|r' - r| / |r| of the vision tower's residual stream r at every image cell, in raster order, after 0, 1, ... blocks, and last of "
        "its output, where r' is that with the box of `changed` in a uniform colour; NaN if not measured", True, gaps=True,
    ),
    ArrayKind(
        "value_norms", _ROW, "float16", _NAN, {"attention_layer": 1, "example": 4}, "zstd", "block",
        "norm of what each head would write if it attended to that token alone; NaN beyond n_tokens", True,
    ),
    ArrayKind(
        "value_logits", _ROW, "float16", _NAN, {"attention_layer": 1, "example": 4}, "zstd", "block",
        "what each head would add to the difference of the first two choices' logits if it attended to that token alone", True,
    ),
    ArrayKind(
        "head_outputs", ("attention_layer", "example", "head", "head_dim"), "float32", _NAN,
        {"attention_layer": 1, "example": 32}, "floats", "block", "output of each head at the final token, before W_O", True,
    ),
    ArrayKind(
        "head_logits", ("attention_layer", "example", "head"), "float32", _NAN, {}, "zstd", "block",
        "each head's direct contribution to the difference of the first two choices' logits", True,
    ),
    ArrayKind(
        "mlp_logits", ("attention_layer", "example"), "float32", _NAN, {}, "zstd", "block",
        "what the block adds to that difference beside its heads: its MLP and biases", True,
    ),
    ArrayKind(
        "embedding_logits", ("example",), "float32", _NAN, {}, "zstd", "block",
        "what the final token's embedding and the biases of the head add to that difference", True,
    ),
    ArrayKind(
        "hiding_estimate", ("example", "token"), "float32", _NAN, {}, "zstd", "block",
        "first-order estimate of what hiding each token from all later ones in all blocks does to that difference; NaN beyond n_tokens",
        True,
    ),
    ArrayKind(
        "gradient_input", ("example", "token"), "float32", _NAN, {}, "zstd", "block",
        "gradient of that difference by what enters the first block at each token, times it; NaN beyond n_tokens", True,
    ),
    ArrayKind(
        "gradient_rollout", ("example", "layer", "token"), "float32", _NAN, {"example": 1}, "zstd", "block",
        "the final token's rollout onto the tokens of each layer, of attention maps weighted by the positive part of the gradient of the "
        "answer's logit difference; NaN beyond n_tokens", True,
    ),
    ArrayKind(
        "gradient_maps", ("example", "attention_layer", "query", "key"), "uint8", 0, {"example": 1, "attention_layer": 1}, "zstd", "block",
        "attention maps weighted by the positive part of the gradient of the answer's logit difference, mean over heads, of the examples "
        "in has_map, packed: round(255 * sqrt(value / gradient_scale))", True, mask="has_map",
    ),
    ArrayKind(
        "gradient_scale", ("example", "attention_layer", "query"), "float32", _NAN, {"example": 1}, "zstd", "block",
        "largest value of each row of gradient_maps; 0 beyond n_tokens", True, mask="has_map",
    ),
    ArrayKind(
        "knockout", ("example", "knockout_mode", "knockout_window", "knockout_target"), "float32", _NAN, {}, "zstd", "block",
        "difference of the first two choices' logits with the target hidden, less the same with nothing hidden; NaN if not measured",
        True, gaps=True,
    ),
    ArrayKind(
        "form_logits", ("example", "answer_form"), "float32", _NAN, {}, "zstd", "block",
        "logits of the ways to answer, at the final token", True,
    ),
    ArrayKind(
        "top_tokens", ("example", "rank"), "int32", -1, {}, "zstd", "block", "the likeliest next tokens, the likeliest first", True,
    ),
    ArrayKind("top_logits", ("example", "rank"), "float32", _NAN, {}, "zstd", "block", "logits of top_tokens", True),
    ArrayKind("answer_logits", ("example", "choice"), "float32", _NAN, {}, "zstd", "block", "logits of the answer choices"),
    ArrayKind(
        "generated_tokens", ("example", "generated"), "int32", -1, {}, "zstd", "block",
        "greedy tokens after the prompt, with the one that ends the turn; -1 after it", True, gaps=True,
    ),
    ArrayKind(
        "generated_count", ("example",), "int32", -1, {}, "zstd", "block",
        "generated tokens before the end of the turn: positions answer_0 to answer_(count - 1) exist", True,
    ),
    ArrayKind(
        "generated_choice", ("example",), "int32", -1, {}, "zstd", "block",
        "choice that the generated text names; -1: none, or several", True, gaps=True,
    ),
    ArrayKind(
        "generated_text", ("example", "byte"), "uint8", 0, {"example": 64}, "zstd", "block",
        "the generated text in UTF-8, zeros after it", True,
    ),
    ArrayKind("status", ("example",), "uint8", 0, {}, "zstd", "block", "what became of the example, see flag_meanings"),
    ArrayKind(
        "thumbnail", ("example", "height", "width", "rgb"), "uint8", 0, {"example": 1}, "zstd", "block",
        "the image as the model was shown it, stretched to this size; image_width and image_height restore its shape", True,
    ),
    ArrayKind("token_ids", ("example", "token"), "int32", -1, {"example": 64}, "zstd", "creation", "prompt; -1 beyond n_tokens"),
    ArrayKind("n_tokens", ("example",), "int32", -1, _PAGE, "zstd", "creation", "length of the prompt in tokens"),
    ArrayKind("grid", ("example", "grid_axis"), "int32", -1, _PAGE, "zstd", "creation", "rows and columns of image cells (one token each)"),
    ArrayKind("spans", ("example", "span", "bound"), "int32", -1, _PAGE, "zstd", "creation", "token interval [start, stop); -1: absent"),
    ArrayKind("position_present", ("example", "position"), "bool", False, _PAGE, "zstd", "creation", "whether the position exists"),
    ArrayKind("has_map", ("example",), "bool", False, _PAGE, "zstd", "creation", "whether attention_maps holds the example"),
    ArrayKind(
        "has_patches", ("example",), "bool", False, _PAGE, "zstd", "creation", "whether patch_residual holds the example",
        beside=("patch_residual",),
    ),
    ArrayKind("layer", ("layer",), "int32", -1, {}, "zstd", "creation", "decoder blocks passed: 0 is what enters the first"),
    ArrayKind("attention_layer", ("attention_layer",), "int32", -1, {}, "zstd", "creation", "index of the decoder block"),
    ArrayKind(
        "vision_layer", ("vision_layer",), "int32", -1, {}, "zstd", "creation", "vision blocks passed", beside=("vision_residual",)
    ),
    ArrayKind(
        "vision_block", ("vision_block",), "int32", -1, {}, "zstd", "creation", "index of the block of the vision tower",
        beside=("vision_maps",),
    ),
    ArrayKind(
        "patch_layer", ("patch_layer",), "int32", -1, {}, "zstd", "creation", "decoder blocks passed: 0 is what enters the first",
        beside=("patch_residual",),
    ),
    ArrayKind("position", ("position",), "str", "", {}, "text", "creation", "names of positions"),
    ArrayKind(
        "vision_position", ("vision_position",), "str", "", {}, "text", "creation", "names of positions in the vision tower",
        beside=("vision_residual", "vision_output"),
    ),
    ArrayKind("changed", ("changed",), "str", "", {}, "text", "creation", "whose box is changed", beside=("vision_change",)),
    ArrayKind("side", ("side",), "str", "", {}, "text", "creation", "sides of a box", beside=("vision_box",)),
    ArrayKind("span", ("span",), "str", "", {}, "text", "creation", "names of spans"),
    ArrayKind("bound", ("bound",), "str", "", {}, "text", "creation", "start and stop"),
    ArrayKind("grid_axis", ("grid_axis",), "str", "", {}, "text", "creation", "rows and columns"),
    ArrayKind("choice", ("choice",), "str", "", {}, "text", "creation", "answer choices"),
    ArrayKind(
        "answer_form", ("answer_form",), "str", "", {}, "text", "creation", "ways to answer, each one token", beside=("form_logits",)
    ),
    ArrayKind(
        "knockout_mode", ("knockout_mode",), "str", "", {}, "text", "creation",
        "who may not see the target: the final token, or all later tokens", beside=("knockout",),
    ),
    ArrayKind(
        "knockout_window", ("knockout_window",), "str", "", {}, "text", "creation",
        "first and last block of the windows in which it is hidden", beside=("knockout",),
    ),
    ArrayKind(
        "knockout_target", ("knockout_target",), "str", "", {}, "text", "creation", "parts of the prompt and of the image that are hidden",
        beside=("knockout",),
    ),
    ArrayKind("example", ("example",), "str", "", _PAGE, "text", "creation", "unique id of the example"),
    ArrayKind("relation", ("example",), "str", "", _PAGE, "text", "creation", "relation that the caption claims"),
    ArrayKind("label", ("example",), "int64", -1, _PAGE, "zstd", "creation", "1: true caption, 0: false one; or the right choice"),
    ArrayKind("written", ("block",), "uint8", 0, {"block": 1}, "marker", "marker", "1 where every array holds the block"),
)  # fmt: skip
GENERATED = ("generated_tokens", "generated_count", "generated_choice", "generated_text")
"""Arrays of a store with generated tokens."""
RECORDABLE = tuple(a.name for a in TABLE if a.optional and a.name not in ("thumbnail", *GENERATED))
"""Names allowed in a layout's `record`."""
SHOWN_ROWS = _PAGE["example"]
"""Captions per chunk; a list of examples shows one page at a time."""
TABLE_ROWS = 2048
"""Rows per chunk of other text columns of the table of examples."""
NUMBER_ROWS = 1024
"""Rows per chunk of numeric columns."""
WORD_ROWS = 1024
"""Rows per chunk of the vocabulary."""


def paged(least: int, examples: int) -> int:
    """Rows per chunk: `least`, twice that beyond 32,768 examples, four times beyond 65,536.

    Small enough to fetch for a single example, large enough that a million examples are five hundred files.
    """
    return least * (1 if examples <= _MANY else 2 if examples <= 2 * _MANY else 4)


def _piece(length: int, wanted: int, *, tiled: bool) -> int:
    """Chunk length: at most `wanted`; a divisor of `length` if chunks must tile their file."""
    if wanted >= length or not tiled:
        return min(wanted, length)
    return next(k for k in range(wanted, 0, -1) if length % k == 0)
