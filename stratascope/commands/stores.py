"""Commands on stores as they are: info, verify, copy, diff."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from stratascope.commands import options
from stratascope.commands.terminal import bar, echo, open_store, stoppable


@click.command(short_help="What a store holds, and where it comes from.")
@click.argument("store")
def info_command(store: str) -> None:
    """What a store holds, how complete it is, where it comes from, how large it is.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope info demo/original.zarr
    """
    from stratascope.commands.descriptions import describe_store

    echo(describe_store(open_store(store)))


@click.command(short_help="Whether every number of a store is what was written.")
@click.argument("store")
@click.option("--images", type=click.Path(path_type=Path), help="Folder of the images: compare their hashes too.")
@click.option("--repair", is_flag=True, help="Un-mark bad blocks, so that the same extract command fills them again.")
def verify_command(store: str, images: Path | None, repair: bool) -> None:
    """Decode every written block and check it. Exit code 1 where something is wrong or blocks are not written yet.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope verify demo/original.zarr
    """
    from stratascope.commands.descriptions import verification_text
    from stratascope.store import repair as unmark
    from stratascope.store import verify as check
    from stratascope.store.io.links import check_no_links

    if repair and Path(store).is_dir():
        check_no_links(Path(store))
    with bar("verify", "block") as tell:
        found = check(store, images=images, progress=tell)
    echo(verification_text(found))
    if repair and found.bad_blocks:
        echo(f"un-marked blocks {', '.join(map(str, unmark(store, found)))}; run the extract command again to fill them")
    if not found.ok or not found.complete:
        sys.exit(1)


@click.command(short_help="A store, or a part of it, as a new store.")
@click.argument("source")
@click.argument("target", type=options.OUTPUT)
@click.option(
    "--arrays", callback=options.names, metavar="NAME,NAME", help="Arrays to take, such as residual,attention_rows; default: all."
)
@click.option("--layers", callback=options.numbers, metavar="N,M-K", help="Layers to take.")
@click.option("--positions", callback=options.names, metavar="NAME,NAME", help="Positions to take.")
@click.option("--examples", metavar="ID,N,M-K", help="Ids or numbers of the examples to take, an id first.")
def copy_command(source: str, target: Path, examples: str | None, **chosen: Any) -> None:
    """Copy from a folder, zip or URL into a new folder or zip. The copy says what was taken.

    What was written is read back before the copy gets its name. Where the network fails or the command is stopped, the same command goes on
    with a folder from where it was; a zip begins anew.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope copy demo/original.zarr small.zip --arrays residual --layers 0,6 --positions final
    """
    from stratascope.commands.descriptions import copy_text
    from stratascope.commands.example_selection import asked_examples, ids_line
    from stratascope.store import copy_store

    numbers = None
    if examples is not None:
        opened = open_store(source)
        numbers = asked_examples(opened, examples)
        echo(ids_line(opened, numbers))
    with stoppable(), bar("copy", "block") as tell:
        taken = copy_store(source, target, progress=tell, examples=numbers, **chosen)
    echo(copy_text(str(target), taken))


@click.command(short_help="In what two stores differ.")
@click.argument("a")
@click.argument("b")
def diff_command(a: str, b: str) -> None:
    """Compare provenance, examples and numbers. Exit code 1 where something but date and command differs.

    \b
    Example, after 'stratascope demo --out demo':
      stratascope diff demo/original.zarr demo/blank.zarr
    """
    from stratascope.commands.descriptions import difference_text
    from stratascope.store import diff_stores

    found = diff_stores(a, b)
    echo(difference_text(found))
    if not found.same:
        sys.exit(1)
