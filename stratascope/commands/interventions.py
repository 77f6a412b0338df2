"""Commands on interventions: intervene (runs the model), causal (joins them with probes)."""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from stratascope.causal import EncodingUse, FoldLabels, Intervention, InterventionDesign, InterventionSettings, encoding_use
from stratascope.causal.patching import PatchSource, pair_sources, same_ids
from stratascope.commands import options
from stratascope.commands.output import Output, verbosity_options
from stratascope.commands.signature import options_in_errors, options_of
from stratascope.commands.terminal import echo, open_store
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.extract.plan.intervention_plan import bare_passes, settings_of_store
from stratascope.extract.run.intervention_session import plan_of_store, run_interventions
from stratascope.results.locations import ENDING, file_name
from stratascope.results.stored_result import StoredResult, results_in

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

MEASUREMENT_VERSION = 2
"""Rises when the same settings measure other numbers: unfinished interventions of an earlier version are not continued."""


@click.command(short_help="Erase, steer and patch what probes read; measure the answers.")
@click.argument("store")
@click.argument("results", type=options.RESULTS_INPUT)
@options_of(
    InterventionSettings,
    task="Task of saved probe results: their folds and labels give the directions.",
    positions="Positions to change; A+B changes both together.",
    layers="Layers to change, each alone; default: all.",
    window="Change N successive layers together.",
    kinds="erase, reflect, steer (along the difference of the class means), patch (needs --source or --pairs).",
    methods="What erase removes: leace, means (span of the class means), pattern (Haufe), logistic.",
    factors="Steering in distances of the class means; both signs are run.",
    controls="Draws of each kind of random direction; deciding use needs at least 19 of covariance and shuffled together.",
    control_kinds="Random directions: covariance (drawn from that within classes), shuffled (of shuffled labels), isotropic, orthogonal.",
    examples="Change N evenly spaced examples, 0: all; directions are fitted on all.",
    seed="Seed of random directions and resamples.",
)
@click.option("--source", "sources", multiple=True, metavar="[NAME=]STORE", help="Patch from this store of the same ids; repeatable.")
@click.option("--pairs", is_flag=True, help="Patch from the other variants of the same pair (columns pair and variant of the examples).")
@options_of(Intervention.of, margin="Share of the mean logit difference by which an effect must exceed random directions.")
@options_of(
    settings_of_store,
    data={"help": "Files of the examples; default: where the extraction read them.", "type": click.Path(path_type=Path), "multiple": True},
    images="Folder of the images; default: as --data.",
    boxes="Gold boxes; default: as --data.",
    model={"help": "Folder or Hub id of the model, if it has moved.", "metavar": "PATH|HUB_ID"},
    device={"help": "Device of the model: auto, cpu, cuda, cuda:1, ...", "metavar": "DEVICE"},
)
@options_of(run_interventions, batch_tokens={"help": "Tokens in a forward pass, at most.", "type": click.IntRange(min=1)})
@click.option("-o", "--out", type=options.OUTPUT, help="Results file (.zarr.zip); default: in the folder of the probe results.")
@verbosity_options
@options_in_errors
def intervene_command(
    store: str,
    results: Path,
    sources: tuple[str, ...],
    pairs: bool,
    margin: float,
    data: tuple[Path, ...],
    images: Path | None,
    boxes: Path | None,
    model: str | None,
    device: str,
    batch_tokens: int,
    out: Path | None,
    as_json: bool,
    verbosity: int,
    **chosen: Any,
) -> None:
    """Erase, steer and patch what saved probes read, and measure how the model's answers change.

    RESULTS is a folder of results of `probe`, or one file. The model, prompt and data must be those of the store. Directions are fitted on
    the folds of the probe that do not hold the example's image. An interrupted run continues: finished examples are cached in a
    folder beside --out. Needs torch.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope intervene demo/original.zarr demo/results --examples 32
    """
    opened = open_store(store)
    settings = InterventionSettings(**{**chosen, "examples": chosen["examples"] or None})
    labels = saved_labels(opened, results, settings.task)
    patches = patch_sources(opened, sources, pairs)
    if patches and "patch" not in settings.kinds and click.get_current_context().get_parameter_source("kinds").name == "DEFAULT":  # type: ignore[union-attr]
        settings = replace(settings, kinds=(*settings.kinds, "patch"))
    design = InterventionDesign(opened, labels, settings, patches)
    name = file_name(Intervention.file_prefix, *Intervention.name_parts_of(settings.task, settings.window))
    file = out or (results if results.is_dir() else results.parent) / f"{name}{ENDING}"
    if not file.name.endswith(ENDING):
        raise InvalidInputError(f"expected a results file that ends in {ENDING}, found {file}; give another `out`")
    plan = plan_of_store(opened, Path(store), data=data, images=images, boxes=boxes, model=model, device=device)
    output = Output(file.parent, as_json, verbosity)
    tested = labels.examples[design.tested]
    if not output.quiet:
        passes = bare_passes(plan, tested.tolist(), design.reruns, len(design.slots), batch_tokens)
        echo(f"{len(design.variants):,} variants of each of {len(tested):,} examples, about {passes:.1f} forward passes an example")
    cache = file.with_name(f"{file.name.removesuffix(ENDING)}-unfinished")
    measured = run_interventions(
        plan,
        opened,
        design,
        cache=cache,
        key=_key(opened, labels, settings, patches, batch_tokens),
        source_vectors=functools.partial(stacked_vectors, patches) if patches else None,
        batch_tokens=batch_tokens,
        progress=sys.stderr.isatty() and not output.quiet,
    )
    if measured.halvings and not output.quiet:
        echo(f"memory ran out {measured.halvings} times and passes were halved; lower --batch-tokens to save time", err=True)
    result = Intervention.of(
        design,
        measured.examples,
        measured.logits,
        measured.change,
        collateral=measured.collateral,
        divergence=measured.divergence,
        others=measured.others,
        sources=patches,
        margin=margin,
    )
    output.add(result, store=opened, name=file.name.removesuffix(ENDING))
    shutil.rmtree(cache, ignore_errors=True)
    output.finish()


