"""Reading a store: numbers that were recorded, or an error that says why there are none."""

from __future__ import annotations

import hashlib
import itertools
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store

from stratascope.errors import InvalidInputError, NotRecordedError, StoreError, UnwrittenBlockError
from stratascope.store.access import GuardedStore, open_root, open_target
from stratascope.store.layout import RECORDED, StoreLayout
from stratascope.store.packing import decode_maps
from stratascope.store.provenance import VOLATILE, check_attributes, digest
from stratascope.store.selection import Examples, Layers, Positions, Selection, listing, runs, select
from stratascope.store.tables import as_numpy, get_table

if TYPE_CHECKING:
    import pandas as pd


class ActivationStore:
    """A store opened for reading; make one with `ActivationStore.open`.

    What is written is looked up when the store is opened: open it again to see blocks that were written since.
    """

    def __init__(self, target: str | Path | Store, store: GuardedStore, root: zarr.Group, name: str) -> None:
        attributes = dict(root.attrs)
        self.layout: StoreLayout = check_attributes(attributes, name)
        """Shapes of the store."""
        self.provenance: dict[str, Any] = attributes["provenance"]
        """How the store was made."""
        self.taken: dict[str, Any] | None = attributes["taken"]
        """What a copy took of its source; None for an original."""
        self.name = name
        self._target = target
        self._store = store
        self._root = root
        self._known: str = attributes["known"]
        self._arrays = {s.name: _checked_array(root, s, name) for s in self.layout.arrays()}

    @classmethod
    def open(cls, target: str | Path | Store) -> Self:
        """Open a folder, a zip, a URL (http, https, s3, gs, az) or a Zarr store.

        Raises
        ------
        StoreError
            Where there is no store, or one of another format or version, or its metadata are damaged.
        """
        store, name = open_target(target)
        return cls(target, store, open_root(store, name), name)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).open, (self._target,)

    @cached_property
    def written(self) -> NDArray[np.bool_]:
        """(block,) whether each block is written."""
        return as_numpy(self._arrays["written"]) == 1

    @property
    def complete(self) -> bool:
        """Whether every block is written."""
        return bool(self.written.all())

    @cached_property
    def examples(self) -> pd.DataFrame:
        """Table of examples, index 0..n-1: id, image, caption, relation, label, ..., and `status` (0 where unwritten)."""
        others = self._root["examples"]
        frame = get_table(others)  # type: ignore[arg-type]
        frame["id"] = _text(self._arrays["example"])
        frame["relation"] = _text(self._arrays["relation"])
        frame["label"] = as_numpy(self._arrays["label"])
        order: Any = others.attrs["order"]
        return frame[order].assign(status=self.status)

    @cached_property
    def status(self) -> NDArray[np.uint8]:
        """(example,) status codes, 0 where the block is not written; see `layout.STATUS_CODES`."""
        status = np.zeros(self.layout.examples, dtype=np.uint8)
        there = np.flatnonzero(self._written_examples)
        status[there] = self._fetch(select(self.layout, "status", None, None, there))
        return status

    @cached_property
    def spans(self) -> dict[str, NDArray[np.int32]]:
        """Span name -> (example, 2) token intervals [start, stop), -1 where absent."""
        values = as_numpy(self._arrays["spans"])
        return {name: values[:, i] for i, name in enumerate(self.layout.spans)}

    @cached_property
    def n_tokens(self) -> NDArray[np.int32]:
        """(example,) length of each prompt."""
        return as_numpy(self._arrays["n_tokens"])

    @cached_property
    def grid(self) -> NDArray[np.int32]:
        """(example, 2) rows and columns of image cells."""
        return as_numpy(self._arrays["grid"])

    @cached_property
    def position_present(self) -> NDArray[np.bool_]:
        """(example, position) whether each position exists."""
        return as_numpy(self._arrays["position_present"])

    @cached_property
    def has_map(self) -> NDArray[np.bool_]:
        """(example,) whether attention_maps holds the example."""
        return as_numpy(self._arrays["has_map"])

    @cached_property
    def vocabulary(self) -> dict[int, str]:
        """Token id -> text, for the ids that the prompts use."""
        words = get_table(self._root["vocabulary"])  # type: ignore[arg-type]
        return dict(zip(words["id"].tolist(), words["text"].tolist(), strict=True))

    def index_of(self, example_id: str) -> int:
        """Number of an example by its id; NotRecordedError where there is none."""
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
        return self._available(select(self.layout, array, None, position, None))

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
        The array's dimensions less those that fell away: residual (layer, position, example, hidden), attention_rows (layer,
        example, head, token), attention_mean (example, layer, token), attention_maps (example, layer, query, key) packed, ...
        Attention rows are NaN beyond `n_tokens`.

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
            self._require_written(selection)
            self._require_recorded(selection)
        values = self._fetch(selection)
        if selection.spec.by_block and values.dtype.kind == "f" and values.size and np.isnan(values[..., 0]).any():
            raise StoreError(f"{self.name}: expected numbers in {array}, found chunks that were never filled; run `stratascope verify`")
        return values

    def maps(self, example: int, layers: Layers = None) -> NDArray[np.float64]:
        """Attention maps of an example, decoded: (layer, query, key), every row sums to 1. One layer given as a number: (query, key)."""
        packed = self.read("attention_maps", layer=layers, examples=int(example))
        try:
            return decode_maps(packed, int(self.n_tokens[example]))
        except InvalidInputError as error:
            raise StoreError(f"{self.name}: attention_maps of example {example}: {error}; run `stratascope verify`") from error

    def lazy(self, array: str, *, layer: Layers = None, position: Positions = None, examples: Examples = None) -> Any:
        """As `read`, as a Dask array whose chunks follow the files: one task a block."""
        from stratascope.store.lazy import lazy_array

        return lazy_array(self, array, layer, position, examples)

    def to_xarray(self) -> Any:
        """Decoded, lazy xarray Dataset with named dimensions and coordinates; see `lazy.dataset`."""
        from stratascope.store.lazy import dataset

        return dataset(self)

    def size_on_disk(self) -> int | None:
        """Bytes of all files; None where the store lies behind a URL that cannot be listed."""
        from stratascope.store.overview import disk_sizes

        sizes = disk_sizes(self)
        return None if sizes is None else sum(sizes.values())

    def fingerprint(self) -> str:
        """Digest of provenance (all but `VOLATILE`), layout, examples and what is written: the key of results made from it."""
        provenance = {k: v for k, v in self.provenance.items() if k not in VOLATILE}
        blocks = hashlib.sha256(self.written.tobytes()).hexdigest()
        return digest([provenance, self.layout.to_json(), self.taken, self._known, blocks])

    def __repr__(self) -> str:
        from stratascope.store.overview import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        from stratascope.store.overview import as_html

        return as_html(self)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(_text(self._arrays["example"]))}

    @cached_property
    def _written_examples(self) -> NDArray[np.bool_]:
        return np.repeat(self.written, self.layout.block)[: self.layout.examples]

    def _available(self, selection: Selection) -> NDArray[np.bool_]:
        spec = selection.spec
        if not spec.by_block:
            return np.ones(self.layout.examples, dtype=bool)
        if spec.name == "status":
            return self._written_examples.copy()
        mask = self._written_examples & (self.status == RECORDED)
        if spec.name == "attention_maps":
            mask &= self.has_map
        if spec.position_dim is not None:
            names = [self.layout.positions_of(spec.position_dim)[i] for i in selection.along(spec.position_dim)]
            columns = [self.layout.positions.index(n) for n in names if n in self.layout.positions]
            mask &= self.position_present[:, columns].all(1)
        return mask

    def _require_written(self, selection: Selection) -> None:
        numbers = selection.along("example")
        if not (lacking := ~self._written_examples[numbers]).any():
            return
        blocks = np.unique(numbers[lacking] // self.layout.block).tolist()
        raise UnwrittenBlockError(
            f"{self.name}: expected written blocks, found {len(blocks)} not written yet: {listing(blocks)} (of {self.layout.blocks}); "
            f"finish the extraction, or pass examples=store.available({selection.spec.name!r})"
        )

    def _require_recorded(self, selection: Selection) -> None:
        numbers = selection.along("example")
        mask = self._available(selection)
        if mask[numbers].all():
            return
        name = selection.spec.name
        lacking = np.unique(numbers[~mask[numbers]]).tolist()
        raise NotRecordedError(
            f"{self.name}: expected examples that {name} holds, found {len(lacking)} that failed, lack a position or have no map: "
            f"{listing(lacking)}; it holds {int(mask.sum())} of {len(mask)}: pass examples=store.available({name!r}, position)"
        )

    def _fetch(self, selection: Selection) -> NDArray[Any]:
        """Values of a selection, whose blocks are known to be written."""
        spec, array = selection.spec, self._arrays[selection.spec.name]
        dtype = np.dtype(object if spec.dtype == "str" else np.float32 if array.dtype.kind == "f" else spec.dtype)
        axes = [
            list(runs(indices, chunk, self.layout.block if dim == "example" else None))
            for indices, chunk, dim in zip(selection.indices, spec.chunk, spec.dims, strict=True)
        ]
        out: NDArray[Any] | None = None
        for parts in itertools.product(*axes):
            part = self._decode(array, selection, tuple(slice(p.start, p.stop) for p in parts))
            if all(isinstance(p.target, slice) for p in parts):
                out = part.astype(dtype, copy=False)
                break
            if out is None:
                out = np.empty(selection.shape, dtype=dtype)
            out[_orthogonal([p.target for p in parts], selection.shape)] = part[_orthogonal([p.source for p in parts], part.shape)]
        if out is None:
            out = np.empty(selection.shape, dtype=dtype)
        return out.reshape([n for i, n in enumerate(selection.shape) if i not in selection.dropped])

    def _decode(self, array: Any, selection: Selection, where: tuple[slice, ...]) -> NDArray[Any]:
        try:
            return np.asarray(array[where])
        except Exception as error:  # checksums, codecs and files fail in many ways
            text = f"{self.name}: expected whole files of {selection.spec.name}, found {error}{self._damage(array, selection, where)}"
            raise StoreError(text) from error

    def _damage(self, array: Any, selection: Selection, where: tuple[slice, ...]) -> str:
        """Which blocks cannot be read, for a message."""
        if not selection.spec.by_block:
            return "; fetch the store again"
        axis, bad = selection.spec.example_axis, []
        for block in range(where[axis].start // self.layout.block, (where[axis].stop - 1) // self.layout.block + 1):
            members = self.layout.block_examples(block)
            try:
                array[(*where[:axis], slice(members.start, members.stop), *where[axis + 1 :])]
            except Exception:
                bad.append(block)
        return f" (blocks {listing(bad)}); run `stratascope verify --repair` and extract again, or fetch the store again"


def _checked_array(root: zarr.Group, spec: Any, name: str) -> Any:
    """The Zarr array of a spec; StoreError where it is not as the layout says."""
    array: Any = root.get(spec.name)
    if array is None:
        raise StoreError(f"{name}: expected array {spec.name}, found none; the store is damaged: fetch it again")
    dims = tuple(array.metadata.dimension_names or ())
    shards = array.shards if spec.shard is not None else None
    found = (array.shape, dims, array.chunks, shards)
    if found != (spec.shape, spec.dims, spec.chunk, spec.shard):
        wanted = (spec.shape, spec.dims, spec.chunk, spec.shard)
        raise StoreError(f"{name}: expected {spec.name} with shape, dimensions, chunks and shards {wanted}, found {found}; fetch it again")
    return array


def _text(array: Any) -> list[str]:
    return [str(v) for v in as_numpy(array)]


def _orthogonal(picks: list[Any], shape: tuple[int, ...]) -> tuple[Any, ...]:
    if all(isinstance(p, slice) for p in picks):
        return tuple(picks)
    return np.ix_(*[np.arange(n)[p] for p, n in zip(picks, shape, strict=True)])
