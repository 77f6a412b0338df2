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

from stratascope.addresses import without_secrets
from stratascope.causal import InterventionSettings
from stratascope.commands import options
from stratascope.commands.extraction_settings import extract_line, settings_of, study_lines, study_settings, study_time
from stratascope.commands.next_step import next_step
from stratascope.commands.output import QUIET, VERBOSE, print_json, print_record, verbosity_options
from stratascope.commands.signature import options_in_errors, options_of, with_option_names
from stratascope.commands.terminal import echo
from stratascope.datasets.examples import describe
from stratascope.extract import ExtractionPlan, ExtractionSettings, extract, plan_extraction
from stratascope.extract.model_files import QUANTIZE
from stratascope.extract.plan.images import CONDITIONS
from stratascope.extract.plan.intervention_plan import later_cost
from stratascope.extract.plan.plan_summary import SPAN_COLOURS, plan_summary, timing_text
from stratascope.extract.plan.published_models import PublishedModel
from stratascope.extract.plan.settings import DEVICE_MAPS, DTYPES, FUSIONS
from stratascope.extract.run.extraction import ExtractionReport, estimate_time
from stratascope.extract.run.readout import add_lens
from stratascope.preregistration import read_plan
from stratascope.store import ActivationStore
from stratascope.store.io.overview import LENS
from stratascope.store.io.store_files import inside, store_exists

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
        "help": "true-false, yes-no, where; for What's Up's data sets also four-way, six-way and others; for questions pope, letters and "
        "others (docs/question-sets.md); or a text with fields such as {caption} and {COLUMN}, or a file (docs/data.md).",
        "metavar": "NAME|TEXT|FILE.toml",
    },
    answers="Answers to a prompt given as text, of one or several tokens: to a true caption, then to a false one; or, for questions with "
    "options, letters or options (their words).",
    shuffle_options={
        "help": "Show the options of each question in a random order, drawn with SEED (default 0).",
        "is_flag": False,
        "flag_value": 0,
        "metavar": "[SEED]",
    },
    system="Text of the system turn; default: as the chat template has it.",
    condition={
        "help": "Change to the images: none, mean colour, flipped left-right, images exchanged between examples, or image tokens permuted "
        "before the decoder.",
        "type": click.Choice(CONDITIONS),
    },
    positions="Positions at which the residual stream is saved: final, image (image_1, image_2, ... of several), subject, relation, "
    "object, subject_box, object_box (default: those that the examples have), names such as caption_mean, subject_0, after_caption_0, "
    "cell_0_0, and the groups default, means, tokens (every text token by its role), cells (groups of image cells) and answers (all "
    "generated tokens); see docs/recording.md.",
    record="Arrays to save besides the answer logits (docs/recording.md); also value_norms, value_logits, head_outputs, head_logits, "
    "vision_residual, vision_output, vision_maps, vision_change, hiding_estimate, gradient_rollout, gradient_maps, "
    "knockout.",
    fusion={"help": "How attention maps are aggregated over heads.", "type": click.Choice(FUSIONS)},
    maps="Save attention maps of N evenly spaced examples; default: of all.",
    patches="Save the residual stream at every image token of N evenly spaced examples.",
    patch_layers="Layers at which image tokens are saved; default: five, evenly spaced.",
    knockouts="Measure attention knockouts of N evenly spaced examples; needs --record knockout.",
    changes="Measure changes of image cells in the vision tower, with one object's box painted over, of N evenly spaced examples; needs "
    "--record vision_change and --boxes.",
    knockout_modes="Tokens that cannot attend to the target of a knockout: final (the final token), later (all later tokens), or a group: "
    "system, image, subject, relation, object, caption_rest, template, caption, prompt; see docs/recording.md.",
    knockout_window="Decoder blocks in a sliding window of knockouts, besides that of all blocks; 0: none; default: a quarter of all.",
    thumbnail="Size of the thumbnails in the store.",
    limit="Use the first N examples.",
    generate="Generate up to N greedy tokens after the prompt, until the turn ends: saves them, their text, the answer choice that it "
    "names, and the residual stream at positions answer_0, answer_1, ...",
    max_pixels="Shrink larger images to this many pixels; default: the processor's limit.",
    dtype={"help": "Precision of the model; default: that of its weights on a GPU, float32 on a CPU.", "type": click.Choice(DTYPES)},
    device={"help": "Device of the model: auto, cpu, cuda, cuda:1, ...", "metavar": "DEVICE"},
    device_map={
        "help": "Spread the weights over all GPUs, then the host's memory and the disk (needs the extra large).",
        "type": click.Choice(DEVICE_MAPS),
    },
    quantize={"help": "Quantise the weights on loading, with bitsandbytes (needs the extra large).", "type": click.Choice(QUANTIZE)},
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
    wanted = {"": settings_of(chosen)} if study is None else study_settings(read_plan(study), chosen)
    plans = {name: plan_extraction(settings, progress=not quiet) for name, settings in wanted.items()}
    plan = next(iter(plans.values()))
    planning = (time.perf_counter() - begin) / len(plans)
    summary = f"{describe(plan.examples)}\n\n{plan_summary(plan, show)}\n"
    if not quiet:
        echo(with_option_names(summary), colours=SPAN_COLOURS)
        if verbosity == VERBOSE:
            for k, reason in plan.failed.items():
                echo(f"cannot be used: example {plan.examples[k].id}: {reason}")
        for line in study_lines(plans) if study is not None else ():
            echo(line)
    timing = estimate_time(plan, timed=timed, batch_tokens=batch_tokens, planning=planning, progress=sys.stderr.isatty() and not quiet)
    text = f"time       not estimated: {timing}" if isinstance(timing, str) else timing_text(timing, price if study is None else None)
    if study is not None and not isinstance(timing, str):
        text += f"\n{study_time(timing, len(plans), price)}"
    if as_json:
        record = _plan_record(plan) | {"time": {"unknown": timing} if isinstance(timing, str) else timing.record(price)}
        print_json(
            record if study is None else {"stores": {name: _plan_record(one) for name, one in plans.items()}, "time": record["time"]}
        )
    elif not quiet:
        later = InterventionSettings()
        if cost := later_cost(plan, len(later.slots()), later.examples):
            echo(cost)
        echo(with_option_names(text))