@click.command(short_help="Layers that encode a concept, use it, both, or neither.")
@click.argument("results", nargs=-1, required=True, type=options.RESULTS_INPUT)
@click.option(
    "--evidence",
    type=click.Choice(["erase", "reflect", "steer", "patch"]),
    help="Kind of intervention that decides whether a layer is used; default: the first of these that was run.",
)
@click.option("-o", "--out", type=options.OUTPUT, help="Folder of results and figures; default: that of the first of RESULTS.")
@verbosity_options
@options_in_errors
def causal_command(results: tuple[Path, ...], evidence: str | None, out: Path | None, as_json: bool, verbosity: int) -> None:
    """Join probes and interventions: in which layers a concept is encoded, used, both, or neither.

    RESULTS are folders or files with results of `probe` and `intervene`. A layer is encoded if the probe detects it: its
    simultaneous lower bound exceeds chance. It is used if the intervention changes the answer more than random directions do.

    \b
    Example, after 'stratascope demo --out demo' and the example of intervene:
      stratascope causal demo/results
    """
    found = stored_results(results)
    interventions = [one for one in found if one.kind == "intervention"]
    if not interventions:
        raise NotRecordedError(
            f"expected results of interventions in {', '.join(map(str, results))}, found none; run `stratascope intervene STORE RESULTS`"
        )
    output = Output(out or (results[0] if results[0].is_dir() else results[0].parent), as_json, verbosity)
    for one in interventions:
        made: EncodingUse = encoding_use(found, one.result, evidence=evidence)
        output.add(made, name=f"causal-{one.name.removesuffix(ENDING).removeprefix(f'{Intervention.file_prefix}-')}")
    output.finish()


def stored_results(paths: Sequence[Path], kinds: Sequence[str] = ("layer_curve", "intervention")) -> list[StoredResult]:
    """Results of folders and files, of some kinds.

    Raises
    ------
    NotRecordedError
        If a path does not exist.
    """
    found: list[StoredResult] = []
    for path in paths:
        if not path.exists():
            raise NotRecordedError(f"expected results at {path}, found nothing there; check the path")
        heads = results_in(path) if path.is_dir() else [StoredResult.load(path)]
        found += [StoredResult.load(one.path) for one in heads if one.kind in kinds]
    return found


def saved_labels(store: ActivationStore, results: Path, task: str) -> FoldLabels:
    """Folds and labels of the saved layer curves of a task.

    Raises
    ------
    NotRecordedError
        If there are none, or only of other stores.
    """
    every = [
        one for one in stored_results([results]) if one.kind == "layer_curve" and one.attributes.get("array", "residual") == "residual"
    ]
    fingerprint = store.fingerprint()
    named = [one for one in every if one.task == task]
    mine = [one for one in named if one.fingerprint == fingerprint]
    if not mine:
        tasks = ", ".join(dict.fromkeys(one.task for one in every if one.fingerprint == fingerprint)) or "none"
        why = f"{len(named)} of other stores, or of this one before it changed" if named else f"those of {tasks}"
        raise NotRecordedError(
            f"expected a saved layer curve of `task` {task} of {store.name} in {results}, found {why}; run `stratascope probe STORE "
            f"--tasks {task}` first"
        )
    return FoldLabels.of_curves(task, [(one.name, one.table("examples"), one.attributes) for one in mine])


def patch_sources(store: ActivationStore, sources: Sequence[str], pairs: bool) -> list[PatchSource]:
    """Sources of patching: other stores by name, or the pairs within the store."""
    found = pair_sources(store) if pairs else []
    for text in sources:
        name, equals, path = text.partition("=")
        other = open_store(path if equals else text)
        condition = str(other.provenance.get("condition") or "source")
        found.append(same_ids(name if equals else condition, store, other))
    names = [source.name for source in found]
    if len(set(names)) < len(names):
        raise InvalidInputError(f"expected a name for each of `sources`, found {', '.join(names)}; give NAME=STORE")
    return found


def stacked_vectors(
    sources: Sequence[PatchSource], example: int, tokens: Mapping[str, np.ndarray[Any, Any] | None], layers: Sequence[int]
) -> dict[str, np.ndarray[Any, Any]]:
    """Position -> (layer, source, token, d) residual streams of the sources of an example."""
    found = [source.vectors(example, tokens, layers) for source in sources]
    return {name: np.stack([vectors[name] for vectors in found], 1) for name in tokens}


def _key(
    store: ActivationStore, labels: FoldLabels, settings: InterventionSettings, sources: Sequence[PatchSource], batch_tokens: int
) -> str:
    """Digest of everything that decides the numbers of a run."""
    facts = [
        MEASUREMENT_VERSION,
        store.fingerprint(),
        asdict(settings),
        [(s.name, s.store.fingerprint()) for s in sources],
        batch_tokens,
        labels.classes,
    ]
    arrays = [labels.examples, labels.folds, labels.labels, *(source.of for source in sources)]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update("\0".join(labels.groups.tolist()).encode())
    return digest.hexdigest()
