"""Interventions on the residual stream: all variants of an example, rerun from the first token and layer that they change.

One unedited pass is kept (`knockout.Trace`); the variants of a position are rerun from it (`tail_pass`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from stratascope.errors import CaptureError
from stratascope.extract.run.float32 import full_float32
from stratascope.extract.run.knockout import Trace, tracing
from stratascope.extract.run.model import Batch, CaptureModel
from stratascope.extract.run.tail_pass import Segment, TailPass, segments

LEAST_TOKENS = 256
"""Tokens of variants in a forward pass, at least: short prompts would else be rerun in many small passes."""


class Edits(Protocol):
    """Edits of one position and layer, one for each slot: x -> x + shift - write (read (x - centre)), as numpy arrays."""

    @property
    def write(self) -> np.ndarray: ...  # (slot, d, k)
    @property
    def read(self) -> np.ndarray: ...  # (slot, d, k)
    @property
    def centre(self) -> np.ndarray: ...  # (slot, d)
    @property
    def shift(self) -> np.ndarray: ...  # (slot, d)


@dataclass(frozen=True)
class DeviceEdits:
    """`Edits` on the model's device, in float32."""

    write: torch.Tensor
    read: torch.Tensor
    centre: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def of(cls, edits: Edits, device: torch.device) -> DeviceEdits:
        """Copy numpy arrays to a device."""
        parts = (edits.write, edits.read, edits.centre, edits.shift)
        return cls(*(torch.from_numpy(np.asarray(part, np.float32)).to(device) for part in parts))

    @property
    def count(self) -> int:
        """Number of slots."""
        return len(self.shift)

    @cached_property
    def idle(self) -> bool:
        """Whether they change nothing, whatever the residual stream."""
        return not (self.write.any() or self.shift.any())

    def __call__(self, x: torch.Tensor, slots: slice) -> torch.Tensor:
        """(slot, token, d) -> the same, edited."""
        read = (x - self.centre[slots][:, None]) @ self.read[slots]
        return x + self.shift[slots][:, None] - read @ self.write[slots].mT


@dataclass(frozen=True)
class Interventions:
    """What is run on each example of a fold."""

    parts: tuple[tuple[str, ...], ...]
    """Positions that are changed together, for each position of the variants."""
    windows: tuple[tuple[int, int], ...]
    """First and last layer, ascending."""
    edits: Mapping[tuple[str, int], DeviceEdits]
    """(position, layer) -> edits."""
    sources: int = 0
    """Patches, the last slots of each window."""

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """All layers that are changed, ascending."""
        return changed_layers(self.windows)

    @cached_property
    def slots(self) -> int:
        """Variants of a position and window."""
        return (next(iter(self.edits.values())).count if self.edits else 0) + self.sources

    def moving(self, part: Sequence[str]) -> list[int]:
        """Numbers of the windows in which some edit at the positions of a part can change anything."""
        return [
            number
            for number, (first, last) in enumerate(self.windows)
            if self.sources or not all(self.edits[name, layer].idle for name in part for layer in self.layers if first <= layer <= last)
        ]


def pass_tokens(most: int, length: int) -> int:
    """Tokens of variants in a forward pass: as many as a prompt of `length` has, `LEAST_TOKENS` if it has fewer, and `most` at most."""
    return min(most, max(LEAST_TOKENS, length))


