"""Attention knockouts: change of the difference of two answer logits when attention is masked in a window of blocks (Geva et al. 2023).

One unmasked pass is kept (`Trace`). Each variant is rerun from the first block and the first token that it changes, with cached keys and
values of all earlier tokens; where the target is masked for the final token alone, that is a single token through the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stratascope.errors import CaptureError
from stratascope.extract.plan.knockout_plan import Knockouts, reading_tokens
from stratascope.extract.run.attention_function import BlockAttention, KeysValuesMask, listening, overriding_attention


@dataclass
class Trace:
    """Cache of an unmasked pass over one example, from which parts are rerun."""

    inputs: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> (1, token, hidden): inputs of the blocks, and output of the last."""
    added: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer -> (1, token, hidden): what the model adds to the residual stream between blocks (Qwen3-VL)."""
    arguments: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Block -> keywords of its call."""
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    values: dict[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (1, key head, token, width)."""
    visible: dict[int, torch.Tensor] = field(default_factory=dict)
    """Block -> (token, token) bool: whether a query may see a key."""

    @property
    def length(self) -> int:
        """Tokens."""
        return self.inputs[0].shape[1]

    def on_attention(self, seen: BlockAttention) -> None:
        """Keep keys, values and mask of one block."""
        self.keys[seen.block], self.values[seen.block] = seen.key, seen.value
        length = seen.key.shape[2]
        if seen.mask is None:
            visible = torch.ones(length, length, dtype=torch.bool, device=seen.key.device).tril()
        else:
            given = seen.mask[0, 0, :, :length]
            visible = given if given.dtype == torch.bool else given > torch.finfo(given.dtype).min / 2
        self.visible[seen.block] = visible

    def first_changed(self, tokens: torch.Tensor, readers: torch.Tensor) -> int | None:
        """The first token whose residual stream may change when `tokens` are masked for `readers`, directly or through another token.

        None if no reader may see them. In PaliGemma, with bidirectional attention over the prompt, it is the first token, even where the
        final token is the only reader.
        """
        seen = torch.stack(list(self.visible.values())).any(0)
        changed = readers[seen[readers][:, tokens].any(1)]
        return self.first_reached(int(changed.min())) if len(changed) else None

    def first_reached(self, changed: int) -> int:
        """The first token that changes when the residual stream of the token `changed` does: an earlier one if it sees later tokens."""
        seen = torch.stack(list(self.visible.values())).any(0)
        while (earlier := int(torch.nonzero(seen[:, changed:].any(1))[0])) < changed:
            changed = earlier
        return changed


@contextmanager
def tracing(blocks: Any) -> Iterator[Trace]:
    """While open, a pass over one example fills a trace."""
    trace = Trace()
    left: dict[int, torch.Tensor] = {}

    def entering(block: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            trace.inputs[block] = hidden
            trace.arguments[block] = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            if block and hidden is not left[block] and not torch.equal(hidden, left[block]):
                trace.added[block] = hidden - left[block]

        return hook

    def leaving(block: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], output: Any) -> None:
            left[block + 1] = residual_of(output)

        return hook

    handles = []
    for k, block in enumerate(blocks):
        handles.append(block.register_forward_pre_hook(entering(k), with_kwargs=True))
        handles.append(block.register_forward_hook(leaving(k)))
    try:
        with listening(trace):
            yield trace
        trace.inputs[len(blocks)] = left[len(blocks)]
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Variant:
    """One target that is masked."""

    name: str
    tokens: torch.Tensor
    """Indices of the masked tokens."""
    readers: torch.Tensor
    """Indices of the tokens for which they are masked."""
    start: int
    """The first token whose residual stream changes."""


def variants(trace: Trace, targets: Mapping[str, np.ndarray], mode: str, groups: Mapping[str, np.ndarray]) -> list[Variant]:
    """The targets of one mode, sorted by the number of tokens that they change; left out where no reading token may see the target.

    `groups` are those of `reading_tokens`.
    """
    made = []
    for name, tokens in targets.items():
        chosen = (np.asarray(tokens), reading_tokens(mode, tokens, trace.length, groups))
        target, readers = (torch.from_numpy(each).to(trace.inputs[0].device) for each in chosen)
        start = trace.first_changed(target, readers)
        if start is not None:
            made.append(Variant(name, target, readers, start))
    return sorted(made, key=lambda variant: -variant.start)


def batches(made: Sequence[Variant], length: int, budget: int) -> Iterator[list[Variant]]:
    """Batches of variants, each rerun from the first token that any of them changes.

    A batch has at most `budget` tokens (an unchanged token counts a quarter); no variant changes less than two thirds of the tokens of
    another."""
    batch: list[Variant] = []
    for variant in made:
        changed = length - variant.start
        if batch and ((len(batch) + 1) * max(changed, length // 4) > budget or 2 * changed > 3 * (length - batch[0].start)):
            yield batch
            batch = []
        batch.append(variant)
    if batch:
        yield batch


def rerun(blocks: Any, trace: Trace, batch: Sequence[Variant], window: tuple[int, int]) -> torch.Tensor:
    """Output of the last block at the final token, with the tokens of each variant masked in a window of blocks.

    Parameters
    ----------
    blocks
        The decoder blocks.
    trace
        The unmasked pass.
    batch
        The variants.
    window
        First and last block of the mask.

    Returns
    -------
    torch.Tensor
        (variant, hidden), in the model's precision.
    """
    first, last = window
    start, length = min(variant.start for variant in batch), trace.length
    masked = torch.zeros(len(batch), length - start, length, dtype=torch.bool, device=trace.inputs[0].device)
    for row, variant in enumerate(batch):
        masked[row][(variant.readers[variant.readers >= start] - start)[:, None], variant.tokens] = True
    hidden = trace.inputs[first][:, start:].expand(len(batch), -1, -1)

    def with_cache(block: int, key: torch.Tensor, value: torch.Tensor) -> KeysValuesMask:
        before = [kept[block][:, :, :start].expand(len(batch), -1, -1, -1) for kept in (trace.keys, trace.values)]
        visible = trace.visible[block][start:].expand(len(batch), -1, -1)
        mask = visible & ~masked if block <= last else visible
        return torch.cat([before[0], key], 2), torch.cat([before[1], value], 2), mask[:, None]

    with overriding_attention(with_cache):
        for block in range(first, len(blocks)):
            hidden = residual_of(blocks[block](hidden, **tail_arguments(trace.arguments[block], start, length)))
            if block + 1 in trace.added:
                hidden = hidden + trace.added[block + 1][:, start:]
    return hidden[:, -1]


def knockout_effects(
    blocks: Any,
    trace: Trace,
    targets: Mapping[str, np.ndarray],
    knockouts: Knockouts,
    difference: Callable[[torch.Tensor], torch.Tensor],
    budget: int,
) -> np.ndarray:
    """Effect of every knockout on the difference of two answer logits.

    Parameters
    ----------
    blocks, trace
        The decoder blocks, and the unmasked pass.
    targets
        Name -> token indices in this example, of targets and of groups of reading tokens.
    knockouts
        The knockouts to measure; a target that is absent, or that no reading token may see, stays NaN.
    difference
        (n, hidden) output of the last block -> (n,) logit of the first answer minus that of the second.
    budget
        Tokens in a forward pass, at most.

    Returns
    -------
    numpy.ndarray
        (mode, window, target) float32: the difference with the target masked, minus the difference without a mask.
    """
    found = np.full((len(knockouts.modes), len(knockouts.windows), len(knockouts.targets)), np.nan, np.float32)
    unmasked = difference(trace.inputs[len(blocks)][:, -1])
    for m, mode in enumerate(knockouts.modes):
        made = variants(trace, {name: targets[name] for name in knockouts.targets_of(mode) if name in targets}, mode, targets)
        for w, window in enumerate(knockouts.windows):
            for batch in batches(made, trace.length, budget):
                changed = difference(rerun(blocks, trace, batch, window)) - unmasked
                found[m, w, [knockouts.targets.index(variant.name) for variant in batch]] = changed.cpu().numpy()
    return found


def check_trace(blocks: Any, trace: Trace, tolerance: float) -> None:
    """Check that reruns without a mask reproduce the traced pass.

    Raises
    ------
    CaptureError
        If the output of the last block differs by more than `tolerance` of its norm.
    """
    none = torch.zeros(0, dtype=torch.long, device=trace.inputs[0].device)
    left = trace.inputs[len(blocks)][:, -1].double()
    for start in (0, trace.length // 2, trace.length - 1):
        again = rerun(blocks, trace, [Variant("none", none, none, start)], (0, len(blocks) - 1))
        gap = float((again.double() - left).norm() / left.norm())
        if not gap <= tolerance:
            raise CaptureError(
                f"expected a rerun from token {start} without a mask to give the same residual stream, found it "
                f"{gap:.3g} of its norm off ({tolerance:g} is rounding); leave knockout out of `record`, and report the model's name"
            )


def residual_of(output: Any) -> torch.Tensor:
    """The residual stream in the output of a block."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def tail_arguments(arguments: Mapping[str, Any], start: int, length: int, copies: int = 1) -> dict[str, Any]:
    """Keywords of a block for the tokens from `start` on, `copies` times in a row; `overriding_attention` provides the mask.

    Raises
    ------
    CaptureError
        If the positions of the tokens are not rotary embeddings.
    """
    made = dict(arguments)
    rotary = made.get("position_embeddings")
    if not isinstance(rotary, tuple) or any(part.shape[-2] != length for part in rotary):
        raise CaptureError("expected decoder blocks with rotary embeddings of all tokens, found others; leave knockout out of `record`")
    made["position_embeddings"] = tuple(part[..., start:, :].repeat(*[1] * (part.ndim - 2), copies, 1) for part in rotary)
    for name in ("position_ids", "cache_position"):
        if isinstance(made.get(name), torch.Tensor):
            made[name] = made[name][..., start:].repeat(*[1] * (made[name].ndim - 1), copies)
    made |= {name: None for name in ("attention_mask", "past_key_values") if name in made}
    return made
