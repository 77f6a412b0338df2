"""Commands that fill a store: demo, plan, extract."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stratascope.commands import options
from stratascope.errors import InvalidInputError, StratascopeError

if TYPE_CHECKING:
    from stratascope.extract import ExtractionPlan, ExtractionSettings


@click.command(short_help="The whole way, on generated scenes.")
@click.option("--out", default="stratascope-demo", show_default=True, type=click.Path(path_type=Path), help="Folder to fill.")
@click.option("--scenes", default=512, show_default=True, help="How many scenes to generate.")
@options.seed("Seed of the scenes, folds and resamples.")
def demo(out: Path, scenes: int, seed: int) -> None:
    """The whole way on generated scenes with the built-in model: scenes, store, probes, rollout, figures.

    The same command goes on where it stopped, and makes again only what is missing or was changed.

    \b
    Example:
      stratascope demo --out demo
    """
    from stratascope.demo import run_demo

    click.echo(run_demo(out, scenes=scenes, seed=seed, progress=sys.stderr.isatty(), say=click.echo))


@click.command(short_help="What an extraction would record and cost; writes nothing.")
@options.extraction_options
@click.option(
    "--image-size",
    callback=options.size,
    metavar="WxH",
    help="Assume this size of every image, before the photos are there; needs no --images.",
)
@click.option("--show", default=1, show_default=True, metavar="N", help="Print the tokens and spans of the first N examples.")
@click.option(
    "--time/--no-time",
    "timed",
    default=None,
    help="Send a few batches through the model, to judge how long all take; fetches a Hub model's weights. Default: where there is a GPU "
    "and the weights.",
)
@options.batch_tokens
@click.option(
    "--price", type=click.FloatRange(min=0), metavar="PER_HOUR", help="Price of this machine, in any currency: print what all would cost."
)
def plan(show: int, timed: bool | None, batch_tokens: int, price: float | None, **chosen: Any) -> None:
    """What an extraction would record and cost: shapes, disk, and where the model can run, time and memory.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope plan --model demo --examples demo/scenes/scenes.jsonl --images demo/scenes/images
    """
    from stratascope.datasets.examples import describe
    from stratascope.extract import plan_extraction
    from stratascope.extract.summary import plan_summary

    begin = time.perf_counter()
    made = plan_extraction(_settings(chosen), progress=sys.stderr.isatty())
    planning = time.perf_counter() - begin
    click.echo(f"{describe(made.examples)}\n\n{plan_summary(made, show)}\n")
    click.echo(_time(made, timed, batch_tokens, price, planning))


def _time(made: ExtractionPlan, wanted: bool | None, batch_tokens: int, price: float | None, planning: float) -> str:
    """How long an extraction takes, `planning` seconds among it, or why that is not known; a plan stands without it."""
    from stratascope.extract.ranks import visible_gpus
    from stratascope.extract.summary import timing_text

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
        from stratascope.extract.extraction import require_extract_extra

        begin = time.perf_counter()
        require_extract_extra()
        from stratascope.extract.timing import time_extraction

        before = planning + time.perf_counter() - begin
        return timing_text(time_extraction(made.with_weights(), batch_tokens=batch_tokens, before=before), price)
    except (StratascopeError, RuntimeError, MemoryError, OSError) as error:
        return f"time       not estimated: {str(error).splitlines()[0]}"


@click.command(short_help="Examples through the model, once, into a store.")
@options.extraction_options
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="STORE.zarr", help="The store to fill, or to go on filling.")
@options.batch_tokens
@click.option(
    "--shard",
    callback=options.shard,
    metavar="I/N",
    help="Every N-th block, from the I-th; default: as torchrun or SLURM started this process, else all.",
)
def extract(out: Path, batch_tokens: int, shard: tuple[int, int] | None, **chosen: Any) -> None:
    """Run every example through the model once and fill a store. Goes on where it stopped.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope extract --model demo --examples demo/scenes/scenes.jsonl --images demo/scenes/images --out mine.zarr
    """
    from stratascope.extract import plan_extraction, run_extraction
    from stratascope.extract.extraction import require_extract_extra
    from stratascope.extract.summary import unanswered

    require_extract_extra(load=False)
    shard = _share(shard, chosen)
    made = plan_extraction(_settings(chosen), weights=True, progress=sys.stderr.isatty())
    if note := unanswered(made):
        click.echo(note, err=True)
    report = run_extraction(
        made,
        out,
        rank=shard[0],
        of=shard[1],
        batch_tokens=batch_tokens,
        progress=sys.stderr.isatty(),
        command=shlex.join(["stratascope", *sys.argv[1:]]),
    )
    for example, reason in report.failed.items():
        click.echo(f"not recorded: example {example}: {reason}", err=True)
    if report.halvings:
        click.echo(
            f"the GPU's memory ran out {report.halvings} times and batches were halved; lower --batch-tokens to spare the time", err=True
        )
    done = f"wrote {report.written_examples:,} examples in {report.written_blocks} of {report.blocks} blocks"
    lost = f"; {len(report.failed)} of them could not be recorded" if report.failed else ""
    click.echo(f"{out}: {done + lost if report.written_blocks else 'nothing left to do'}")


def _share(shard: tuple[int, int] | None, chosen: dict[str, Any]) -> tuple[int, int]:
    """This process's part of the blocks, and its GPU: as was asked for, else as its launcher says."""
    from stratascope.extract.ranks import device_of, launched_rank, visible_gpus

    try:
        rank = launched_rank(os.environ)
    except InvalidInputError:
        if shard is None:
            raise
        rank = None
    if rank is None or rank.of == 1:
        return shard or (0, 1)
    said = [] if shard else [rank.text]
    if chosen["device"] == "auto" and (gpus := visible_gpus()):
        chosen["device"] = device_of(rank, gpus)
        said.append(f"on {chosen['device']}")
    if said:
        click.echo("; ".join(said), err=True)
    return shard or (rank.number, rank.of)


def _settings(options: dict[str, Any]) -> ExtractionSettings:
    from stratascope.extract import ExtractionSettings

    if options.pop("no_system"):
        if options["system"] is not None:
            raise InvalidInputError(f"expected either --system or --no-system, found both, with {options['system']!r}")
        options["system"] = ""  # an empty text is no turn
    return ExtractionSettings(**options)
