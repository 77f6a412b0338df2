"""Commands that make or download data: demo, fetch, convert, pairs."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from stratascope import demo
from stratascope.commands import options
from stratascope.commands.command_line import command_lines
from stratascope.commands.output import NORMAL, QUIET, print_record, verbosity_options
from stratascope.commands.signature import default_of, options_in_errors, options_of
from stratascope.commands.terminal import echo
from stratascope.datasets.benchmarks import BENCHMARKS
from stratascope.datasets.conversion import ConversionReport, convert_benchmark
from stratascope.datasets.fetch import FetchChoice
from stratascope.datasets.pairs import minimal_pairs
from stratascope.errors import InvalidInputError
from stratascope.scheduling import workers_of

SHOWN_FAILURES = 10
MOST_PROCESSES = 4
"""Processes of the demo, each with its own torch."""


@click.command(short_help="Full pipeline on generated scenes with the built-in model.")
@click.option("-o", "--out", default="stratascope-demo", show_default=True, type=options.OUTPUT, help="Folder to fill.")
@options_of(demo.run_demo, scenes="Number of scenes to generate.", seed="Seed of scenes, folds and resamples.")
@partial(verbosity_options, verbose_help="Also name the files of the results.")
def demo_command(out: Path, scenes: int, seed: int, as_json: bool, verbosity: int) -> None:
    """Run the full pipeline on generated scenes with the built-in model: scenes, store, probes, attention, figures, report.

    The same command continues an interrupted run and repeats only steps whose files are missing or changed.

    \b
    Example:
      stratascope demo --out demo
    """
    quiet = as_json or verbosity == QUIET
    text = demo.run_demo(
        out,
        scenes=scenes,
        seed=seed,
        progress=sys.stderr.isatty() and not quiet,
        on_step=lambda step: None if quiet else echo(step),
        on_result=None if quiet else echo,
        command_line=command_lines(),
        processes=min(MOST_PROCESSES, workers_of("processes")),
    )
    files = [f"file {path}" for path in sorted((out / "results").glob("*.*"))]
    record = {"folder": out, "report": out / "results" / "report.html", "summary": text}
    print_record(record, [text], as_json=as_json, verbosity=verbosity, details=files)


@click.command(short_help="Download published data sets.")
@click.argument("dataset", type=click.Choice(["vsr", *(name for name, one in BENCHMARKS.items() if one.files)]))
@click.option("-o", "--out", required=True, type=options.OUTPUT, metavar="DIR", help="Output folder; an unfinished one is completed.")
@options_of(
    FetchChoice,
    split="Split by VSR's authors.",
    parts="Parts of the split.",
    limit="Images of only the first N rows of each part.",
    boxes="Also download gold boxes, from COCO's annotations (241 MB, once).",
)
@click.option(
    "--images/--no-images",
    default=default_of(FetchChoice, "images"),
    show_default=True,
    help="Whether to download the photos from COCO, about 1 GB in all.",
)
@options_of(
    FetchChoice,
    connections="Images downloaded at a time.",
    max_bytes="Stop after this many bytes of images.",
    max_image="Skip images of more bytes.",
    revision="Branch, tag or commit of the Hub repository.",
    endpoint="URL of a mirror of the Hub; default: $HF_ENDPOINT, else the Hub.",
    annotations="URL of COCO's annotations.",
)
@verbosity_options
def fetch_command(dataset: str, out: Path, as_json: bool, verbosity: int, **chosen: Any) -> None:
    """Download published VSR (rows from the Hub, photos from COCO), or a benchmark of questions from the Hub, which is unpacked.

    After an interruption the same command resumes. Benchmarks take only the options --revision and --endpoint. Exit code 1 if a photo could
    not be downloaded; DIR/failed.json lists these with reasons.

    \b
    Example, a hundred photos of the test part (17 MB):
      stratascope fetch vsr --parts test --limit 100 --out vsr
    """
    from stratascope.datasets.benchmark_download import fetch_benchmark
    from stratascope.datasets.fetch import fetch_vsr

    if dataset != "vsr":
        _refuse_options_of_vsr(dataset)
        places = {name: chosen[name] for name in ("revision", "endpoint")}
        quiet = as_json or verbosity == QUIET
        found = fetch_benchmark(dataset, out, progress=sys.stderr.isatty() and not quiet, **places)
        _print_conversion(found, as_json=as_json, verbosity=verbosity)
        return
    report = fetch_vsr(out, FetchChoice(**chosen), progress=sys.stderr.isatty())
    shown = len(report.failed) if verbosity > NORMAL else SHOWN_FAILURES
    for name, reason in list(report.failed.items())[:shown]:
        echo(f"not fetched: {name}: {reason}", err=True)
    if len(report.failed) > shown:
        echo(f"... and {len(report.failed) - shown:,} more in {out / 'failed.json'}", err=True)
    print_record({**vars(report), "summary": report.summary()}, [report.summary()], as_json=as_json, verbosity=verbosity)
    if report.failed:
        sys.exit(1)


def _refuse_options_of_vsr(dataset: str) -> None:
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        if given and parameter.name not in ("dataset", "out", "revision", "endpoint", "as_json", "quiet", "verbose"):
            raise InvalidInputError(f"expected no {parameter.opts[0]} for {dataset}, found it; it is an option of fetch vsr, leave it out")


def _print_conversion(report: ConversionReport, *, as_json: bool, verbosity: int) -> None:
    text = report.summary()
    files = [f"file {path}" for path in sorted(report.folder.glob("*.json*"))]
    print_record({**vars(report), "summary": text}, [text], as_json=as_json, verbosity=verbosity, details=files)


@click.command(short_help="Unpack a published benchmark into rows and images.")
@click.argument("benchmark", type=click.Choice(list(BENCHMARKS)))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=options.OUTPUT, metavar="DIR", help="Output folder.")
@verbosity_options
@options_in_errors
def convert_command(benchmark: str, files: tuple[Path, ...], out: Path, as_json: bool, verbosity: int) -> None:
    """Unpack a published benchmark (Parquet, TSV, JSON): DIR/rows.jsonl and, where its files hold the images, DIR/images.

    'fetch' downloads the files as well. 'plan' and 'extract' then take --examples DIR/rows.jsonl --images DIR/images and the prompt that
    the command prints.

    \b
    Example, with the files of the Hub's nyu-visionx/CV-Bench:
      stratascope convert cv-bench test_2d.parquet test_3d.parquet --out cv-bench
    """
    quiet = as_json or verbosity == QUIET
    report = convert_benchmark(benchmark, list(files), out, progress=sys.stderr.isatty() and not quiet)
    _print_conversion(report, as_json=as_json, verbosity=verbosity)


@click.command(short_help="Minimal pairs: subject and object exchanged, image mirrored.")
@click.argument("examples", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder of the images.")
@click.option("-o", "--out", required=True, type=options.OUTPUT, metavar="DIR", help="Output folder.")
@click.option("--boxes", type=click.Path(path_type=Path), help="Gold boxes in COCO's instances format; they are mirrored with the images.")
@options_of(
    minimal_pairs,
    variants="swapped: subject and object exchanged; mirrored: the image mirrored; inverse: both exchanged, and the relation replaced by "
    "its inverse.",
)
@verbosity_options
@options_in_errors
def pairs_command(examples: tuple[Path, ...], images: Path, out: Path, as_json: bool, verbosity: int, **chosen: Any) -> None:
    """Write minimal pairs of examples as a data set for 'extract'.

    For every example with a true or false caption: the caption with subject and object exchanged, and the mirrored image. Labels follow
    from the meaning of the relation; where they do not, the variant is left out and counted. 'extract' then takes
    --examples DIR/pairs.jsonl --images DIR/images; the rows have the columns pair and variant.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope pairs demo/scenes/scenes.jsonl --images demo/scenes/images --boxes demo/scenes/instances.json --out demo/pairs
    """
    quiet = as_json or verbosity == QUIET
    report = minimal_pairs(list(examples), images, out, progress=sys.stderr.isatty() and not quiet, **chosen)
    text = report.summary()
    files = [f"file {path}" for path in sorted(out.glob("*.json*"))]
    print_record({**vars(report), "summary": text}, [text], as_json=as_json, verbosity=verbosity, details=files)
