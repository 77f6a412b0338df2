"""Logits in float32 from the residual stream, and direct logit attribution by head, by head and token, and for the rest of each block.

In bfloat16 the model's own logits are coarse: between 16 and 32 they have steps of 0.125, so the difference of two answer logits takes
only a few values. The output of the last block has a finer resolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from stratascope.errors import CaptureError
from stratascope.extract.run.capture import Capture
from stratascope.extract.run.decoder import excluded_tokens, logit_scale, unembedding_of
from stratascope.extract.run.weights import execution_device, linear_weight, loaded, plain_copy, unembedding_weight
from stratascope.store import Readout

ROWS = 16_384
"""Rows of the unembedding that are held in float32 at once while ranking the vocabulary."""


class Unembedding:
    """Logits of given or most likely tokens from the output of the last block.

    Parameters
    ----------
    model
        Has the unembedding `lm_head`; its bias and the soft cap of its logits (Gemma 2) apply.
    decoder
        Has the final norm.
    device
        Where logits are computed; None: where the model starts.
    """

    def __init__(self, model: Any, decoder: Any, device: torch.device | None = None) -> None:
        head, place = unembedding_of(model), device or _start(model)
        self._weight = unembedding_weight(head, place)
        with loaded(head):
            bias = getattr(head, "bias", None)
            self._bias = None if bias is None else bias.detach().to(place)
        self._scale = logit_scale(model, decoder.config)
        self.norm: nn.Module = plain_copy(decoder.norm).float().to(place)
        """The final norm in float32."""
        self._excluded: torch.Tensor | None = None
        if tokens := excluded_tokens(model):
            self._excluded = torch.zeros(len(self._weight), dtype=torch.bool, device=self._weight.device)
            self._excluded[tokens] = True
        self.cap = self._scale.cap
        """Soft cap of the logits; None for none."""

    @torch.inference_mode()
    def readout(self, words: pd.DataFrame) -> Readout:
        """The final norm and the rows of words, as a store keeps them.

        Parameters
        ----------
        words
            As `Readout.words`.

        Raises
        ------
        CaptureError
            If the final norm is neither a root-mean-square norm nor a layer norm.
        """
        norm: Any = self.norm
        tokens, layer = words["token"].tolist(), isinstance(norm, nn.LayerNorm)
        gain: torch.Tensor = norm.weight if layer else norm_gain(norm)
        bias, added = self._bias, getattr(norm, "bias", None) if layer else None
        found = Readout(
            norm="layer" if layer else "rms",
            epsilon=norm_epsilon(norm),
            gain=on_host(gain),
            shift=on_host(torch.zeros_like(gain) if added is None else added),
            rows=on_host(self._weight[tokens]) * np.float32(self._scale.factor),
            bias=np.zeros(len(tokens), np.float32) if bias is None else on_host(bias[tokens]) * np.float32(self._scale.factor),
            words=words,
            cap=self.cap,
        )
        x = 3 * torch.randn(4, len(gain), generator=torch.Generator().manual_seed(0))
        own = on_host(self.logits(x.to(gain.device), tokens))
        if not np.allclose(found.logits(x.numpy()), own, rtol=0, atol=1e-5 * float(np.abs(own).max(initial=1))):
            raise CaptureError(f"expected a root-mean-square norm or a layer norm before the logits, found {type(norm).__name__}")
        return found

    def logits(self, residual: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """(n, hidden) output of the last block -> (n, token) float32 logits of given tokens.

        Sums run in float64, so that the logit of a token does not depend on the other tokens.
        """
        return self._unembed(self.norm(residual.float()).double(), list(tokens))

    def difference(self, residual: torch.Tensor, pair: tuple[int, int]) -> torch.Tensor:
        """(n, hidden) output of the last block -> (n,) float32: logit of the first token minus that of the second."""
        logits = self.logits(residual, pair)
        return logits[:, 0] - logits[:, 1]

    def all_logits(self, residual: torch.Tensor) -> torch.Tensor:
        """(n, hidden) output of the last block -> (n, vocabulary) float32 logits of all tokens."""
        normed, count = self.norm(residual.float()), self._weight.shape[0]
        return torch.cat([self._unembed(normed, slice(start, start + ROWS)) for start in range(0, count, ROWS)], 1)

    def most_likely(self, residual: torch.Tensor, ranks: int, known: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, hidden) output of the last block -> (n, rank) float32 logits and token ids, most likely first.

        Parameters
        ----------
        residual
            Residual stream of the final tokens.
        ranks
            Number of tokens.
        known
            Use only this many first tokens of the vocabulary; None: all.
        """
        normed = self.norm(residual.float())
        count = self._weight.shape[0] if known is None else min(known, self._weight.shape[0])
        best = normed.new_empty(len(normed), 0)
        ids = torch.empty(len(normed), 0, dtype=torch.long, device=normed.device)
        for start in range(0, count, ROWS):
            rows = slice(start, min(start + ROWS, count))
            logits = torch.cat([best, self._unembed(normed, rows)], 1)
            tokens = torch.cat([ids, torch.arange(rows.start, rows.stop, device=normed.device).expand(len(normed), -1)], 1)
            best, order = logits.topk(min(ranks, logits.shape[1]))
            ids = tokens.gather(1, order)
        exact = self._unembed(normed.double()[:, None], ids)[:, 0]  # so that the logit equals that of `logits`
        best, order = exact.sort(dim=1, descending=True, stable=True)
        return best, ids.gather(1, order)

    def _unembed(self, normed: torch.Tensor, rows: list[int] | slice | torch.Tensor) -> torch.Tensor:
        """(..., n, row) float32 logits of rows of the unembedding, summed in the precision of `normed`, (..., n, hidden)."""
        logits = normed @ self._weight[rows].to(normed.dtype).mT
        if self._bias is not None:
            bias = self._bias[rows].to(normed.dtype)
            logits = logits + (bias[..., None, :] if bias.ndim > 1 else bias)
        found = self._scale(logits).float()
        if self._excluded is None:
            return found
        excluded = self._excluded[rows]
        return found.masked_fill(excluded[..., None, :] if excluded.ndim > 1 else excluded, torch.finfo(found.dtype).min)


