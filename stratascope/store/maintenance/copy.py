"""Copy a store or a part of it to a folder, zip or bucket."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError, StoreError
from stratascope.store.format.arrays import GENERATED, ArraySpec
from stratascope.store.format.generated_positions import generated_number
from stratascope.store.format.layout import StoreLayout
from stratascope.store.format.provenance import digest
from stratascope.store.format.shards import decode_file, encode_chunk, encode_file
from stratascope.store.io.create import empty_store
from stratascope.store.io.overview import LENS, bytes_text
from stratascope.store.io.reader import ActivationStore
from stratascope.store.io.readout import stored_files
from stratascope.store.io.recorded_examples import masked_examples, require_written
from stratascope.store.io.remote import refuse_unwritable
from stratascope.store.io.remote_errors import UnreachableError
from stratascope.store.io.selection import Examples, Layers, Positions, Selection, example_numbers, listing
from stratascope.store.io.shard_reader import byte_source
from stratascope.store.io.store_files import place_of
from stratascope.store.maintenance.bucket_target import BucketTarget
from stratascope.store.maintenance.copy_target import CopyTarget, FolderTarget, ZipTarget
from stratascope.store.maintenance.hub_copies import HubTarget

if TYPE_CHECKING:
    from zarr.abc.store import Store

ALWAYS = ("answer_logits", "status")
"""Arrays that every copy contains."""


def copy_store(
    source: str | Path | Store | ActivationStore,
    target: str | Path | HubTarget,
    *,
    arrays: str | Sequence[str] | None = None,
    layers: Layers = None,
    positions: Positions = None,
    examples: Examples = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Copy a store, or a part of it.

    The copy is a valid store with the same provenance; its attribute `taken` records which part of which store it holds. Every chunk is
    verified; a complete copy equals its source byte for byte. The copy is read back before it gets its name. After an interruption or
    a network failure, the same call resumes a copy to a folder or a bucket.

    Parameters
    ----------
    source
        Folder, zip, URL, Zarr store or open store.
    target
        New folder, new zip if the name ends in .zip, new address in a bucket (s3, gs, az), or a target in a repository of the Hub.
    arrays
        Arrays besides answer_logits and status; None for all. Thumbnails are copied only if named or if `arrays` is None.
    layers
        Decoder layers, for residuals (0..L) and attention (0..L-1) alike; None for all.
    positions
        Positions; None for all.
    examples
        Example numbers or a mask; None for all, including blocks that are not written yet.
    progress
        Called with (blocks done, blocks).

    Returns
    -------
    pandas.DataFrame
        Contents of the copy: array, shape, bytes.

    Raises
    ------
    StoreError
        The target exists, cannot be written or loses files, or the source is damaged.
    UnreachableError
        A server does not answer or refuses.
    NotRecordedError
        The source lacks an array, layer, position or example.
    UnwrittenBlockError
        `examples` names examples that are not written yet.
    InvalidInputError
        No example is selected, or one is named twice.
    """
    store = source if isinstance(source, ActivationStore) else ActivationStore.open(source)
    hub = target if isinstance(target, HubTarget) else None
    path = place_of(target.partial if isinstance(target, HubTarget) else target)
    zipped = hub is None and str(path).lower().endswith(".zip")
    if isinstance(path, str) and hub is None:
        refuse_unwritable(path)
        if zipped:
            raise StoreError(f"{path}: expected a name that does not end in .zip, found a zip at an address; copy to a zip on a disk")
    elif hub is None and os.path.lexists(path):
        raise StoreError(f"{path}: expected a new path, found an existing one; choose another or remove it")
    numbers = example_numbers(store.layout.examples, examples)
    if not len(numbers):
        raise InvalidInputError("examples: expected at least one example to take, found none")
    if len(np.unique(numbers)) != len(numbers):
        raise InvalidInputError("examples: expected each example once, found some twice")
    arrays, positions = (None if names is None else (names,) if isinstance(names, str) else tuple(names) for names in (arrays, positions))
    layers = (layers,) if isinstance(layers, int | np.integer) else layers
    layout = _taken_layout(store.layout, arrays, layers, positions, None if examples is None else len(numbers))
    if examples is not None:
        require_written(store, _selection(store, layout, "status", numbers))
    taken = _taken(store, layout, numbers if examples is not None else None)
    sizes: dict[str, int] = {}
    whole = digest([store.fingerprint(), layout.to_json(), numbers.tolist() if examples is not None else None])
    into: CopyTarget | None = None
    blocks = [b for b in range(layout.blocks) if examples is not None or store.written[b]]
    done = 0
    try:
        if hub is not None:
            into = hub
            hub.begin(whole)
        else:
            into = BucketTarget(path, whole) if isinstance(path, str) else ZipTarget(path) if zipped else FolderTarget(path, whole)
        born, known = _known(store, layout, numbers)
        empty = empty_store(layout, born, known, store.vocabulary, store.provenance, taken)
        with closing(_results([[partial(into.put, key, partial(_whole, data)) for key, data in empty.items()]], into.at_once)) as results:
            list(results)
        specs = {s.name: s for s in layout.arrays()}
        by_block = [spec for spec in specs.values() if spec.by_block]
        tasks = ([partial(_copy_file, store, layout, numbers, into, spec, block) for spec in by_block] for block in blocks)
        with closing(_results(tasks, into.at_once)) as results:
            for block, found in zip(blocks, results, strict=True):
                for spec, size in zip(by_block, found, strict=True):
                    sizes[spec.name] = sizes.get(spec.name, 0) + size
                into.put(f"written/c/{block}", partial(_whole, encode_chunk(specs["written"], np.ones(1, np.uint8))))
                done += 1
                if progress is not None:
                    progress(done, len(blocks))
        if "residual" in layout.record:
            for key, data in stored_files(byte_source(store.files_of), store.name).items():
                sizes[LENS] = sizes.get(LENS, 0) + into.put(key, partial(_whole, data))
        into.commit()
    except BaseException as error:
        # a server that is out of reach, and whoever stops the copy, lose nothing
        resumable = isinstance(error, UnreachableError) or not isinstance(error, Exception)
        if into is not None:
            into.discard(resumable=resumable)
        if isinstance(error, UnreachableError) and isinstance(into, FolderTarget | BucketTarget | HubTarget):
            copied = f"{done} of {len(blocks)} blocks are copied"
            raise UnreachableError(
                f"{error.message}; {copied}: run the same command to continue from there ({into.partial} holds them)"
            ) from error
        if isinstance(error, OSError):
            raise StoreError(f"{path}: expected to write the copy, found: {error}; make room or choose another path") from error
        raise
    rows = [(name, specs[name].shape if name in specs else (), size) for name, size in sizes.items()]
    return pd.DataFrame(rows, columns=["array", "shape", "bytes"])


