"""Gradient attribution of every prompt token, and gradient rollout, from one backward pass through the decoder.

For the difference d of two answer logits: gradient times input of each token (Simonyan et al. 2013), and a first-order estimate of the
knockout effect of masking each token for all later queries (attribution patching of attention: Nanda 2023, Kramár et al. 2024). The latter
approximates the knockout of mode `later` for every token at the cost of one pass; it is exact if everything after the attention is linear.

Gradient rollout (Chefer et al. 2021, "Generic attention-model explainability") weights every attention map by its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from stratascope.extract.run.attention_function import QUERY_CHUNK, BlockAttention, listening
from stratascope.extract.run.capture import visiting_residuals

ARRAYS = frozenset({"gradient_input", "hiding_estimate", "gradient_rollout", "gradient_maps", "gradient_scale"})
"""Arrays of a store that come from the backward pass."""

LEAST_REMAINING = 1e-3
"""Least weight of a row outside a masked key; with less, the renormalised row is dominated by rounding."""


@dataclass(frozen=True)
class TokenGradients:
    """The attributions of one example."""

    inputs: torch.Tensor
    """(token,) float32: <x_j, dd/dx_j>, where x_j is the residual stream of token j at the entry of the first block."""
    knockout_estimate: torch.Tensor | None
    """(token,) float32: first-order estimate of the change of d when token j is masked for all later queries in all blocks."""
    rollout: torch.Tensor | None = None
    """(layer + 1, token) float32: gradient rollout of the final token, see `gradient_rollout`."""

    maps: torch.Tensor | None = None
    """(block, query, key) uint8: round(255 * sqrt(value / row maximum)) of E_h[(dd/dA * A)^+]."""
    scale: torch.Tensor | None = None
    """(block, query) float32: the row maxima."""

    @property
    def arrays(self) -> dict[str, torch.Tensor]:
        """Array of a store -> its values."""
        found = {"gradient_input": self.inputs, "hiding_estimate": self.knockout_estimate, "gradient_rollout": self.rollout}
        found |= {"gradient_maps": self.maps, "gradient_scale": self.scale}
        return {name: values for name, values in found.items() if values is not None}


@dataclass
class _Attentions:
    seen: list[BlockAttention] = field(default_factory=list)

    def on_attention(self, seen: BlockAttention) -> None:
        self.seen.append(seen)


def token_gradients(
    forward: Callable[[], Any], blocks: Any, difference: Callable[[torch.Tensor], torch.Tensor], want: frozenset[str] = ARRAYS
) -> TokenGradients:
    """Run a forward and a backward pass of one example.

    Parameters
    ----------
    forward
        Runs the model, whose parameters must not require gradients.
    blocks
        The decoder blocks.
    difference
        (1, hidden) output of the last block at the final token -> (1,) logit of the first answer minus that of the second.
    want
        Arrays of `ARRAYS` to compute.
    """
    streams: dict[int, torch.Tensor] = {}

    def keep(layer: int, hidden: torch.Tensor) -> None:
        if layer == 0:
            hidden.requires_grad_(True)
        if layer in (0, len(blocks)):
            streams[layer] = hidden

    listener = _Attentions()
    with torch.enable_grad(), listening(listener), visiting_residuals(blocks, keep):
        forward()
        found = difference(streams[len(blocks)][:, -1]).sum()
        entry, *outputs = torch.autograd.grad(found, [streams[0], *(seen.output for seen in listener.seen)])
    with torch.no_grad():
        inputs = (streams[0].float() * entry.float()).sum(-1)[0]
        estimate = rollout = maps = scale = None
        if "hiding_estimate" in want:
            estimates = (knockout_estimates(seen, slope) for seen, slope in zip(listener.seen, outputs, strict=True))
            estimate = sum(estimates, torch.zeros_like(inputs))
        sign = 1.0 if float(found) >= 0 else -1.0  # of the likelier of both answers
        slopes = [sign * slope for slope in outputs]
        if "gradient_rollout" in want:
            rollout = gradient_rollout(listener.seen, slopes)
        if "gradient_maps" in want:
            packed = [packed_gradient_map(seen, slope) for seen, slope in zip(listener.seen, slopes, strict=True)]
            maps, scale = (torch.stack([pair[k] for pair in packed]) for k in (0, 1))
    return TokenGradients(inputs.detach(), estimate, rollout, maps, scale)


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
    total = torch.zeros(seen.query.shape[2], dtype=torch.float32, device=seen.value.device)
    for queries, weights, gains in _weights_and_gradients(seen, slope):
        mean = (weights * gains).sum(-1, keepdim=True)
        moved = weights / (1 - weights).clamp_min(LEAST_REMAINING) * (mean - gains)
        moved[:, torch.arange(len(queries)), queries] = 0  # a token always sees itself
        total += moved.sum((0, 1))
    return total


def gradient_rollout(attentions: Sequence[BlockAttention], slopes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Rollout of the final token through attention maps that are weighted by their gradients.

    Chefer et al. 2021, self-attention layers: R <- R + E_h[(dd/dA * A)^+] R, from the first block to the last, with R = I before it. Here
    the final row of that product is taken from the top down, which needs one vector a layer instead of a matrix.

    Parameters
    ----------
    attentions
        The attention of every block, of one example.
    slopes
        (1, token, head, width) gradient of d with respect to the head outputs of every block.

    Returns
    -------
    torch.Tensor
        (layer + 1, token) float32: row l is the final token's relevance of the tokens that enter block l; the last row is the final token.
    """
    tokens, device = attentions[0].query.shape[2], attentions[0].query.device
    relevance = torch.zeros(tokens, dtype=torch.float32, device=device)
    relevance[-1] = 1
    rows = [relevance]
    for seen, slope in zip(reversed(attentions), reversed(slopes), strict=True):
        below = relevance.clone()
        for queries, weights, gains in _weights_and_gradients(seen, slope):
            below += relevance[queries] @ (weights * gains).clamp_min(0).mean(0)
        relevance = below
        rows.append(relevance)
    return torch.stack(rows[::-1])


def packed_gradient_map(seen: BlockAttention, slope: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(query, key) uint8 map of one block weighted by its gradient, mean over heads, and (query,) float32 row maxima."""
    tokens, device = seen.query.shape[2], seen.query.device
    packed, scale = torch.zeros(tokens, tokens, dtype=torch.uint8, device=device), torch.zeros(tokens, device=device)
    for queries, weights, gains in _weights_and_gradients(seen, slope):
        chunk = (weights * gains).clamp_min(0).mean(0)
        scale[queries] = top = chunk.amax(-1)
        packed[queries] = chunk.div_(torch.where(top > 0, top, 1)[:, None]).sqrt_().mul_(255).round_().to(torch.uint8)
    return packed, scale


def _weights_and_gradients(seen: BlockAttention, slope: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(query,) indices, and (head, query, key) attention weights and the gradient of d by them, of successive chunks of queries."""
    _, heads, tokens, _ = seen.query.shape
    groups, width = seen.value.shape[1], seen.value.shape[3]
    value = seen.value[0].float().transpose(1, 2)  # (key head, width, token)
    for start in range(0, tokens, QUERY_CHUNK):
        queries = torch.arange(start, min(start + QUERY_CHUNK, tokens), device=value.device)
        asked = slope[0, queries].float().transpose(0, 1)  # (head, query, width)
        gains = torch.matmul(asked.reshape(groups, -1, width), value).view(heads, len(queries), tokens)
        yield queries, seen.weights(queries[None])[0], gains
