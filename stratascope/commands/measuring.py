"""Commands that compute results from a store: answers, share, rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stratascope.commands import options
from stratascope.commands.terminal import open_store, results_folder


@click.command(short_help="How often the model is right, and how sure it is.")
@click.argument("store")
@options.only
@click.option("--out", type=click.Path(path_type=Path), help="Folder of results; default: STORE-results.")
def answers(store: str, only: tuple[str, ...], out: Path | None) -> None:
    """How often the model is right and how sure it is, over all and by relation, and each example's answer.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope answers demo/original.zarr
    """
    from stratascope.workflow.attention import save_answers

    click.echo(save_answers(open_store(store), out or results_folder(store), only=only))


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
    from stratascope.workflow.attention import share_and_draw

    click.echo(share_and_draw(open_store(store), out or results_folder(store), weighing=weighing, only=only))


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
    examples: tuple[int | str, ...] | None,
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
    from stratascope.workflow.attention import roll_and_draw

    how: dict[str, Any] = {"form": form, "discard": discard, "tower": tower}
    click.echo(roll_and_draw(open_store(store), out or results_folder(store), examples=examples, window=window, **how))
