"""Direct logit attribution: what each head adds to the difference of two answers' logits, and what is left to the rest of its block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stratascope.errors import CaptureError
from stratascope.extract.capture import Capture


@dataclass(frozen=True)
class LogitParts:
    """Parts of logit(first choice) - logit(second choice); `heads` + `rest` + `embedding` + `constant` is the difference itself."""

    heads: torch.Tensor
    """(block, example, head) float32."""
    rest: torch.Tensor
    """(block, example) float32: what else the block writes, its MLP above all."""
    embedding: torch.Tensor
    """(example,) float32: the residual stream that enters the first block."""
    constant: float
    """The head's bias, where it has one."""


def check_attributable(model: nn.Module, decoder: nn.Module) -> None:
    """Refuse a model whose logits are not a linear function of what heads and MLPs write.

    Raises
    ------
    CaptureError
        If a norm stands between a head and the residual stream (Gemma 2 and 3), or the logits are capped.
    """
    blocks: Any = decoder.layers
    block = blocks[0]
    if hasattr(block, "pre_feedforward_layernorm"):
        raise CaptureError(
            "expected blocks that add their heads' output to the residual stream as it is, found a norm after it: no head logits"
        )
    if getattr(decoder.config, "final_logit_softcapping", None):
        raise CaptureError("expected logits that are linear in the residual stream, found capped ones; leave head_logits out")


def logit_parts(model: nn.Module, decoder: nn.Module, capture: Capture, choices: tuple[int, int]) -> LogitParts:
    """Direct contributions at the final token: <W_O^h o^h, gamma * (W_U[a] - W_U[b])> / rms(x) for every head.

    The final norm's scale is held at its actual value, as is usual (Elhage et al. 2021). What a block writes beside its heads is
    taken from the difference of the residual stream, so that the parts add up to the logit difference whatever the precision.

    Parameters
    ----------
    model, decoder
        The model and its text decoder.
    capture
        Of a pass with `head_outputs`.
    choices
        Token ids of the two answers.
    """
    head: Any = model.lm_head
    norm: Any = decoder.norm
    direction = (head.weight[choices[0]] - head.weight[choices[1]]).float()
    blocks: Any = decoder.layers
    layers = sorted(capture.final)
    leaving = capture.final[layers[-1]]
    toward = direction * _scale(norm, leaving)
    heads, rest = [], []
    for block in sorted(capture.head_outputs):
        z = capture.head_outputs[block]
        weight = blocks[block].self_attn.o_proj.weight.float()
        by_head = torch.einsum("bo,ohd->bhd", toward, weight.view(-1, z.shape[1], z.shape[2]))
        own = (by_head * z).sum(-1)
        written = ((capture.final[block + 1] - capture.final[block]) * toward).sum(-1)
        heads.append(own)
        rest.append(written - own.sum(-1))
    bias = getattr(head, "bias", None)
    constant = float(bias[choices[0]] - bias[choices[1]]) if isinstance(bias, torch.Tensor) else 0.0
    return LogitParts(torch.stack(heads), torch.stack(rest), (capture.final[0] * toward).sum(-1), constant)


def _scale(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """What a root-mean-square norm multiplies x by, entry by entry: (example, hidden) float32."""
    epsilon = next(getattr(norm, name) for name in ("variance_epsilon", "eps", "epsilon") if hasattr(norm, name))
    ones = torch.ones_like(norm.weight)[None]
    gain = norm(ones).float()[0] * (1 + epsilon) ** 0.5  # families differ in whether they keep the gain or the gain minus one
    scale: torch.Tensor = gain * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
    return scale
