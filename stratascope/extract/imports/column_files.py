"""Columns of lists as a source of activations: Parquet files, and data sets that `datasets` saved to a disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, MissingExtraError
from stratascope.extract.imports.activation_sources import ActivationSource, stacked
from stratascope.extract.imports.tensor_files import layers_of


def column_files(folder: Path) -> list[Path]:
    """Files of a data set in a folder: shards of Parquet, or what `Dataset.save_to_disk` wrote, in their order; empty for another folder.

    Raises
    ------
    InvalidInputError
        For a folder of several splits, or one that lacks a file that it lists.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(path.parent.name for path in folder.glob("*/state.json"))) or "none"
        raise InvalidInputError(f"{folder}: expected one split of a data set, found several: {splits}; give the folder of one")
    state = folder / "state.json"
    if not state.is_file():
        return sorted(path for path in folder.glob("*.parquet") if path.is_file())
    try:
        files = [folder / Path(one["filename"]).name for one in json.loads(state.read_text())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidInputError(f"{state}: expected the list of a data set's files, found another form; save it again") from error
    if missing := [path.name for path in files if not path.is_file()]:
        raise InvalidInputError(f"{folder}: expected the file {missing[0]} of the data set, found none; copy the whole folder")
    return files


class ColumnFiles(ActivationSource):
    """Columns of lists of numbers, one row an example; nested lists are layers.

    Parameters
    ----------
    files
        Parquet files, or Arrow files as `datasets` writes them, in order.
    columns
        One column, or one for each layer.

    Raises
    ------
    MissingExtraError
        Without pyarrow.
    InvalidInputError
        For files of another kind or of different columns, and for columns that hold no lists.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str]) -> None:
        path = files[0]
        try:
            import pyarrow
            import pyarrow.types as types
        except ImportError as error:
            raise MissingExtraError(f"{path}: expected pyarrow to read it, found none; run pip install 'stratascope[import]'") from error
        self.form = "Parquet columns" if path.suffix == ".parquet" else "columns of a data set"
        self._path, self._pieces = path, []
        kinds: dict[str, Any] = {}
        sizes: list[int] = []
        for file in files:
            try:
                found, pieces = _pieces(file)
            except Exception as error:
                raise InvalidInputError(f"{file}: expected columns in a {path.suffix} file, found: {error}") from error
            kinds = kinds or found
            if found != kinds:
                raise InvalidInputError(f"{file}: expected the columns of {path.name}, found others; import what has the same columns")
            sizes += [rows for rows, _ in pieces]
            self._pieces += [read for _, read in pieces]
        lists = [name for name, kind in kinds.items() if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)]
        chosen = list(columns) or lists
        if not chosen or any(name not in lists for name in chosen) or (not columns and len(chosen) > 1):
            raise InvalidInputError(
                f"{path}: expected `columns` that hold lists of numbers, found {', '.join(columns) or 'no choice among several'}; it has "
                f"{', '.join(lists) or 'none'}"
            )
        self._columns = chosen
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._cached: tuple[int, list[list[Any]]] = (-1, [])
        plain = [name for name, kind in kinds.items() if not types.is_nested(kind)]
        self.table = pyarrow.concat_tables([read(plain) for read in self._pieces]).to_pandas()
        if len(chosen) > 1:
            self.layers = layers_of(chosen, str(path))
        else:
            nested = types.is_nested(kinds[chosen[0]].value_type)
            depth = len(self._rows(0)[0][0]) if nested else 1
            self.layers = {k: str(k) for k in range(depth)}

    def read(self, examples: range) -> NDArray[np.float32]:
        """As of `ActivationSource`; InvalidInputError for arrays of other shapes."""
        each = []
        for k in examples:
            piece = int(np.searchsorted(self._starts, k, side="right")) - 1
            held = self._rows(piece)
            row = k - int(self._starts[piece])
            if len(self._columns) > 1:
                by_name = dict(zip(self._columns, held, strict=True))
                values = [np.asarray(by_name[name][row], np.float32) for name in self.layers.values()]
            else:
                found = np.asarray(held[0][row], np.float32)
                values = list(found[None] if found.ndim == 1 else found)
            each.append(stacked(values, [f"{self._path}, row {k}"] * len(values)))
        try:
            return np.stack(each, axis=2)
        except ValueError as error:
            raise InvalidInputError(f"{self._path}: expected lists of one length in all rows, found others: {error}") from error

    def _rows(self, piece: int) -> list[list[Any]]:
        if self._cached[0] != piece:
            table = self._pieces[piece](self._columns)
            self._cached = (piece, [table.column(name).to_pylist() for name in self._columns])
        return self._cached[1]


def _pieces(file: Path) -> tuple[dict[str, Any], list[tuple[int, Callable[[list[str]], Any]]]]:
    """Columns of a file with their types, and its groups of rows: how many each has, and how to read columns of it."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet as parquet

    pieces: list[tuple[int, Callable[[list[str]], Any]]] = []
    if file.suffix == ".parquet":
        opened = parquet.ParquetFile(file)
        schema, metadata = opened.schema_arrow, opened.metadata
        groups = [k for k in range(metadata.num_row_groups) if metadata.row_group(k).num_rows]
        pieces += [(metadata.row_group(k).num_rows, partial(_row_group, opened, k)) for k in groups]
    else:
        reader = pyarrow.ipc.open_stream(pyarrow.memory_map(str(file)))
        schema = reader.schema
        batches = [batch for batch in reader if batch.num_rows]
        pieces += [(batch.num_rows, pyarrow.Table.from_batches([batch]).select) for batch in batches]
    kinds = {name: schema.field(name).type for name in schema.names}
    return {name: getattr(kind, "storage_type", kind) for name, kind in kinds.items()}, pieces  # of extension types, how they are stored


def _row_group(opened: Any, number: int, columns: list[str]) -> Any:
    return opened.read_row_group(number, columns=columns)
