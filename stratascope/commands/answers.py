"""Commands on the answer and its causes: answers, attribution, heads, faithfulness, explain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stratascope.analysis import answer_confidence, explain_example, faithfulness, logit_attribution
from stratascope.analysis.head_ranking import rank_heads_of
from stratascope.commands import options
from stratascope.commands.example_selection import example_number
from stratascope.commands.output import Output, results_output, verbosity_options
from stratascope.commands.signature import options_of
from stratascope.commands.terminal import open_store


@click.command(short_help="Accuracy and confidence of the model's answers.")
@click.argument("store")
@options.only
@results_output
def answers_command(store: str, output: Output, only: tuple[str, ...]) -> None:
    """Accuracy and confidence of the model's answers, over all examples and by relation, and each example's answer.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope answers demo/original.zarr
    """
    opened = open_store(store)
    output.add(answer_confidence(opened, only=only), store=opened)


@click.command(short_help="Direct logit attribution by head, block and part of the prompt.")
@click.argument("store")
@options.only
@options.scheduler
@results_output
def attribution_command(store: str, output: Output, **chosen: Any) -> None:
    """Direct logit attribution: what each head, each block and, through each head, each part of the prompt adds to the logit difference.

    Needs a store with head_logits, mlp_logits and embedding_logits (--record head_logits); with attention_rows and value_logits (--record
    value_logits) heads are divided among the parts of the prompt.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope attribution demo/original.zarr
    """
    opened = open_store(store)
    output.add(logit_attribution(opened, **chosen), store=opened)


@click.command(short_help="Rank heads by attribution, overlap and probe.")
@click.argument("store")
@click.option("--probe", type=click.Path(path_type=Path), help="Result of a probe by head; default: the first one among the results.")
@options.only
@options.scheduler
@results_output
def heads_command(store: str, output: Output, probe: Path | None, **chosen: Any) -> None:
    """Rank every head by direct logit attribution, by overlap with the boxes and by a probe on its output, and compare the rankings.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope heads demo/original.zarr
    """
    opened = open_store(store)
    ranking, missing = rank_heads_of(opened, probe or output.folder, **chosen)
    output.add(ranking, store=opened)
    output.note(*missing)


@click.command(short_help="Agreement of attribution methods with attention knockouts.")
@click.argument("store")
@options_of(faithfulness, seed="Seed of the bootstrap and the random baseline.")
@options.scheduler
@results_output
def faithfulness_command(store: str, output: Output, **chosen: Any) -> None:
    """Rank correlation of raw attention, norm-based attention, token attribution, rollout and flow with the effect of attention knockouts.

    Needs a store with measured effects (--record knockout); compares the methods that the store allows, and names the arrays that the
    others need.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope faithfulness demo/original.zarr
    """
    opened = open_store(store)
    output.add(faithfulness(opened, **chosen), store=opened)


@click.command(short_help="One page for one example, all methods side by side.")
@click.argument("store")
@click.argument("example")
@click.option("-o", "--out", default="explanation.html", show_default=True, type=options.OUTPUT, help="The page to write.")
@click.option(
    "--window", callback=options.blocks, metavar="A-B", help="The few blocks of rollout and flow; default: the top half, 8 at most."
)
@verbosity_options
def explain_command(store: str, example: str, out: Path, window: tuple[int, int] | None, as_json: bool, verbosity: int) -> None:
    """One page for one example: every method that the store allows, logit attribution and knockout effects.

    EXAMPLE is an id, or a number where no example has that id.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope explain demo/original.zarr 3 -o explanation.html
    """
    from stratascope.report.explanation_page import write_explanation

    opened = open_store(store)
    output = Output(out.parent, as_json, verbosity)
    explanation = explain_example(opened, example_number(opened, example), window=window)
    output.page(write_explanation(explanation, opened, out))
    output.add(explanation, name=out.stem)
    output.finish()
