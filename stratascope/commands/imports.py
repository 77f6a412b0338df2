"""Command that fills a store from activations of another program: import."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from stratascope.addresses import without_secrets
from stratascope.commands import options
from stratascope.commands.output import print_record, verbosity_options
from stratascope.commands.signature import options_in_errors, options_of
from stratascope.commands.terminal import bar
from stratascope.extract.imports.import_store import import_activations


@click.command(short_help="Store activations that another program saved.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=options.STORE_OUTPUT, metavar="STORE.zarr", help="Store to create, or to continue.")
@click.option("--examples", type=click.Path(path_type=Path), help="CSV or JSON lines with a column id and any columns to probe.")
@options_of(
    import_activations,
    columns={"help": "Columns of lists: one, or one for each layer.", "metavar": "A,B"},
    positions="Names of the positions, in the order of the arrays.",
    model="Name of the model, for provenance; default: what the source states, or none.",
    block={"help": "Examples in a block of the store.", "type": click.IntRange(min=1)},
)
@click.option("--by", type=click.Choice(["example", "layer"]), help="What each file of a folder is; default: as the files are named.")
@partial(verbosity_options, verbose_help="Also name the layers.")
@options_in_errors
def import_command(source: Path, out: str | Path, as_json: bool, verbosity: int, **chosen: Any) -> None:
    """Store activations that another program saved, so that probes and reports work on them. The provenance says "imported".

    SOURCE is a folder of .npy, .npz, .safetensors or .pt files, one an example, named by its id, or one a layer; one such file with an
    array for each layer; a Parquet file with columns of lists, a folder of them, or a data set that `datasets` saved to a disk; or the
    SQLite database of vlm-lens.

    \b
    Example, after 'stratascope demo --out demo' and with saved arrays in a folder (docs/data.md):
      stratascope import activations --examples activations.csv --out imported.zarr
    """
    with bar("import", "block") as tell:
        command = without_secrets(shlex.join(["stratascope", *sys.argv[1:]]))
        chosen["columns"] = chosen["columns"] or ()
        report = import_activations(source, out, progress=tell, command=command, **chosen)
    lines = [report.summary(), f"next: stratascope info {shlex.quote(str(out))}"]
    print_record(asdict(report), lines, as_json=as_json, verbosity=verbosity, details=[f"layers {', '.join(map(str, report.layers))}"])
