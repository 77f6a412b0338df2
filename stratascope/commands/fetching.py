"""The command that fetches published data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from stratascope.commands import options
from stratascope.commands.terminal import echo

SHOWN_FAILURES = 10


@click.command(short_help="Published VSR: rows, images and boxes, into a folder.")
@click.argument("dataset", type=click.Choice(["vsr"]))
@click.option("--out", required=True, type=options.OUTPUT, metavar="DIR", help="Folder to fill, or to go on filling.")
@click.option("--split", default="random", show_default=True, help="random or zeroshot: how VSR's authors divided it.")
@click.option(
    "--parts", callback=options.names, metavar="NAME,NAME", default="train,dev,test", show_default=True, help="Which parts of it."
)
@click.option("--limit", type=int, metavar="N", help="Images of only the first N rows of each part.")
@click.option("--boxes", is_flag=True, help="Gold boxes too, out of COCO's annotations (241 MB, once).")
@click.option("--images/--no-images", default=True, help="The photos, from COCO by their links; about 1 GB in all.  [default: images]")
@click.option("--connections", default=4, show_default=True, help="Images fetched at a time.")
@click.option("--max-bytes", default=4_000_000_000, show_default=True, metavar="N", help="Stop after so many bytes of images.")
@click.option("--max-image", default=20_000_000, show_default=True, metavar="N", help="Leave out images of more bytes.")
@click.option("--revision", help="Branch, tag or commit of the Hub's repository.")
@click.option("--endpoint", metavar="URL", help="A mirror of the Hub; default: $HF_ENDPOINT or the Hub itself.")
@click.option("--annotations", metavar="URL", help="Where COCO's annotations are; default: images.cocodataset.org.")
def fetch_command(dataset: str, out: Path, annotations: str | None, **chosen: Any) -> None:
    """Fetch published VSR: its rows from the Hub, its photos from COCO. The same command goes on where it stopped.

    Exit code 1 where images could not be fetched; they are listed with reasons in DIR/failed.json.

    \b
    Example, a hundred photos of the test part (17 MB):
      stratascope fetch vsr --parts test --limit 100 --out vsr
    """
    from stratascope.commands.descriptions import fetched_text
    from stratascope.datasets.annotations import ANNOTATIONS
    from stratascope.datasets.fetch import FetchChoice, fetch_vsr

    assert dataset == "vsr"
    report = fetch_vsr(out, FetchChoice(annotations=annotations or ANNOTATIONS, **chosen), progress=sys.stderr.isatty())
    for name, reason in list(report.failed.items())[:SHOWN_FAILURES]:
        echo(f"not fetched: {name}: {reason}", err=True)
    if len(report.failed) > SHOWN_FAILURES:
        echo(f"... and {len(report.failed) - SHOWN_FAILURES:,} more in {out / 'failed.json'}", err=True)
    echo(fetched_text(report))
    if report.failed:
        sys.exit(1)
