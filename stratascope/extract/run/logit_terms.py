"""Direct logit attribution: what each head adds to the difference of two answers' logits, what of it each token, and what is left to
the rest of its block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stratascope.errors import CaptureError
from stratascope.extract.run.capture import Capture


@dataclass(frozen=True)
class LogitParts:
    """Parts of logit(first choice) - logit(second choice); `heads` + `rest` + `embedding` is the difference itself."""

    heads: torch.Tensor
    """(block, example, head) float32."""
    rest: torch.Tensor
    """(block, example) float32: what else the block writes, its MLP above all."""
    embedding: torch.Tensor
    """(example,) float32: the residual stream that enters the first block, and the difference of the head's biases, where it has some."""
    tokens: torch.Tensor | None
    """(block, example, head, token) float32: what a head would add if it attended to that token alone; weighted by its row it sums to
    `heads`. None where values were not captured."""

    def cpu(self) -> LogitParts:
        """The same on the host."""
        return LogitParts(self.heads.cpu(), self.rest.cpu(), self.embedding.cpu(), None if self.tokens is None else self.tokens.cpu())

    @property
    def total(self) -> torch.Tensor:
        """(example,) float32: the difference of the logits, put together again."""
        return self.heads.sum((0, 2)) + self.rest.sum(0) + self.embedding


def check_attributable(model: nn.Module, decoder: nn.Module) -> None:
    """Refuse a model whose logits are not a linear function of what heads and MLPs write, the scale of norms held.

    Raises
    ------
    CaptureError
        If the logits are capped (Gemma 2), or the final norm subtracts a mean.
    """
    if getattr(decoder.config, "final_logit_softcapping", None):
        raise CaptureError(
            f"expected logits that are linear in the residual stream, found soft-capped ones in {type(model).__name__}; leave head_logits and "
            "value_logits out of `record`"
        )
    if isinstance(decoder.norm, nn.LayerNorm):
        raise CaptureError("expected a norm that only scales, found one that subtracts a mean: leave out head_logits and value_logits")


def directions(model: nn.Module, decoder: nn.Module, choices: tuple[int, int]) -> dict[int, torch.Tensor]:
    """Block -> (hidden,) float32: along which its heads' writing counts for the first choice and against the second, up to a scale that
    only the whole pass tells. The gain of a norm that follows the heads (Gemma 3) is folded in."""
    through = _through_head(model, decoder, choices)
    blocks: Any = decoder.layers
    return {k: through * _gain(after) if (after := _norm_after(block)) is not None else through for k, block in enumerate(blocks)}


def logit_parts(model: nn.Module, decoder: nn.Module, capture: Capture, choices: tuple[int, int]) -> LogitParts:
    """Direct contributions at the final token: <W_O^h o^h, gamma * (W_U[a] - W_U[b])> / rms(x) for every head.

    Norms' scales are held at their actual values, as is usual (Elhage et al. 2021). What a block writes beside its heads is taken from
    the difference of the residual stream, so that the parts add up to the logit difference whatever the precision.

    Parameters
    ----------
    model, decoder
        The model and its text decoder.
    capture
        Of a pass with `head_outputs`; with `value_logits`, the tokens' parts are given too.
    choices
        Token ids of the two answers.
    """
    head: Any = model.lm_head
    layers = sorted(capture.final)
    final_scale = _inverse_rms(decoder.norm, capture.final[layers[-1]])
    toward = _through_head(model, decoder, choices) * final_scale
    along = directions(model, decoder, choices)
    blocks: Any = decoder.layers
    heads, rest, tokens = [], [], []
    for block in sorted(capture.head_outputs):
        z = capture.head_outputs[block]  # (example, head, width)
        projection = blocks[block].self_attn.o_proj
        weight = projection.weight.float()
        after = _norm_after(blocks[block])
        scale = final_scale
        if after is not None:
            written = z.flatten(1) @ weight.T + (0 if projection.bias is None else projection.bias.float())
            scale = final_scale * _inverse_rms(after, written)
        by_head = (along[block] @ weight).view(z.shape[1], z.shape[2])
        own = (by_head * z).sum(-1) * scale
        added = ((capture.final[block + 1] - capture.final[block]) * toward).sum(-1)
        heads.append(own)
        rest.append(added - own.sum(-1))
        if "value_logits" in capture.want:
            tokens.append(capture.value_logits[block] * scale[:, :, None])
    bias = getattr(head, "bias", None)
    constant = float(bias[choices[0]] - bias[choices[1]]) if isinstance(bias, torch.Tensor) else 0.0
    embedding = (capture.final[0] * toward).sum(-1) + constant
    return LogitParts(torch.stack(heads), torch.stack(rest), embedding, torch.stack(tokens) if tokens else None)


def _through_head(model: nn.Module, decoder: nn.Module, choices: tuple[int, int]) -> torch.Tensor:
    """(hidden,) float32: the difference of the two answers' rows of the head, times the final norm's gain."""
    weight: Any = model.lm_head.weight  # type: ignore[union-attr]
    apart: torch.Tensor = weight[choices[0]].float() - weight[choices[1]].float()
    return apart * _gain(decoder.norm)


def _norm_after(block: Any) -> Any | None:
    """The norm between a block's heads and the residual stream, where it has one (Gemma 2 and 3)."""
    return block.post_attention_layernorm if hasattr(block, "pre_feedforward_layernorm") else None


def _epsilon(norm: Any) -> float:
    return float(next(getattr(norm, name) for name in ("variance_epsilon", "eps", "epsilon") if hasattr(norm, name)))


def _gain(norm: Any) -> torch.Tensor:
    """(hidden,) float32, asked of the norm itself: families differ in whether they keep the gain or the gain minus one."""
    ones = torch.ones(1, len(norm.weight), device=norm.weight.device)
    gain: torch.Tensor = norm(ones).float()[0]
    return gain * math.sqrt(1 + _epsilon(norm))


def _inverse_rms(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """(example, 1) float32: by what a root-mean-square norm multiplies x besides its gain."""
    scale: torch.Tensor = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + _epsilon(norm))
    return scale
