"""Import activations that other programs saved into a store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from stratascope.datasets.examples import files_digest
from stratascope.datasets.table import csv_table, is_csv, json_lines_table, read_text, text_field
from stratascope.errors import InvalidInputError
from stratascope.extract.imports.activation_sources import (
    ActivationSource,
    ExampleFiles,
    LayerFiles,
    LensDatabase,
    array_files,
)
from stratascope.extract.imports.column_files import ColumnFiles, column_files
from stratascope.extract.imports.tensor_files import ENDINGS, layers_of, read_tensors
from stratascope.extract.plan.store_contents import field_column
from stratascope.store import RECORDED, STATUS_CODES, BlockWriter, StoreLayout, create_store
from stratascope.store.io.store_files import check_writable, place_of, store_exists

By = Literal["example", "layer"]
UNNAMED = "activation"
"""Position of activations whose place in the prompt is not stated."""
_DATABASES = (".db", ".sqlite", ".sqlite3")
_ROOT = ("id", "image", "caption", "relation", "label")


@dataclass(frozen=True)
class ImportReport:
    """What an import wrote."""

    store: str | Path
    form: str
    """What the source is."""
    examples: int
    layers: tuple[int, ...]
    positions: tuple[str, ...]
    hidden: int
    written_blocks: int
    not_finite: tuple[str, ...]
    """Ids of the examples with values that are not finite, which are recorded as failed."""

    def summary(self) -> str:
        """Lines of text: what the store holds, and the examples that failed."""
        if not self.written_blocks:
            return f"{self.store}: nothing left to do"
        places = f"{len(self.layers)} layers and {len(self.positions)} position{'s' if len(self.positions) > 1 else ''}"
        lines = [f"{self.store}: imported {self.examples:,} examples at {places} of {self.hidden} dimensions from {self.form}"]
        if self.not_finite:
            lines.append(f"{len(self.not_finite):,} examples have values that are not finite and failed, such as {self.not_finite[0]}")
        return "\n".join(lines)


def import_activations(
    source: str | Path,
    out: str | Path,
    *,
    examples: str | Path | None = None,
    by: By | None = None,
    columns: Sequence[str] = (),
    positions: Sequence[str] = (UNNAMED,),
    model: str | None = None,
    block: int = 64,
    command: str | None = None,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> ImportReport:
    """Import saved activations into a store on which probes and reports work; the same call continues an interrupted import.

    The store holds the residual stream at the layers and positions of the source, and no prompts, tokens, attention or answers. Its
    provenance says "imported", and names a model only if `model` or the source states it.

    Parameters
    ----------
    source
        A folder of .npy, .npz, .safetensors or .pt files, one an example, named by its id, or one a layer; one such file with an array for
        each layer; a Parquet file, a folder of them, or a data set as `Dataset.save_to_disk` writes it; or the SQLite database of vlm-lens.
    out
        Store to create or to continue: a folder, or an address in a bucket.
    examples
        CSV or JSON lines with a column `id`, and any of `image`, `caption`, `relation`, `label` (0 or 1) and further columns, which probes
        take as tasks. Needed unless the source has columns or is a database. Files by layer have its order.
    by
        Whether each file is an `example` or a `layer`; by default found by the names of the files.
    columns
        Columns of lists in Parquet files or a data set: one, or one for each layer.
    positions
        Names of the positions, in the order of the arrays.
    model
        Name of the model, for provenance.
    block
        Examples in a block of the store.
    command
        Command line to keep in the provenance.
    progress
        Called with (blocks done, blocks).

    Raises
    ------
    InvalidInputError
        The source cannot be read, does not fit the examples, or its arrays differ in shape; or a label is not 0 or 1.
    MissingExtraError
        A package for the source's format is not installed.
    ProvenanceMismatchError
        The store was imported from something else.
    StoreError
        `out` cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for layer in range(3):
    ...     np.save(folder / f"layer_{layer}.npy", np.random.default_rng(layer).normal(size=(4, 8)))
    >>> _ = (folder / "rows.csv").write_text("id,label\\na,0\\nb,1\\nc,0\\nd,1\\n")
    >>> report = import_activations(folder, folder / "run.zarr", examples=folder / "rows.csv")
    >>> report.layers, report.hidden
    ((0, 1, 2), 8)
    """
    place = place_of(out)
    exists = store_exists(place)
    if not exists:
        check_writable(place)
    given = None if examples is None else _table(Path(examples))
    opened = _opened(Path(source), given, by, tuple(columns))
    table, unlabelled = _examples(opened, given, str(examples or source))
    shape = opened.read(range(1)).shape
    if len(positions) != shape[1]:
        raise InvalidInputError(f"positions: expected {shape[1]} names, one for each position of the source, found {', '.join(positions)}")
    layout = _layout(len(table), tuple(opened.layers), tuple(positions), shape[3], block)
    stated = model or getattr(opened, "model", None)
    provenance: dict[str, Any] = {
        "imported": {"form": opened.form, "layers": {str(k): name for k, name in opened.layers.items()}, "files": _digests(Path(source))},
        **({"model": {"name": stated}} if stated else {}),
        "data": {"labels": "none" if unlabelled else "truth", "examples": {} if examples is None else files_digest([Path(examples)])},
        "libraries": {"stratascope": version("stratascope")},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }
    count = len(table)
    if not exists:
        create_store(
            place,
            layout,
            examples=table,
            spans=np.full((count, 1, 2), -1, np.int32),
            token_ids=np.zeros((count, 1), np.int32),
            vocabulary={0: ""},
            n_tokens=np.ones(count, np.int32),
            grid=np.zeros((count, 2), np.int32),
            position_present=np.ones((count, len(positions)), bool),
            has_map=np.zeros(count, bool),
            provenance=provenance,
        )
    failed: list[str] = []
    with BlockWriter(place) as writer:
        writer.check_provenance(provenance)
        writer.check_layout(layout)
        pending = writer.pending()
        for done, number in enumerate(pending):
            members = writer.block_examples(number)
            values = opened.read(members)
            if values.shape != (shape[0], shape[1], len(members), shape[3]):
                raise InvalidInputError(
                    f"{source}: expected {shape[0]} layers, {shape[1]} positions and {shape[3]} dimensions in examples {members.start} to "
                    f"{members.stop - 1}, found the shape {values.shape}"
                )
            finite = np.asarray(np.isfinite(values).all((0, 1, 3)))
            status = np.where(finite, RECORDED, STATUS_CODES["non_finite"]).astype(np.uint8)
            failed += [table["id"].iloc[k] for k, good in zip(members, finite, strict=True) if not good]
            writer.write(number, {"residual": values, "status": status})
            progress(done + 1, len(pending))
    return ImportReport(place, opened.form, count, tuple(opened.layers), tuple(positions), shape[3], len(pending), tuple(failed))


def _layout(examples: int, layers: tuple[int, ...], positions: tuple[str, ...], hidden: int, block: int) -> StoreLayout:
    last = max(layers[-1], 1)
    kept = None if layers == tuple(range(last + 1)) else layers
    return StoreLayout(
        examples=examples, layers=last, hidden=hidden, heads=1, tokens=1, positions=positions, spans=("prompt",), choices=(),
        record=frozenset({"residual"}), block=block, thumbnail=None, kept_layers=kept,
    )  # fmt: skip


def _opened(source: Path, given: pd.DataFrame | None, by: By | None, columns: tuple[str, ...]) -> ActivationSource:
    if source.is_dir():
        files = array_files(source)
        if not files and (shards := column_files(source)):
            return ColumnFiles(shards, columns)
        if not files:
            raise InvalidInputError(f"{source}: expected files that end in {', '.join((*ENDINGS, '.parquet'))}, or a data set, found none")
        if given is None:
            raise InvalidInputError(f"{source}: expected a table of the examples with their ids, found none; set `examples`")
        return _folder(source, files, [str(one) for one in given["id"]], by)
    if not source.is_file():
        raise InvalidInputError(f"{source}: expected a folder or a file with activations, found none; check the path")
    if source.suffix in _DATABASES:
        return LensDatabase(source)
    if source.suffix == ".parquet":
        return ColumnFiles([source], columns)
    if source.suffix not in ENDINGS:
        endings = ", ".join((*ENDINGS, ".parquet", *_DATABASES))
        raise InvalidInputError(f"{source}: expected a folder or a file that ends in {endings}, found another")
    held = read_tensors(source)
    arrays = {"0": held} if not isinstance(held, dict) else held
    names = layers_of(list(arrays), str(source)) if len(arrays) > 1 else {0: next(iter(arrays))}
    return LayerFiles({layer: (arrays[name], name) for layer, name in names.items()}, "one array per layer")


def _folder(source: Path, files: Sequence[Path], ids: Sequence[str], by: By | None) -> ActivationSource:
    by_name = {path.stem: path for path in files}
    if len(by_name) < len(files):
        raise InvalidInputError(f"{source}: expected one file of each name, found two that differ in their ending alone; remove one")
    named = [one for one in ids if one in by_name]
    if by is None:
        if named and len(named) < len(ids):
            missing = next(one for one in ids if one not in by_name)
            raise InvalidInputError(
                f"{source}: expected a file for each of {len(ids):,} examples, found {len(named):,} and none named {missing!r}; set `by` "
                "if the files are layers"
            )
        by = "example" if named else "layer"
    if by == "example":
        if missing_ids := [one for one in ids if one not in by_name]:
            raise InvalidInputError(
                f"{source}: expected a file named by each id, found none for {len(missing_ids):,}, such as {missing_ids[0]!r}"
            )
        return ExampleFiles([by_name[one] for one in ids])
    names = layers_of(list(by_name), str(source))
    arrays = {}
    for layer, name in names.items():
        held = read_tensors(by_name[name])
        if isinstance(held, dict):
            if len(held) != 1:
                raise InvalidInputError(f"{by_name[name]}: expected one array, the layer's, found {len(held)}: {', '.join(held)}")
            held = next(iter(held.values()))
        arrays[layer] = (held, name)
    return LayerFiles(arrays, "one file per layer")


def _table(path: Path) -> pd.DataFrame:
    """Table of the examples, its ids as text."""
    text = read_text(path)
    table = csv_table(path, text, as_text=("id",)) if is_csv(path) else json_lines_table(path, text)
    if "id" not in table.columns or not table.rows:
        raise InvalidInputError(f"{path}: expected rows with a column id, found {', '.join(table.columns) or 'none'}")
    rows = []
    for row in table.rows:
        name = text_field(row, "id")
        if name is None:
            raise InvalidInputError(f"{row.where}: expected an id, found none")
        rows.append({**row.fields, "id": name})
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    return pd.DataFrame({name: field_column(values) for name, values in columns.items()})


def _examples(source: ActivationSource, given: pd.DataFrame | None, name: str) -> tuple[pd.DataFrame, bool]:
    """Columns that a store needs, and the others; whether there are no labels."""
    own = source.table
    if given is None:
        assert own is not None, "a source without a table needs one"
        table = own.copy()
        if "id" not in table:
            table["id"] = [f"row {k}" for k in range(len(table))]
        table["id"] = table["id"].map(str)
    elif own is not None and "id" in own:
        if own["id"].map(str).tolist() != given["id"].tolist():
            raise InvalidInputError(f"{name}: expected the ids of the source in its order, found others; sort the table, or leave it out")
        table = given.copy()
    else:
        table = given.copy()
    rows = len(own) if own is not None else getattr(source, "examples", len(table))
    if len(table) != rows:
        raise InvalidInputError(f"{name}: expected {rows:,} examples, as the source holds, found {len(table):,}")
    if len(twice := table["id"][table["id"].duplicated()]):
        raise InvalidInputError(f"{name}: expected unique ids, found {twice.iloc[0]!r} more than once")
    unlabelled = "label" not in table
    if unlabelled:
        table["label"] = -1
    odd = [one for one in table["label"] if not unlabelled and (pd.isna(one) or one not in (0, 1))]
    if odd:
        raise InvalidInputError(f"{name}: expected label 0 or 1, found {odd[0]}; give classes another name, which probes take as task")
    for column, default in (("image", table["id"]), ("caption", ""), ("relation", "")):
        if column not in table:
            table[column] = default
        table[column] = [str(one) for one in table[column]]
    table["label"] = table["label"].astype(int)
    others = [column for column in table if column not in _ROOT]
    return table[[*_ROOT, *others]].reset_index(drop=True), unlabelled


def _digests(source: Path) -> Mapping[str, str]:
    """SHA-256 of the files of a source: of a file, or over names and digests of a folder's."""
    if source.is_file():
        return files_digest([source])
    total = hashlib.sha256()
    for path in array_files(source) or column_files(source):
        with open(path, "rb") as file:
            total.update(path.name.encode() + b"\0" + hashlib.file_digest(file, "sha256").digest())
    return {source.resolve().name: total.hexdigest()}
