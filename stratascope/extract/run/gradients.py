"""What every token of a prompt is worth to the answer, from one pass back through the decoder.

Two questions of the difference d of two answers' logits: how d answers to each token's input (gradient times input, Simonyan et al. 2013),
and what hiding each token from all later ones would do to d, in first order (attribution patching of attention: Nanda 2023, Kramár et al.
2024). The second is the knockout of mode `later` for every token at the price of one pass, as far as what follows the attention is linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from stratascope.extract.run.attention_function import QUERY_BLOCK, Attended, listening
from stratascope.extract.run.capture import reading_residuals

LEAST_LEFT = 1e-3
"""Of a row's weight beside a hidden key: with less, what the others would say instead is not known to more than rounding."""


@dataclass(frozen=True)
class TokenGradients:
    """Both answers for the tokens of one example."""

    inputs: torch.Tensor
    """(token,) float32: <x_j, dd/dx_j>, x_j being the stream of token j where it enters the first block."""
    hiding: torch.Tensor
    """(token,) float32: first-order estimate of d with token j hidden from all later tokens in all blocks, less d as it was."""


@dataclass
class _Attentions:
    seen: list[Attended] = field(default_factory=list)

    def attended(self, seen: Attended) -> None:
        self.seen.append(seen)


def token_gradients(forward: Callable[[], Any], blocks: Any, difference: Callable[[torch.Tensor], torch.Tensor]) -> TokenGradients:
    """Run one example forward and back.

    Parameters
    ----------
    forward
        Sends it through the model, whose parameters want no gradients.
    blocks
        The decoder's.
    difference
        (1, hidden) leaving the last block at the final token -> (1,) the first answer's logit less the second's.
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
        hiding = sum((hiding_effects(seen, slope) for seen, slope in zip(listener.seen, outputs, strict=True)), torch.zeros_like(inputs))
    return TokenGradients(inputs.detach(), hiding)


def hiding_effects(seen: Attended, slope: torch.Tensor) -> torch.Tensor:
    """(token,) what hiding each key from all other queries of one block does to d, in first order.

    A query that no longer sees key j spreads its weight over the others: its head's output o moves by alpha_j (o - v_j) / (1 - alpha_j).

    Parameters
    ----------
    seen
        The block's attention, of one example.
    slope
        (1, token, head, width) gradient of d by the heads' outputs.
    """
    _, heads, tokens, _ = seen.query.shape
    groups, width = seen.value.shape[1], seen.value.shape[3]
    value = seen.value[0].float().transpose(1, 2)  # (key head, width, token)
    total = torch.zeros(tokens, dtype=torch.float32, device=value.device)
    for start in range(0, tokens, QUERY_BLOCK):
        queries = torch.arange(start, min(start + QUERY_BLOCK, tokens), device=value.device)
        weights = seen.weights(queries[None])[0]  # (head, query, key)
        asked = slope[0, queries].float().transpose(0, 1)  # (head, query, width)
        gains = torch.matmul(asked.reshape(groups, -1, width), value).view(heads, len(queries), tokens)
        mean = (weights * gains).sum(-1, keepdim=True)
        moved = weights / (1 - weights).clamp_min(LEAST_LEFT) * (mean - gains)
        moved[:, torch.arange(len(queries)), queries] = 0  # a token always sees itself
        total += moved.sum((0, 1))
    return total
