"""Commands that make or download data: demo, fetch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from stratascope.commands import options
from stratascope.commands.output import NORMAL, emit, verbosity_options
from stratascope.commands.signature import default_of, options_of
from stratascope.commands.terminal import echo
from stratascope.datasets.fetch import FetchChoice

SHOWN_FAILURES = 10


@click.command(short_help="Full pipeline on generated scenes with the built-in model.")
@click.option("-o", "--out", default="stratascope-demo", show_default=True, type=options.OUTPUT, help="Output folder.")
@click.option("--scenes", default=512, show_default=True, help="Number of scenes.")
@options.seed("Seed of the scenes, folds and resamples.")
@verbosity_options
def demo_command(out: Path, scenes: int, seed: int, as_json: bool, verbosity: int) -> None:
    """Run the full pipeline with the built-in model: generate scenes, save activations, train probes, draw figures.

    After an interruption the same command resumes: it computes only what is missing or was changed.

    \b
    Example:
      stratascope demo --out demo
    """
    from stratascope.demo import run_demo

    quiet = as_json or verbosity < NORMAL
    text = run_demo(out, scenes=scenes, seed=seed, progress=sys.stderr.isatty(), say=(lambda _: None) if quiet else echo)
    emit(text, {"folder": str(out), "summary": text}, as_json=as_json, verbosity=verbosity)


@click.command(short_help="Download published data sets.")
@click.argument("dataset", type=click.Choice(["vsr"]))
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
    """Download published VSR: rows from the Hub, photos from COCO. After an interruption the same command resumes.

    Exit code 1 if a photo could not be downloaded; DIR/failed.json lists these with reasons.

    \b
    Example, a hundred photos of the test part (17 MB):
      stratascope fetch vsr --parts test --limit 100 --out vsr
    """
    from stratascope.datasets.fetch import fetch_vsr

    assert dataset == "vsr"
    report = fetch_vsr(out, FetchChoice(**chosen), progress=sys.stderr.isatty())
    shown = len(report.failed) if verbosity > NORMAL else SHOWN_FAILURES
    for name, reason in list(report.failed.items())[:shown]:
        echo(f"not fetched: {name}: {reason}", err=True)
    if len(report.failed) > shown:
        echo(f"... and {len(report.failed) - shown:,} more in {out / 'failed.json'}", err=True)
    emit(report.summary(), {**vars(report), "summary": report.summary()}, as_json=as_json, verbosity=verbosity)
    if report.failed:
        sys.exit(1)
