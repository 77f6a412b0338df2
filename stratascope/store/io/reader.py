"""Reading a store: numbers that were recorded, or an error that says why there are none. In one file, as it is one class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store

from stratascope.errors import InvalidInputError, NotRecordedError, StoreError
from stratascope.store.format.layout import StoreLayout
from stratascope.store.format.packing import decode_maps
from stratascope.store.format.provenance import VOLATILE, check_attributes, digest
from stratascope.store.format.tables import get_table, whole_values
from stratascope.store.io.access import GuardedStore, checked_array, is_url, open_root, open_target
from stratascope.store.io.recorded_examples import held_examples, require_recorded, require_written, written_examples
from stratascope.store.io.selection import Examples, Layers, Positions, Selection, select
from stratascope.store.io.shard_reader import BlockFiles, byte_source

if TYPE_CHECKING:
    import pandas as pd


class ActivationStore:
    """A store opened for reading; make one with `ActivationStore.open`.

    What is written is looked up when the store is opened: open it again to see blocks that were written since.
    """

    def __init__(self, target: str | Path | Store, store: GuardedStore, root: zarr.Group, name: str) -> None:
        attributes: dict[str, Any] = dict(root.attrs)
        self.layout: StoreLayout = check_attributes(attributes, name)
        """Shapes of the store."""
        self._written_layout: dict[str, Any] = attributes["layout"]
        self.provenance: dict[str, Any] = attributes["provenance"]
        """How the store was made."""
        self.taken: dict[str, Any] | None = attributes["taken"]
        """What a copy took of its source; None for an original."""
        self.name = name
        self._target = target if isinstance(target, Store) or is_url(str(target)) else os.path.abspath(target)
        self.files_of = store
        """The Zarr store behind it, read-only."""
        self._files = BlockFiles(byte_source(store), name, self.layout.block)
        self.group = root
        """The Zarr group behind it, read-only."""
        self.known: str = attributes["known"]
        """Digest of what was written at creation."""
        self._arrays = {s.name: checked_array(root, s, name) for s in self.layout.arrays()}

    @classmethod
    def open(cls, target: str | Path | Store) -> Self:
        """Open a store for reading.

        Parameters
        ----------
        target
            Folder, zip, URL (http, https, s3, gs, az) or a Zarr store.

        Raises
        ------
        StoreError
            Where there is no store, or one of another format or version, or its metadata are damaged.
        """
        store, name = open_target(target)
        return cls(target, store, open_root(store, name), name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (type(self), self._target, self.fingerprint())

    @cached_property
    def written(self) -> NDArray[np.bool_]:
        """(block,) whether each block is written."""
        spec = self.layout.array("written")
        return self._files.markers([f"written/c/{b}" for b in range(self.layout.blocks)], spec)

    @property
    def complete(self) -> bool:
        """Whether every block is written."""
        return bool(self.written.all())

    @cached_property
    def examples(self) -> pd.DataFrame:
        """Table of examples, index 0..n-1: id, image, caption, relation, label, ..., and `status` (0 where unwritten)."""
        others = self.group["examples"]
        frame = get_table(others, self.layout.examples)  # type: ignore[arg-type]
        frame["id"] = self.read("example").tolist()
        frame["relation"] = self.read("relation").tolist()
        frame["label"] = self.read("label")
        order: Any = others.attrs["order"]
        table: pd.DataFrame = frame[order].assign(status=self.status)
        return table

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """(example,) status codes, 0 where the block is not written; see `layout.STATUS_CODES`."""
        status = np.zeros(self.layout.examples, dtype=np.uint8)
        there = np.flatnonzero(written_examples(self))
        status[there] = self.fetch(select(self.layout, "status", None, None, there))
        return status

    @cached_property
    def spans(self) -> dict[str, NDArray[np.int32]]:
        """Span name -> (example, 2) token intervals [start, stop), -1 where absent."""
        values = self.read("spans")
        return {name: values[:, i] for i, name in enumerate(self.layout.spans)}

    @cached_property
    def n_tokens(self) -> NDArray[np.int32]:
        """(example,) length of each prompt."""
        return self.read("n_tokens")

    @cached_property
    def grid(self) -> NDArray[np.int32]:
        """(example, 2) rows and columns of image cells."""
        return self.read("grid")

    @cached_property
    def position_present(self) -> NDArray[np.bool_]:
        """(example, position) whether each position exists."""
        return self.read("position_present")

    @cached_property
    def has_map(self) -> NDArray[np.bool_]:
        """(example,) whether attention_maps holds the example."""
        return self.read("has_map")

    @cached_property
    def vocabulary(self) -> dict[int, str]:
        """Token id -> text, for the ids that the prompts use."""
        words = get_table(self.group["vocabulary"])  # type: ignore[arg-type]
        return dict(zip(words["id"].tolist(), words["text"].tolist(), strict=True))

    @property
    def ids(self) -> Collection[str]:
        """The examples' ids, in their order."""
        return self._numbers.keys()

    def index_of(self, example_id: str) -> int:
        """Number of the example whose id is `example_id`; NotRecordedError where there is none."""
        if example_id not in self._numbers:
            some = ", ".join(list(self._numbers)[:3])
            raise NotRecordedError(f"expected the id of an example of this store, found {example_id!r}; its ids are like {some}")
        return self._numbers[example_id]

    def tokens(self, example: int) -> list[str]:
        """Texts of an example's prompt tokens."""
        ids = self.read("token_ids", examples=example)[: int(self.n_tokens[example])]
        return [self.vocabulary[int(i)] for i in ids]

    def thumbnail(self, example: int) -> NDArray[np.uint8]:
        """(height, width, 3) picture of an example."""
        return self.read("thumbnail", examples=example)

    def available(self, array: str, position: Positions = None) -> NDArray[np.bool_]:
        """(example,) whether `read` gives the example: written, recorded, its position present, its map there.

        `position` None means all positions of the array.
        """
        return held_examples(self, select(self.layout, array, None, position, None))

    def read(self, array: str, *, layer: Layers = None, position: Positions = None, examples: Examples = None) -> NDArray[Any]:
        """Values of an array, floats as float32, integers as they are.

        Parameters
        ----------
        layer, position
            One (its axis falls away), several (in that order), or None for all.
        examples
            Example numbers in any order, a mask, one number (its axis falls away), or None for all.

        Returns
        -------
        numpy.ndarray
            The array's dimensions less those that fell away: residual (layer, position, example, hidden), attention_rows (layer,
            example, head, token), attention_mean (example, layer, token), attention_maps (example, layer, query, key) packed, ...
            Attention rows are NaN beyond `n_tokens`, knockout where it was not measured.

        Raises
        ------
        UnwrittenBlockError
            Naming the blocks that extraction has not filled.
        NotRecordedError
            For an array, layer, position or example that is not there, listing what is.
        StoreError
            Where files are missing or damaged, naming the blocks.
        """
        selection = select(self.layout, array, layer, position, examples)
        if selection.spec.by_block:
            require_written(self, selection)
            require_recorded(self, selection)
        values = self.fetch(selection)
        filled = selection.spec.by_block and not selection.spec.gaps
        first = values if selection.spec.dims[-1] == "example" else values[..., 0]  # of rows, which are NaN beyond n_tokens
        if filled and values.dtype.kind == "f" and values.size and np.isnan(first).any():
            raise StoreError(f"{self.name}: expected numbers in {array}, found chunks that were never filled; run `stratascope verify`")
        return values

    def maps(self, example: int, layers: Layers = None) -> NDArray[np.float64]:
        """Attention maps of an example, decoded.

        Parameters
        ----------
        example
            Its number.
        layers
            Numbers of decoder blocks; all by default.

        Returns
        -------
        numpy.ndarray
            (layer, query, key) float64, over the prompt's own tokens; every row sums to 1. One layer given as a number: (query, key).

        Raises
        ------
        NotRecordedError
            If the store holds no map of the example; UnwrittenBlockError if its block is not written yet.
        StoreError
            If the map is damaged.
        """
        packed = self.read("attention_maps", layer=layers, examples=int(example))
        try:
            return decode_maps(packed, int(self.n_tokens[example]))
        except InvalidInputError as error:
            raise StoreError(f"{self.name}: attention_maps of example {example}: {error}; run `stratascope verify`") from error

    def lazy(self, array: str, *, layer: Layers = None, position: Positions = None, examples: Examples = None) -> Any:
        """What `read` gives, as a Dask array whose chunks follow the files: one task a block.

        Parameters
        ----------
        array, layer, position, examples
            As of `read`.
        """
        from stratascope.store.io.lazy import lazy_array

        return lazy_array(self, array, layer, position, examples)

    def to_xarray(self) -> Any:
        """Decoded, lazy xarray Dataset with named dimensions and coordinates; see `lazy.dataset`."""
        from stratascope.store.io.lazy import dataset

        return dataset(self)

    def size_on_disk(self) -> int | None:
        """Bytes of all files of a folder or zip; None for a store behind an address."""
        from stratascope.store.io.overview import disk_sizes

        sizes = disk_sizes(self)
        return None if sizes is None else sum(sizes.values())

    def fingerprint(self) -> str:
        """Digest of provenance (all but `VOLATILE`), layout, examples and what is written: the key of results made from it."""
        provenance = {k: v for k, v in self.provenance.items() if k not in VOLATILE}
        blocks = hashlib.sha256(self.written.tobytes()).hexdigest()
        # the layout as it was written: fields that later versions add must not make another store of it
        return digest([provenance, self._written_layout, self.taken, self.known, blocks])

    def __repr__(self) -> str:
        from stratascope.store.io.overview import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from stratascope.store.io.overview import as_html

        return as_html(self)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.read("example").tolist())}

    def fetch(self, selection: Selection) -> NDArray[Any]:
        """Values of a selection, of its shape less the axes that fall away, whether recorded or not.

        The caller has made sure that its blocks are written.
        """
        spec = selection.spec
        if spec.by_block:
            values = self._files.read(selection)
        else:
            values = whole_values(self._arrays[spec.name], self.name)
            values = values[np.ix_(*selection.indices)]
        return values.reshape([n for i, n in enumerate(selection.shape) if i not in selection.dropped])


@lru_cache(maxsize=8)
def _reopened(kind: type[ActivationStore], target: str | Path | Store, fingerprint: str) -> ActivationStore:
    """A store by its address, opened once for all tasks of a process; StoreError where another store lies there now."""
    store = kind.open(target)
    if store.fingerprint() != fingerprint:
        raise StoreError(
            f"{store.name}: expected the store that was open when the task was made, found another or more blocks; start again"
        )
    return store
