"""Capture residual streams, attention rows, maps, values and head outputs in one forward pass.

Rows of the final token are computed in float32 from the model's queries and keys. Hooks on the decoder blocks read the residual stream
(never `hidden_states[-1]`, which is after the final norm).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from stratascope.errors import CaptureError
from stratascope.extract.run.attention_function import NAME, BlockAttention, listening
from stratascope.extract.run.decoder import attention_blocks, complete_outputs, find_decoder, mark_blocks
from stratascope.extract.run.device_copy import HostCopy, to_host
from stratascope.extract.run.map_packing import packed_map


@dataclass
class Capture:
    """Activations of one forward pass."""

    last: torch.Tensor
    """(batch,) index of the final token."""
    pooling: Pooling
    want: frozenset[str] = frozenset()
    """Optional arrays: maps, value_norms, value_logits, head_outputs; residuals and rows are always captured."""
    fusion: str = "mean"
    """How maps are aggregated over heads."""
    at_entry: Pooling | None = None
    """Further positions at the entry of the first block."""
    entry: torch.Tensor | None = None
    """(batch, position, hidden) float32: result of `at_entry`."""
    send: Callable[[Mapping[str, torch.Tensor]], HostCopy] = to_host
    """Starts to copy the maps of a block to the host, so that the device holds those of one block."""
    toward: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (hidden,) float32: the direction of value_logits."""
    patches: PatchTokens | None = None
    """Examples whose residual stream is kept at every image token."""
    patch_residual: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> (row of `patches`, patch, hidden) float32."""
    residual: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> (batch, position, hidden) float32."""
    final: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> (batch, hidden) float32: the residual stream at the final token."""
    rows: dict[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (batch, head, token) float32."""
    maps: dict[int, HostCopy] = field(default_factory=dict)
    """Block -> the tensors of its `PackedMap`, on their way to the host."""
    value_norms: dict[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (batch, head, token) float32: norm of the head's output if it attended to that token only."""
    value_logits: dict[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (batch, head, token) float32: the same output along `toward`."""
    head_outputs: dict[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (batch, head, head width) float32: head outputs at the final token, before W_O."""

    _places: dict[torch.device, _Places] = field(default_factory=dict)

    def pool(self, layer: int, hidden: torch.Tensor) -> None:
        """Keep the requested positions of the residual stream `hidden`, (batch, token, hidden), at a layer."""
        main, here = self.last.device, self._at(hidden.device)
        self.residual[layer] = here.pooling(hidden).to(main)
        rows = torch.arange(len(here.last), device=hidden.device)
        self.final[layer] = hidden[rows, here.last].float().to(main)
        if here.patches is not None and layer in here.patches.layers:
            self.patch_residual[layer] = hidden[here.patches.rows[:, None], here.patches.index].float().to(main)
        if layer == 0 and self.at_entry is not None:
            self.entry = self.at_entry.to(hidden.device)(hidden).to(main)

    def _at(self, device: torch.device) -> _Places:
        """Where the positions are, on the device of a block."""
        if device not in self._places:
            self._places[device] = _Places(
                self.last.to(device), self.pooling.to(device), None if self.patches is None else self.patches.to(device)
            )
        return self._places[device]

    def on_attention(self, seen: BlockAttention) -> None:
        """Keep the requested arrays of one block's attention; CaptureError if the block attends twice."""
        block, heads, main = seen.block, seen.query.shape[1], self.last.device
        last = self._at(seen.query.device).last
        if block in self.rows:
            raise CaptureError(f"expected one self-attention in decoder block {block}, found two; open an issue with the model's name")
        self.rows[block] = seen.weights(last[:, None])[:, :, 0].to(main)
        if "maps" in self.want:
            packed = packed_map(seen, last + 1, self.fusion).tensors
            self.maps[block] = self.send({name: values.to(main) for name, values in packed.items()})
        if "value_norms" in self.want:
            self.value_norms[block] = value_norms(seen.value, seen.output_weight, heads).to(main)
        if "value_logits" in self.want:
            toward = self.toward[block].to(seen.value.device)
            self.value_logits[block] = value_logits(seen.value, seen.output_weight, heads, toward).to(main)
        if "head_outputs" in self.want:
            rows = torch.arange(len(last), device=seen.output.device)
            self.head_outputs[block] = seen.output[rows, last].float().to(main)


@dataclass(frozen=True)
class _Places:
    """Positions of a batch on one device."""

    last: torch.Tensor
    pooling: Pooling
    patches: PatchTokens | None


@dataclass(frozen=True)
class Pooling:
    """Padded token indices whose mean is each position's vector: exact copies for single tokens, float32 means otherwise."""

    index: torch.Tensor
    """(batch, position, most tokens) int64."""
    weight: torch.Tensor
    """(batch, position, most tokens) float32: 1 / count, 0 for padding and absent positions."""
    counts: tuple[int, ...] = ()
    """Largest number of tokens of each position; computed if omitted, which synchronises a GPU."""

    def __post_init__(self) -> None:
        if not self.counts:
            counts = (self.weight > 0).sum(-1).amax(0).clamp_min(1)
            object.__setattr__(self, "counts", tuple(int(n) for n in counts))

    @classmethod
    def of(cls, tokens: Sequence[Sequence[np.ndarray | None]]) -> Pooling:
        """From token indices by example and position; None for an absent position."""
        counts = tuple(max(1, *(0 if t is None else len(t) for t in column)) for column in zip(*tokens, strict=True))
        index = np.zeros((len(tokens), len(counts), max(counts, default=1)), np.int64)
        weight = np.zeros(index.shape, np.float32)
        for row, given in enumerate(tokens):
            for column, chosen in enumerate(given):
                if chosen is not None:
                    index[row, column, : len(chosen)] = chosen
                    weight[row, column, : len(chosen)] = 1 / len(chosen)
        return cls(torch.from_numpy(index), torch.from_numpy(weight), counts)

    def to(self, device: torch.device) -> Pooling:
        """The same on another device."""
        return Pooling(self.index.to(device), self.weight.to(device), self.counts)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """(batch, token, hidden) -> (batch, position, hidden) float32; a copy, so that later in-place work cannot change it."""
        batch, positions, _ = self.index.shape
        rows = torch.arange(batch, device=hidden.device)[:, None]
        out = torch.empty(batch, positions, hidden.shape[-1], dtype=torch.float32, device=hidden.device)
        single = [k for k, count in enumerate(self.counts) if count == 1]
        out[:, single] = hidden[rows, self.index[:, single, 0]].float()
        for k, count in enumerate(self.counts):
            if count > 1:
                gathered = hidden[rows, self.index[:, k, :count]].float()
                out[:, k] = torch.einsum("btd,bt->bd", gathered, self.weight[:, k, :count])
        return out


@dataclass(frozen=True)
class PatchTokens:
    """Image tokens of the examples of a batch whose residual stream is kept at each of them."""

    rows: torch.Tensor
    """(example,) int64: rows of the batch."""
    index: torch.Tensor
    """(example, patch) int64: tokens of the cells in raster order, the last one repeated as padding."""
    layers: frozenset[int]

    @classmethod
    def of(cls, tokens: Mapping[int, np.ndarray], layers: Sequence[int]) -> PatchTokens | None:
        """From row of the batch -> image tokens; None without any."""
        if not tokens:
            return None
        longest = max(len(each) for each in tokens.values())
        index = np.stack([np.pad(each, (0, longest - len(each)), mode="edge") for each in tokens.values()])
        return cls(torch.tensor(list(tokens)), torch.from_numpy(index.astype(np.int64)), frozenset(layers))

    def to(self, device: torch.device) -> PatchTokens:
        """The same on another device."""
        return PatchTokens(self.rows.to(device), self.index.to(device), self.layers)


def stacked(by_layer: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """(layer, ...) float32, ascending."""
    return torch.stack([by_layer[k].float() for k in sorted(by_layer)])


def value_norms(value: torch.Tensor, output_weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Norm of W_O^h v_j for every head and token (Kobayashi et al. 2020, section 3), through each head's Gram matrix of W_O.

    Parameters
    ----------
    value
        (batch, key heads, token, width).
    output_weight
        (hidden, heads x width), the output projection.
    heads
        Number of query heads; heads of a group share values but not W_O.

    Returns
    -------
    torch.Tensor
        (batch, heads, token) float32.
    """
    batch, groups, tokens, width = value.shape
    weight = output_weight.float().view(-1, heads, width)
    gram = torch.einsum("ohd,ohe->hde", weight, weight).view(groups, heads // groups, width, width)
    wide = value.float()
    # one head of every group at a time: no more is held at once than the values themselves
    squared = [((wide @ gram[:, member]) * wide).sum(-1) for member in range(heads // groups)]
    return torch.stack(squared, 2).clamp_min(0).sqrt().reshape(batch, heads, tokens)


def value_logits(value: torch.Tensor, output_weight: torch.Tensor, heads: int, toward: torch.Tensor) -> torch.Tensor:
    """<W_O^h v_j, toward> for every head and token: the direction is taken through W_O once, so that each value vector meets one of
    its own width.

    Parameters
    ----------
    value
        (batch, key heads, token, width).
    output_weight
        (hidden, heads x width), the output projection.
    heads
        Number of query heads; heads of a group share values but not W_O.
    toward
        (hidden,) float32.

    Returns
    -------
    torch.Tensor
        (batch, heads, token) float32.
    """
    batch, groups, tokens, width = value.shape
    by_head = (toward @ output_weight.float()).view(groups, heads // groups, width)
    return torch.matmul(by_head, value.float().transpose(2, 3)).reshape(batch, heads, tokens)


@contextmanager
def visiting_residuals(blocks: Any, visit: Callable[[int, torch.Tensor], torch.Tensor | None]) -> Iterator[None]:
    """While open, `visit(layer, hidden)` receives the residual stream at the entry of each block and at the exit of the last, and may
    return another one in its place.

    Inputs, not outputs: Qwen3-VL adds features to the residual stream between blocks.
    """

    def entering(layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            found = visit(layer, args[0] if args else kwargs["hidden_states"])
            if found is None:
                return None
            return ((found, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": found})

        return hook

    def leaving(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        found = visit(len(blocks), output[0] if isinstance(output, tuple) else output)
        return (found, *output[1:]) if found is not None and isinstance(output, tuple) else found

    handles = [block.register_forward_pre_hook(entering(layer), with_kwargs=True) for layer, block in enumerate(blocks)]
    handles.append(blocks[-1].register_forward_hook(leaving))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def capturing(decoder: nn.Module, capture: Capture) -> Iterator[Capture]:
    """While open, a forward pass through `decoder` (the text model that owns `.layers`) fills `capture`.

    Residual layer k is the input of block k, and layer L the output of the last block, before the final norm.

    Raises
    ------
    CaptureError
        If a block with softmax attention used another attention kernel.
    """
    with listening(capture), visiting_residuals(decoder.layers, capture.pool):
        yield capture
    if absent := sorted(set(attention_blocks(decoder.config)) - set(capture.rows)):
        raise CaptureError(
            f"expected the attention of all softmax blocks to pass through the function {NAME!r}, found another kernel in block "
            f"{absent[0]} and {len(absent) - 1} more; report this with the model's name"
        )


def text_decoder(model: nn.Module) -> Any:
    """The text decoder of a model, which has `.layers` and `.norm`, see `find_decoder`.

    Raises
    ------
    CaptureError
        If there is none.
    """
    return find_decoder(model)


def use_captured_attention(model: nn.Module) -> Any:
    """Set the attention function `NAME` in the text decoder, stock SDPA in the vision tower; returns the decoder.

    A model without softmax attention is left as transformers loads it.

    Raises
    ------
    CaptureError
        If the model does not accept another attention function.
    """
    decoder = text_decoder(model)
    mark_blocks(decoder)
    complete_outputs(model)
    set_text_attention(model, NAME)
    found = decoder.config._attn_implementation
    if found != NAME and attention_blocks(decoder.config):
        raise CaptureError(f"expected {type(model).__name__} to accept the attention function {NAME!r}, found it using {found!r}")
    return decoder


def set_text_attention(model: Any, name: str) -> None:
    """Set the attention function of the text decoder, if it has softmax attention; the vision tower uses stock SDPA."""
    if not attention_blocks(text_decoder(model).config):
        return
    stock = "sdpa" if getattr(model, "_supports_sdpa", True) else "eager"  # Gemma 2 has no stock SDPA, for its soft cap
    with suppress(ValueError):  # a part without SDPA keeps the attention with which it was loaded
        model.set_attn_implementation({"": stock, "text_config": name, "vision_config": "sdpa"})
    for config in {id(found): found for module in text_decoder(model).modules() if (found := getattr(module, "config", None))}.values():
        config._attn_implementation = name  # also where the text model's configuration has another name
