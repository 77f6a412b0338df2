"""Lazy Dask arrays and xarray datasets of a store."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import MissingExtraError, StoreError
from stratascope.store.format.layout import RECORDED
from stratascope.store.format.packing import decode_maps
from stratascope.store.io.recorded_examples import ReadableStore, require_recorded, require_written
from stratascope.store.io.selection import Examples, Layers, Positions, Selection, select

Store = TypeVar("Store", bound=ReadableStore)


def lazy_array(store: ReadableStore, array: str, layer: Layers, position: Positions, examples: Examples) -> Any:
    """A selection as a Dask array with one chunk per layer, position and shard block, of patches per layer and example.

    Tasks carry the store's address, never values: a worker opens the store itself. What is unwritten or not recorded raises here,
    before anything is computed.
    """
    selection = select(store.layout, array, layer, position, examples)
    if selection.spec.by_block:
        require_written(store, selection)
        require_recorded(store, selection)
    return _assembled(_Source(store, selection, strict=True))


def dataset(store: ReadableStore, names: Collection[str] | None = None) -> Any:
    """Decoded, lazy xarray Dataset: arrays as variables, maps as weights, the table of examples as coordinates.

    Positions that are absent and examples that failed are NaN; computing an unwritten block raises UnwrittenBlockError.

    Parameters
    ----------
    store
        The store.
    names
        Arrays to include; all by default.

    Raises
    ------
    MissingExtraError
        If xarray is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise MissingExtraError("expected the package xarray for to_xarray, found none; run pip install 'stratascope[xarray]'") from error
    coordinates: dict[str, Any] = {}
    variables: dict[str, Any] = {}
    for spec in store.layout.arrays():
        if spec.when == "marker" or (names is not None and spec.name not in (*names, *spec.dims)):
            continue
        attributes = {"description": spec.description}
        if spec.by_block:
            source = _Source(store, select(store.layout, spec.name, None, None, None), strict=False)
            variables[spec.name] = (spec.dims, _assembled(source), attributes)
        elif spec.name in spec.dims:
            coordinates[spec.name] = (spec.dims, store.read(spec.name), attributes)
        elif spec.name not in ("relation", "label"):
            variables[spec.name] = (spec.dims, store.read(spec.name), attributes)
    for column in store.examples.columns:
        if column not in ("id", "status"):
            values = store.examples[column]
            coordinates[column] = ("example", values.to_numpy(dtype=object if values.dtype.kind == "O" else None))
    return xarray.Dataset(variables, coordinates, {"provenance": store.provenance, "source": store.name})


@lru_cache(maxsize=8)
def reopened(opens: Callable[[Any], Store], target: Any, fingerprint: str) -> Store:
    """Open a store by its address, once for all tasks of a process; StoreError where another store lies there now."""
    store = opens(target)
    if store.fingerprint() != fingerprint:
        raise StoreError(
            f"{store.name}: expected the store that was open when the task was made, found another or more blocks; start again"
        )
    return store


class _Source:
    """An array-like for Dask that reads slices on demand and pickles as the store's address."""

    def __init__(self, store: ReadableStore, selection: Selection, *, strict: bool) -> None:
        self.store, self.selection, self.strict = store, selection, strict
        self.shape = selection.shape
        self.ndim = len(self.shape)
        packed = selection.spec.name == "attention_maps" and not strict
        kind = np.dtype(selection.spec.dtype).kind
        self.dtype = np.dtype(np.float32 if kind == "f" or packed else selection.spec.dtype)
        self._decode = packed

    def __getitem__(self, where: tuple[slice, ...]) -> NDArray[Any]:
        # a row of a map can only be renormalised whole, whatever part of it Dask asks for
        read = (*where[:2], slice(None), slice(None)) if self._decode else where
        part = Selection(self.selection.spec, tuple(i[w] for i, w in zip(self.selection.indices, read, strict=True)), ())
        if part.spec.by_block:
            require_written(self.store, part)
        values = self.store.fetch(part)
        return self._decoded(values, part.along("example"))[:, :, where[2], where[3]] if self._decode else values

    def _decoded(self, packed: NDArray[Any], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """Maps as weights, NaN where there is no map and beyond each prompt."""
        out = np.full(packed.shape, np.nan, dtype=np.float32)
        for i, example in enumerate(numbers):
            if self.store.has_map[example] and self.store.status[example] == RECORDED:
                t = int(self.store.n_tokens[example])
                out[i, :, :t, :t] = decode_maps(packed[i], t)
        return out


def _assembled(source: _Source) -> Any:
    import dask.array as da

    selection, spec = source.selection, source.selection.spec
    chunks = []
    for axis, dim in enumerate(spec.dims):
        indices = selection.indices[axis]
        if dim == "example" and spec.mask:
            chunks.append((1,) * len(indices) or (0,))
        elif dim == "example":
            block = source.store.layout.block
            bounds = np.flatnonzero(np.diff(indices // block)) + 1
            chunks.append(tuple(np.diff([0, *bounds, len(indices)]).tolist()) if len(indices) else (0,))
        elif dim in (spec.layer_dim, spec.position_dim) and spec.chunk[axis] == 1:
            chunks.append((1,) * len(indices) or (0,))
        else:
            chunks.append((len(indices),))
    array = da.from_array(
        source, chunks=tuple(chunks), asarray=False, fancy=False, inline_array=True, meta=np.empty((0,) * source.ndim, source.dtype)
    )
    for axis in sorted(selection.dropped, reverse=True):
        array = array[(slice(None),) * axis + (0,)]
    return array
