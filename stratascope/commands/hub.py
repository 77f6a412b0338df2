"""Commands that share stores on the Hugging Face Hub: push, pull."""

from __future__ import annotations

import shlex
from functools import partial
from pathlib import Path
from typing import Any

import click

from stratascope.commands import options
from stratascope.commands.output import NORMAL, print_record, verbosity_options
from stratascope.commands.terminal import bar, open_store
from stratascope.errors import InvalidInputError
from stratascope.store.io.overview import bytes_text


@click.command(short_help="Copy a store or a part of it to the Hugging Face Hub.")
@click.argument("store")
@click.argument("address", metavar="hf://datasets/USER/NAME[@BRANCH][/PATH]")
@options.part_of_a_store
@click.option(
    "--public", is_flag=True, help="Create the repository for everybody to read; default: private. An existing one stays as it is."
)
@click.option("--licence", "--license", "licence", default="unknown", show_default=True, help="Of the repository, such as cc-by-4.0.")
@partial(verbosity_options, verbose_help="Also print the fingerprint of the store.")
def push_command(
    store: str, address: str, examples: str | None, public: bool, licence: str, as_json: bool, verbosity: int, **chosen: Any
) -> None:
    """Copy a store into a data set's repository on the Hugging Face Hub, with a card and a figure.

    The command creates the repository where there is none, private unless --public. It needs a token (HF_TOKEN or 'hf auth login') and the
    extra hub. After an interruption the same command resumes. PATH defaults to the name of the store.

    \b
    Example, after 'stratascope demo --out demo' and 'hf auth login':
      stratascope push demo/original.zarr hf://datasets/USER/demo --arrays residual,thumbnail
    """
    from stratascope.commands.example_selection import asked_examples, ids_line
    from stratascope.report.dataset_card import card_documents
    from stratascope.store import copy_store, copy_summary
    from stratascope.store.io.hub import FORM, HubAddress
    from stratascope.store.maintenance.hub_copies import HubTarget

    if not address.startswith("hf://"):
        raise InvalidInputError(f"expected an address on the Hub, such as {FORM}, found {address}; to a bucket or disk: stratascope copy")
    parsed = HubAddress.parse(address)
    if not parsed.path:
        name = Path(store.rstrip("/")).name
        parsed = HubAddress.parse(f"{parsed.url}/{name.removesuffix('.zip').removesuffix('.zarr')}.zarr")
    opened = open_store(store)
    numbers, lines = None, []
    if examples is not None:
        numbers = asked_examples(opened, examples)
        lines = [ids_line(opened, numbers)]
    target = HubTarget(parsed.url, card_documents(opened, parsed.url, licence=licence, arrays=chosen["arrays"]), public=public)
    with bar("push", "block") as tell:
        taken = copy_store(opened, target, progress=tell, examples=numbers, **chosen)
    sent = f"sent {bytes_text(target.sent)}; the repository had the rest"
    record = {"address": parsed.url, "bytes": int(taken["bytes"].sum()), "sent_bytes": target.sent, "arrays": taken.to_dict("records")}
    after = f"next: stratascope info {shlex.quote(parsed.url)}"
    details = [f"fingerprint {open_store(parsed.url).fingerprint()}"] if verbosity > NORMAL else []
    print_record(record, [*lines, copy_summary(parsed.url, taken), sent, after], as_json=as_json, verbosity=verbosity, details=details)


@click.command(short_help="Download a store from the Hugging Face Hub.")
@click.argument("address", metavar="hf://datasets/USER/NAME[@REVISION][/PATH]")
@click.argument("target", required=False, type=options.FolderPath())
@partial(verbosity_options, verbose_help="Also print the fingerprint of the store.")
def pull_command(address: str, target: Path | None, as_json: bool, verbosity: int) -> None:
    """Download a store from the Hugging Face Hub to a new folder and verify it. After an interruption the same command resumes.

    TARGET defaults to the store's name. Without PATH the repository must hold one folder that ends in .zarr. To fetch a part of a store:
    stratascope copy hf://... TARGET --arrays residual.

    \b
    Example, of a repository with one store:
      stratascope pull hf://datasets/USER/demo original.zarr
    """
    from stratascope.store.io.hub import FORM
    from stratascope.store.maintenance.hub_copies import pull_store

    if not address.startswith("hf://"):
        raise InvalidInputError(f"expected an address on the Hub, such as {FORM}, found {address}; from elsewhere: stratascope copy")
    path = pull_store(address, target)
    opened = open_store(str(path))
    blocks, written = opened.layout.blocks, int(opened.written.sum())
    line = (
        f"{path}: {opened.layout.examples:,} examples, {written:,} of {blocks:,} blocks written, {bytes_text(opened.size_on_disk() or 0)}"
    )
    details = [f"fingerprint {opened.fingerprint()}"] if verbosity > NORMAL else []
    record = {"store": path, "examples": opened.layout.examples, "blocks": blocks, "written_blocks": written}
    print_record(record, [line], as_json=as_json, verbosity=verbosity, details=details)
