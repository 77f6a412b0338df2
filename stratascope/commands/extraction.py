"""Planning and extracting as commands do them: what would be recorded and how long it takes, and a store filled."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stratascope.errors import InvalidInputError, StratascopeError
from stratascope.store import ActivationStore, condition_of

if TYPE_CHECKING:
    from stratascope.extract import ExtractionPlan, ExtractionSettings


def plan_texts(
    settings: ExtractionSettings,
    *,
    show: int = 1,
    timed: bool | None = None,
    batch_tokens: int = 8192,
    price: float | None = None,
    progress: bool = False,
) -> Iterator[str]:
    """What an extraction would record and cost, then how long it would take, or why that is not known.

    Parameters
    ----------
    show
        Examples whose tokens are spelt out.
    timed
        Whether to send a few batches through the model; None: where there is a GPU and the weights.
    batch_tokens
        In a forward pass, at most.
    price
        Of an hour of this machine.
    """
    from stratascope.datasets.examples import describe
    from stratascope.extract import plan_extraction
    from stratascope.extract.plan.plan_summary import plan_summary

    begin = time.perf_counter()
    made = plan_extraction(settings, progress=progress)
    planning = time.perf_counter() - begin
    yield f"{describe(made.examples)}\n\n{plan_summary(made, show)}\n"
    yield _time(made, timed, batch_tokens, price, planning)


def _time(made: ExtractionPlan, wanted: bool | None, batch_tokens: int, price: float | None, planning: float) -> str:
    """How long an extraction takes, `planning` seconds among it, or why that is not known; a plan stands without it."""
    from stratascope.extract.plan.distributed import visible_gpus
    from stratascope.extract.plan.plan_summary import timing_text

    if not wanted:
        try:
            on_gpu = made.device.startswith("cuda") and bool(visible_gpus())
        except ImportError:  # a laptop without torch
            on_gpu = False
        why = (
            "as you asked" if wanted is False
            else "no GPU here; give --time on the machine that shall do the work" if not on_gpu
            else "the model's weights are not here; --time fetches them" if not made.weights_here
            else "the photos are not here" if made.settings.image_size is not None
            else None
        )  # fmt: skip
        if why:
            return f"time       not estimated: {why}"
    try:
        from stratascope.extract.run.extraction import require_extract_extra

        begin = time.perf_counter()
        require_extract_extra()
        from stratascope.extract.run.timing import time_extraction

        before = planning + time.perf_counter() - begin
        return timing_text(time_extraction(made.with_weights(), batch_tokens=batch_tokens, before=before), price)
    except (StratascopeError, RuntimeError, MemoryError, OSError) as error:
        return f"time       not estimated: {str(error).splitlines()[0]}"


def extract_into(
    settings: ExtractionSettings,
    out: Path,
    *,
    shard: tuple[int, int] | None = None,
    batch_tokens: int = 8192,
    progress: bool = False,
    command: str | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> str:
    """Fill a store; the text says how much was written, and what to ask of it now.

    Parameters
    ----------
    out
        The store's folder.
    shard
        This process's number and how many there are; as its launcher says by default.
    batch_tokens
        In a forward pass, at most.
    command
        What was typed, for the store's provenance.
    say
        Told which part of the work is this process's, and what could not be recorded.
    """
    from stratascope.extract import plan_extraction, run_extraction
    from stratascope.extract.plan.plan_summary import image_notes, unanswered
    from stratascope.extract.run.extraction import require_extract_extra

    require_extract_extra(load=False)
    shard, settings = _share(shard, settings, say)
    made = plan_extraction(settings, weights=True, progress=progress)
    if note := unanswered(made):
        say(note)
    for line in image_notes(made):
        say(line)
    report = run_extraction(made, out, rank=shard[0], of=shard[1], batch_tokens=batch_tokens, progress=progress, command=command)
    for example, reason in report.failed.items():
        say(f"not recorded: example {example}: {reason}")
    if report.halvings:
        say(f"the GPU's memory ran out {report.halvings} times and batches were halved; lower --batch-tokens to spare the time")
    if not out.exists():  # created by whoever has a block of it
        return f"{out}: nothing to do for shard {shard[0]}/{shard[1]}: the store has {report.blocks} blocks, none of them its own"
    done = f"wrote {report.written_examples:,} examples in {report.written_blocks} of {report.blocks} blocks"
    lost = f"; {len(report.failed)} of them could not be recorded" if report.failed else ""
    return f"{out}: {done + lost if report.written_blocks else 'nothing left to do'}\n{next_step(ActivationStore.open(out), out)}"


def next_step(store: ActivationStore, where: str | Path) -> str:
    """What to run on a store now that it was written, as far as it was: by its conditions, its prompt and what was recorded.

    Parameters
    ----------
    where
        How the command names the store.
    """
    from stratascope.probe.tasks.task import MINIMUM_COUNT

    name, held = shlex.quote(str(where)), store.provenance
    if not store.complete:
        left = int((~store.written).sum())
        return f"not complete: {left} of {store.layout.blocks} blocks are still to come, from other processes or by the same command again"
    if "residual" not in store.layout.record or "final" not in store.layout.positions:
        return f"next: stratascope info {name}"
    if condition_of(held) != "original":
        return f"next, as a baseline of the store that it is to be compared with: stratascope probe STORE --baseline {name}"
    if held.get("data", {}).get("labels") == "choice":
        task = "choice"
    else:
        # a prompt that does not name the relation is asked for it, and a false caption's relation is not the image's
        named = any(part in str(held["prompt"].get("text")) for part in ("{caption}", "{relation}"))
        task = "truth" if named else "relation --only label=1"
        if named and store.examples["label"].value_counts().reindex([0, 1], fill_value=0).min() < MINIMUM_COUNT:
            return f"next: stratascope view {name}"
    return f"next: stratascope probe {name} --tasks {task} --positions final"


def _share(
    shard: tuple[int, int] | None, settings: ExtractionSettings, say: Callable[[str], object]
) -> tuple[tuple[int, int], ExtractionSettings]:
    """This process's part of the blocks, and settings with its GPU: as was asked for, else as its launcher says."""
    from stratascope.extract.plan.distributed import device_of, launched_rank, visible_gpus

    try:
        rank = launched_rank(os.environ)
    except InvalidInputError:
        if shard is None:
            raise
        rank = None
    if rank is None or rank.of == 1:
        return shard or (0, 1), settings
    said = [] if shard else [rank.text]
    if settings.device == "auto" and (gpus := visible_gpus()):
        settings = replace(settings, device=device_of(rank, gpus))
        said.append(f"on {settings.device}")
    if said:
        say("; ".join(said))
    return shard or (rank.number, rank.of), settings
