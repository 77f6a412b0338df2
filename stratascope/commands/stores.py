"""Commands on stores: info, verify, copy, diff."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from stratascope.commands import options
from stratascope.commands.output import NORMAL, print_record, verbosity_options
from stratascope.commands.terminal import STARTS_AGAIN, bar, open_store


@click.command(short_help="Contents, completeness and provenance of a store.")
@click.argument("store")
@partial(verbosity_options, verbose_help="Show long values in full.")
def info_command(store: str, as_json: bool, verbosity: int) -> None:
    """Show the arrays of a store, their sizes, how many blocks are written, and how the store was made.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope info demo/original.zarr
    """
    from stratascope.store import describe
    from stratascope.store.io.overview import as_record

    opened = open_store(store)
    record = as_record(opened) if as_json else {}
    print_record(record, [describe(opened, full=verbosity > NORMAL)], as_json=as_json, verbosity=verbosity)


@click.command(short_help="Check every stored number against its checksum.")
@click.argument("store")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of the images; compare their SHA-256, too.")
@click.option("--repair", is_flag=True, help="Unmark bad blocks, so that the same extract command fills them again.")
@partial(verbosity_options, verbose_help="Also print the fingerprint that results name.")
def verify_command(store: str, images: Path | None, repair: bool, as_json: bool, verbosity: int) -> None:
    """Decode and check every written block. Exit code 1 if something is damaged or a block is not written yet.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope verify demo/original.zarr
    """
    from stratascope.store import repair as unmark
    from stratascope.store import verify
    from stratascope.store.io.links import check_no_links

    if repair and Path(store).is_dir():
        check_no_links(Path(store))
    with bar("verify", "block") as tell:
        found = verify(store, images=images, progress=tell)
    text, record = found.summary(), {**found.record(), "repaired_blocks": []}
    if repair and found.bad_blocks:
        if not as_json:
            print_record(record, [text], as_json=False, verbosity=verbosity)  # before the repair, which may fail
        record["repaired_blocks"] = unmark(store, found)
        text = f"unmarked blocks {', '.join(map(str, record['repaired_blocks']))}; run the extract command again to fill them"
    details = [_fingerprint(store)] if verbosity > NORMAL and found.ok else []
    print_record(record, [text], as_json=as_json, verbosity=verbosity, details=details)
    if not found.ok or not found.complete:
        sys.exit(1)


@click.command(short_help="Copy a store or a part of it to a folder, zip or bucket.")
@click.argument("source")
@click.argument("target", type=options.STORE_OUTPUT)
@options.part_of_a_store
@partial(verbosity_options, verbose_help="Also print the fingerprint of the copy.")
def copy_command(source: str, target: str | Path, examples: str | None, as_json: bool, verbosity: int, **chosen: Any) -> None:
    """Copy a store from a folder, zip or URL to a new folder, zip or bucket (s3, gs, az). The copy records which part it holds.

    The command checks the copy before the copy gets its name. After an interruption or a network failure, the same command resumes a
    copy to a folder or a bucket; a copy to a zip starts again.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope copy demo/original.zarr small.zip --arrays residual --layers 0,6 --positions final
    """
    from stratascope.commands.example_selection import asked_examples, ids_line
    from stratascope.store import copy_store, copy_summary

    numbers, lines = None, []
    if examples is not None:
        opened = open_store(source)
        numbers = asked_examples(opened, examples)
        lines = [ids_line(opened, numbers)]
    click.get_current_context().meta[STARTS_AGAIN] = str(target).lower().endswith(".zip")
    with bar("copy", "block") as tell:
        taken = copy_store(source, target, progress=tell, examples=numbers, **chosen)
    record = {"target": str(target), "bytes": int(taken["bytes"].sum()), "examples": numbers, "arrays": taken.to_dict("records")}
    details = [_fingerprint(str(target))] if verbosity > NORMAL else []
    print_record(record, [*lines, copy_summary(target, taken)], as_json=as_json, verbosity=verbosity, details=details)


@click.command(short_help="Compare two stores.")
@click.argument("a")
@click.argument("b")
@partial(verbosity_options, verbose_help="Show long values in full.")
def diff_command(a: str, b: str, as_json: bool, verbosity: int) -> None:
    """Compare provenance, examples and numbers of two stores. Exit code 1 if more differs than date and command.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope diff demo/original.zarr demo/blank.zarr
    """
    from stratascope.store import diff_stores

    with bar("diff", "array") as tell:
        found = diff_stores(a, b, progress=tell)
    print_record(found.record(), [found.summary(full=verbosity > NORMAL)], as_json=as_json, verbosity=verbosity)
    if not found.same:
        sys.exit(1)


def _fingerprint(store: str) -> str:
    return f"fingerprint {open_store(store).fingerprint()}"
