"""Commands on what activations encode: probe, entanglement, patches, pca."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import click

from stratascope.analysis import principal_components
from stratascope.commands import options
from stratascope.commands.output import Output, results_output
from stratascope.commands.signature import options_in_errors, options_of
from stratascope.commands.terminal import echo, open_store
from stratascope.probe.patches import patch_probes
from stratascope.probe.study.probe_run import run_probes
from stratascope.probe.study.request import ProbeRequest, results_of_earlier_runs, results_of_others
from stratascope.probe.study.study_plan import ProbeSettings
from stratascope.probe.tasks.value_files import read_values
from stratascope.probe.vision_change import vision_changes
from stratascope.probe.vision_tower import entanglement

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

SETTINGS = tuple(field.name for field in fields(ProbeSettings) if field.name not in ("array", "only"))
"""Fields of `ProbeSettings` that are options."""


@click.command(short_help="Cross-validated linear probes by layer and position.")
@click.argument("store")
@options_of(
    ProbeRequest,
    tasks="truth, relation, category, answer, choice, geometry (boxes), a column of classes or numbers, or a NAME of --values.",
    positions="Token or box positions, or pairs such as subject_box+object_box; default: all single ones of the array.",
    layers="Layers to probe; default: all.",
    array="Array to probe; also vision_residual, vision_output, head_logits; head_outputs: a probe for each head.",
    controls="shuffled: labels shuffled within folds; control: a random label for each type (Hewitt & Liang 2019).",
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    metavar="[NAME=]STORE",
    help="Store of the same examples to compare with (--condition blank, --untrained); repeatable. NAME defaults to the condition.",
)
@click.option("--values", multiple=True, metavar="NAME=FILE.csv", help="Custom task: a table with columns id and value.")
@options.only
@options_of(
    ProbeRequest,
    by="Also report the accuracy for each value of this column.",
    measures="mdl: online codelength (MDL); calibration: reliability diagram; sizes: detected layers by number of examples.",
    sizes="Numbers of examples for --measures sizes; default: an eighth, a quarter, a half and all that suffice for the classes.",
    transfer="Also test the probes of each layer at all layers.",
    transfer_to="Also test the probes of each layer at all layers of these positions or baselines (by name).",
    metric="accuracy, balanced_accuracy, auroc, log_loss, r2, spearman; default: auroc for two classes, balanced_accuracy for more, r2 for "
    "numbers.",
    margin="What an advantage must exceed to be detected.",
    equivalence_margin="An advantage below it counts as absent; default: 0.03, or 0.01 of r2 and log_loss.",
)
@click.option(
    "--test-on",
    multiple=True,
    metavar="[NAME=]STORE",
    help="Store of other examples, such as another data set, on which the probes of each layer are tested; repeatable. NAME defaults to "
    "that of its folder; with --transfer at all layers.",
)
@options_of(
    ProbeSettings,
    split="Names of the training and the test split, such as train,test, instead of cross-validation.",
    folds="Number of cross-validation folds; all examples of an image are in one fold.",
    groups="Column whose groups are kept in one fold; image: by content, with near-duplicates; caption: by text.",
    minimum="Exclude classes with fewer examples.",
    numeric="Columns of few whole numbers to predict by ridge regression, as columns with fractions or more than ten numbers are.",
    categorical="Columns of many whole numbers that name classes.",
    types="Columns that define the type of an example, for --controls control.",
    control_draws="Draws of the labels of each control; its score is their mean.",
    method="logistic: L2-regularised logistic regression; means: difference of the class means; mlp: a network with one hidden layer.",
    pair="Form of a pair of positions: both vectors, their difference, or a low-rank bilinear form (both vectors and products).",
    rank="Principal components of each vector in a bilinear form.",
    strengths="Inverse regularisation C, selected by nested cross-validation; default: 1e-5 to 1e3.",
    seed="Seed of folds, controls and resamples.",
)
@options_of(run_probes, scheduler=options.SCHEDULER_HELP)
@options.workers
@results_output
@options_in_errors
def probe_command(
    store: str,
    output: Output,
    baselines: tuple[str, ...],
    values: tuple[str, ...],
    test_on: tuple[str, ...],
    scheduler: str,
    workers: int | None,
    **chosen: Any,
) -> None:
    """Train a cross-validated linear probe for each task, layer and position.

    Prints the peak of each curve, and the layers in which it is significantly above chance, controls, embeddings and baselines, with one
    simultaneous band over all curves of the run. docs/results.md describes each file. The output folder caches finished layers: the same
    command resumes an interrupted run.

    \b
    Examples, after 'stratascope demo --out demo':
      stratascope probe demo/original.zarr --tasks truth --positions final --baseline demo/blank.zarr
      stratascope probe demo/original.zarr --tasks truth,geometry --controls shuffled --positions subject,object --transfer
    """
    named = dict(_named(text, "NAME=FILE.csv", "--values") for text in values)
    settings = {name: chosen.pop(name) for name in ("only", *SETTINGS) if name in chosen}
    request = ProbeRequest(
        **{name: value for name, value in chosen.items() if value is not None},
        settings={name: value for name, value in settings.items() if value is not None},
        baselines=_baselines(baselines),
        test_on=_named_stores(test_on, "--test-on", lambda opened: PurePath(opened.name.rstrip("/")).stem),
        values={name: read_values(path) for name, path in named.items()},
    )
    opened = open_store(store)
    output.note(*results_of_others(opened, request, output.folder))
    done = run_probes(
        opened,
        request,
        scheduler=scheduler,
        workers=workers,
        progress=_progress(output),
        output=output.folder / "layers",
        on_cost=lambda text: None if output.quiet else echo(text, err=True),
    )
    output.note(*done.lines)
    for name, result in done.results.items():
        output.add(result, name=name, draw=False, summary=False)
    output.note(*results_of_earlier_runs(opened, output.folder))
    for name, draw in done.figures.items():
        output.draw(draw(), name)
    for name, table in done.tables.items():
        output.table(table, name)


@click.command(short_help="Probes on single image cells of the vision tower.")
@click.argument("store")
@options_of(
    entanglement,
    full_attention="Blocks with attention over the whole image, marked in the figure; default: from the store.",
    folds="Number of cross-validation folds; all examples of an image are in one fold.",
    seed="Seed of folds and resamples.",
    scheduler=options.SCHEDULER_HELP,
)
@results_output
@options_in_errors
def entanglement_command(store: str, output: Output, **chosen: Any) -> None:
    """Probe the image cells of each object for its own location, the other object's location and the relation, by vision block.

    Blocks with attention over the whole image are marked; the others attend within windows, so that no information crosses windows there.
    Needs a store with vision_residual and boxes; vision_output adds the merged cells that the decoder receives.
    With vision_change in the store, also how much each image cell changes when the box of one object is painted over.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope entanglement demo/original.zarr
    """
    opened = open_store(store)
    record = opened.layout.record
    if "vision_residual" in record or "vision_change" not in record:
        output.add(entanglement(opened, progress=_progress(output), **chosen), store=opened)
    if "vision_change" in record:
        output.add(vision_changes(opened, full_attention=chosen["full_attention"], seed=chosen["seed"]), store=opened)


@click.command(short_help="Probes on single image tokens of the decoder.")
@click.argument("store")
@options_of(
    patch_probes,
    tasks="on_subject, on_object (gold boxes), coordinates, direction (of one cell from another).",
    layers="Layers to probe; default: all whose image tokens are saved.",
    cells="Most cells, and most pairs of cells, drawn at random from an example.",
    folds="Number of cross-validation folds; all cells of an image are in one fold.",
    seed="Seed of cells, folds and resamples.",
    draws="Bootstrap resamples of images.",
    level="Level of the intervals.",
    scheduler=options.SCHEDULER_HELP,
)
@options.workers
@results_output
@options_in_errors
def patches_command(store: str, output: Output, **chosen: Any) -> None:
    """Probe single image tokens: is the cell on the subject or the object, where is it, and in which direction is it from another?

    Prints the highest score of each task with its simultaneous band, and the layers at which it is significantly above a probe on the
    position of the cell alone, or above chance. Needs a store that was extracted with --patches, and boxes for the first two tasks.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope patches demo/original.zarr
    """
    opened = open_store(store)
    output.add(patch_probes(opened, progress=_progress(output), **chosen), store=opened)


@click.command()
@click.argument("store")
@options_of(principal_components, position="Position of the residual stream.")
@options.only
@results_output
def pca_command(store: str, output: Output, position: str, only: tuple[str, ...]) -> None:
    """First two principal components of the residual stream at one position, by layer.

    The viewer shows them as a scatter plot of all examples.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope pca demo/original.zarr
    """
    opened = open_store(store)
    output.add(principal_components(opened, position=position, only=only, progress=_progress(output)), store=opened)


def _progress(output: Output) -> bool:
    """Whether a progress bar is shown."""
    return sys.stderr.isatty() and not output.quiet


def _baselines(texts: tuple[str, ...]) -> dict[str, ActivationStore]:
    """Name -> store; a store without a name is named after its condition: blank, untrained, ...; else baseline."""
    from stratascope.store import condition_of

    return _named_stores(
        texts, "--baseline", lambda store: condition_of(store.provenance).replace("original", "baseline").replace(", ", "-")
    )


def _named_stores(texts: tuple[str, ...], option: str, usual: Callable[[ActivationStore], str]) -> dict[str, ActivationStore]:
    """Name -> store; `usual` names a store without a name, numbered where the name is taken."""
    found: dict[str, ActivationStore] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        named = bool(equals) and "/" not in name
        store = open_store(path if named else text)
        if not named:
            plain = usual(store)
            name = next(n for n in (plain, *(f"{plain}-{k + 2}" for k in range(len(found)))) if n not in found)
        if name in found:
            what = "baseline" if option == "--baseline" else "store"
            raise click.BadParameter(f"expected a name for each {what}, found {name!r} twice", param_hint=option)
        found[name] = store
    return found


def _named(text: str, form: str, option: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise click.BadParameter(f"expected {form}, found {text!r}", param_hint=option)
    return name, path
