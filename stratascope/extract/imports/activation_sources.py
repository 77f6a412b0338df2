"""Sources of activations: files per example, files per layer, Parquet columns, vlm-lens' SQLite."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, MissingExtraError
from stratascope.extract.imports.tensor_files import ENDINGS, layers_of, read_tensors, torch_tensors

VLM_LENS = {"image_path", "prompt", "layer", "tensor", "tensor_dim"}
"""Columns by which a table of vlm-lens is recognised."""


class ActivationSource(Protocol):
    """Activations of examples at some layers and positions."""

    form: str
    """What the source is, for provenance."""
    layers: Mapping[int, str]
    """Layer -> its name in the source."""
    table: pd.DataFrame | None
    """What the source says of the examples; None where it says nothing."""

    def read(self, examples: range) -> NDArray[np.float32]:
        """(layer, position, n, hidden) of consecutive examples."""


def stacked(arrays: Sequence[NDArray[Any]], names: Sequence[str]) -> NDArray[np.float32]:
    """Arrays of one shape (hidden,) or (position, hidden) as (array, position, hidden).

    Raises
    ------
    InvalidInputError
        Naming the first array of another shape.
    """
    first = np.shape(arrays[0])
    for array, name in zip(arrays, names, strict=True):
        if np.ndim(array) not in (1, 2) or np.shape(array) != first:
            raise InvalidInputError(
                f"{name}: expected the shape {first if len(first) in (1, 2) else '(hidden,) or (position, hidden)'} at each layer, found "
                f"{np.shape(array)}; pool over tokens before saving"
            )
    found = np.stack([np.asarray(array, np.float32) for array in arrays])
    return found if found.ndim == 3 else found[:, None]


@dataclass
class ExampleFiles(ActivationSource):
    """One file an example, named by its id: (hidden,), (layer, hidden), (layer, position, hidden), or arrays by layer."""

    files: Sequence[Path]
    """In the order of the examples."""
    form: str = "one file per example"
    layers: Mapping[int, str] = field(init=False)
    table: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        first = read_tensors(self.files[0])
        if isinstance(first, dict):
            self.layers = layers_of(list(first), str(self.files[0])) if len(first) > 1 else {0: next(iter(first))}
        else:
            count = 1 if first.ndim == 1 else len(first)
            self.layers = {k: str(k) for k in range(count)}

    def read(self, examples: range) -> NDArray[np.float32]:
        """As of `ActivationSource`; InvalidInputError for arrays of other shapes."""
        each = [self._one(self.files[k]) for k in examples]
        for k, values in zip(examples, each, strict=True):
            if values.shape != each[0].shape:
                raise InvalidInputError(f"{self.files[k]}: expected the shape {each[0].shape}, found {values.shape}")
        return np.stack(each, axis=2)

    def _one(self, path: Path) -> NDArray[np.float32]:
        held = read_tensors(path)
        if isinstance(held, dict):
            if missing := [name for name in self.layers.values() if name not in held]:
                raise InvalidInputError(f"{path}: expected the array {missing[0]!r}, found {', '.join(held)}")
            return stacked([held[name] for name in self.layers.values()], [f"{path}, {name}" for name in self.layers.values()])
        whole = held[None] if held.ndim == 1 else held
        if len(whole) != len(self.layers):
            raise InvalidInputError(f"{path}: expected {len(self.layers)} layers, found {len(whole)}")
        return stacked(list(whole), [str(path)] * len(whole))


class LayerFiles(ActivationSource):
    """One array a layer: (example, hidden) or (example, position, hidden), in the order of the table of examples.

    Parameters
    ----------
    arrays
        Layer -> the array and where it is.
    """

    def __init__(self, arrays: Mapping[int, tuple[NDArray[Any], str]], form: str) -> None:
        self.form, self.table = form, None
        self.layers = {layer: name for layer, (_, name) in arrays.items()}
        self._arrays = [array for array, _ in arrays.values()]
        self.examples = len(self._arrays[0])
        """Rows of each array."""
        for array, name in arrays.values():
            if array.ndim not in (2, 3) or array.shape != self._arrays[0].shape:
                raise InvalidInputError(
                    f"{name}: expected (example, hidden) or (example, position, hidden), of one shape in all layers, found {array.shape}"
                )

    def read(self, examples: range) -> NDArray[np.float32]:
        """As of `ActivationSource`; InvalidInputError for arrays of other shapes."""
        part = [np.asarray(array[examples.start : examples.stop], np.float32) for array in self._arrays]
        return np.stack([np.moveaxis(values, 0, 1) if values.ndim == 3 else values[None] for values in part])


class LensDatabase(ActivationSource):
    """The SQLite database of vlm-lens: one row for each image, prompt and layer, with a tensor that `torch.save` wrote.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    InvalidInputError
        The file is no such database, mixes models, or lacks a layer of an example.
    """

    form = "vlm-lens database"

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with closing(self._connected()) as database:
                tables = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
                self._table = next((name for name in tables if set(self._columns(database, name)) >= VLM_LENS), "")
                if not self._table:
                    raise InvalidInputError(f"{path}: expected a table of vlm-lens with {', '.join(sorted(VLM_LENS))}, found {tables}")
                rows = list(self._facts(database))
        except sqlite3.Error as error:
            raise InvalidInputError(f"{path}: expected a database of vlm-lens, found: {error}") from error
        models = sorted({str(row["name"]) for row in rows})
        if len(models) != 1:
            raise InvalidInputError(f"{path}: expected activations of one model, found {', '.join(models) or 'no rows'}")
        self.model = models[0]
        """Name of the model that the database states."""
        self.layers = layers_of(sorted({str(row["layer"]) for row in rows}), str(path))
        examples: dict[tuple[Any, ...], dict[str, int]] = {}
        facts = []
        for row in rows:
            key = tuple(row[name] for name in ("image_id", "image_path", "prompt", "label"))
            if key not in examples:
                examples[key] = {}
                facts.append(row)
            if row["layer"] in examples[key]:
                raise InvalidInputError(
                    f"{path}: expected one row for each example and layer, found two for row {row['id']} at {row['layer']}"
                )
            examples[key][row["layer"]] = row["id"]
        self._rows = list(examples.values())
        for row, held in zip(facts, self._rows, strict=True):
            if missing := set(self.layers.values()) - held.keys():
                raise InvalidInputError(f"{path}: expected every layer of each example, found row {row['id']} without {min(missing)}")
        numbered = len({row["image_id"] for row in facts}) == len(facts) and None not in {row["image_id"] for row in facts}
        self.table = pd.DataFrame(
            {
                "id": [str(row["image_id"] if numbered else row["id"]) for row in facts],
                "image": [Path(str(row["image_path"])).name if row["image_path"] else f"row {row['id']}" for row in facts],
                "caption": [str(row["prompt"]) for row in facts],
                "target": [None if row["label"] is None else str(row["label"]) for row in facts],
            }
        )

    def read(self, examples: range) -> NDArray[np.float32]:
        """As of `ActivationSource`; InvalidInputError for arrays of other shapes."""
        each = []
        with closing(self._connected()) as database:
            for k in examples:
                tensors = []
                for name in self.layers.values():
                    number = self._rows[k][name]
                    (blob,) = database.execute(f"select tensor from {_quoted(self._table)} where id = ?", (number,)).fetchone()
                    tensors.append(np.squeeze(self._tensor(blob, number)))
                each.append(stacked(tensors, [f"{self._path}, row {self._rows[k][name]}" for name in self.layers.values()]))
        return np.stack(each, axis=2)

    def _tensor(self, blob: bytes, number: int) -> NDArray[Any]:
        try:
            found = torch_tensors(io.BytesIO(blob), f"{self._path}, row {number}")
        except (InvalidInputError, MissingExtraError):
            raise
        except Exception as error:
            raise InvalidInputError(f"{self._path}, row {number}: expected a tensor, found: {str(error).splitlines()[0]}") from error
        if isinstance(found, dict):
            raise InvalidInputError(f"{self._path}, row {number}: expected one tensor, found several")
        return found

    def _connected(self) -> sqlite3.Connection:
        return sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)

    @staticmethod
    def _columns(database: sqlite3.Connection, table: str) -> list[str]:
        return [row[1] for row in database.execute(f"pragma table_info({_quoted(table)})")]

    def _facts(self, database: sqlite3.Connection) -> Iterator[dict[str, Any]]:
        held = self._columns(database, self._table)
        wanted = [name for name in ("id", "name", "image_path", "image_id", "prompt", "label", "layer") if name in held]
        for row in database.execute(f"select {', '.join(wanted)} from {_quoted(self._table)} order by id"):
            yield {**dict.fromkeys(("name", "image_id", "label")), **dict(zip(wanted, row, strict=True))}


def _quoted(name: str) -> str:
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def array_files(folder: Path) -> list[Path]:
    """Files of a folder with arrays, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file())