@click.command(short_help="Run every example through the model once, into a store.")
@settings_options
@NO_SYSTEM
@for_option
@click.option(
    "-o",
    "--out",
    required=True,
    type=options.STORE_OUTPUT,
    metavar="STORE.zarr",
    help="Store to create, or to continue: a folder, or an address in a bucket (s3, gs, az); with --for what holds all stores.",
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
    out: str | Path,
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

    def run(settings: ExtractionSettings, store: str | Path, command: str) -> ExtractionReport:
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
        for name, settings in study_settings(read_plan(study), chosen).items():
            store = inside(out, f"{name}.zarr")
            reports[name] = run(settings, store, extract_line(settings, chosen, store))
            if not quiet:
                echo(reports[name].summary())
        print_record(
            {"stores": {name: asdict(report) for name, report in reports.items()}},
            [f"next: stratascope study {'' if Path(study).exists() else '--preset '}{shlex.quote(study)} {shlex.quote(str(out))}"],
            as_json=as_json,
            verbosity=verbosity,
        )
        return
    report = run(settings_of(chosen), out, without_secrets(shlex.join(["stratascope", *sys.argv[1:]])))
    exists = store_exists(out)
    following = next_step(ActivationStore.open(out), out) if exists else None
    details = [f"vision tower passes {report.tower_passes:,}, halved batches {report.halvings}"] if exists else []
    lines = [report.summary(), *([following] if following else [])]
    print_record(asdict(report) | {"next": following}, lines, as_json=as_json, verbosity=verbosity, details=details)


def _add_lens(out: str | Path, as_json: bool, verbosity: int) -> None:
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
        **({"bundled_description": plan.source.note} if isinstance(plan.source, PublishedModel) else {}),
    }
