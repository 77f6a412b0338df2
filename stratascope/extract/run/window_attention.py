"""Attention within windows of a vision tower, all windows of a size in one call: transformers' own loop makes a call for each window.

A photo has some 30 windows in each of 28 blocks for Qwen2.5-VL, of at most four sizes: those in the middle, at two edges, in the corner.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from stratascope.errors import CaptureError

NAME = "stratascope_flash_windows"
"""Name of the attention function. Where it holds "flash", transformers passes the bounds of all windows in one call."""

HEARD = "stratascope_heard"
"""Name of the attention function of towers without windows, while it is heard."""


@dataclass
class Windows:
    """The windows of one image, by size; read from the device once."""

    known: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = field(default_factory=dict)
    """Id of a tensor of bounds -> the tensor, kept so that its id stays its own, and (window, patch) indices of each size."""

    def by_size(self, bounds: torch.Tensor) -> list[torch.Tensor]:
        """(window, patch) int64 indices, one tensor for each size; `bounds` are (window + 1,) first patches."""
        if id(bounds) not in self.known:
            places = bounds.tolist()
            sizes: dict[int, list[int]] = {}
            for start, stop in pairwise(places):
                sizes.setdefault(stop - start, []).append(start)
            made = [
                torch.tensor(starts, device=bounds.device)[:, None] + torch.arange(size, device=bounds.device)
                for size, starts in sizes.items()
                if size
            ]
            self.known[id(bounds)] = bounds, made
        return self.known[id(bounds)][1]


_windows: ContextVar[Windows | None] = ContextVar("stratascope_windows", default=None)

Hear = Callable[[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor | None, float, list[torch.Tensor] | None], None]
"""Receives module, query, key, mask, factor of the scores, and (window, patch) indices of windows of each size; None: no windows."""
_hear: ContextVar[Hear | None] = ContextVar("stratascope_hear", default=None)


@contextmanager
def hearing_attention(tower: nn.Module, hear: Hear) -> Iterator[None]:
    """While open, `hear` receives the inputs of every attention in `tower`, which stays stock SDPA; to be entered before
    `windows_in_one_call`."""
    token = _hear.set(hear)
    try:
        with _instead_of_sdpa(HEARD, () if _windowed(tower) else tower.modules()):
            yield
    finally:
        _hear.reset(token)


@contextmanager
def windows_in_one_call(tower: nn.Module | None) -> Iterator[None]:
    """While open, attention over several windows in `tower` is one call for each size of window; other towers are left as they are."""
    token = _windows.set(Windows())
    try:
        with _instead_of_sdpa(NAME, _windowed(tower) if tower is not None else ()):
            yield
    finally:
        _windows.reset(token)


def _windowed(tower: nn.Module) -> list[nn.Module]:
    """Modules that transformers gives the bounds of windows."""
    kinds = {type(module) for module in tower.modules()}
    given = {kind for kind in kinds if "cu_seqlens" in inspect.signature(kind.forward).parameters}
    return [module for module in tower.modules() if type(module) in given]


@contextmanager
def _instead_of_sdpa(name: str, modules: Iterable[nn.Module]) -> Iterator[None]:
    """While open, the attention function `name` stands in the configurations of modules that have stock SDPA."""
    configs: dict[int, Any] = {id(config): config for module in modules if (config := getattr(module, "config", None)) is not None}
    before = {key: config._attn_implementation for key, config in configs.items()}
    try:
        for key, config in configs.items():
            if before[key] == "sdpa":
                config._attn_implementation = name
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    cu_seq_lens_q: torch.Tensor,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """(1, patch, head, width): stock SDPA of (1, head, patch, width) within windows."""
    out = torch.empty_like(value.transpose(1, 2), memory_format=torch.contiguous_format)
    windows = (_windows.get() or Windows()).by_size(cu_seq_lens_q)
    if (hear := _hear.get()) is not None:
        hear(module, query, key, None, _factor(query, scaling), windows)
    for index in windows:
        q, k, v = (each[0][:, index].transpose(0, 1) for each in (query, key, value))  # (window, head, patch, width)
        out[0, index] = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling).transpose(1, 2)
    return out, None


def _factor(query: torch.Tensor, scaling: float | None) -> float:
    return float(scaling if scaling is not None else query.shape[-1] ** -0.5)


def _heard_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Stock SDPA, whose inputs are heard."""
    odd = [name for name in ("s_aux", "position_bias", "softcap") if options.get(name) is not None]
    if odd:
        raise CaptureError(f"expected attention that is a softmax of scaled scores, found {type(module).__name__} with {', '.join(odd)}")
    if (hear := _hear.get()) is not None:
        hear(module, query, key, attention_mask, _factor(query, scaling), None)
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)[0], None


AttentionInterface.register(NAME, _attention)
AttentionInterface.register(HEARD, _heard_attention)
AttentionMaskInterface.register(HEARD, sdpa_mask)
