"""Commands that fill a store: demo, plan, extract."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stratascope.commands import options
from stratascope.commands.command_line import command_lines
from stratascope.commands.terminal import echo
from stratascope.errors import InvalidInputError

if TYPE_CHECKING:
    from stratascope.extract import ExtractionSettings


@click.command(short_help="The whole way, on generated scenes.")
@click.option("--out", default="stratascope-demo", show_default=True, type=options.OUTPUT, help="Folder to fill.")
@click.option("--scenes", default=512, show_default=True, help="How many scenes to generate.")
@options.seed("Seed of the scenes, folds and resamples.")
def demo_command(out: Path, scenes: int, seed: int) -> None:
    """The whole way on generated scenes with the built-in model: scenes, store, probes, rollout, figures.

    The same command goes on where it stopped, and makes again only what is missing or was changed.

    \b
    Example:
      stratascope demo --out demo
    """
    from stratascope.demo import run_demo

    echo(run_demo(out, scenes=scenes, seed=seed, progress=sys.stderr.isatty(), say=echo, command_line=command_lines()))


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
def plan_command(show: int, timed: bool | None, batch_tokens: int, price: float | None, **chosen: Any) -> None:
    """What an extraction would record and cost: shapes, disk, and where the model can run, time and memory.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope plan --model demo --examples demo/scenes/scenes.jsonl --images demo/scenes/images
    """
    from stratascope.commands.extraction import plan_texts

    found = plan_texts(_settings(chosen), show=show, timed=timed, batch_tokens=batch_tokens, price=price, progress=True)
    for text in found:
        echo(text)


@click.command(short_help="Examples through the model, once, into a store.")
@options.extraction_options
@click.option("--out", required=True, type=options.OUTPUT, metavar="STORE.zarr", help="The store to fill, or to go on filling.")
@options.batch_tokens
@click.option(
    "--shard",
    callback=options.shard,
    metavar="I/N",
    help="Every N-th block, from the I-th; default: as torchrun or SLURM started this process, else all.",
)
def extract_command(out: Path, batch_tokens: int, shard: tuple[int, int] | None, **chosen: Any) -> None:
    """Run every example through the model once and fill a store. Goes on where it stopped.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope extract --model demo --examples demo/scenes/scenes.jsonl --images demo/scenes/images --out mine.zarr
    """
    from stratascope.commands.extraction import extract_into

    echo(
        extract_into(
            _settings(chosen),
            out,
            shard=shard,
            batch_tokens=batch_tokens,
            progress=sys.stderr.isatty(),
            command=shlex.join(["stratascope", *sys.argv[1:]]),
            say=lambda text: echo(text, err=True),
        )
    )


def _settings(options: dict[str, Any]) -> ExtractionSettings:
    from stratascope.extract import ExtractionSettings

    if options.pop("no_system"):
        if options["system"] is not None:
            raise InvalidInputError(f"expected either --system or --no-system, found both, with {options['system']!r}")
        options["system"] = ""  # an empty text is no turn
    return ExtractionSettings(**options)