@dataclass(frozen=True)
class LogitParts:
    """Terms of logit(first choice) - logit(second choice), which is the sum of `heads`, `rest` and `embedding`."""

    heads: torch.Tensor
    """(block, example, head) float32."""
    rest: torch.Tensor
    """(block, example) float32: the block without its heads, mainly the MLP."""
    embedding: torch.Tensor
    """(example,) float32: the input of the first block, plus the difference of unembedding biases."""
    tokens: torch.Tensor | None
    """(block, example, head, token) float32: term of a head that attends to that token only; the sum weighted by the attention row is
    `heads`. None if values were not captured."""

    def cpu(self) -> LogitParts:
        """The same on the host."""
        return LogitParts(self.heads.cpu(), self.rest.cpu(), self.embedding.cpu(), None if self.tokens is None else self.tokens.cpu())

    @property
    def total(self) -> torch.Tensor:
        """(example,) float32: sum of all terms."""
        return self.heads.sum((0, 2)) + self.rest.sum(0) + self.embedding


def check_attributable(model: nn.Module, decoder: Any) -> None:
    """Refuse a model whose logits are not linear in the outputs of heads and MLPs for fixed norm scales.

    Raises
    ------
    CaptureError
        If the logits are capped (Gemma 2), or the final norm subtracts a mean.
    """
    scale = logit_scale(model, decoder.config)
    if scale.factor != 1:
        raise CaptureError("expected unscaled logits, found scaled ones: leave out head_logits and value_logits")
    if scale.cap is not None:
        raise CaptureError(
            f"expected logits that are linear in the residual stream, found soft-capped ones in {type(model).__name__}; leave "
            "head_logits and value_logits out of `record`"
        )
    if isinstance(decoder.norm, nn.LayerNorm):
        raise CaptureError("expected a norm that only scales, found one that subtracts a mean: leave out head_logits and value_logits")


