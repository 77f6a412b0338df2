"""Edits of the residual stream by plain hooks on a stock model, one variant at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from stratascope.causal.design import EditStack
from stratascope.causal.erasure import Erasure
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.run.capture import text_decoder
from stratascope.extract.run.decoder import kept_logits


def drawn_edits(slots: int, d: int, seed: int, scale: float) -> EditStack:
    rng = np.random.default_rng(seed)
    pieces = []
    for k in range(slots):
        write, read = (rng.normal(size=(d, 1 + k % 2)) / d**0.5 for _ in range(2))
        pieces.append((Erasure(write, read, rng.normal(size=d)), scale * rng.normal(size=d) if k else None))
    return EditStack.of(pieces)


def hooked_logits(model, batch, places, edits: dict, window: tuple[int, int], keep: int = 1) -> torch.Tensor:
    """Logits of the stock model at the last token, or `keep` of them, whose residual stream is edited before blocks, and after the last."""
    blocks = text_decoder(model).layers

    def edit(layer: int, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.clone()
        for name, tokens in places.items():
            hidden[0, tokens] = edits[name, layer](hidden[0, tokens])
        return hidden

    def before(layer: int):
        def hook(module, args, kwargs):
            if args:
                return (edit(layer, args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": edit(layer, kwargs["hidden_states"])}

        return hook

    def after(layer: int):
        return lambda module, args, output: (edit(layer, output[0]), *output[1:]) if isinstance(output, tuple) else edit(layer, output)

    handles = []
    for layer in range(window[0], window[1] + 1):
        if layer < len(blocks):
            handles.append(blocks[layer].register_forward_pre_hook(before(layer), with_kwargs=True))
        else:
            handles.append(blocks[-1].register_forward_hook(after(layer)))
    try:
        with torch.inference_mode():
            found = model(**batch, use_cache=False, **kept_logits(model, keep)).logits[0]
            return found[-1] if keep == 1 else found[-keep:]
    finally:
        for handle in handles:
            handle.remove()


def plain_edit(stack: EditStack, slot: int):
    write, read, centre, shift = (torch.from_numpy(a[slot]) for a in (stack.write, stack.read, stack.centre, stack.shift))
    return lambda x: x - (x - centre) @ read @ write.T + shift


@dataclass(frozen=True)
class DrawnDesign:
    """A design of drawn edits on some examples of a plan, in one fold."""

    plan: ExtractionPlan
    examples: tuple[int, ...]
    parts: tuple[tuple[str, ...], ...] = (("final",), ("subject", "final"))
    slots: int = 2
    sources: tuple[str, ...] = ()

    @property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """The first layer, two in the middle, and the last."""
        last = self.plan.shape.layers
        return ((0, 0), (last // 2, last // 2 + 1), (last, last))

    def folds(self) -> Iterator[tuple[int, np.ndarray]]:
        """One fold."""
        yield 0, np.array(self.examples)

    def stacks(self, fold: int) -> dict[tuple[str, int], EditStack]:
        """Edits of every position and layer."""
        names = {name for part in self.parts for name in part}
        return {
            (name, layer): drawn_edits(self.slots, self.plan.shape.hidden, layer, 0.3)
            for name in names
            for layer in range(self.plan.shape.layers + 1)
        }

    def hooked(self, inputs: Callable[[int], dict], model: torch.nn.Module, example: int, keep: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits at the last tokens without an edit, (keep, vocabulary), and with each variant's, (variant, keep, vocabulary)."""
        stacks, given, found = self.stacks(0), inputs(example), []
        for part in self.parts:
            places = {name: self.plan.position_tokens(example, name) for name in part}
            for window in self.windows:
                for slot in range(self.slots):
                    edits = {place: plain_edit(stack, slot) for place, stack in stacks.items()}
                    found.append(hooked_logits(model, given, places, edits, window, keep).reshape(keep, -1))
        return hooked_logits(model, given, {}, {}, (0, -1), keep).reshape(keep, -1), torch.stack(found)
