"""Commands that probe, where something can be read: probe, entanglement."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stratascope.commands import options
from stratascope.commands.terminal import echo, open_store, results_folder

if TYPE_CHECKING:
    from stratascope.store import ActivationStore


@click.command(short_help="In which layers truth and relation can be read.")
@click.argument("store")
@click.option(
    "--tasks",
    callback=options.names,
    metavar="NAME,NAME",
    default="truth,relation",
    show_default=True,
    help="What to read: truth, relation, category, answer, choice, geometry (boxes), a column of the examples, or a NAME of --values.",
)
@click.option("--positions", callback=options.names, metavar="NAME,NAME", help="Where to read it; default: all that the array has.")
@click.option("--layers", callback=options.numbers, metavar="N,M-K", help="Layers to probe; default: all.")
@click.option(
    "--array",
    default="residual",
    show_default=True,
    help="Which array to read; also vision_residual, vision_output, head_logits; head_outputs: a probe for each head.",
)
@click.option(
    "--controls",
    callback=options.names,
    metavar="NAME,NAME",
    default="",
    help="shuffled: labels dealt anew within folds; control: a random label for each relation, subject and object together.",
)
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    metavar="[NAME=]STORE",
    help="Store of the same examples to compare with (--condition blank, --untrained), named after that; may be repeated.",
)
@click.option("--values", multiple=True, metavar="NAME=FILE.csv", help="A task of your own: a table with columns id and value.")
@options.only
@click.option("--by", default="relation", show_default=True, metavar="COLUMN", help="Accuracy for each value of this column, too.")
@click.option(
    "--measures",
    callback=options.names,
    metavar="NAME,NAME",
    default="",
    help="mdl: in how few bits labels can be sent (online codelength); calibration: whether probabilities mean what they say.",
)
@click.option("--transfer", is_flag=True, help="Test the probes of each layer at all other layers, too.")
@click.option(
    "--transfer-to",
    callback=options.names,
    default="",
    metavar="PLACE,PLACE",
    help="Test them at other positions, or in a --baseline by its name, too: at all layers.",
)
@click.option("--split", callback=options.names, metavar="TRAIN,TEST", help="The store's own splits, instead of cross-validation.")
@click.option("--folds", default=5, show_default=True, help="Parts of the cross-validation; all examples of an image are in one.")
@click.option(
    "--groups",
    default="image",
    show_default=True,
    metavar="COLUMN",
    help="Examples alike in this are in one fold; image: by content, whatever the file's name.",
)
@click.option("--minimum", default=20, show_default=True, help="Classes of fewer examples are left out.")
@click.option(
    "--types",
    callback=options.names,
    metavar="NAME,NAME",
    default="relation,subject,object",
    show_default=True,
    help="Columns whose values together make a type, for --controls control.",
)
@click.option(
    "--method",
    type=click.Choice(["logistic", "means"]),
    default="logistic",
    show_default=True,
    help="Kind of probe; means: the difference of the classes' means.",
)
@click.option("--strengths", callback=options.decimals, metavar="C,C", help="Inverse regularisation to choose among; default: 1e-5 to 1e3.")
@click.option("--metric", help="Score to draw and compare: accuracy (default), balanced_accuracy, auroc, log_loss; r2 for boxes.")
@click.option("--margin", default=0.0, show_default=True, help="What an advantage has to exceed for onset and offset.")
@options.seed("Seed of folds, controls and resamples.")
@click.option("--scheduler", default="threads", show_default=True, help="synchronous, threads, processes, or a Dask scheduler's address.")
@click.option("--workers", type=int, metavar="N", help="Threads or processes at once; default: one a core.")
@options.results
def probe(store: str, out: Path | None, baselines: tuple[str, ...], values: tuple[str, ...], **chosen: Any) -> None:
    """In which layers something can be read: a cross-validated linear probe for each layer and position.

    Says for each curve its peak and where it is above chance, controls, embeddings and baselines (onset, offset). Results and figures go
    to a folder; docs/results.md says what each file holds. Finished layers are kept there: the same command goes on where it stopped.

    \b
    Examples, after 'stratascope demo --out demo':
      stratascope probe demo/original.zarr --tasks truth --positions final --baseline demo/blank.zarr
      stratascope probe demo/original.zarr --tasks truth,geometry --controls shuffled --positions subject,object --transfer
    """
    from stratascope.probe.tasks.value_files import read_values
    from stratascope.workflow.probe_request import ProbeRequest
    from stratascope.workflow.probing import probe_and_draw

    run = {name: chosen.pop(name) for name in ("scheduler", "workers")}
    settings = {name: chosen.pop(name) for name in ("only", "split", "folds", "groups", "minimum", "types", "method", "strengths", "seed")}
    if settings["split"] is None:
        del settings["split"]
    named = dict(_named(text, "NAME=FILE.csv", "--values") for text in values)
    request = ProbeRequest(
        **chosen,
        settings=settings,
        baselines=_baselines(baselines),
        values={name: read_values(path) for name, path in named.items()},
    )
    echo(
        probe_and_draw(
            open_store(store),
            request,
            out or results_folder(store),
            **run,
            progress=sys.stderr.isatty(),
            say=lambda text: echo(text, err=True),
        )
    )


@click.command(short_help="Where in the vision tower places and relation can be read.")
@click.argument("store")
@click.option(
    "--full-attention",
    callback=options.numbers,
    metavar="N,M",
    help="Blocks that see the whole image, to be marked; default: those that the store names.",
)
@options.seed("Seed of folds and resamples.")
@options.scheduler
@options.results
def entanglement(store: str, full_attention: tuple[int, ...] | None, seed: int, scheduler: str | None, out: Path | None) -> None:
    """From one thing's own image cells: its place, the other thing's place and the relation, after every block of the vision tower.

    Blocks that see the whole image are marked; the others see windows of it, so that what comes from elsewhere cannot enter there.
    Needs a store with vision_residual and boxes; vision_output adds the cells as they are handed to the decoder.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope entanglement demo/original.zarr
    """
    from stratascope.workflow.entangling import entangle_and_draw

    folder = out or results_folder(store)
    echo(entangle_and_draw(open_store(store), folder, full_attention=full_attention, seed=seed, scheduler=scheduler))


def _baselines(texts: tuple[str, ...]) -> dict[str, ActivationStore]:
    """Stores by name; one without is named after what sets it apart: blank, untrained, ...; else baseline."""
    from stratascope.store import condition_of

    found: dict[str, ActivationStore] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        named = bool(equals) and "/" not in name
        store = open_store(path if named else text)
        if not named:
            plain = condition_of(store.provenance).replace("original", "baseline").replace(", ", "-")
            name = next(n for n in (plain, *(f"{plain}-{k + 2}" for k in range(len(found)))) if n not in found)
        if name in found:
            raise click.BadParameter(f"expected a name for each baseline, found {name!r} twice", param_hint="--baseline")
        found[name] = store
    return found


def _named(text: str, form: str, option: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals or not name or not path:
        raise click.BadParameter(f"expected {form}, found {text!r}", param_hint=option)
    return name, path
