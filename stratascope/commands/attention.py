"""Commands that follow attention through a store: share, rollout, flow, overlap."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stratascope.commands import options
from stratascope.commands.terminal import echo, open_store, results_folder


@click.command(short_help="How the final token's attention is divided.")
@click.argument("store")
@click.option(
    "--weighing",
    type=click.Choice(["attention", "norm"]),
    default="attention",
    show_default=True,
    help="What a look weighs: attention alone, or times the norm of what it carries (needs value_norms).",
)
@options.only
@options.results
def share(store: str, weighing: str, only: tuple[str, ...], out: Path | None) -> None:
    """How the final token's attention is divided between image, caption and the rest, by layer and head.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope share demo/original.zarr
    """
    from stratascope.workflow.sharing import share_and_draw

    echo(share_and_draw(open_store(store), out or results_folder(store), weighing=weighing, only=only))


@click.command(short_help="Where the final token's attention comes from.")
@click.argument("store")
@options.examples
@options.window
@click.option(
    "--form",
    type=click.Choice(["raw", "dropped", "conditional"]),
    default="raw",
    show_default=True,
    help="dropped: sinks left out at the end; conditional: left out of every map.",
)
@click.option("--discard", default=0.0, show_default=True, help="Share of each map's weights, the weakest, that is left out.")
@click.option("--tower", default="decoder", show_default=True, help="vision is refused, with the reason.")
@options.results
def rollout(
    store: str,
    examples: str | None,
    window: tuple[int, int] | None,
    form: Any,
    discard: float,
    tower: str,
    out: Path | None,
) -> None:
    """Attention rollout of the final token onto the image, for chosen examples.

    Sinks are tokens that take ten times their fair share, at the first token and the image's edge.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope rollout demo/original.zarr --examples 0-3
    """
    from stratascope.workflow.rolling import roll_and_draw

    how: dict[str, Any] = {"form": form, "discard": discard, "tower": tower}
    echo(roll_and_draw(open_store(store), out or results_folder(store), examples=examples, window=window, **how))


@click.command(short_help="How much can flow from the final token to each input.")
@click.argument("store")
@options.examples
@options.window
@options.scheduler
@options.results
def flow(store: str, examples: str | None, window: tuple[int, int] | None, scheduler: str | None, out: Path | None) -> None:
    """Exact attention flow from the final token to every input token and into spans and boxes, with the cut that limits it.

    Through many blocks flow tells little but a token's position, and says so: use a window of few.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope flow demo/original.zarr --examples 0-3 --window 3-5
    """
    from stratascope.workflow.flowing import flow_and_draw

    echo(flow_and_draw(open_store(store), out or results_folder(store), examples=examples, window=window, scheduler=scheduler))


@click.command(short_help="Attention on the boxes of subject and object.")
@click.argument("store")
@click.option(
    "--weighing",
    type=click.Choice(["attention", "norm", "attribution"]),
    default="attention",
    show_default=True,
    help="What a look weighs: attention alone, the norm of what it carries, or what it adds to the answer given.",
)
@click.option(
    "--measure",
    type=click.Choice(["share", "lift", "cosine", "auc"]),
    default="lift",
    show_default=True,
    help="lift: share in the boxes over their share of cells, 1 for an even map.",
)
@options.only
@options.seed("Seed of folds and intervals.")
@options.scheduler
@options.results
def overlap(store: str, out: Path | None, **chosen: Any) -> None:
    """How far each head's look at the image falls on the gold boxes, and whether that predicts a right answer better than their geometry.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope overlap demo/original.zarr
    """
    from stratascope.workflow.overlapping import overlap_and_draw

    echo(overlap_and_draw(open_store(store), out or results_folder(store), **chosen))