def changed_layers(windows: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """All layers of the windows, ascending."""
    return tuple(sorted({layer for first, last in windows for layer in range(first, last + 1)}))


@dataclass(frozen=True)
class Measured:
    """What an example's variants did to the model's output at the final token; NaN where the example lacks the position."""

    logits: np.ndarray
    """(choice,) float32: logits without an edit."""
    change: np.ndarray
    """(part, window, slot, choice) float32: logits minus those of the unedited rerun."""
    collateral: np.ndarray
    """(part, window, slot) float32: norm of the edit relative to that of the residual stream, over the edited tokens."""
    divergence: np.ndarray
    """(part, window, slot) float32: KL divergence of the next-token distribution from the unedited one, in nats."""
    others: np.ndarray
    """(part, window, slot) float32: the same among all tokens but the answers: damage to what is not asked for."""


class InterventionRunner:
    """Runs the variants of single examples through a model.

    Parameters
    ----------
    model
        The model.
    choices
        Token ids of the answers.
    """

    def __init__(self, model: CaptureModel, choices: Sequence[int]) -> None:
        self.model, self.choices = model, tuple(choices)
        self.blocks: Any = model.decoder.layers

    @full_float32()
    @torch.inference_mode()
    def trace(self, batch: Batch) -> Trace:
        """The unedited pass over one example."""
        with tracing(self.blocks) as trace:
            self.model.model(**self.model.inputs(batch), use_cache=False, logits_to_keep=1)
        return trace

    @full_float32()
    @torch.inference_mode()
    def measure(
        self,
        trace: Trace,
        tokens: Mapping[str, np.ndarray | None],
        chosen: Interventions,
        sources: Mapping[str, np.ndarray] | None,
        tolerance: float,
        *,
        tokens_of_pass: int,
    ) -> Measured:
        """Run all variants of an example.

        Parameters
        ----------
        trace
            Its unedited pass.
        tokens
            Position -> indices of its tokens; None where the example lacks it.
        chosen
            What to run.
        sources
            Position -> (layer of `chosen.layers`, source, token, d) residual streams to patch in; NaN: not measured. None without patches.
        tolerance
            Largest distance of an unedited rerun from the pass, relative to its norm.
        tokens_of_pass
            Tokens of variants in a forward pass, at most; never fewer than one variant and its unedited rerun.

        Raises
        ------
        CaptureError
            If an unedited rerun does not reproduce the pass.
        """
        shape = (len(chosen.parts), len(chosen.windows), chosen.slots)
        change = np.full((*shape, len(self.choices)), np.nan, np.float32)
        single = [np.full(shape, np.nan, np.float32) for _ in range(3)]
        patches = {name: torch.from_numpy(found).to(trace.inputs[0].device) for name, found in (sources or {}).items()}
        for p, part in enumerate(chosen.parts):
            places = {name: tokens[name] for name in part}
            if any(found is None or not len(found) for found in places.values()):
                continue
            index = {name: torch.from_numpy(np.asarray(found)).to(trace.inputs[0].device) for name, found in places.items()}
            start = trace.first_reached(min(int(found.min()) for found in index.values()))
            tail = TailPass(self.blocks, trace, start)
            limit = tokens_of_pass // (trace.length - start)
            moving = chosen.moving(part)
            still = np.setdiff1d(np.arange(len(chosen.windows)), moving)
            for values in (change, *single):
                values[p, still] = 0.0
            for made in segments([(number, *chosen.windows[number]) for number in moving], chosen.slots, max(2, limit)):
                sizes = trace.inputs[0].new_zeros(made[-1].edited.stop, 2, dtype=torch.float32)

                def edit(
                    before: torch.Tensor, segment: Segment, layer: int, sizes: Any = sizes, index: Any = index, start: int = start
                ) -> Any:
                    after = before.clone()
                    for name, found in index.items():
                        x = before[:, found - start]
                        patch = patches[name][chosen.layers.index(layer)] if patches else None
                        y = edited(x, segment.slots, chosen, (name, layer), patch)
                        after[:, found - start] = y
                        if layer == segment.first:
                            moved = (y.float() - x.float()).square().sum((1, 2))
                            sizes[segment.edited] += torch.stack([moved, x.float().square().sum((1, 2))], 1)
                    return after

                output, changed = tail.run(made, edit)
                self._check(output, trace, made, tolerance)
                logits = self.model.unembedding.logits(output, self.choices)
                divergence = self._divergence(output, made)
                share = (sizes[:, 0] / sizes[:, 1].clamp_min(1e-30)).sqrt()
                for segment in made:
                    at = (p, segment.window, segment.slots)
                    # an edit that changes no bit changes nothing: rounding of another row of the same pass is no effect
                    same = ~changed[segment.edited]
                    moved = (logits[segment.edited] - logits[segment.row]).masked_fill(same[:, None], 0.0)
                    found = [share[segment.edited], *(d[segment.edited].masked_fill(same, 0.0) for d in divergence)]
                    change[at] = moved.cpu().numpy()
                    for values, mine in zip(single, found, strict=True):
                        values[at] = mine.cpu().numpy()
        if sources is not None:
            self._leave_out(chosen, sources, change, single)
        base = self.model.unembedding.logits(trace.inputs[len(self.blocks)][:, -1], self.choices)[0]
        return Measured(base.cpu().numpy(), change, *single)

    def _leave_out(self, chosen: Interventions, sources: Mapping[str, np.ndarray], change: Any, single: list[Any]) -> None:
        """NaN where a source is missing at a position."""
        for p, part in enumerate(chosen.parts):
            for s in np.flatnonzero(np.any([np.isnan(sources[name]).any((0, 2, 3)) for name in part], 0)):
                slot = chosen.slots - chosen.sources + int(s)
                for values in (change, *single):
                    values[p, :, slot] = np.nan

    def _check(self, output: torch.Tensor, trace: Trace, made: Sequence[Segment], tolerance: float) -> None:
        left = trace.inputs[len(self.blocks)][0, -1].double()
        again = output[[segment.row for segment in made]].double()
        gap = float((again - left).norm(dim=1).max() / left.norm())
        if not gap <= tolerance:
            raise CaptureError(
                f"expected an unedited rerun to give the same residual stream, found it {gap:.3g} of its norm off ({tolerance:g} is "
                "rounding); report the model's name"
            )

    def _divergence(self, output: torch.Tensor, made: Sequence[Segment]) -> tuple[torch.Tensor, torch.Tensor]:
        """(row,) KL divergences from the unedited row of the segment: of all tokens, and of all but the answers."""
        logits = self.model.unembedding.all_logits(output)
        reference = torch.zeros(len(output), dtype=torch.long, device=output.device)
        for segment in made:
            reference[segment.row : segment.edited.stop] = segment.row
        found = [_kl(logits, reference)]
        logits[:, list(self.choices)] = float("-inf")
        return found[0], _kl(logits, reference)


def edited(x: torch.Tensor, slots: slice, chosen: Interventions, key: tuple[str, int], patch: torch.Tensor | None) -> torch.Tensor:
    """Edits of some slots, (slot, token, d) in the model's precision; the last slots are patches, (source, token, d)."""
    count = chosen.slots - chosen.sources
    parts = []
    if slots.start < count:
        own = slice(slots.start, min(slots.stop, count))
        parts.append(chosen.edits[key](x[: own.stop - own.start].float(), own).to(x.dtype))
    if slots.stop > count:
        assert patch is not None
        new = patch[max(slots.start, count) - count : slots.stop - count].to(x.dtype)
        # a missing source changes nothing: NaN would reach the other copies, whose attention to it is 0 times NaN
        parts.append(torch.where(new.isnan(), x[-len(new) :], new))
    return torch.cat(parts)


def _kl(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(row,) KL(reference || row) in nats; logits of minus infinity are left out."""
    log = torch.log_softmax(logits, -1)
    own = log[reference]
    return torch.where(own > float("-inf"), own.exp() * (own - log), torch.zeros_like(log)).sum(-1).clamp_min(0)
