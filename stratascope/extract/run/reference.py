"""Run one example through the plain model, as a reference for captured activations.

The decoder uses the SDPA of transformers; attention weights of the final token come from the family's own eager attention in float32. In
bfloat16 that code rounds scores, which destroys the weights of models whose scores reach hundreds (Qwen2.5).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask
from transformers.models.llama import modeling_llama

from stratascope.errors import CaptureError
from stratascope.extract.run.attention_function import NAME
from stratascope.extract.run.capture import set_text_attention
from stratascope.extract.run.decoder import attention_blocks, block_of, kept_logits

REFERENCE = "stratascope_plain"
"""Name of the attention function of reference runs."""


LEAST_LOGIT = -1e30
"""Logits below are those of tokens that the model never writes."""


@dataclass(frozen=True)
class Reference:
    """Results of the plain model for one example, on the host, in float32."""

    residual: np.ndarray
    """(layer, position, hidden), in the order in which the blocks ran; NaN for absent positions."""
    rows: np.ndarray
    """(block, head, token): attention weights of the final token."""
    logits: np.ndarray
    """(choice,): logits of the model in its own precision."""
    spread: float
    """Standard deviation of the logits over the vocabulary: the unit of tolerances."""


def run_reference(
    model: Any,
    decoder: Any,
    inputs: Mapping[str, Any],
    positions: Sequence[np.ndarray | None],
    choices: Sequence[int],
    order: np.ndarray | None = None,
) -> Reference:
    """Run one example without padding and keep the inputs of its blocks.

    Parameters
    ----------
    model, decoder
        The model and its text decoder.
    inputs
        Keywords of the forward pass, as the family's processor makes them, on the model's device.
    positions
        Token indices whose mean is each position's vector; None where the example has no such position.
    choices
        Token ids of the answers.
    order
        Image token that each slot receives before the decoder; None: as they are.

    Raises
    ------
    CaptureError
        If a block does not run exactly once, or returns no attention weights.
    """
    residual: list[torch.Tensor] = []
    rows: dict[int, torch.Tensor] = {}

    def entering(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = (args[0] if args else kwargs["hidden_states"])[0].float()
        absent = torch.full(hidden.shape[1:], float("nan"), device=hidden.device)
        residual.append(torch.stack([absent if tokens is None else hidden[tokens].mean(0) for tokens in positions]).cpu())

    blocks: Any = decoder.layers
    norm, attending = decoder.norm, attention_blocks(decoder.config)
    hooks = [module.register_forward_pre_hook(entering, with_kwargs=True) for module in (*blocks, norm)]
    if order is not None:
        hooks.append(decoder.register_forward_pre_hook(partial(_reorder, model, inputs["input_ids"], order), with_kwargs=True))
    try:
        with torch.inference_mode(), reference_attention(model), collecting(rows):
            logits = model(**inputs, use_cache=False, **kept_logits(model, 1)).logits[0, -1].float()
    finally:
        for hook in hooks:
            hook.remove()
    if len(residual) != len(blocks) + 1 or sorted(rows) != list(attending):
        raise CaptureError(
            f"expected {len(blocks)} decoder blocks that each run once, and attention weights of {len(attending)}, found "
            f"{len(residual) - 1} runs and weights of {len(rows)} in {type(model).__name__}; report this with the model's name"
        )
    chosen, spread = logits[list(choices)].cpu().numpy(), float(logits[logits > LEAST_LOGIT].std())
    return Reference(torch.stack(residual).numpy(), _stacked(rows), chosen, spread)


def _stacked(rows: Mapping[int, torch.Tensor]) -> np.ndarray:
    """(block, head, token); no block of a model without softmax attention."""
    return torch.stack([rows[k] for k in sorted(rows)]).numpy() if rows else np.zeros((0, 1, 1), np.float32)


def _reorder(
    model: Any, ids: torch.Tensor, order: np.ndarray, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Permute the image tokens of one example in what the decoder receives, with what Qwen3-VL adds to them after its first blocks."""
    slots, index = (ids[0] == model.config.image_token_id).nonzero()[:, 0], torch.from_numpy(order).to(ids.device)
    embeddings = kwargs["inputs_embeds"].clone()
    embeddings[0, slots] = embeddings[0, slots[index]]
    kwargs = {**kwargs, "inputs_embeds": embeddings}
    if kwargs.get("deepstack_visual_embeds"):
        kwargs["deepstack_visual_embeds"] = [level[index] for level in kwargs["deepstack_visual_embeds"]]
    return args, kwargs


_rows: ContextVar[dict[int, torch.Tensor]] = ContextVar("stratascope_reference_rows")


@contextmanager
def collecting(rows: dict[int, torch.Tensor]) -> Iterator[None]:
    """While open, `rows` receives the attention weights of the final token, (head, token) float32 on the host, by block."""
    token = _rows.set(rows)
    try:
        yield
    finally:
        _rows.reset(token)


@contextmanager
def reference_attention(model: Any) -> Iterator[None]:
    """While open, the text decoder uses the attention of transformers, for `collecting`."""
    set_text_attention(model, REFERENCE)
    try:
        yield
    finally:
        set_text_attention(model, NAME)


def _reference(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The attention output in the model's precision; `_rows` receives the weights of the last query of self-attention in a block."""
    block = block_of(module)
    if block is None or key.shape[2] != query.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)[0], None
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", modeling_llama.eager_attention_forward)
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    capped = {} if softcap is None else {"softcap": softcap}
    wide = [each.float() for each in (query, key, value)]
    if softcap is None:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=factor, **options)
    else:  # SDPA has no soft cap
        output = eager(module, *wide, attention_mask, factor, **capped)[0].to(query.dtype)
    last = None if attention_mask is None else attention_mask[:, :, -1:]
    _rows.get()[block] = eager(module, wide[0][:, :, -1:], *wide[1:], last, factor, **capped)[1][0, :, -1].float().cpu()
    return output, None


AttentionInterface.register(REFERENCE, _reference)
AttentionMaskInterface.register(REFERENCE, eager_mask)
