"""Final norm and unembedding in float32, for any precision of the model.

In bfloat16 the model's own logits are coarse: between 16 and 32 they have steps of 0.125, so the difference of two answer logits takes
only a few values. The output of the last block has a finer resolution.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

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
    """

    def __init__(self, model: Any, decoder: Any) -> None:
        self._head = model.lm_head
        self._norm: nn.Module = copy.deepcopy(decoder.norm).float()
        self._cap: float | None = getattr(decoder.config, "final_logit_softcapping", None) or None

    def logits(self, residual: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """(n, hidden) output of the last block -> (n, token) float32 logits of given tokens.

        Sums run in float64, so that the logit of a token does not depend on the other tokens.
        """
        return self._unembed(self._norm(residual.float()).double(), list(tokens))

    def difference(self, residual: torch.Tensor, pair: tuple[int, int]) -> torch.Tensor:
        """(n, hidden) output of the last block -> (n,) float32: logit of the first token minus that of the second."""
        logits = self.logits(residual, pair)
        return logits[:, 0] - logits[:, 1]

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
        normed = self._norm(residual.float())
        count = self._head.weight.shape[0] if known is None else min(known, self._head.weight.shape[0])
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
        logits = normed @ self._head.weight[rows].to(normed.dtype).mT
        if getattr(self._head, "bias", None) is not None:
            bias = self._head.bias[rows].to(normed.dtype)
            logits = logits + (bias[..., None, :] if bias.ndim > 1 else bias)
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        result: torch.Tensor = logits.float()
        return result
