"""Greedy tokens after the prompt, from the key-value cache of the captured forward pass, and the residual stream at them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from stratascope.errors import CaptureError
from stratascope.extract.run.capture import visiting_residuals
from stratascope.extract.run.decoder import attention_blocks, kept_logits, takes
from stratascope.extract.run.general_inputs import BY_TOKEN


@dataclass(frozen=True)
class Generation:
    """How tokens are generated."""

    tokens: int
    """At most."""
    end: tuple[int, ...] = ()
    """Token ids that end the turn."""
    kept: tuple[int, ...] = ()
    """Generated tokens, from 0, at which the residual stream is kept, ascending."""


@dataclass(frozen=True)
class Generated:
    """Greedy tokens of a batch."""

    tokens: torch.Tensor
    """(example, token) int64: with the token that ends the turn, -1 after it."""
    residual: torch.Tensor
    """(layer, kept, example, hidden) float32; NaN from the token that ends the turn on."""


class KeptCache:
    """The key-value cache of one forward pass over right-padded prompts, to generate from.

    Parameters
    ----------
    model, decoder
        The model and its text decoder.
    together
        Whether there may be several prompts, see `decodes_together`.
    """

    def __init__(self, model: Any, decoder: Any, together: bool) -> None:
        self.name = "cache" if takes(model, "cache") else "past_key_values"
        """Parameter of the forward pass, and field of its output."""
        self.together = together
        # full layers: a cropped window would hold the padding of the shorter prompts instead of their words
        self.given = {self.name: DynamicCache()} if self.together else {}
        self._decoder = decoder
        self._positions: torch.Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While open, the position ids of the prompts are kept, which families count in ways of their own."""

        def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            self._positions = kwargs.get("position_ids")

        handle = self._decoder.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def following(self, lengths: torch.Tensor) -> torch.Tensor:
        """(..., batch, 1) position id after the last token of each prompt, in the form of the model's position ids.

        Parameters
        ----------
        lengths
            (batch,) tokens of each prompt.
        """
        given = self._positions
        if given is None:
            return lengths[:, None]
        index = (lengths.to(given.device) - 1)[:, None]
        rows = given.expand(*given.shape[:-2], len(lengths), -1)
        return torch.gather(rows, -1, index.expand(*rows.shape[:-1], 1)) + 1

    def left_padded(self, output: Any, lengths: torch.Tensor) -> Any:
        """The cache with the padding before the prompts, so that sliding windows end at each prompt's last token.

        Parameters
        ----------
        output
            Of the forward pass.
        lengths
            (batch,) tokens of each prompt.

        Raises
        ------
        CaptureError
            If the model returns no cache (BLIP-2).
        """
        cache = getattr(output, self.name, None)
        if cache is None:
            raise CaptureError(
                f"expected a model that returns its key-value cache, found {type(output).__name__} without; set `generate` to 0"
            )
        if not self.together:
            return cache
        for layer in cache.layers:
            count = layer.keys.shape[2]
            absent = (count - lengths.to(layer.keys.device))[:, None]
            index = ((torch.arange(count, device=layer.keys.device) - absent) % count)[:, None, :, None]
            layer.keys = torch.gather(layer.keys, 2, index.expand_as(layer.keys))
            layer.values = torch.gather(layer.values, 2, index.expand_as(layer.values))
        return cache


def with_generated_tokens(made: Mapping[str, Any], tokens: Sequence[int], *, prefix: bool) -> dict[str, Any]:
    """Inputs of one example with generated tokens after its prompt, for a pass without a cache.

    Parameters
    ----------
    made
        Output of the processor for one example.
    tokens
        The generated tokens.
    prefix
        Whether prompts attend to all of themselves, and generated tokens to what comes before them (PaliGemma).
    """
    count, added = made["input_ids"].shape[1], len(tokens)
    values = {"input_ids": torch.tensor([list(tokens)], dtype=torch.long), "attention_mask": 1, "token_type_ids": int(prefix)}
    found = dict(made)
    for name in BY_TOKEN & set(found) - {"position_ids"}:
        if isinstance(found[name], torch.Tensor) and found[name].shape[1:] == (count,):
            more = found[name].new_zeros(1, added) + values.get(name, 0)
            found[name] = torch.cat([found[name], more], 1)
    if isinstance(found.get("cross_attention_mask"), torch.Tensor):  # Mllama: generated tokens attend to the tiles as the last one does
        mask = found["cross_attention_mask"]
        found["cross_attention_mask"] = torch.cat([mask, mask[:, -1:].expand(-1, added, *mask.shape[2:])], 1)
    found.pop("position_ids", None)
    return found


def decodes_together(model: Any, decoder: Any) -> bool:
    """Whether prompts of different lengths can be continued in one batch.

    That needs softmax attention in every block, as other states include the padding, and positions that are given to the model.
    """
    return len(attention_blocks(decoder.config)) == len(decoder.layers) and takes(model, "position_ids")


@torch.inference_mode()
def generate(
    model: Any,
    decoder: Any,
    cache: KeptCache,
    output: Any,
    first: torch.Tensor,
    lengths: torch.Tensor,
    asked: Generation,
) -> Generated:
    """Continue prompts greedily, by the model's own logits, as `generate(do_sample=False)` without penalties does.

    Parameters
    ----------
    model, decoder
        The model and its text decoder.
    cache, output
        The cache and the output of the forward pass over the prompts.
    first
        (batch, vocabulary): logits after each prompt's last token.
    lengths
        (batch,) tokens of each prompt.
    asked
        How many tokens, what ends the turn, and where the residual stream is kept.

    Returns
    -------
    Generated
        On the device.
    """
    device, batch = first.device, len(lengths)
    lengths = lengths.to(device)
    following = cache.following(lengths)
    held = cache.left_padded(output, lengths)
    longest = int(lengths.max())
    real = (torch.arange(longest, device=device) >= longest - lengths[:, None]).long()
    ends = torch.tensor(asked.end, dtype=torch.long, device=device)
    tokens = torch.full((batch, asked.tokens), -1, dtype=torch.long, device=device)
    residual: dict[int, torch.Tensor] = {}
    going = torch.ones(batch, dtype=torch.bool, device=device)
    last = max(asked.kept, default=-1)
    token = first.argmax(-1)
    for k in range(asked.tokens):
        tokens[going, k] = token[going]
        going &= ~torch.isin(token, ends)
        if not bool(going.any()) or (k + 1 == asked.tokens and k > last):
            break
        kept: dict[int, torch.Tensor] = {}
        given: dict[str, Any] = {cache.name: held}
        if cache.together:
            real = torch.cat([real, torch.ones_like(real[:, :1])], 1)
            given |= {"attention_mask": real, "position_ids": following + k}
        with visiting_residuals(decoder.layers, kept.__setitem__):
            made = model(input_ids=token[:, None], use_cache=True, **given, **kept_logits(model, 1))
        held = getattr(made, cache.name)
        if k in asked.kept:
            at = torch.stack([kept[layer][:, -1].float().to(device) for layer in sorted(kept)])
            residual[k] = torch.where(going[:, None], at, torch.nan)
        token = made.logits[:, -1].to(device).argmax(-1)
    depth, width = len(decoder.layers) + 1, int(decoder.config.hidden_size)
    absent = torch.full((depth, batch, width), torch.nan, device=device)
    at_kept = [residual.get(k, absent) for k in asked.kept]
    return Generated(tokens, torch.stack(at_kept, 1) if at_kept else absent.new_empty(depth, 0, batch, width))
