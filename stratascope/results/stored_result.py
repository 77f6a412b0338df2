"""A result with the file that holds it: what a page cites, and whether it is of a store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, StoreError
from stratascope.results.file import ResultFile, result_head
from stratascope.results.locations import ENDING
from stratascope.results.registry import load_result, result_class
from stratascope.store import ActivationStore, choice_of, condition_of
from stratascope.store.format.provenance import same_model_files


@dataclass(frozen=True)
class Source:
    """Origin of a number that a page cites."""

    file: str
    """Name of the results file, or of the store."""
    table: str = ""
    """Table, array or attribute in it."""
    detail: str = field(default="", compare=False)
    """Row or mean; shown with the number, but no footnote of its own."""

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.file, self.table, self.detail)))


@dataclass(frozen=True, eq=False)
class StoredResult:
    """A results file: its path, contents and result."""

    path: Path
    file: ResultFile
    _means: dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def load(cls, path: Path) -> StoredResult:
        """Read a results file of any kind; errors as of `registry.load_result`."""
        return cls(path, load_result(path))

    @property
    def result(self) -> Any:
        """The result as an object of its kind's class. Large arrays are read each time, so that many files do not fill the memory.

        Raises
        ------
        StoreError
            The kind is unknown to this version.
        """
        found = result_class(self.kind)
        if found is None:
            raise StoreError(f"{self.path}: expected a known kind of result, found {self.kind!r}; upgrade stratascope")
        return found.from_contents(self.file)

    @property
    def name(self) -> str:
        """File name, as a page cites it."""
        return self.path.name

    @property
    def kind(self) -> str:
        """Kind of the result."""
        return self.file.kind

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the file, with the settings of a layer curve among them."""
        given = dict(self.file.attributes)
        return {**given.get("settings", {}), **given} if isinstance(given.get("settings", {}), dict) else given

    @property
    def fingerprint(self) -> str | None:
        """Fingerprint of the store that the result was computed from."""
        own = self.attributes
        return own.get("fingerprint") or own.get("store")

    @property
    def condition(self) -> str:
        """Condition of its store: image manipulation, `untrained` weights, both, or `original`."""
        own = self.attributes
        return str(own.get("condition") or condition_of(own.get("provenance", {})))

    @property
    def task(self) -> str:
        """Task of a probe, with its control; empty for other results."""
        return str(self.attributes.get("task", ""))

    @property
    def position(self) -> str:
        """Position of a probe; empty for arrays without positions."""
        return str(self.attributes.get("position") or "")

    @property
    def title(self) -> str:
        """Task and position, such as `truth at final`; the task alone of an array without positions."""
        return f"{self.task} at {self.position}" if self.position else self.task

    @property
    def only(self) -> tuple[str, ...]:
        """COLUMN=VALUE that selected its examples; () for all. The task of a probe names them, too."""
        return choice_of(self.file.attributes)

    @property
    def weighing(self) -> str:
        """Weighting of the tokens: attention alone by default."""
        return str(self.attributes.get("weighing") or self.attributes.get("map") or "attention")

    @property
    def identity(self) -> tuple[object, ...]:
        """Key of the result: of two files with the same key one is enough."""
        own = self.attributes
        if "task" not in own:
            return self.kind, self.name
        over = own.get("baseline") or {}
        what = (self.task, self.position, own.get("array"), own.get("by"), own.get("to"), self.fingerprint)
        return self.kind, *what, over.get("task"), over.get("fingerprint")

    def table(self, name: str) -> pd.DataFrame:
        """The table of this name; StoreError for a file of an older version that lacks it."""
        if name not in self.file.tables:
            raise StoreError(
                f"{self.name}: expected a table {name!r}, found {', '.join(self.file.tables) or 'none'}; "
                "an older version made the file: make it again"
            )
        return self.file.tables[name]

    def means(self, array: str) -> NDArray[np.float64]:
        """Means of an array over the examples with a known value, NaN where there are none; computed once.

        Parameters
        ----------
        array
            Name of an array with the dimension example, such as (example, layer, head, part).
        """
        return self._known(array)[0]

    def mean(self, array: str, part: int) -> float:
        """Mean of all known values of an array at index `part` of its last axis; NaN where there are none."""
        means, counts = (values[..., part] for values in self._known(array))
        return float(np.nansum(means * counts) / counts.sum()) if counts.any() else np.nan

    def _known(self, array: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        if array not in self._means:
            self._means[array] = self.file.known_means(array)
        return self._means[array]

    def rows(self, metric: str) -> pd.DataFrame:
        """Rows of a layer curve's table of one metric, by layer."""
        table = self.table("table")
        return table[table["metric"] == metric].sort_values("layer").reset_index(drop=True)

    def event(self, kind: str) -> pd.Series[Any]:
        """Row of the table of events of this `kind`, `onset` or `offset`."""
        table = self.table("events")
        return table[table["kind"] == kind].iloc[0]

    def source(self, table: str = "", detail: str = "") -> Source:
        """Citation of a `table` of the file, and a `detail` in it."""
        return Source(self.name, table, detail)


def results_in(folder: Path) -> Iterator[StoredResult]:
    """Results of a folder by name, with kind and attributes alone; other files are skipped.

    Raises
    ------
    StoreError
        The metadata of a result are too large or nested too deeply, or a file is no regular one.
    """
    for path in sorted(folder.glob(f"*{ENDING}")):
        head = result_head(path)
        if head is not None:
            attributes = head.get("attributes")
            yield StoredResult(path, ResultFile(str(head.get("kind")), attributes=attributes if isinstance(attributes, dict) else {}))


def relation_to(found: StoredResult, store: ActivationStore, fingerprint: str) -> Literal["own", "baseline", "other"]:
    """Whether a result is of the store as it is now, of a baseline of it, or of another store.

    Parameters
    ----------
    found
        Only its attributes are read.
    store, fingerprint
        The store, and its fingerprint.
    """
    if found.fingerprint == fingerprint:
        return "own"
    return "baseline" if is_baseline(found, store.provenance) else "other"


def is_baseline(found: StoredResult, provenance: Mapping[str, Any]) -> bool:
    """Whether a curve is of the same model, trained or not, and examples as a store's, under another condition."""
    theirs = found.attributes.get("provenance") or {}
    if found.kind != "layer_curve" or condition_of(theirs) == condition_of(provenance):
        return False
    model, own_model = ({"name": m} if isinstance(m := p.get("model", {}), str) else m for p in (theirs, provenance))
    data, own_data = (p.get("data", {}) for p in (theirs, provenance))
    same = all(model.get(key) == own_model.get(key) for key in ("name", "revision"))
    same &= same_model_files(model, own_model)
    images = {digest for d in (data, own_data) if (digest := d.get("images")) is not None}
    return same and len(images) < 2 and data.get("examples") == own_data.get("examples") and bool(data.get("examples"))


def other_store(found: StoredResult, store: ActivationStore) -> InvalidInputError:
    """The error for a result of another store."""
    return InvalidInputError(
        f"{found.path}: expected results of {store.name} as it is now, found those of {store_name(found)}; "
        "make the result again, or leave the file out"
    )


def store_name(found: StoredResult) -> str:
    """Name and fingerprint of the store of a result, for messages."""
    own = found.attributes
    name = own.get("store") if "fingerprint" in own else None
    return f"{name or 'another store'} (fingerprint {str(found.fingerprint)[:12]})"
