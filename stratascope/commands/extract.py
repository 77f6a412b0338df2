"""Commands that fill a store: demo, plan, extract."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from stratascope.commands import options
from stratascope.commands.command_line import command_lines
from stratascope.commands.output import QUIET, VERBOSE, print_json, print_record, verbosity_options
from stratascope.commands.signature import options_in_errors, options_of, with_option_names
from stratascope.commands.terminal import echo
from stratascope.datasets.examples import describe
from stratascope.errors import InvalidInputError
from stratascope.extract import ExtractionPlan, ExtractionSettings, extract, plan_extraction
from stratascope.extract.plan.duration import ExtractionTiming
from stratascope.extract.plan.images import CONDITIONS
from stratascope.extract.plan.plan_summary import SPAN_COLOURS, number_text, plan_summary, span_text, timing_text
from stratascope.extract.plan.settings import BOX_POSITIONS, DTYPES, FUSIONS
from stratascope.extract.run.extraction import ExtractionReport, estimate_time
from stratascope.extract.run.readout import add_lens
from stratascope.preregistration import StudyPlan, read_plan
from stratascope.preregistration.study_plan import PAIR
from stratascope.store import ActivationStore, condition_of
from stratascope.store.io.overview import LENS, bytes_text

NO_SYSTEM = click.option("--no-system", is_flag=True, help="Leave the system turn out, even one that the chat template adds.")

settings_options = options_of(
    ExtractionSettings,
    model={
        "help": "Built-in model, folder, or Hub id such as Qwen/Qwen2.5-VL-7B-Instruct.",
        "metavar": "demo|PATH|HUB_ID",
        "cls": options.NotForAdding,
    },
    examples={
        "help": "JSON lines or CSV with the columns of VSR, or a list of What's Up; may be repeated.",
        "cls": options.NotForAdding,
    },
    images="Folder of the images.",
    boxes="Gold boxes in COCO's instances format.",
    prompt={
        "help": "true-false, yes-no, where; for What's Up's data sets also four-way, six-way and others (docs/data.md).",
        "metavar": "NAME",
    },
    system="Text of the system turn; default: as the chat template has it.",
    condition={
        "help": "Change to the images: none, mean colour, flipped left-right, images exchanged between examples, or image tokens permuted "
        "before the decoder.",
        "type": click.Choice(CONDITIONS),
    },
    positions="Positions at which the residual stream is saved: final, image, subject, relation, object, subject_box, object_box (default: "
    "those that the examples have), names such as caption_mean, subject_0, after_caption_0, cell_0_0, and the groups default, means, "
    "tokens (every text token by its role) and cells (groups of image cells); see docs/recording.md.",
    record="Arrays to save besides the answer logits (docs/recording.md); also value_norms, value_logits, head_outputs, head_logits, "
    "vision_residual, vision_output, hiding_estimate, gradient_rollout, knockout.",
    fusion={"help": "How attention maps are aggregated over heads.", "type": click.Choice(FUSIONS)},
    maps="Save attention maps of N evenly spaced examples; default: of all.",
    patches="Save the residual stream at every image token of N evenly spaced examples.",
    patch_layers="Layers at which image tokens are saved; default: five, evenly spaced.",
    knockouts="Measure attention knockouts of N evenly spaced examples; needs --record knockout.",
    knockout_modes="Tokens that cannot attend to the target of a knockout: final (the final token), later (all later tokens), or a group: "
    "system, image, subject, relation, object, caption_rest, template, caption, prompt; see docs/recording.md.",
    knockout_window="Decoder blocks in a sliding window of knockouts, besides that of all blocks; 0: none; default: a quarter of all.",
    thumbnail="Size of the thumbnails in the store.",
    limit="Use the first N examples.",
    max_pixels="Shrink larger images to this many pixels; default: the processor's limit.",
    dtype={
        "help": "Precision of the model; default: that of its weights on a GPU, float32 on a CPU.",
        "type": click.Choice(DTYPES),
    },
    device={"help": "Device of the model: auto, cpu, cuda, cuda:1, ...", "metavar": "DEVICE"},
    strict="Stop at unreadable images and at boxes that do not fit their image; default: leave them out.",
    revision="Branch, tag or commit of a Hub model.",
    untrained={
        "help": "Random initial weights, drawn with SEED (default 0), instead of trained ones: a baseline for probes.",
        "is_flag": False,
        "flag_value": 0,
        "metavar": "[SEED]",
    },
)
"""The options that `plan` and `extract` share."""

for_option = click.option(
    "--for",
    "study",
    metavar="PLAN.toml|PRESET",
    help="All stores of a pre-registered study (docs/study.md), which fixes --prompt, --record, --positions, --condition and --untrained.",
)
FIXED = ("prompt", "record", "positions", "condition", "untrained")
"""Options that the plan of a study fixes."""

batch_tokens_option = options_of(
    extract, batch_tokens={"help": "Tokens in a forward pass, at most; halve it when memory runs out.", "type": click.IntRange(min=1)}
)


@click.command(short_help="Cost of an extraction: disk, time, memory; writes nothing.")
@settings_options
@NO_SYSTEM
@for_option
@options_of(ExtractionSettings, image_size="Assume this size for every image, before they are downloaded; needs no --images.")
@options_of(plan_summary, show="Print the tokens and spans of the first N examples.")
@click.option(
    "--time/--no-time",
    "timed",
    default=None,
    help="Estimate the duration by running a few batches; fetches the weights of a Hub model. Default: if there is a GPU with the weights.",
)
@batch_tokens_option
@click.option("--price", type=click.FloatRange(min=0), metavar="PER_HOUR", help="Price of this machine per hour: prints the total cost.")
@partial(verbosity_options, verbose_help="Also list all examples that cannot be used.")
@options_in_errors
def plan_command(
    show: int,
    timed: bool | None,
    batch_tokens: int,
    price: float | None,
    as_json: bool,
    verbosity: int,
    study: str | None,
    **chosen: Any,
) -> None:
    """Show what an extraction would save and cost: array shapes, disk space and, on a machine with the model, time and memory.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope plan --model demo --examples demo/scenes/scenes.jsonl --images demo/scenes/images
    """
    begin = time.perf_counter()
    quiet = as_json or verbosity == QUIET
    wanted = {"": _settings(chosen)} if study is None else _study_settings(read_plan(study), chosen)
    plans = {name: plan_extraction(settings, progress=not quiet) for name, settings in wanted.items()}
    plan = next(iter(plans.values()))
    planning = (time.perf_counter() - begin) / len(plans)
    summary = f"{describe(plan.examples)}\n\n{plan_summary(plan, show)}\n"
    if not quiet:
        echo(with_option_names(summary), colours=SPAN_COLOURS)
        if verbosity == VERBOSE:
            for k, reason in plan.failed.items():
                echo(f"cannot be used: example {plan.examples[k].id}: {reason}")
        for line in _study_lines(plans) if study is not None else ():
            echo(line)
    timing = estimate_time(plan, timed=timed, batch_tokens=batch_tokens, planning=planning, progress=sys.stderr.isatty() and not quiet)
    text = f"time       not estimated: {timing}" if isinstance(timing, str) else timing_text(timing, price if study is None else None)
    if study is not None and not isinstance(timing, str):
        text += f"\n{_study_time(timing, len(plans), price)}"
    if as_json:
        record = _plan_record(plan) | {"time": {"unknown": timing} if isinstance(timing, str) else timing.record(price)}
        print_json(
            record if study is None else {"stores": {name: _plan_record(one) for name, one in plans.items()}, "time": record["time"]}
        )
    elif not quiet:
        echo(with_option_names(text))


@click.command(short_help="Run every example through the model once, into a store.")
@settings_options
@NO_SYSTEM
@for_option
@click.option(
    "-o", "--out", required=True, type=options.OUTPUT, metavar="STORE.zarr", help="Store to create, or to continue; with --for a folder."
)
@click.option(
    "--add",
    type=click.Choice([LENS]),
    is_eager=True,
    help="Add to the existing store --out: lens, the final norm and unembedding rows for 'stratascope lens', from its model and without "
    "running the examples. Needs no other option; --model, if the model lies elsewhere now.",
)
@batch_tokens_option
@click.option(
    "--shard",
    callback=options.shard,
    metavar="I/N",
    help="Every N-th block, starting at the I-th; default: as torchrun or SLURM numbered this process, otherwise all.",
)
@partial(verbosity_options, verbose_help="Also print how often the vision tower ran and batches were halved.")
@options_in_errors
def extract_command(
    out: Path,
    add: str | None,
    batch_tokens: int,
    shard: tuple[int, int] | None,
    as_json: bool,
    verbosity: int,
    study: str | None,
    **chosen: Any,
) -> None:
    """Run every example through the model once and save its activations to a store. The same command continues an interrupted run.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope extract --model demo --examples demo/scenes/scenes.jsonl --images demo/scenes/images --out mine.zarr
    """
    if add is not None:
        _add_lens(out, as_json, verbosity)
        return
    quiet = as_json or verbosity == QUIET

    shown: set[str] = set()

    def note(text: str) -> None:
        if not quiet and text not in shown:  # once for all stores of a study
            echo(with_option_names(text), err=True)
        shown.add(text)

    def run(settings: ExtractionSettings, store: Path, command: str) -> ExtractionReport:
        return extract(
            settings,
            store,
            shard=shard,
            batch_tokens=batch_tokens,
            progress=sys.stderr.isatty() and not quiet,
            command=command,
            on_note=note,
        )

    if study is not None:
        reports = {}
        for name, settings in _study_settings(read_plan(study), chosen).items():
            store = out / f"{name}.zarr"
            reports[name] = run(settings, store, _command(settings, chosen, store))
            if not quiet:
                echo(reports[name].summary())
        print_record(
            {"stores": {name: asdict(report) for name, report in reports.items()}},
            [f"next: stratascope study {'' if Path(study).exists() else '--preset '}{shlex.quote(study)} {shlex.quote(str(out))}"],
            as_json=as_json,
            verbosity=verbosity,
        )
        return
    report = run(_settings(chosen), out, shlex.join(["stratascope", *sys.argv[1:]]))
    following = next_step(ActivationStore.open(out), out) if out.exists() else None
    details = [f"vision tower passes {report.tower_passes:,}, halved batches {report.halvings}"] if report.store.exists() else []
    lines = [report.summary(), *([following] if following else [])]
    print_record(asdict(report) | {"next": following}, lines, as_json=as_json, verbosity=verbosity, details=details)


def _add_lens(out: Path, as_json: bool, verbosity: int) -> None:
    """`extract --add lens`: of the other options it takes --model and those of the output alone."""
    context = click.get_current_context()
    known = {"add", "out", "model", "as_json", "quiet", "verbose"}
    default = click.core.ParameterSource.DEFAULT
    given = [p.opts[0] for p in context.command.params if p.name not in known and context.get_parameter_source(str(p.name)) is not default]
    if given:
        raise click.UsageError(f"expected --add with --out and --model alone, found {', '.join(given)}; leave them out")
    readout = add_lens(out, model=context.params.get("model"))
    counts = readout.words["kind"].value_counts()
    words = ", ".join(f"{counts.get(kind, 0)} {kind}s" for kind in ("choice", "relation"))
    record = {"store": str(out), "words": readout.words.to_dict("records")}
    lines = [f"{out}: holds the final norm and unembedding rows of {words}", f"next: stratascope lens {shlex.quote(str(out))}"]
    print_record(record, lines, as_json=as_json, verbosity=verbosity)


def next_step(store: ActivationStore, path: str | Path) -> str:
    """The command to run next on a store, given its completeness, condition, prompt and arrays; `path` is how to name the store."""
    from stratascope.probe.tasks.task import MINIMUM_COUNT

    name, provenance = shlex.quote(str(path)), store.provenance
    if not store.complete:
        left = int((~store.written).sum())
        return f"not complete: {left} of {store.layout.blocks} blocks are missing; other processes or the same command write them"
    if "residual" not in store.layout.record or "final" not in store.layout.positions:
        return f"next: stratascope info {name}"
    if condition_of(provenance) != "original":
        return f"next, as a baseline for the store of the original images: stratascope probe STORE --baseline {name}"
    if provenance.get("data", {}).get("labels") == "choice":
        task = "choice"
    else:
        # a prompt without the relation asks for it, and the relation of a false caption is not that of the image
        stated = any(part in str(provenance["prompt"].get("text")) for part in ("{caption}", "{relation}"))
        task = "truth" if stated else "relation --only label=1"
        if stated and store.examples["label"].value_counts().reindex([0, 1], fill_value=0).min() < MINIMUM_COUNT:
            return f"next: stratascope view {name}"
    return f"next: stratascope probe {name} --tasks {task} --positions final"


def _settings(chosen: dict[str, Any]) -> ExtractionSettings:
    if chosen.pop("no_system"):
        if chosen["system"] is not None:
            raise InvalidInputError(f"expected either --system or --no-system, found both, with {chosen['system']!r}")
        chosen["system"] = ""  # empty text: no system turn
    return ExtractionSettings(**chosen)


def _study_settings(plan: StudyPlan, chosen: dict[str, Any]) -> dict[str, ExtractionSettings]:
    """Name of each store of a study -> the settings of its extraction; box positions that no example has are left out."""
    context = click.get_current_context()
    for name in FIXED:
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"expected --{name} in the plan of the study alone, found it beside --for; leave it out")
    boxes = [name for name in BOX_POSITIONS if name in plan.token_positions]
    without = boxes if chosen["boxes"] is None else []
    if any(part in without for part in plan.primary.position.split(PAIR)):
        raise InvalidInputError(f"expected boxes for the primary outcome at {plan.primary.position}, found none; set `boxes`")
    if without:
        echo(f"no boxes given: {' and '.join(without)} are left out, a deviation from the plan (--boxes)", err=True)
    found = {}
    for store in plan.stores:
        fixed = plan.extraction_options(store)
        fixed["positions"] = tuple(name for name in fixed["positions"] if name not in without)
        found[store.name] = _settings({**chosen, **fixed})
    return found


def _study_lines(plans: dict[str, ExtractionPlan]) -> list[str]:
    """Bytes of each store of a study and of all together."""
    sizes = {name: int(plan.estimate["estimated_bytes"].sum()) for name, plan in plans.items()}
    conditions = {name: condition_of(plan.provenance) for name, plan in plans.items()}
    rows = [f"{name:<18} {conditions[name]:<16} {bytes_text(sizes[name]):>9}" for name in plans]
    return [f"{'store of the study':<18} {'condition':<16} {'on disk':>9}", *rows, f"{'all':<35} {bytes_text(sum(sizes.values())):>9}", ""]


def _study_time(timing: ExtractionTiming, count: int, price: float | None) -> str:
    """Duration and cost of all stores of a study, from those of one."""
    text = f"study      {span_text(count * timing.low, count * timing.high)} for {count} stores, one after another"
    if price is None:
        return text
    cheap, dear = timing.cost(price)
    cost = f"{number_text(count * cheap)} to {number_text(count * dear)}"
    return f"{text}\ncost       {cost} at {price:g} per hour, without downloading the model"


def _command(settings: ExtractionSettings, chosen: dict[str, Any], store: Path) -> str:
    """The `extract` command that makes one store of a study by itself."""
    fixed = {name: getattr(settings, name) for name in FIXED}
    return command_lines()("extract", "", {**chosen, **fixed, "out": store})


def _plan_record(plan: ExtractionPlan) -> dict[str, Any]:
    """A plan as plain values for --json."""
    counts, estimate = plan.token_counts, plan.estimate
    shapes = {spec.name: dict(zip(spec.dims, spec.shape, strict=True)) for spec in plan.store.arrays()}
    return {
        "examples": len(plan.examples),
        "failed": {plan.examples[k].id: reason for k, reason in plan.failed.items()},
        "tokens": {"least": int(counts.min()), "most": int(counts.max()), "mean": float(counts.mean())},
        "arrays": [{**row, "shape": shapes.get(row["array"])} for row in estimate.to_dict("records")],
        "raw_bytes": int(estimate["raw_bytes"].sum()),
        "estimated_bytes": int(estimate["estimated_bytes"].sum()),
        "provenance": plan.provenance,
    }
