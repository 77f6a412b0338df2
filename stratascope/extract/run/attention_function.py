"""The attention function of a captured decoder: stock SDPA with a listener for queries, keys and values.

It serves all families. The name must be registered in both `AttentionInterface` and `AttentionMaskInterface`: without the second,
transformers silently builds no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stratascope.errors import CaptureError
from stratascope.extract.run.decoder import block_of, output_projection
from stratascope.extract.run.weights import linear_weight

NAME = "stratascope_rows"
"""Name of the attention function; it must not contain sdpa, flash or flex, which transformers matches by pattern."""

QUERY_CHUNK = 128
"""Queries whose weights over all keys and heads are held at once; bounds the memory."""


@dataclass(frozen=True)
class BlockAttention:
    """Inputs and output of self-attention in one decoder block."""

    block: int
    module: nn.Module
    """The attention module."""
    query: torch.Tensor
    """(batch, head, token, width), after rotary embedding."""
    key: torch.Tensor
    """(batch, key head, token, width), after rotary embedding."""
    value: torch.Tensor
    """(batch, key head, token, width)."""
    mask: torch.Tensor | None
    scaling: float
    softcap: float | None
    output: torch.Tensor
    """(batch, token, head, width), before W_O."""

    @property
    def output_weight(self) -> torch.Tensor:
        """(hidden, heads x width): W_O, dequantised."""
        return linear_weight(output_projection(self.module), self.output.shape[2] * self.output.shape[3])

    def weights(self, positions: torch.Tensor) -> torch.Tensor:
        """Attention rows of selected queries, see `attention_weights`."""
        return attention_weights(self.query, self.key, self.mask, self.scaling, positions, self.softcap)


class Listener(Protocol):
    """Receives the attention of every decoder block."""

    def on_attention(self, seen: BlockAttention) -> None: ...


KeysValuesMask = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]

_listener: ContextVar[Listener | None] = ContextVar("stratascope_listener", default=None)
_override: ContextVar[Callable[[int, torch.Tensor, torch.Tensor], KeysValuesMask] | None] = ContextVar("stratascope_override", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """While open, `listener` receives the attention of every block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def overriding_attention(replace: Callable[[int, torch.Tensor, torch.Tensor], KeysValuesMask]) -> Iterator[None]:
    """While open, `replace(block, key, value)` gives the keys, values and mask that blocks use."""
    token = _override.set(replace)
    try:
        yield
    finally:
        _override.reset(token)


def attention_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    positions: torch.Tensor,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention weights (after softmax) of selected queries over all keys, in float32; key heads are not repeated.

    Parameters
    ----------
    query, key
        (batch, heads, token, width) and (batch, key heads, token, width), after rotary embedding.
    mask
        None (causal), boolean (true: visible) or additive, broadcastable to (batch, 1, query, key).
    scaling
        Factor of the scores.
    positions
        (batch, n) indices of the queries.
    softcap
        Scores become softcap * tanh(score / softcap) before the mask (Gemma 2).

    Returns
    -------
    torch.Tensor
        (batch, heads, n, token) float32; rows sum to 1.
    """
    batch, heads, _, width = query.shape
    groups, tokens, count = key.shape[1], key.shape[2], positions.shape[1]
    chosen = torch.gather(query, 2, positions[:, None, :, None].expand(batch, heads, count, width)).float()
    scores = torch.matmul(chosen.reshape(batch, groups, heads // groups * count, width), key.float().transpose(2, 3)).mul_(scaling)
    scores = scores.view(batch, heads, count, tokens)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        visible = torch.arange(tokens, device=scores.device) <= positions[..., None]
        scores = scores.masked_fill_(~visible[:, None], float("-inf"))
    else:
        mask = mask.expand(batch, *mask.shape[1:])
        picked = torch.gather(mask, 2, positions[:, None, :, None].expand(batch, mask.shape[1], count, mask.shape[3]))[..., :tokens]
        scores = scores.masked_fill_(~picked, float("-inf")) if picked.dtype == torch.bool else scores.add_(picked.float())
    return torch.softmax(scores, dim=-1)


def _query_chunks(tokens: int, like: torch.Tensor) -> Iterator[torch.Tensor]:
    """(batch, n) indices of successive chunks of queries."""
    for start in range(0, tokens, QUERY_CHUNK):
        yield torch.arange(start, min(start + QUERY_CHUNK, tokens), device=like.device).expand(like.shape[0], -1)


def fused_chunks(seen: BlockAttention, fusion: str = "mean") -> Iterator[tuple[int, torch.Tensor]]:
    """First query, and (batch, n, key) float32 attention aggregated over heads, of successive chunks of queries.

    Without a mask attention is causal, and the keys after a chunk are left out. With `max` and `min` rows do not sum to 1, so they are
    divided by their sums; an all-zero row puts weight 1 on the query itself.
    """
    tokens = seen.query.shape[2]
    for number, chunk in enumerate(_query_chunks(tokens, seen.query)):
        first = number * QUERY_CHUNK
        reach = tokens if seen.mask is not None else first + chunk.shape[1]
        weights = attention_weights(seen.query, seen.key[:, :, :reach], seen.mask, seen.scaling, chunk, seen.softcap)
        if fusion == "mean":
            fused = weights.mean(1)
        else:
            fused = weights.amax(1) if fusion == "max" else weights.amin(1)
            total = fused.sum(-1, keepdim=True)
            own = torch.nn.functional.one_hot(chunk, fused.shape[-1]).to(fused.dtype)
            least = torch.finfo(fused.dtype).tiny  # smaller sums have lost their bits
            fused = torch.where(total >= least, fused / total.clamp_min(least), own)
        yield first, fused


def _softcapped(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float, softcap: float
) -> torch.Tensor:
    """(batch, token, head, width): attention with a soft cap, which SDPA does not support, in chunks of queries."""
    batch, heads, tokens, _ = query.shape
    groups, width = value.shape[1], value.shape[3]
    parts = []
    for chunk in _query_chunks(tokens, query):
        weights = attention_weights(query, key, mask, scaling, chunk, softcap).to(value.dtype)
        weights = torch.nan_to_num(weights)  # rows of padding have no visible key
        count = chunk.shape[1]
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
    """Stock SDPA; the listener receives inputs and output of self-attention in decoder blocks.

    Attention of other modules (a vision tower that shares the configuration) and over other states (cross-attention) is stock SDPA alone.
    """
    block = block_of(module)
    if options.get("s_aux") is not None or options.get("position_bias") is not None:
        raise CaptureError(f"expected attention that is a softmax of scaled scores, found {type(module).__name__} with sinks or a bias")
    if block is None or key.shape[2] != query.shape[2]:
        if softcap is not None:  # a generated token, which sees all that came before it unless a mask says otherwise
            seen = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
            factor = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
            return _softcapped(query, key, value, seen if attention_mask is None else attention_mask, factor, softcap), None
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)[0], None
    override, listener = _override.get(), _listener.get()
    if override is not None:
        key, value, attention_mask = override(block, key, value)
    factor = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
    if softcap is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    else:
        output = _softcapped(query, key, value, attention_mask, factor, softcap)
    if listener is not None:
        if attention_mask is None and not _is_causal(module, options):
            attention_mask = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        listener.on_attention(BlockAttention(block, module, query, key, value, attention_mask, factor, softcap, output))
    return output, None


def _is_causal(module: nn.Module, options: Mapping[str, Any]) -> bool:
    """Whether stock SDPA is causal without a mask."""
    given = options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if given is None else given)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
