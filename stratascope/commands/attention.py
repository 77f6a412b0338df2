"""Commands on attention: share, rollout, flow, overlap, pointing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from stratascope.analysis import (
    AnswerPrediction,
    answer_prediction,
    attention_overlap,
    attention_share,
    flow_examples,
    pointing,
    rollout_examples,
)
from stratascope.analysis.rollout_result import gradient_array
from stratascope.commands import options
from stratascope.commands.example_selection import first_examples, ids_line, recorded_among
from stratascope.commands.output import Output, results_output
from stratascope.commands.signature import options_of
from stratascope.commands.terminal import open_store
from stratascope.datasets.boxes import BoxIndex
from stratascope.datasets.examples import files_digest
from stratascope.errors import TooFewExamplesError


@click.command()
@click.argument("store")
@options_of(
    attention_share,
    weighing="attention, or norm: attention times the norm of the transformed value vector (needs value_norms).",
)
@options.only
@options.scheduler
@results_output
def share_command(store: str, output: Output, **chosen: Any) -> None:
    """Attention of the final token by part of the prompt, layer and head, with and without sinks.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope share demo/original.zarr
    """
    opened = open_store(store)
    output.add(attention_share(opened, progress=not output.quiet, **chosen), store=opened)


@click.command()
@click.argument("store")
@options.examples
@options.window
@options_of(
    rollout_examples,
    form="dropped: remove the sinks from the rollout; conditional: remove them from every map.",
    discard="Discard ratio: share of the smallest weights of each map to set to zero.",
    gradient="Maps weighted by the gradient of the answer's logit difference (Chefer et al. 2021); needs gradient_rollout or "
    "gradient_maps.",
    tower="How far down: decoder (onto the prompt's tokens), vision (also through the vision tower onto the image's patches; needs "
    "vision_maps), auto (vision where it can be).",
)
@options.scheduler
@results_output
def rollout_command(store: str, output: Output, examples: str | None, **chosen: Any) -> None:
    """Attention rollout of the final token onto the image, for selected examples.

    With vision_maps in the store it runs on through the vision tower to the image's patches.
    Sinks are tokens with ten times their fair share of the attention, at the first token and the image edge.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope rollout demo/original.zarr --examples 0-3
    """
    opened = open_store(store)
    array = gradient_array(opened, chosen["window"]) if chosen["gradient"] else "attention_maps"
    selected, left_out = recorded_among(opened, array, first_examples(opened, array, examples))
    result = rollout_examples(opened, selected, progress=not output.quiet, **chosen)
    output.note(*left_out, ids_line(opened, result.examples["example"].tolist()))
    output.add(result, store=opened)


@click.command()
@click.argument("store")
@options.examples
@options.window
@options_of(
    flow_examples,
    tower="How far down: decoder (to the prompt's tokens), vision (also through the vision tower to the image's patches; needs "
    "vision_maps).",
)
@options.scheduler
@results_output
def flow_command(store: str, output: Output, examples: str | None, **chosen: Any) -> None:
    """Exact attention flow from the final token to every input token and into spans and boxes, with its minimum cut.

    Flow through many blocks mostly follows token position; the summary warns of this. Use a window of few blocks.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope flow demo/original.zarr --examples 0-3 --window 3-5
    """
    opened = open_store(store)
    selected, left_out = recorded_among(opened, "attention_maps", first_examples(opened, "attention_maps", examples))
    result = flow_examples(opened, selected, progress=not output.quiet, **chosen)
    output.note(*left_out, ids_line(opened, result.examples["example"].tolist()))
    output.add(result, store=opened)


@click.command()
@click.argument("store")
@options_of(
    attention_overlap,
    weighing="attention; norm: times the norm of the value vector; attribution: contribution to the model's answer.",
    measure="lift: share in the boxes / their share of cells, 1 for a uniform map.",
)
@options.only
@options_of(answer_prediction, seed="Seed of folds and intervals.")
@options.scheduler
@results_output
def overlap_command(store: str, output: Output, seed: int, **chosen: Any) -> None:
    """Overlap of each head's attention with the gold boxes, and its AUROC for a right answer against a box geometry baseline.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope overlap demo/original.zarr
    """
    opened = open_store(store)
    overlap = attention_overlap(opened, progress=not output.quiet, **chosen)
    output.add(overlap, store=opened, draw=False)
    prediction: AnswerPrediction | None = None
    try:
        prediction = answer_prediction(opened, overlap, seed=seed)
    except TooFewExamplesError as error:
        output.note(f"prediction of right answers skipped: {error}")
        output.remove("prediction", *overlap.name_parts)  # of an earlier run, with another overlap
    else:
        output.add(prediction, draw=False)
    output.draw(overlap.figure(prediction=prediction), overlap.file_name)


@click.command()
@click.argument("store")
@click.option("--boxes", type=click.Path(path_type=Path), help="Boxes of all objects in the images, in COCO instances format.")
@options_of(pointing, seed="Seed of the bootstrap.")
@options.scheduler
@results_output
def pointing_command(store: str, output: Output, boxes: Path | None, **chosen: Any) -> None:
    """Score of each attribution method on image cells of subject and object, relative to cells of other objects.

    --boxes gives the other objects; without it the rest of the image is the reference. Knockout effects are listed too where the store
    holds them (--record knockout).

    \b
    Example, after 'stratascope demo --out demo':
      stratascope pointing demo/original.zarr --boxes demo/scenes/instances.json
    """
    opened = open_store(store)
    result = pointing(opened, None if boxes is None else BoxIndex.from_coco(boxes), progress=not output.quiet, **chosen)
    if boxes is not None:
        result = replace(result, attributes={**result.attributes, "boxes": files_digest([boxes])})
    output.add(result, store=opened)
