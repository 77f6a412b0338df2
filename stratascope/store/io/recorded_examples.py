"""Recorded examples of an array, and errors that list the missing ones."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import NotRecordedError, UnwrittenBlockError
from stratascope.store.format.arrays import ArraySpec
from stratascope.store.format.generated_positions import with_generated
from stratascope.store.format.layout import RECORDED, StoreLayout
from stratascope.store.io.access import GuardedStore
from stratascope.store.io.selection import Selection, listing, select


class ReadableStore(Protocol):
    """What the functions that read a store need of an `ActivationStore`."""

    name: str
    layout: StoreLayout
    provenance: dict[str, Any]
    files_of: GuardedStore

    @property
    def written(self) -> NDArray[np.bool_]: ...

    @property
    def status(self) -> NDArray[np.uint8]: ...

    @property
    def has_map(self) -> NDArray[np.bool_]: ...

    @property
    def patch_counts(self) -> NDArray[np.integer]: ...

    @property
    def position_present(self) -> NDArray[np.bool_]: ...

    @property
    def n_tokens(self) -> NDArray[np.int32]: ...

    @property
    def examples(self) -> pd.DataFrame: ...

    def read(self, array: str) -> NDArray[Any]: ...

    def fetch(self, selection: Selection) -> NDArray[Any]: ...

    def fingerprint(self) -> str: ...


def written_examples(store: ReadableStore) -> NDArray[np.bool_]:
    """(example,) whether the block of each example is written."""
    return np.repeat(store.written, store.layout.block)[: store.layout.examples]


def present_positions(store: ReadableStore) -> NDArray[np.bool_]:
    """(example, position) whether each position exists: those of generated tokens where an example has that many."""
    present = store.read("position_present")
    if not store.layout.generated:
        return present
    count, there = np.zeros(store.layout.examples, np.int32), np.flatnonzero(written_examples(store))
    count[there] = store.fetch(select(store.layout, "generated_count", None, None, there))
    return with_generated(store.layout.positions, present, count)


def masked_examples(store: ReadableStore, spec: ArraySpec) -> NDArray[np.bool_]:
    """(example,) which examples the mask of an array keeps."""
    return store.has_map if spec.mask == "has_map" else store.patch_counts > 0


def held_examples(store: ReadableStore, selection: Selection) -> NDArray[np.bool_]:
    """(example,) whether the array has an example: written, recorded, with all selected positions, with a map."""
    spec = selection.spec
    if not spec.by_block:
        return np.ones(store.layout.examples, dtype=bool)
    if spec.name == "status":
        return written_examples(store)
    mask = written_examples(store) & (store.status == RECORDED)
    if spec.name == "attention_maps":
        mask &= store.has_map
    if spec.mask:
        mask &= masked_examples(store, spec)
    if spec.position_dim is not None:
        names = [store.layout.positions_of(spec.position_dim)[i] for i in selection.along(spec.position_dim)]
        columns = [store.layout.positions.index(n) for n in names if n in store.layout.positions]
        mask &= store.position_present[:, columns].all(1)
    return np.asarray(mask)


def require_written(store: ReadableStore, selection: Selection) -> None:
    """Refuse a selection of examples whose blocks are not written; UnwrittenBlockError names the blocks."""
    blocks = np.unique(selection.along("example") // store.layout.block)
    lacking = blocks[~store.written[blocks]].tolist()
    if lacking:
        raise UnwrittenBlockError(
            f"{store.name}: expected written blocks, found {len(lacking)} not written yet: {listing(lacking)} (of {len(store.written)}); "
            "finish the extraction, or select written examples",
            in_python=f"examples=store.available({selection.spec.name!r})",
        )


def require_recorded(store: ReadableStore, selection: Selection) -> None:
    """Refuse a selection of examples that failed, lack a position or have no map; NotRecordedError lists them."""
    numbers = selection.along("example")
    mask = held_examples(store, selection)
    if mask[numbers].all():
        return
    name = selection.spec.name
    lacking = np.unique(numbers[~mask[numbers]]).tolist()
    place = "" if selection.spec.position_dim is None else ", position"
    kept = "no patches" if selection.spec.mask == "has_patches" else "no map"
    raise NotRecordedError(
        f"{store.name}: expected examples that {name} holds, found {len(lacking)} that failed, lack a position or have {kept}: "
        f"{listing(lacking)}; it holds {int(mask.sum())} of {len(mask)}; select from those",
        in_python=f"examples=store.available({name!r}{place})",
    )
