"""Log-probabilities of answers of several tokens: prompt and answer in one forward pass, without a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stratascope.errors import CaptureError
from stratascope.extract.plan.answer_tokens import ABSENT, scored_rows
from stratascope.extract.run.capture import visiting_residuals
from stratascope.extract.run.decoder import kept_logits
from stratascope.extract.run.float32 import full_float32
from stratascope.extract.run.model import Batch, CaptureModel

Row = tuple[int, tuple[int, ...], list[tuple[int, ...]]]
"""Place of an example; tokens behind its prompt; the answers that begin with them, up to their last token."""


@full_float32()
@torch.inference_mode()
def answer_scores(
    model: CaptureModel,
    members: Sequence[int],
    answers: Sequence[tuple[tuple[int, ...], ...]],
    lengths: np.ndarray,
    batch_of: Callable[[list[int]], Batch],
    most_tokens: int,
    tolerance: float | None = None,
) -> np.ndarray:
    """(example, answer) float32: summed log-probability of each answer's tokens after the prompt.

    Parameters
    ----------
    model
        The model.
    members
        Example numbers.
    answers
        Tokens of each answer, by example.
    lengths
        (example,) tokens of the prompts.
    batch_of
        Makes a batch of the prompts of given examples, some of them several times.
    most_tokens
        Tokens in a forward pass, at most, unless it has a single row.
    tolerance
        Rounding of logits in the model's own precision, relative to the largest. The first row is then run alone and compared with the
        model's own logits; None: no comparison.

    Raises
    ------
    CaptureError
        If they differ by more.
    """
    scores = np.full((len(members), max(map(len, answers))), ABSENT, np.float32)
    rows: list[Row] = []
    for place, own in enumerate(answers):
        rows += [(place, suffix, [own[number] for number in served]) for suffix, served in scored_rows(own).items()]
    while rows:
        now = rows[: _fitting([int(lengths[place]) + len(suffix) for place, suffix, _ in rows], most_tokens)]
        rows = rows[len(now) :]
        residual = _residual(model, batch_of, members, now)
        sums = []
        for k, (place, suffix, served) in enumerate(now):
            start = int(lengths[place]) - 1
            logits = model.unembedding.all_logits(residual[k, start : start + len(suffix) + 1])
            if tolerance is not None:
                _compare(logits, _own_logits(model, batch_of, members, now[k]), tolerance)
                tolerance = None
            shares = logits.log_softmax(-1)
            for tokens in served:
                index = torch.tensor(tokens, device=shares.device)[:, None]
                sums.append(shares[: len(tokens)].gather(1, index).double().sum())
        values = iter(torch.stack(sums).cpu().tolist())
        for place, _, served in now:
            for tokens in served:
                value = next(values)
                for number, each in enumerate(answers[place]):
                    if each == tokens:
                        scores[place, number] = value
    return scores


def _fitting(lengths: Sequence[int], most_tokens: int) -> int:
    """How many of the first rows fit in a padded batch; at least one."""
    longest = 0
    for count, length in enumerate(lengths):
        longest = max(longest, length)
        if count and (count + 1) * longest > most_tokens:
            return count
    return len(lengths)


def inputs_behind(model: CaptureModel, batch: Batch, suffixes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Keywords of a forward pass over a batch with tokens behind each prompt."""
    lengths = batch.lengths + torch.tensor([len(suffix) for suffix in suffixes])
    ids = batch.input_ids.new_zeros(len(suffixes), int(lengths.max()))
    for k, (suffix, length) in enumerate(zip(suffixes, batch.lengths.tolist(), strict=True)):
        ids[k, :length] = batch.input_ids[k, :length]
        ids[k, length : length + len(suffix)] = torch.tensor(suffix, dtype=ids.dtype)
    given = model.inputs(replace(batch, input_ids=ids, lengths=lengths))
    if model.model.config.model_type == "paligemma":  # its prompts are read in both directions, answers are not
        answers = (torch.arange(ids.shape[1]) >= batch.lengths[:, None]).to(model.device)
        given["token_type_ids"] = given["token_type_ids"].masked_fill(answers, 1)
    return given


def _residual(model: CaptureModel, batch_of: Callable[[list[int]], Batch], members: Sequence[int], rows: Sequence[Row]) -> torch.Tensor:
    """(row, token, hidden) output of the last block."""
    given = inputs_behind(model, batch_of([members[place] for place, *_ in rows]), [suffix for _, suffix, _ in rows])
    blocks: Any = model.decoder.layers
    found: list[torch.Tensor] = []
    with visiting_residuals(blocks, lambda layer, hidden: found.append(hidden) if layer == len(blocks) else None):
        model.model(**given, use_cache=False, **kept_logits(model.model, 1))
    return found[0].to(model.device)


def _own_logits(model: CaptureModel, batch_of: Callable[[list[int]], Batch], members: Sequence[int], row: Row) -> torch.Tensor:
    """(token, vocabulary) float32: the model's own logits at the end of the prompt and behind it, of one row alone."""
    given = inputs_behind(model, batch_of([members[row[0]]]), [row[1]])
    keep = len(row[1]) + 1
    logits: torch.Tensor = model.model(**given, use_cache=False, **kept_logits(model.model, keep)).logits
    return logits[0, -keep:].float()


def _compare(found: torch.Tensor, own: torch.Tensor, tolerance: float) -> None:
    scale = max(float(own.abs().max()), 2 * float(own.std()))
    apart = float((found - own).abs().max())
    if not apart <= tolerance * scale:
        raise CaptureError(
            f"expected the logits of an answer's tokens in a batch to be the model's own, found them {apart:.3g} apart "
            f"({tolerance * scale:.2g} is rounding); report this with the model's name"
        )
