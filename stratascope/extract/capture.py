"""Capture of residual streams, final-token attention rows and fused attention maps in one forward pass.

One mechanism for all families: an attention function registered with transformers runs stock SDPA and computes the rows of
the final token from the same queries and keys in float32; hooks on the decoder blocks read the residual stream (never
`hidden_states[-1]`, which is after the final norm). Both `AttentionInterface` and `AttentionMaskInterface` must know the
name: without the second no mask is built, silently.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "stratascope_rows"
"""Name of the attention function; it must not contain sdpa, flash or flex, which transformers matches by pattern."""

QUERY_BLOCK = 128
"""Queries whose weights over all keys and heads are held at once while a map is fused; bounds the memory."""


@dataclass
class Capture:
    """What one forward pass left behind.

    Parameters
    ----------
    last
        (batch,) index of each example's final token in the right-padded batch.
    pooling
        (batch, position, token) float weights; a position's vector is the weighted sum of the residual stream over tokens.
        Positions that are one token are gathered exactly.
    maps
        Whether to fuse attention maps over heads.
    """

    last: torch.Tensor
    pooling: Pooling
    maps: bool
    residual: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> (batch, position, hidden), in the model's precision."""
    rows: dict[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (batch, head, token) float32."""
    fused: dict[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (batch, query, key) float32, the mean over heads."""


@dataclass(frozen=True)
class Pooling:
    """Token indices whose mean is each position's vector, padded: exact gathers for single tokens, float32 means else."""

    index: torch.Tensor
    """(batch, position, most tokens) int64."""
    weight: torch.Tensor
    """(batch, position, most tokens) float32: 1 / count, 0 in the padding and where the position is absent."""

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, token, hidden) -> (batch, position, hidden) float32; a copy, so that later in-place work cannot change it."""
        batch, positions, _ = self.index.shape
        rows = torch.arange(batch, device=hidden.device)[:, None]
        out = torch.empty(batch, positions, hidden.shape[-1], dtype=torch.float32, device=hidden.device)
        for k in range(positions):
            count = int((self.weight[:, k] > 0).sum(-1).max())
            gathered = hidden[rows, self.index[:, k, : max(count, 1)]].float()
            out[:, k] = gathered[:, 0] if count <= 1 else torch.einsum("btd,bt->bd", gathered, self.weight[:, k, :count])
        return out


_current: ContextVar[Capture | None] = ContextVar("stratascope_capture", default=None)


def attention_weights(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float, positions: torch.Tensor
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
    if mask is None:
        visible = torch.arange(tokens, device=scores.device) <= positions[..., None]
        scores = scores.masked_fill(~visible[:, None], float("-inf"))
    else:
        mask = mask.expand(batch, *mask.shape[1:])
        picked = torch.gather(mask, 2, positions[:, None, :, None].expand(batch, mask.shape[1], count, mask.shape[3]))[..., :tokens]
        scores = scores.masked_fill(~picked, float("-inf")) if picked.dtype == torch.bool else scores + picked.float()
    return torch.softmax(scores, dim=-1)


def fused_map(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """The whole attention map averaged over heads, (batch, query, key) float32, in blocks of queries."""
    batch, _, tokens, _ = query.shape
    out = torch.empty(batch, tokens, key.shape[2], dtype=torch.float32, device=query.device)
    for start in range(0, tokens, QUERY_BLOCK):
        positions = torch.arange(start, min(start + QUERY_BLOCK, tokens), device=query.device).expand(batch, -1)
        out[:, start : start + QUERY_BLOCK] = attention_weights(query, key, mask, scaling, positions).mean(1)
    return out


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Stock SDPA; beside it, what the current capture wants."""
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    capture = _current.get()
    if capture is not None:
        factor = float(scaling if scaling is not None else query.shape[-1] ** -0.5)
        block = int(module.layer_idx)  # type: ignore[arg-type]
        capture.rows[block] = attention_weights(query, key, attention_mask, factor, capture.last[:, None])[:, :, 0]
        if capture.maps:
            capture.fused[block] = fused_map(query, key, attention_mask, factor)
    return output, None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def capturing(decoder: nn.Module, capture: Capture) -> Iterator[Capture]:
    """While open, a forward pass through `decoder` (the text model that owns `.layers`) fills `capture`.

    Residual layer k is read where it enters block k, and layer L where it leaves the last block, before the final norm.
    """
    handles = []

    def entering(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            capture.residual[layer] = capture.pooling(args[0] if args else kwargs["hidden_states"])

        return hook

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        capture.residual[len(blocks)] = capture.pooling(output[0] if isinstance(output, tuple) else output)

    blocks: Any = decoder.layers
    for layer, block in enumerate(blocks):
        handles.append(block.register_forward_pre_hook(entering(layer), with_kwargs=True))
    handles.append(blocks[-1].register_forward_hook(leaving))
    token = _current.set(capture)
    try:
        yield capture
    finally:
        _current.reset(token)
        for handle in handles:
            handle.remove()
