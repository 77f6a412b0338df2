"""Interventions on the residual stream: all variants of an example, rerun from the first token and layer that they change.

One unedited pass is kept (`knockout.Trace`); the variants of a position are rerun from it (`tail_pass`), or as whole prompts
(`whole_pass`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stratascope.errors import CaptureError
from stratascope.extract.plan.answer_tokens import ABSENT, scored_rows
from stratascope.extract.run.answer_scores import inputs_behind
from stratascope.extract.run.decoder import kept_logits
from stratascope.extract.run.float32 import full_float32
from stratascope.extract.run.knockout import Trace, tracing
from stratascope.extract.run.model import Batch, CaptureModel
from stratascope.extract.run.residual_edits import Interventions, edited
from stratascope.extract.run.tail_pass import Segment, TailPass, segments
from stratascope.extract.run.whole_pass import ALONE, WholePass

LEAST_TOKENS = 256
"""Tokens of variants in a forward pass, at least: short prompts would else be rerun in many small passes."""


def pass_tokens(most: int, length: int) -> int:
    """Tokens of variants in a forward pass: as many as a prompt of `length` has, `LEAST_TOKENS` if it has fewer, and `most` at most."""
    return min(most, max(LEAST_TOKENS, length))


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


@dataclass(frozen=True)
class Answers:
    """Answers of an example, as an extraction scores them."""

    choices: tuple[int, ...]
    """First token of each answer."""
    scored: tuple[tuple[int, ...], ...] = ()
    """Tokens of each answer, whose log-probabilities are summed; empty: the logits of `choices`."""
    count: int = 0
    """Answers of the store; the example may offer fewer."""


@dataclass(frozen=True)
class Tracked:
    """An unedited pass over an example, and what to read at its end."""

    trace: Trace
    batch: Batch | None
    """The example alone; None: variants are never whole prompts."""
    behind: tuple[int, ...] = ()
    """Tokens behind the prompt."""
    served: tuple[tuple[int, ...], ...] = ()
    """Tokens of the answers that are scored in this pass; empty: the logits of single tokens."""

    @property
    def kept(self) -> int:
        """Tokens at the end of the pass whose output is read."""
        return len(self.behind) + 1


class InterventionRunner:
    """Runs the variants of single examples through a model.

    Parameters
    ----------
    model
        The model.
    whole
        Whether variants are whole prompts, because the model's last tokens cannot run alone.
    """

    def __init__(self, model: CaptureModel, *, whole: bool = False) -> None:
        self.model, self.whole = model, whole
        self.blocks: Any = model.decoder.layers

    @full_float32()
    @torch.inference_mode()
    def trace(self, batch: Batch, behind: tuple[int, ...] = (), served: tuple[tuple[int, ...], ...] = ()) -> Tracked:
        """The unedited pass over one example, with tokens behind its prompt."""
        with tracing(self.blocks) as trace:
            self.model.model(**inputs_behind(self.model, batch, [behind]), use_cache=False, **kept_logits(self.model.model, 1))
        return Tracked(trace, batch, behind, served)

    def measure_answers(
        self,
        first: Tracked,
        answers: Answers,
        tokens: Mapping[str, np.ndarray | None],
        chosen: Interventions,
        sources: Mapping[str, np.ndarray] | None,
        tolerance: float,
        *,
        tokens_of_pass: int,
    ) -> Measured:
        """Run all variants of an example, once for each text of answers of several tokens; arguments as of `measure`.

        Parameters
        ----------
        first
            The unedited pass over its prompt alone.
        answers
            Its answers. Choices that it does not offer have the score `ABSENT` and no change.
        """
        given = {"tokens_of_pass": tokens_of_pass}
        if not answers.scored:
            return self.measure(first, answers.choices, tokens, chosen, sources, tolerance, **given)
        assert first.batch is not None
        found: Measured | None = None
        for behind, numbers in scored_rows(answers.scored).items():
            served = tuple(answers.scored[number] for number in numbers)
            tracked = self.trace(first.batch, behind, served) if behind else replace(first, served=served)
            part = self.measure(tracked, answers.choices, tokens, chosen, sources, tolerance, **given)
            if found is None:
                logits = np.full(answers.count, ABSENT, np.float32)
                change = np.repeat(0 * part.change[..., :1], answers.count, -1)
                found = Measured(logits, change, part.collateral, part.divergence, part.others)
            found.logits[numbers], found.change[..., numbers] = part.logits, part.change
        assert found is not None
        return found

    @full_float32()
    @torch.inference_mode()
    def measure(
        self,
        tracked: Tracked,
        choices: Sequence[int],
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
        tracked
            Its unedited pass.
        choices
            Token ids of the answers, or the first of them.
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
        trace, shape = tracked.trace, (len(chosen.parts), len(chosen.windows), chosen.slots)
        change = np.full((*shape, len(tracked.served or choices)), np.nan, np.float32)
        single = [np.full(shape, np.nan, np.float32) for _ in range(3)]
        patches = {name: torch.from_numpy(found).to(trace.inputs[0].device) for name, found in (sources or {}).items()}
        for p, part in enumerate(chosen.parts):
            places = {name: tokens[name] for name in part}
            if any(found is None or not len(found) for found in places.values()):
                continue
            index = {name: torch.from_numpy(np.asarray(found)).to(trace.inputs[0].device) for name, found in places.items()}
            tail = self._pass(tracked, min(int(found.min()) for found in index.values()))
            limit = tokens_of_pass // (trace.length - tail.start)
            if isinstance(tail, WholePass) and not self.model.accepts_features:
                limit = ALONE
            moving = chosen.moving(part)
            still = np.setdiff1d(np.arange(len(chosen.windows)), moving)
            for values in (change, *single):
                values[p, still] = 0.0
            for made in segments([(number, *chosen.windows[number]) for number in moving], chosen.slots, max(2, limit)):
                sizes = trace.inputs[0].new_zeros(made[-1].edited.stop, 2, dtype=torch.float32)

                def edit(
                    before: torch.Tensor, segment: Segment, layer: int, sizes: Any = sizes, index: Any = index, start: int = tail.start
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

                output, changed = tail.run(made, edit, tracked.kept)
                self._check(output, trace, made, tolerance)
                logits = self._answers(output, choices, tracked)
                divergence = self._divergence(output[:, 0], made, choices)
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
        base = self._answers(trace.inputs[len(self.blocks)][:, -tracked.kept :], choices, tracked)[0]
        return Measured(base.cpu().numpy(), change, *single)

    def _pass(self, tracked: Tracked, first: int) -> TailPass | WholePass:
        """What reruns variants whose first changed token is `first`."""
        if self.whole:
            assert tracked.batch is not None
            return WholePass(self.model, tracked.batch, tracked.behind, tracked.trace)
        return TailPass(self.blocks, tracked.trace, tracked.trace.first_reached(first))

    def _answers(self, output: torch.Tensor, choices: Sequence[int], tracked: Tracked) -> torch.Tensor:
        """(row, kept, d) output of the last block -> (row, choice) logits, or summed log-probabilities."""
        head = self.model.unembedding
        if not tracked.served:
            return head.logits(output[:, 0], choices)
        sums = torch.zeros(len(output), len(tracked.served), dtype=torch.float64, device=output.device)
        for place in range(max(map(len, tracked.served))):
            shares = head.all_logits(output[:, place]).log_softmax(-1)
            for column, answer in enumerate(tracked.served):
                if place < len(answer):
                    sums[:, column] += shares[:, answer[place]].double()
        return sums.float()

    def _leave_out(self, chosen: Interventions, sources: Mapping[str, np.ndarray], change: Any, single: list[Any]) -> None:
        """NaN where a source is missing at a position."""
        for p, part in enumerate(chosen.parts):
            for s in np.flatnonzero(np.any([np.isnan(sources[name]).any((0, 2, 3)) for name in part], 0)):
                slot = chosen.slots - chosen.sources + int(s)
                for values in (change, *single):
                    values[p, :, slot] = np.nan

    def _check(self, output: torch.Tensor, trace: Trace, made: Sequence[Segment], tolerance: float) -> None:
        left = trace.inputs[len(self.blocks)][0, -output.shape[1] :].double()
        again = output[[segment.row for segment in made]].double()
        gap = float(((again - left).norm(dim=2) / left.norm(dim=1)).max())
        if not gap <= tolerance:
            raise CaptureError(
                f"expected an unedited rerun to give the same residual stream, found it {gap:.3g} of its norm off ({tolerance:g} is "
                "rounding); report the model's name"
            )

    def _divergence(self, output: torch.Tensor, made: Sequence[Segment], choices: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(row,) KL divergences from the unedited row of the segment: of all tokens, and of all but the answers."""
        logits = self.model.unembedding.all_logits(output)
        reference = torch.zeros(len(output), dtype=torch.long, device=output.device)
        for segment in made:
            reference[segment.row : segment.edited.stop] = segment.row
        found = [_kl(logits, reference)]
        logits[:, list(choices)] = float("-inf")
        return found[0], _kl(logits, reference)


def _kl(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """(row,) KL(reference || row) in nats; logits of minus infinity are left out."""
    log = torch.log_softmax(logits, -1)
    own = log[reference]
    return torch.where(own > float("-inf"), own.exp() * (own - log), torch.zeros_like(log)).sum(-1).clamp_min(0)