def copy_summary(target: str | Path, taken: pd.DataFrame) -> str:
    """Lines of text on what `copy_store` copied to `target`: one for each array in `taken`, and the total."""
    lines = [
        f"{array:<18} {' x '.join(map(str, shape)):<32} {bytes_text(int(size)):>9}"
        for array, shape, size in zip(taken["array"], taken["shape"], taken["bytes"], strict=True)
    ]
    return "\n".join([*lines, f"{target}: {bytes_text(int(taken['bytes'].sum()))}"])


def _whole(data: bytes) -> list[bytes]:
    return [data]


def _copy_file(
    store: ActivationStore, layout: StoreLayout, numbers: NDArray[np.int64], into: CopyTarget, spec: ArraySpec, block: int
) -> int:
    """Copy the values of an array of a block; the bytes of its file."""
    members = layout.block_examples(block)
    chosen = numbers[members.start : members.stop]
    held = masked_examples(store, spec)[chosen] if spec.mask else None
    size = _kept(into, spec, spec.key(block), len(members), held)
    if size is not None:
        return size
    values = store.fetch(_selection(store, layout, spec.name, chosen if held is None else chosen[held]))
    return into.put(spec.key(block), partial(encode_file, spec, values, held))


def _results(tasks: Iterable[Sequence[Callable[[], int]]], at_once: int) -> Generator[list[int], None, None]:
    """Results of the tasks of each group, such as a block, in order; `at_once` tasks run at once, of two groups at most."""
    if at_once == 1:
        yield from ([task() for task in each] for each in tasks)
        return
    with ThreadPoolExecutor(at_once) as pool:
        try:
            running: deque[list[Future[int]]] = deque()
            for each in tasks:
                running.append([pool.submit(task) for task in each])
                if len(running) == 2:
                    yield [task.result() for task in running.popleft()]
            for last in running:
                yield [task.result() for task in last]
        finally:
            pool.shutdown(cancel_futures=True)


