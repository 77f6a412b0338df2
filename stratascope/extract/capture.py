"""Capture of residual streams, attention rows, maps, value norms and head outputs in one forward pass.

One mechanism for all families: an attention function registered with transformers runs stock SDPA and computes the rows of
the final token from the same queries and keys in float32; hooks on the decoder blocks read the residual stream (never
`hidden_states[-1]`, which is after the final norm). Both `AttentionInterface` and `AttentionMaskInterface` must know the
name: without the second no mask is built, silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stratascope.errors import CaptureError

NAME = "stratascope_rows"
"""Name of the attention function; it must not contain sdpa, flash or flex, which transformers matches by pattern."""

QUERY_BLOCK = 128
"""Queries whose weights over all keys and heads are held at once while a map is fused; bounds the memory."""


@dataclass
class Capture:
    """What one forward pass left behind."""

    last: torch.Tensor
    """(batch,) index of each example's final token."""
    pooling: Pooling
    want: frozenset[str] = frozenset()
    """Of maps, value_norms, head_outputs; residuals and rows are always captured."""
    residual: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> (batch, position, hidden) float32."""
    final: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> (batch, hidden) float32: the residual stream at the final token."""
    rows: dict[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (batch, head, token) float32."""
    fused: dict[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (batch, query, key) float32, the mean over heads."""
    value_norms: dict[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (batch, head, token) float32: norm of what a head would write if it attended to that token alone."""
    head_outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (batch, head, head width) float32: what each head gives at the final token, before W_O."""

    def pool(self, layer: int, hidden: torch.Tensor) -> None:
        """Keep what is wanted of the residual stream `hidden`, (batch, token, hidden), at a layer."""
        self.residual[layer] = self.pooling(hidden)
        rows = torch.arange(len(self.last), device=hidden.device)
        self.final[layer] = hidden[rows, self.last].float()


@dataclass(frozen=True)
class Pooling:
    """Token indices whose mean is each position's vector, padded: exact gathers for single tokens, float32 means else."""

    index: torch.Tensor
    """(batch, position, most tokens) int64."""
    weight: torch.Tensor
    """(batch, position, most tokens) float32: 1 / count, 0 in the padding and where the position is absent."""
    counts: tuple[int, ...] = ()
    """The most tokens of each position; counted here if left out, which makes a GPU wait."""

    def __post_init__(self) -> None:
        if not self.counts:
            counts = (self.weight > 0).sum(-1).amax(0).clamp_min(1)
            object.__setattr__(self, "counts", tuple(int(n) for n in counts))

    def to(self, device: torch.device) -> Pooling:
        """The same on another device."""
        return Pooling(self.index.to(device), self.weight.to(device), self.counts)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, token, hidden) -> (batch, position, hidden) float32; a copy, so that later in-place work cannot change it."""
        batch, positions, _ = self.index.shape
        rows = torch.arange(batch, device=hidden.device)[:, None]
        out = torch.empty(batch, positions, hidden.shape[-1], dtype=torch.float32, device=hidden.device)
        for k, count in enumerate(self.counts):
            gathered = hidden[rows, self.index[:, k, :count]].float()
            out[:, k] = gathered[:, 0] if count == 1 else torch.einsum("btd,bt->bd", gathered, self.weight[:, k, :count])
        return out


_current: ContextVar[Capture | None] = ContextVar("stratascope_capture", default=None)


def attention_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    positions: torch.Tensor,
    softcap: float | None = None,
) -> torch.Tensor:
    """Post-softmax weights of chosen queries over all keys, in float32, without repeating key heads.

    Parameters
    ----------
    query, key
        (batch, heads, token, width) and (batch, key heads, token, width), after rotary embedding.
    mask
        None (causal), boolean (true: may be seen) or additive, broadcastable to (batch, 1, query, key).
    scaling
        Factor of the scores.
    positions
        (batch, n) indices of the queries.
    softcap
        Scores are squeezed to softcap * tanh(score / softcap) before the mask (Gemma 2).

    Returns
    -------
    torch.Tensor
        (batch, heads, n, token) float32; rows sum to 1.
    """
    batch, heads, _, width = query.shape
    groups, tokens, count = key.shape[1], key.shape[2], positions.shape[1]
    chosen = torch.gather(query, 2, positions[:, None, :, None].expand(batch, heads, count, width)).float()
    scores = torch.matmul(chosen.reshape(batch, groups, heads // groups * count, width), key.float().transpose(2, 3)) * scaling
    scores = scores.view(batch, heads, count, tokens)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        visible = torch.arange(tokens, device=scores.device) <= positions[..., None]
        scores = scores.masked_fill(~visible[:, None], float("-inf"))
    else:
        mask = mask.expand(batch, *mask.shape[1:])
        picked = torch.gather(mask, 2, positions[:, None, :, None].expand(batch, mask.shape[1], count, mask.shape[3]))[..., :tokens]
        scores = scores.masked_fill(~picked, float("-inf")) if picked.dtype == torch.bool else scores + picked.float()
    return torch.softmax(scores, dim=-1)


def _query_blocks(tokens: int, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """(batch, n) indices of successive blocks of queries."""
    for start in range(0, tokens, QUERY_BLOCK):
        yield torch.arange(start, min(start + QUERY_BLOCK, tokens), device=like.device).expand(like.shape[0], -1)


def fused_map(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float, softcap: float | None = None
) -> torch.Tensor:
    """The whole attention map averaged over heads, (batch, query, key) float32, in blocks of queries."""
    blocks = _query_blocks(query.shape[2], query)
    return torch.cat([attention_weights(query, key, mask, scaling, block, softcap).mean(1) for block in blocks], 1)


def value_norms(value: torch.Tensor, output_weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Norm of W_O^h v_j for every head and token (Kobayashi et al. 2020, equation 5), through each head's Gram matrix of W_O.

    Parameters
    ----------
    value
        (batch, key heads, token, width).
    output_weight
        (hidden, heads x width), the output projection.
    heads
        Number of query heads; heads of a group share values but not W_O.

    Returns
    -------
    torch.Tensor
        (batch, heads, token) float32.
    """
    batch, groups, tokens, width = value.shape
    weight = output_weight.float().view(-1, heads, width)
    gram = torch.einsum("ohd,ohe->hde", weight, weight).view(groups, heads // groups, width, width)
    wide = value.float()
    squared = torch.einsum("bktd,kgde,bkte->bkgt", wide, gram, wide)
    return squared.clamp_min(0).sqrt().reshape(batch, heads, tokens)


def _softcapped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float, softcap: float
) -> torch.Tensor:
    """(batch, token, head, width): attention with a soft cap, which SDPA cannot do, in blocks of queries."""
    batch, heads, tokens, _ = query.shape
    groups, width = value.shape[1], value.shape[3]
    parts = []
    for block in _query_blocks(tokens, query):
        weights = attention_weights(query, key, mask, scaling, block, softcap).to(value.dtype)
        weights = torch.nan_to_num(weights)  # rows of the padding see nothing
        count = block.shape[1]
        mixed = torch.matmul(weights.view(batch, groups, heads // groups * count, -1), value)
        parts.append(mixed.view(batch, heads, count, width))
    return torch.cat(parts, 2).transpose(1, 2).contiguous()


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Stock SDPA; beside it, what the current capture wants."""
    factor = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
    if softcap is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    else:
        output = _softcapped(query, key, value, attention_mask, factor, softcap)
    capture = _current.get()
    if capture is not None:
        block = int(module.layer_idx)  # type: ignore[arg-type]
        capture.rows[block] = attention_weights(query, key, attention_mask, factor, capture.last[:, None], softcap)[:, :, 0]
        if "maps" in capture.want:
            capture.fused[block] = fused_map(query, key, attention_mask, factor, softcap)
        if "value_norms" in capture.want:
            projection: Any = module.o_proj
            capture.value_norms[block] = value_norms(value, projection.weight, query.shape[1])
        if "head_outputs" in capture.want:
            rows = torch.arange(len(capture.last), device=output.device)
            capture.head_outputs[block] = output[rows, capture.last].float()
    return output, None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def reading_residuals(blocks: Any, keep: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """While open, `keep(layer, hidden)` is told the residual stream where it enters each block and where it leaves the last.

    Block inputs, not outputs: in Qwen3-VL features are added to the stream between blocks.
    """

    def entering(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            keep(layer, args[0] if args else kwargs["hidden_states"])

        return hook

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        keep(len(blocks), output[0] if isinstance(output, tuple) else output)

    handles = [block.register_forward_pre_hook(entering(layer), with_kwargs=True) for layer, block in enumerate(blocks)]
    handles.append(blocks[-1].register_forward_hook(leaving))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capturing(decoder: nn.Module, capture: Capture) -> Iterator[Capture]:
    """While open, a forward pass through `decoder` (the text model that owns `.layers`) fills `capture`.

    Residual layer k is read where it enters block k, and layer L where it leaves the last block, before the final norm.
    """
    token = _current.set(capture)
    try:
        with reading_residuals(decoder.layers, capture.pool):
            yield capture
    finally:
        _current.reset(token)


def text_decoder(model: nn.Module) -> nn.Module:
    """The text model that owns `.layers` and `.norm`, wherever a family keeps it.

    Raises
    ------
    CaptureError
        If there is none, or its blocks are not built of attention with an output projection.
    """
    base = getattr(model, "model", model)
    for name in ("language_model", "text_model"):
        decoder: nn.Module | None = getattr(base, name, None)
        blocks: Any = getattr(decoder, "layers", None)
        if decoder is not None and blocks and hasattr(decoder, "norm") and hasattr(getattr(blocks[0], "self_attn", None), "o_proj"):
            return decoder
    raise CaptureError(
        f"expected a model whose text decoder has .layers of self-attention blocks and a final .norm, found {type(model).__name__}, which "
        "does not fit; open an issue with the model's name"
    )


def use_captured_attention(model: nn.Module) -> nn.Module:
    """Make the text decoder attend through `NAME`, the vision tower through stock SDPA; returns the decoder."""
    decoder = text_decoder(model)
    stock = "sdpa" if getattr(model, "_supports_sdpa", True) else "eager"  # Gemma 2 has no stock SDPA, for its soft cap
    model.set_attn_implementation({"": stock, "text_config": NAME, "vision_config": "sdpa"})  # type: ignore[operator]
    found = decoder.config._attn_implementation  # type: ignore[union-attr]
    if found != NAME:
        raise CaptureError(f"expected {type(model).__name__} to accept the attention function {NAME!r}, found it using {found!r}")
    return decoder
