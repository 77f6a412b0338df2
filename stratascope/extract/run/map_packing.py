"""Attention maps packed on the model's device, in chunks of queries: one byte a weight leaves it, never a float.

The bytes are those of `store.format.packing.encode_maps`, whose checks are made here, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from stratascope.errors import InvalidInputError
from stratascope.extract.run.attention_function import BlockAttention, fused_chunks
from stratascope.store.format.packing import TOLERANCE


@dataclass(frozen=True)
class PackedMap:
    """The packed attention map of a block, for the examples of a batch."""

    weights: torch.Tensor
    """(batch, query, key) uint8: round(255 * sqrt(weight / row maximum)), meaningless beyond an example's own tokens."""
    off: torch.Tensor
    """(batch,) float32: largest distance of a row's sum from 1; NaN where a weight is not finite."""
    later: torch.Tensor
    """(batch,) float32: largest weight of a later key."""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors, by name."""
        return {"weights": self.weights, "off": self.off, "later": self.later}


def packed_map(seen: BlockAttention, lengths: torch.Tensor, fusion: str = "mean") -> PackedMap:
    """Aggregate the attention of a block over heads and pack it.

    Parameters
    ----------
    seen
        The attention of a block.
    lengths
        (batch,) tokens of each example; padding follows on the right.
    fusion
        `mean`, `max` or `min` over heads.
    """
    batch, _, tokens, _ = seen.query.shape
    keys = torch.arange(tokens, device=seen.query.device)
    own = keys < lengths[:, None]  # (batch, token)
    packed = torch.zeros(batch, tokens, tokens, dtype=torch.uint8, device=seen.query.device)
    off, later = (torch.zeros(batch, device=seen.query.device) for _ in range(2))
    for first, chunk in fused_chunks(seen, fusion):
        queries, reach = slice(first, first + chunk.shape[1]), chunk.shape[2]
        outside = ~own[:, queries]
        if seen.mask is not None:  # without one attention is causal, and no query sees padding behind it
            chunk = chunk.masked_fill_(~own[:, None, :reach], 0)
            later = torch.maximum(later, chunk.triu(first + 1).amax(-1).masked_fill_(outside, 0).amax(-1))
        off = torch.maximum(off, (chunk.sum(-1) - 1).abs_().masked_fill_(outside, 0).amax(-1))
        top = chunk.amax(-1, keepdim=True)
        packed[:, queries, :reach] = chunk.div_(top).sqrt_().mul_(255).round_()
    return PackedMap(packed, off, later)


@dataclass(frozen=True)
class HostMaps:
    """The packed maps of a batch on the host."""

    blocks: tuple[dict[str, np.ndarray], ...]
    """The tensors of each block's `PackedMap`."""

    def check(self, row: int, *, causal: bool) -> bool:
        """Whether all weights of an example of the batch are finite.

        Parameters
        ----------
        row
            Its row of the batch.
        causal
            Whether to refuse weights of later keys.

        Raises
        ------
        InvalidInputError
            If rows do not sum to 1, or a query attends to a later key although none may.
        """
        off = np.array([block["off"][row] for block in self.blocks])
        if not np.isfinite(off).all():
            return False
        if off.max() > TOLERANCE:
            raise InvalidInputError(
                f"expected attention rows that sum to 1, found one in block {int(off.argmax())} that is {off.max():.3g} off; report "
                "this with the model's name"
            )
        later = np.array([block["later"][row] for block in self.blocks])
        if causal and later.any():
            raise InvalidInputError(
                f"expected causal maps (zero where key > query), found {later.max():.3g} in block {int(later.argmax())}; report this with "
                "the model's name"
            )
        return True

    def copy_into(self, row: int, maps: np.ndarray) -> None:
        """Copy the maps of an example into (block, token, token) uint8, cut to its own tokens."""
        tokens = maps.shape[-1]
        for kept, block in zip(maps, self.blocks, strict=True):
            kept[:] = block["weights"][row, :tokens, :tokens]
