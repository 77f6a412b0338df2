"""Gradient attribution of every prompt token, from one backward pass through the decoder.

For the difference d of two answer logits: gradient times input of each token (Simonyan et al. 2013), and a first-order estimate of the
knockout effect of masking each token for all later queries (attribution patching of attention: Nanda 2023, Kramár et al. 2024). The latter
approximates the knockout of mode `later` for every token at the cost of one pass; it is exact if everything after the attention is linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from stratascope.extract.run.attention_function import QUERY_CHUNK, BlockAttention, listening
from stratascope.extract.run.capture import reading_residuals

LEAST_REMAINING = 1e-3
"""Least weight of a row outside a masked key; with less, the renormalised row is dominated by rounding."""


@dataclass(frozen=True)
class TokenGradients:
    """Both attributions for the tokens of one example."""

    inputs: torch.Tensor
    """(token,) float32: <x_j, dd/dx_j>, where x_j is the residual stream of token j at the entry of the first block."""
    knockout_estimate: torch.Tensor
    """(token,) float32: first-order estimate of the change of d when token j is masked for all later queries in all blocks."""


@dataclass
class _Attentions:
    seen: list[BlockAttention] = field(default_factory=list)

    def on_attention(self, seen: BlockAttention) -> None:
        self.seen.append(seen)


def token_gradients(forward: Callable[[], Any], blocks: Any, difference: Callable[[torch.Tensor], torch.Tensor]) -> TokenGradients:
    """Run a forward and a backward pass of one example.

    Parameters
    ----------
    forward
        Runs the model, whose parameters must not require gradients.
    blocks
        The decoder blocks.
    difference
        (1, hidden) output of the last block at the final token -> (1,) logit of the first answer minus that of the second.
    """
    streams: dict[int, torch.Tensor] = {}

    def keep(layer: int, hidden: torch.Tensor) -> None:
        if layer == 0:
            hidden.requires_grad_(True)
        if layer in (0, len(blocks)):
            streams[layer] = hidden

    listener = _Attentions()
    with torch.enable_grad(), listening(listener), reading_residuals(blocks, keep):
        forward()
        found = difference(streams[len(blocks)][:, -1]).sum()
        entry, *outputs = torch.autograd.grad(found, [streams[0], *(seen.output for seen in listener.seen)])
    with torch.no_grad():
        inputs = (streams[0].float() * entry.float()).sum(-1)[0]
        estimates = (knockout_estimates(seen, slope) for seen, slope in zip(listener.seen, outputs, strict=True))
        estimate = sum(estimates, torch.zeros_like(inputs))
    return TokenGradients(inputs.detach(), estimate)


def knockout_estimates(seen: BlockAttention, slope: torch.Tensor) -> torch.Tensor:
    """(token,) first-order change of d when each key is masked for all other queries of one block.

    A query without key j spreads its weight over the other keys, so the head output o changes by alpha_j (o - v_j) / (1 - alpha_j).

    Parameters
    ----------
    seen
        The attention of one block and one example.
    slope
        (1, token, head, width) gradient of d with respect to the head outputs.
    """
    _, heads, tokens, _ = seen.query.shape
    groups, width = seen.value.shape[1], seen.value.shape[3]
    value = seen.value[0].float().transpose(1, 2)  # (key head, width, token)
    total = torch.zeros(tokens, dtype=torch.float32, device=value.device)
    for start in range(0, tokens, QUERY_CHUNK):
        queries = torch.arange(start, min(start + QUERY_CHUNK, tokens), device=value.device)
        weights = seen.weights(queries[None])[0]  # (head, query, key)
        asked = slope[0, queries].float().transpose(0, 1)  # (head, query, width)
        gains = torch.matmul(asked.reshape(groups, -1, width), value).view(heads, len(queries), tokens)
        mean = (weights * gains).sum(-1, keepdim=True)
        moved = weights / (1 - weights).clamp_min(LEAST_REMAINING) * (mean - gains)
        moved[:, torch.arange(len(queries)), queries] = 0  # a token always sees itself
        total += moved.sum((0, 1))
    return total