def directions(model: nn.Module, decoder: Any, choices: tuple[int, int]) -> dict[int, torch.Tensor]:
    """Block -> (hidden,) float32: direction of the logit difference for head outputs, without the norm scale of a pass.

    Includes the gain of a norm after the heads (Gemma 3)."""
    through = _through_head(model, decoder, choices)
    blocks: Any = decoder.layers
    return {
        k: through * norm_gain(after).to(through.device) if (after := _norm_after(block)) is not None else through
        for k, block in enumerate(blocks)
    }


def logit_parts(model: nn.Module, decoder: Any, capture: Capture, choices: tuple[int, int]) -> LogitParts:
    """Direct contributions at the final token: <W_O^h o^h, gamma * (W_U[a] - W_U[b])> / rms(x) for every head.

    Norm scales are fixed at their actual values (Elhage et al. 2021). The rest of a block is computed from the difference of the residual
    stream, so that the terms add up to the logit difference in any precision.

    Parameters
    ----------
    model, decoder
        The model and its text decoder.
    capture
        A pass with `head_outputs`; with `value_logits`, terms by token are included.
    choices
        Token ids of the two answers.
    """
    head: Any = unembedding_of(model)
    layers = sorted(capture.final)
    final_scale = _inverse_rms(decoder.norm, capture.final[layers[-1]])
    toward = _through_head(model, decoder, choices) * final_scale
    along = directions(model, decoder, choices)
    blocks: Any = decoder.layers
    heads, rest, tokens = [], [], []
    for block in sorted(capture.head_outputs):
        z = capture.head_outputs[block]  # (example, head, width)
        projection = blocks[block].self_attn.o_proj
        weight = linear_weight(projection, z.shape[1] * z.shape[2]).float().to(z.device)
        after = _norm_after(blocks[block])
        scale = final_scale
        if after is not None:
            written = z.flatten(1) @ weight.T + (0 if projection.bias is None else projection.bias.float().to(z.device))
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


def _through_head(model: nn.Module, decoder: Any, choices: tuple[int, int]) -> torch.Tensor:
    """(hidden,) float32: difference of the unembedding rows of both answers, times the gain of the final norm."""
    head, place = unembedding_of(model), _start(model)
    rows = unembedding_weight(head, place, list(choices)).float()
    return (rows[0] - rows[1]) * norm_gain(decoder.norm).to(place)


def _start(model: Any) -> torch.device:
    """Device on which a model's input enters."""
    return execution_device(model.get_input_embeddings())


def _norm_after(block: Any) -> Any | None:
    """The norm between the heads and the residual stream (Gemma 2 and 3); None if there is none."""
    return block.post_attention_layernorm if hasattr(block, "pre_feedforward_layernorm") else None


def norm_epsilon(norm: Any) -> float:
    """Constant that a norm adds to the variance; its attribute has several names in transformers."""
    return float(next(getattr(norm, name) for name in ("variance_epsilon", "eps", "epsilon") if hasattr(norm, name)))


def norm_gain(norm: Any) -> torch.Tensor:
    """(hidden,) float32 gain, measured by calling the norm: some families store the gain, others the gain minus one."""
    ones = torch.ones(1, len(norm.weight), device=execution_device(norm))
    gain: torch.Tensor = norm(ones).float()[0]
    return gain * math.sqrt(1 + norm_epsilon(norm))


def _inverse_rms(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """(example, 1) float32: factor of a root-mean-square norm for x, without its gain."""
    scale: torch.Tensor = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + norm_epsilon(norm))
    return scale


def on_host(values: torch.Tensor) -> np.ndarray:
    """Values as float32 on the host."""
    return np.asarray(values.float().cpu().numpy())
