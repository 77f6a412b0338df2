"""Commands on answers and their causes: answers, lens, attribution, heads, faithfulness, explain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stratascope.analysis import answer_confidence, explain_example, faithfulness, knockout_effects, logit_attribution, logit_lens
from stratascope.analysis.head_ranking import rank_heads_of
from stratascope.analysis.logit_lens import ANSWER_TASKS
from stratascope.commands import options
from stratascope.commands.example_selection import example_number
from stratascope.commands.output import Output, results_output, verbosity_options
from stratascope.commands.signature import options_of
from stratascope.commands.terminal import open_store
from stratascope.errors import NotRecordedError
from stratascope.results.stored_result import StoredResult, results_in


@click.command()
@click.argument("store")
@options_of(answer_confidence, together="Column of groups of examples: also print the share of groups whose answers are all right.")
@options.only
@results_output
def answers_command(store: str, output: Output, only: tuple[str, ...], together: str | None) -> None:
    """Accuracy and confidence of the model's answers, by relation, and the answer to each example.

    For questions answered by yes or no also precision, recall and F1.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope answers demo/original.zarr
    """
    opened = open_store(store)
    output.add(answer_confidence(opened, only=only, together=together), store=opened)


@click.command(short_help="Logit lens: the model's own readout at every layer.")
@click.argument("store")
@options_of(logit_lens, positions="Positions of the residual stream; default: final.", seed="Seed of the bootstrap over images.")
@click.option(
    "--probe",
    type=options.RESULTS_INPUT,
    help="Results of probes for the right answer, to show beside the readout; default: those in the folder of results.",
)
@options.only
@results_output
def lens_command(store: str, output: Output, probe: Path | None, positions: tuple[str, ...] | None, **chosen: Any) -> None:
    """Logit lens: decode the residual stream of every layer by the model's own final norm and unembedding.

    Prints the share of examples whose right answer has the highest logit of the choices, and the share whose likeliest relation word is
    the true one, by layer, beside the accuracy of saved probes. Needs no model: the store holds the final norm and the unembedding rows
    of answers and relations. Older stores get them by 'stratascope extract --add lens --out STORE'.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope lens demo/original.zarr --probe demo/results
    """
    opened = open_store(store)
    if probe is not None and not probe.exists():
        raise NotRecordedError(f"expected results at {probe}, found nothing there; check the path")
    folder = probe or output.folder
    heads = results_in(folder) if folder.is_dir() else [StoredResult.load(folder)] if folder.exists() else []
    probes = [StoredResult.load(one.path) for one in heads if one.kind == "layer_curve" and one.task in ANSWER_TASKS]
    output.add(logit_lens(opened, positions=positions or (), probes=probes, **chosen), store=opened)


@click.command()
@click.argument("store")
@options.only
@options.scheduler
@results_output
def attribution_command(store: str, output: Output, **chosen: Any) -> None:
    """Direct logit attribution: contribution of each head, each block and each part of the prompt to the logit difference.

    Needs head_logits, mlp_logits and embedding_logits (--record head_logits); with attention_rows and value_logits (--record value_logits)
    also by part of the prompt.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope attribution demo/original.zarr
    """
    opened = open_store(store)
    output.add(logit_attribution(opened, progress=not output.quiet, **chosen), store=opened)


@click.command()
@click.argument("store")
@click.option("--probe", type=options.RESULTS_INPUT, help="Results file of a probe by head; default: the first in the folder of results.")
@options.only
@options.scheduler
@results_output
def heads_command(store: str, output: Output, probe: Path | None, **chosen: Any) -> None:
    """Rank heads by direct logit attribution, overlap with the boxes and a probe on their output, and correlate the rankings.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope heads demo/original.zarr
    """
    opened = open_store(store)
    ranking, missing = rank_heads_of(opened, probe or output.folder, progress=not output.quiet, **chosen)
    output.add(ranking, store=opened)
    output.note(*missing)


@click.command()
@click.argument("store")
@options_of(knockout_effects)
@options.only
@results_output
def knockouts_command(store: str, output: Output, **chosen: Any) -> None:
    """Effect of attention knockouts on the answer, by reading tokens, target and window of blocks.

    Needs knockouts (--record knockout). --knockout-modes of 'extract' chooses the tokens that cannot attend to a target: final, later, or
    groups such as image, caption and prompt.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope knockouts demo/original.zarr
    """
    opened = open_store(store)
    output.add(knockout_effects(opened, **chosen), store=opened)


@click.command()
@click.argument("store")
@options_of(faithfulness, seed="Seed of the bootstrap and the random baseline.")
@options.scheduler
@results_output
def faithfulness_command(store: str, output: Output, **chosen: Any) -> None:
    """Rank correlation of attribution methods with the effect of attention knockouts.

    Needs knockouts (--record knockout). Compares all methods whose arrays the store holds: raw and norm-based attention, token
    attribution, rollout, flow, gradient times input; lists the arrays that the others need.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope faithfulness demo/original.zarr
    """
    opened = open_store(store)
    output.add(faithfulness(opened, progress=not output.quiet, **chosen), store=opened)


@click.command()
@click.argument("store")
@click.argument("example")
@click.option("-o", "--out", default="explanation.html", show_default=True, type=options.OUTPUT, help="Page to write.")
@click.option(
    "--window",
    callback=options.blocks,
    metavar="A-B",
    help="Blocks of rollout and flow through few blocks; default: the top half, 8 at most.",
)
@verbosity_options
def explain_command(store: str, example: str, out: Path, window: tuple[int, int] | None, as_json: bool, verbosity: int) -> None:
    """One page for one example: all attribution methods, logit attribution and knockout effects.

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
