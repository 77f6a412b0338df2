"""Read activations from a store; what is absent raises an error with the reason."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

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
from stratascope.store.io.lazy import dataset, lazy_array, reopened
from stratascope.store.io.overview import as_html, as_text, disk_sizes
from stratascope.store.io.recorded_examples import held_examples, present_positions, require_recorded, require_written, written_examples
from stratascope.store.io.selection import Examples, Layers, Positions, Selection, one_of, select
from stratascope.store.io.shard_reader import BlockFiles, byte_source

if TYPE_CHECKING:
    import pandas as pd


class ActivationStore:
    """Activations of one model on many examples, read-only; opened by `ActivationStore.open`.

    Written blocks are looked up when the store is opened; open it again to see later ones.
    """

    def __init__(self, target: str | Path | Store, store: GuardedStore, root: zarr.Group, name: str) -> None:
        attributes: dict[str, Any] = dict(root.attrs)
        self.layout: StoreLayout = check_attributes(attributes, name)
        """Shapes of the store."""
        self._written_layout: dict[str, Any] = attributes["layout"]
        self.provenance: dict[str, Any] = attributes["provenance"]
        """How the store was made."""
        self.taken: dict[str, Any] | None = attributes["taken"]
        """Which part of its source a copy holds; None for an original."""
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
            Folder, zip, URL (http, https, s3, gs, az, hf) or a Zarr store.

        Raises
        ------
        StoreError
            There is no store, it has another format or version, or its metadata are damaged.
        """
        store, name = open_target(target)
        return cls(target, store, open_root(store, name), name)

    def __reduce__(self) -> tuple[Any, ...]:
        return reopened, (type(self).open, self._target, self.fingerprint())

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
        """(example, position) whether each position exists; of generated tokens once an example is recorded."""
        return present_positions(self)

    @cached_property
    def has_map(self) -> NDArray[np.bool_]:
        """(example,) whether attention_maps contains the example."""
        return self.read("has_map")

    @cached_property
    def patch_counts(self) -> NDArray[np.integer]:
        """(example,) image tokens of each example in patch_residual; 0 for an example that it does not hold."""
        return self.grid.prod(1) * self.read("has_patches") if "has_patches" in self._arrays else np.zeros(len(self), np.int64)

    @cached_property
    def vocabulary(self) -> dict[int, str]:
        """Token id -> text, for the ids that the prompts use."""
        words = get_table(self.group["vocabulary"])  # type: ignore[arg-type]
        return dict(zip(words["id"].tolist(), words["text"].tolist(), strict=True))

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers of the residual stream: 0..L, or those in a partial copy."""
        return self.layout.residual_layers

    @property
    def positions(self) -> tuple[str, ...]:
        """Positions of the residual stream."""
        return self.layout.positions

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the arrays that extraction filled."""
        return tuple(spec.name for spec in self.layout.arrays() if spec.by_block)

    def __len__(self) -> int:
        """Number of examples."""
        return self.layout.examples

    __iter__: ClassVar[None] = None  # neither arrays nor examples are what everybody expects

    def __contains__(self, name: object) -> bool:
        """Whether there is an array or a column of the examples with this name."""
        return name in {s.name for s in self.layout.arrays() if s.when != "marker"} or name in self.examples.columns

    def __getitem__(self, name: str) -> Any:
        """One array, or one column of the examples, as a lazy, decoded xarray DataArray with named dimensions.

        Examples that failed and positions that are absent are NaN; see `to_xarray`.

        Raises
        ------
        NotRecordedError
            If there is no array and no column with this name.
        MissingExtraError
            If xarray is not installed.
        """
        if name not in self:
            columns = ", ".join(map(str, self.examples.columns))
            raise NotRecordedError(
                f"{self.name}: expected the name of an array or of a column of the examples, found {name!r}; "
                f"arrays: {', '.join(self.arrays)}; columns: {columns}"
            )
        return dataset(self, (name,))[name]

    @property
    def ids(self) -> Collection[str]:
        """Ids of the examples, in order."""
        return self._numbers.keys()

    def index_of(self, example_id: str) -> int:
        """Number of the example with the id `example_id`; NotRecordedError if there is none."""
        if example_id not in self._numbers:
            some = ", ".join(list(self._numbers)[:3])
            raise NotRecordedError(f"expected the id of an example of this store, found {example_id!r}; its ids are like {some}")
        return self._numbers[example_id]

    def tokens(self, example: int) -> list[str]:
        """Prompt tokens of an example as texts."""
        ids = self.read("token_ids", examples=example)[: int(self.n_tokens[example])]
        return [self.vocabulary[int(i)] for i in ids]

    def thumbnail(self, example: int) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 thumbnail of an example's image."""
        return self.read("thumbnail", examples=example)

    def available(self, array: str, position: Positions = None, *, positions: Positions = None) -> NDArray[np.bool_]:
        """(example,) whether `read` of `array` returns the example: written, recorded, with `position` or `positions`, with a map."""
        return held_examples(self, select(self.layout, array, None, one_of("position", position, positions), None))

    def read(
        self,
        array: str,
        *,
        layer: Layers = None,
        position: Positions = None,
        examples: Examples = None,
        layers: Layers = None,
        positions: Positions = None,
    ) -> NDArray[Any]:
        """Read values of an array, floats as float32, integers as they are.

        Parameters
        ----------
        array
            Name of the array.
        layer, layers, position, positions
            One (its axis is dropped), several (in that order), or None for all; singular and plural mean the same.
        examples
            Example numbers in any order, a mask, one number (its axis is dropped), or None for all.

        Returns
        -------
        numpy.ndarray
            The array's dimensions less those that were dropped: residual (layer, position, example, hidden), attention_rows (layer,
            example, head, token), attention_mean (example, layer, token), attention_maps (example, layer, query, key) packed, ...
            Attention rows are NaN beyond `n_tokens`, patch_residual beyond `patch_counts`, knockout where it was not measured.

        Raises
        ------
        UnwrittenBlockError
            Extraction has not written some blocks yet; the message names them.
        NotRecordedError
            The store lacks an array, layer, position or example; the message lists what it has.
        StoreError
            Files are missing or damaged; the message names the blocks.
        """
        selection = select(self.layout, array, one_of("layer", layer, layers), one_of("position", position, positions), examples)
        if selection.spec.by_block:
            require_written(self, selection)
            require_recorded(self, selection)
        values = self.fetch(selection)
        filled = selection.spec.by_block and not selection.spec.gaps
        first = values if selection.spec.dims[-1] == "example" else values[..., 0]
        first = first[..., 0] if "patch" in selection.spec.dims else first  # tokens beyond those that an example has are NaN
        if filled and values.dtype.kind == "f" and values.size and np.isnan(first).any():
            raise StoreError(f"{self.name}: expected numbers in {array}, found chunks that were never filled; run `stratascope verify`")
        return values

    def maps(self, example: int, layers: Layers = None, *, layer: Layers = None) -> NDArray[np.float64]:
        """Read the attention maps of an example, decoded.

        Parameters
        ----------
        example
            Its number.
        layers, layer
            One decoder block (its axis is dropped) or several; all by default. Both names mean the same.

        Returns
        -------
        numpy.ndarray
            (layer, query, key) float64, over the prompt's own tokens; every row sums to 1. Of one layer, (query, key).

        Raises
        ------
        NotRecordedError
            The store has no map of the example; UnwrittenBlockError if its block is not written yet.
        StoreError
            The map is damaged.
        """
        packed = self.read("attention_maps", layer=one_of("layer", layer, layers), examples=int(example))
        try:
            return decode_maps(packed, int(self.n_tokens[example]))
        except InvalidInputError as error:
            raise StoreError(f"{self.name}: attention_maps of example {example}: {error}; run `stratascope verify`") from error

    def lazy(
        self,
        array: str,
        *,
        layer: Layers = None,
        position: Positions = None,
        examples: Examples = None,
        layers: Layers = None,
        positions: Positions = None,
    ) -> Any:
        """What `read` returns, as a Dask array whose chunks follow the files: one task for each shard block.

        Parameters
        ----------
        array, layer, position, examples, layers, positions
            As of `read`.
        """
        return lazy_array(self, array, one_of("layer", layer, layers), one_of("position", position, positions), examples)

    def to_xarray(self) -> Any:
        """Decoded, lazy xarray Dataset with named dimensions and coordinates; see `lazy.dataset`."""
        return dataset(self)

    def size_on_disk(self) -> int | None:
        """Bytes of all files in a folder or zip; None for a remote store."""
        sizes = disk_sizes(self)
        return None if sizes is None else sum(sizes.values())

    def fingerprint(self) -> str:
        """SHA-256 of provenance (without `VOLATILE`), layout, examples and written blocks; identifies the store in results."""
        provenance = {k: v for k, v in self.provenance.items() if k not in VOLATILE}
        blocks = hashlib.sha256(self.written.tobytes()).hexdigest()
        # the layout as it was written: fields that later versions add must not make another store of it
        return digest([provenance, self._written_layout, self.taken, self.known, blocks])

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.read("example").tolist())}

    def fetch(self, selection: Selection) -> NDArray[Any]:
        """Values in the shape of a selection without its dropped axes, whether recorded or not.

        The caller has made sure that its blocks are written.
        """
        spec = selection.spec
        if spec.by_block:
            values = self._files.read(selection)
        else:
            values = whole_values(self._arrays[spec.name], self.name)
            values = values[np.ix_(*selection.indices)]
        return values.reshape([n for i, n in enumerate(selection.shape) if i not in selection.dropped])