def _kept(into: CopyTarget, spec: ArraySpec, key: str, examples: int, held: NDArray[np.bool_] | None) -> int | None:
    """Size of a file that an earlier copy of the same left, where it is whole."""
    data = into.kept(key)
    if data is None:
        return None
    try:
        decode_file(spec, data, examples, held)
    except StoreError:
        return None
    return into.keep(key, data)


def _taken_layout(
    layout: StoreLayout, arrays: Sequence[str] | None, layers: Sequence[int] | None, positions: Sequence[str] | None, count: int | None
) -> StoreLayout:
    """The layout of the copy; `count` examples, or all."""
    changes: dict[str, Any] = {} if count is None else {"examples": count}
    if layers is not None:
        odd = [k for k in layers if k not in layout.residual_layers]
        if odd:
            raise NotRecordedError(f"expected layers that the store holds, found {odd}; it holds {listing(layout.residual_layers)}")
        changes["kept_layers"] = tuple(sorted(set(layers)))
    if positions is not None:
        known = (*layout.positions, *layout.vision_positions)
        odd_names = [p for p in positions if p not in known]
        if odd_names:
            raise NotRecordedError(f"expected positions that the store holds, found {', '.join(odd_names)}; it holds {', '.join(known)}")
        changes["positions"] = tuple(p for p in layout.positions if p in positions)
        changes["vision_positions"] = tuple(p for p in layout.vision_positions if p in positions)
    if arrays is not None:
        held = [s.name for s in layout.arrays() if s.by_block]
        unknown = [a for a in arrays if a not in held]
        if unknown:
            raise NotRecordedError(f"expected arrays that the store holds, found {', '.join(unknown)}; it holds {', '.join(held)}")
        changes["record"] = frozenset(arrays) - {*ALWAYS, *GENERATED, "thumbnail"}
        answers = any(generated_number(name) is not None for name in changes.get("positions", layout.positions))
        if not (set(arrays) & set(GENERATED) or (answers and "residual" in arrays)):
            changes["generated"] = 0
        if "thumbnail" not in arrays:
            changes["thumbnail"] = None
    return layout.subset(**changes)


def _selection(store: ActivationStore, layout: StoreLayout, array: str, numbers: NDArray[np.int64]) -> Selection:
    """Where the copy's values of an array lie in the source."""
    spec = store.layout.array(array)
    indices = []
    for dim, length in zip(spec.dims, spec.shape, strict=True):
        if dim == "example":
            indices.append(numbers)
        elif dim == spec.layer_dim:
            held = store.layout.layers_of(dim)
            indices.append(np.array([held.index(k) for k in layout.layers_of(dim)], dtype=np.int64))
        elif dim == spec.position_dim:
            names = store.layout.positions_of(dim)
            indices.append(np.array([names.index(p) for p in layout.positions_of(dim)], dtype=np.int64))
        else:
            indices.append(np.arange(length))
    return Selection(spec, tuple(indices), ())


def _known(store: ActivationStore, layout: StoreLayout, numbers: NDArray[np.int64]) -> tuple[pd.DataFrame, dict[str, NDArray[Any]]]:
    """Table of examples and arrays that the source knew before its model ran, for the examples that are taken."""
    names = ("spans", "token_ids", "n_tokens", "grid", "has_map")
    known = {name: store.read(name, examples=numbers) for name in names}
    if "has_patches" in {s.name for s in layout.arrays()}:
        known["has_patches"] = store.patch_counts[numbers] > 0
    columns = [store.layout.positions.index(p) for p in layout.positions]
    known["position_present"] = store.read("position_present", examples=numbers)[:, columns]
    examples = store.examples.drop(columns="status").iloc[numbers].reset_index(drop=True)
    return examples, known


def _taken(store: ActivationStore, layout: StoreLayout, numbers: NDArray[np.int64] | None) -> dict[str, Any] | None:
    """What the copy says of itself; a whole copy is its source and says what that says."""
    if numbers is None and layout == store.layout:
        return store.taken
    return {
        "from": store.fingerprint(),
        "arrays": [s.name for s in layout.arrays() if s.by_block],
        "layers": list(layout.residual_layers),
        "positions": list(layout.positions),
        "examples": layout.examples,
        "of_examples": store.layout.examples,
        "numbers": None if numbers is None else numbers.tolist(),
        "before": store.taken,
    }
