"""Commands on the answer and what it comes from: answers, attribution, heads, faithfulness, pointing, explain."""

from __future__ import annotations

from pathlib import Path

import click

from stratascope.commands import options
from stratascope.commands.terminal import echo, open_store, results_folder


@click.command(short_help="How often the model is right, and how sure it is.")
@click.argument("store")
@options.only
@click.option("--out", type=options.OUTPUT, help="Folder of results; default: STORE-results.")
def answers(store: str, only: tuple[str, ...], out: Path | None) -> None:
    """How often the model is right and how sure it is, over all and by relation, and each example's answer.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope answers demo/original.zarr
    """
    from stratascope.workflow.answering import save_answers

    echo(save_answers(open_store(store), out or results_folder(store), only=only))


@click.command(short_help="What each head adds to the answer.")
@click.argument("store")
@options.only
@options.scheduler
@options.results
def attribution(store: str, only: tuple[str, ...], scheduler: str | None, out: Path | None) -> None:
    """What each head, each block and, through each head, each part of the prompt adds to the difference of the answers' logits.

    Needs a store with head_logits, mlp_logits and embedding_logits (--record head_logits); with attention_rows and value_logits (--record
    value_logits) heads are divided among the parts of the prompt.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope attribution demo/original.zarr
    """
    from stratascope.workflow.attributing import attribute_and_draw

    echo(attribute_and_draw(open_store(store), out or results_folder(store), only=only, scheduler=scheduler))


@click.command(short_help="Heads ranked by attribution, overlap and probe.")
@click.argument("store")
@click.option("--probe", type=click.Path(path_type=Path), help="Result of a probe by head; default: the first one among the results.")
@options.only
@options.scheduler
@options.results
def heads(store: str, probe: Path | None, only: tuple[str, ...], scheduler: str | None, out: Path | None) -> None:
    """Every head by what it carries of the answer, by its look at the boxes and by what a probe reads from it, and how far these agree.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope heads demo/original.zarr
    """
    from stratascope.workflow.overlapping import rank_and_draw

    echo(rank_and_draw(open_store(store), out or results_folder(store), probe=probe, only=only, scheduler=scheduler))


@click.command(short_help="Which method ranks tokens as hiding them does.")
@click.argument("store")
@options.seed("Seed of the bootstrap and the random baseline.")
@options.scheduler
@options.results
def faithfulness(store: str, seed: int, scheduler: str | None, out: Path | None) -> None:
    """How far raw attention, norm-based attention, token attribution, rollout and flow rank parts of a prompt as hiding them does.

    Needs a store with measured effects (--record knockout); compares the methods that the store allows, and says what to record for the
    others.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope faithfulness demo/original.zarr
    """
    from stratascope.workflow.believing import compare_and_draw

    echo(compare_and_draw(open_store(store), out or results_folder(store), seed=seed, scheduler=scheduler))


@click.command(short_help="Which method points at the named things.")
@click.argument("store")
@click.option("--boxes", type=click.Path(path_type=Path), help="Boxes of all things in the images, in COCO's instances format.")
@options.seed("Seed of the bootstrap.")
@options.scheduler
@options.results
def pointing(store: str, boxes: Path | None, seed: int, scheduler: str | None, out: Path | None) -> None:
    """How much more each method gives the image's cells of subject and object than those of other things in the image.

    Other things are those in --boxes that the caption does not name; without it the rest of the image stands for them. Measured effects of
    hiding come along where the store holds them (--record knockout).

    \b
    Example, after 'stratascope demo --out demo':
      stratascope pointing demo/original.zarr --boxes demo/scenes/instances.json
    """
    from stratascope.workflow.believing import point_and_draw

    echo(point_and_draw(open_store(store), out or results_folder(store), boxes=boxes, seed=seed, scheduler=scheduler))


@click.command(short_help="One page for one example, all methods side by side.")
@click.argument("store")
@click.argument("example")
@click.option(
    "-o",
    "--out",
    "--output",
    "output",
    default="explanation.html",
    show_default=True,
    type=options.OUTPUT,
    help="The page to write.",
)
@click.option(
    "--window", callback=options.blocks, metavar="A-B", help="The few blocks of rollout and flow; default: the top half, 8 at most."
)
def explain(store: str, example: str, output: Path, window: tuple[int, int] | None) -> None:
    """One page for one example: every method that the store allows, what adds up to the answer, what hiding does.

    EXAMPLE is an id, or a number where no example has that id.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope explain demo/original.zarr 3 -o explanation.html
    """
    from stratascope.workflow.explaining import write_explanation

    echo(write_explanation(open_store(store), example, output, window=window))
