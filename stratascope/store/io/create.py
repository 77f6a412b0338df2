"""Create an empty store atomically, with everything known before the model runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from stratascope.errors import InvalidInputError, StoreError
from stratascope.store.format.arrays import LAYER_DIMS, NUMBER_ROWS, SHOWN_ROWS, TABLE_ROWS, WORD_ROWS, ArraySpec, paged
from stratascope.store.format.layout import STATUS_CODES, StoreLayout
from stratascope.store.format.provenance import label_kind, store_attributes
from stratascope.store.format.shards import ZSTD_LEVEL
from stratascope.store.format.tables import AT_ONCE, put_array, put_table
from stratascope.store.io.durable import PARTIAL, move_folder, write_file
from stratascope.store.io.store_files import create_in_bucket, place_of

ROOT_COLUMNS = {"id": "example", "relation": "relation", "label": "label"}
"""Columns of the table of examples that are arrays of the root group, for xarray's coordinates."""


def create_store(
    path: str | Path,
    layout: StoreLayout,
    *,
    examples: pd.DataFrame,
    spans: NDArray[Any],
    token_ids: NDArray[Any],
    vocabulary: Mapping[int, str],
    n_tokens: NDArray[Any],
    grid: NDArray[Any],
    position_present: NDArray[Any],
    has_map: NDArray[Any],
    has_patches: NDArray[Any] | None = None,
    provenance: Mapping[str, Any],
) -> None:
    """Create a store without any written block.

    Parameters
    ----------
    path
        Folder to create, or an address in a bucket (s3, gs, az). It appears whole or not at all.
    examples
        One row an example: id (text, unique), relation (text), label (0 or 1; with several answers the number of the right one),
        and any further columns of numbers or text.
    spans
        (example, span, 2) token intervals, [start, stop); -1 where absent.
    token_ids
        (example, token), -1 beyond `n_tokens`.
    vocabulary
        Text of every token id that is used.
    n_tokens
        (example,) length of each prompt.
    grid
        (example, 2) rows and columns of image cells.
    position_present
        (example, position) whether the position exists in the example.
    has_map
        (example,) whether attention_maps will hold the example.
    has_patches
        (example,) whether patch_residual will hold the example; needed where the layout records it.
    provenance
        Plain JSON: model, processor, data hashes, versions, ...

    Raises
    ------
    InvalidInputError
        An argument does not fit the layout; the message names it.
    StoreError
        `path` exists or cannot be written.
    UnreachableError
        A server refuses or does not answer.
    """
    known = {
        "spans": spans, "token_ids": token_ids, "n_tokens": n_tokens, "grid": grid,
        "position_present": position_present, "has_map": has_map,
        **({} if has_patches is None else {"has_patches": has_patches}),
    }  # fmt: skip
    place = place_of(path)
    if isinstance(place, str):
        create_in_bucket(place, empty_store(layout, examples, known, vocabulary, provenance))
        return
    target = place
    if os.path.lexists(target):
        raise StoreError(f"{target}: expected a new path, found an existing one; choose another, resume extraction into it, or remove it")
    files = empty_store(layout, examples, known, vocabulary, provenance)
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}{PARTIAL}")
    try:
        for key, data in files.items():
            write_file(partial / key, [data])
        move_folder(partial, target, {key: hashlib.sha256(data).digest() for key, data in files.items()})
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise StoreError(f"{target}: expected to create the store, found: {error}; free space or choose another path") from error
        raise


def empty_store(
    layout: StoreLayout,
    examples: pd.DataFrame,
    known: Mapping[str, NDArray[Any]],
    vocabulary: Mapping[int, str],
    provenance: Mapping[str, Any],
    taken: Mapping[str, Any] | None = None,
) -> dict[str, bytes]:
    """Files of a store without any written block, as key -> bytes; the root's metadata come last.

    `known` holds the arrays of `create_store` by name; `taken` describes which part of its source a copy holds.
    """
    _check_examples(layout, examples, provenance)
    ids = np.array(sorted(int(k) for k in vocabulary), dtype=np.int32)
    values = {**_coordinates(layout), **known}
    for column, name in ROOT_COLUMNS.items():
        values[name] = examples[column].to_numpy(dtype=np.int64 if column == "label" else object)
    _check_known(layout, values, ids)
    files: dict[str, Any] = {}
    store = MemoryStore(files)
    group = zarr.create_group(store)
    for spec in layout.arrays():
        if spec.when == "creation":
            dtype = object if spec.dtype == "str" else spec.dtype
            known_values = np.asarray(values[spec.name]).astype(dtype, copy=False)
            put_array(group, spec.name, known_values, spec.dims, chunk=spec.chunk, fill=spec.fill,
                      attributes=_attributes(layout, spec))  # fmt: skip
        else:
            _declare(group, layout, spec)
    others = examples.drop(columns=list(ROOT_COLUMNS)).reset_index(drop=True)
    put_table(group, "examples", others, "example", rows=TABLE_ROWS, numbers=NUMBER_ROWS,
              pages={"caption": paged(SHOWN_ROWS, layout.examples)})  # fmt: skip
    group["examples"].attrs["order"] = [str(c) for c in examples.columns]
    words = _by_use(ids, np.asarray(values["token_ids"]))
    put_table(group, "vocabulary", pd.DataFrame({"id": words, "text": [str(vocabulary[int(i)]) for i in words]}), "word", rows=WORD_ROWS)
    group.attrs.update(store_attributes(layout, provenance, known_digest(_as_bytes(files)), taken))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidated metadata is an extension that zarr-python, xarray and zarrita share
        zarr.consolidate_metadata(store)
    plain = {key: _compact(data) if key.endswith("zarr.json") else data for key, data in _as_bytes(files).items()}
    return dict(sorted(plain.items(), key=lambda item: (item[0] == "zarr.json", item[0])))


def known_digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 of the chunks written at creation, in the order of their keys."""
    total = hashlib.sha256()
    for key in sorted(k for k in files if not k.endswith("zarr.json")):
        total.update(key.encode() + b"\0" + hashlib.sha256(files[key]).digest())
    return total.hexdigest()


def _declare(group: zarr.Group, layout: StoreLayout, spec: ArraySpec) -> None:
    """Create the metadata of an array whose files are written later, by block."""
    compressors: list[Any] = [Crc32cCodec()]
    if spec.codec == "floats":
        size = np.dtype(spec.dtype).itemsize
        compressors.insert(0, BloscCodec(typesize=size, cname="lz4", clevel=5, shuffle="bitshuffle", blocksize=0))
    elif spec.codec == "zstd":
        compressors.insert(0, ZstdCodec(level=ZSTD_LEVEL, checksum=False))
    group.create_array(
        spec.name, shape=spec.shape, dtype=spec.dtype, chunks=spec.chunk, shards=spec.shard, fill_value=spec.fill,
        compressors=compressors, dimension_names=spec.dims, attributes=_attributes(layout, spec),
    )  # fmt: skip


def _attributes(layout: StoreLayout, spec: ArraySpec) -> dict[str, Any]:
    attributes: dict[str, Any] = {"description": spec.description}
    if spec.name == "status":
        attributes |= {"flag_values": list(STATUS_CODES.values()), "flag_meanings": " ".join(STATUS_CODES)}
    if spec.name == "attention_maps":
        attributes |= {"fusion": layout.fusion, "decode": "square, then divide each row by its sum"}
    if spec.codec == "floats":
        attributes |= {"computed_dtype": layout.computed_dtype}
    return attributes


def _coordinates(layout: StoreLayout) -> dict[str, NDArray[Any]]:
    numbers = {d: np.array(layout.layers_of(d), dtype=np.int32) for d in LAYER_DIMS}
    named = {s.name: layout.names_of(s.name) for s in layout.arrays() if s.codec == "text"}
    return {**numbers, **{name: np.array(names, dtype=object) for name, names in named.items() if names is not None}}


def _check_examples(layout: StoreLayout, examples: pd.DataFrame, provenance: Mapping[str, Any]) -> None:
    missing = [c for c in ROOT_COLUMNS if c not in examples.columns]
    if missing:
        raise InvalidInputError(f"examples: expected columns {', '.join(ROOT_COLUMNS)}, found none of name {', '.join(missing)}")
    if len(examples) != layout.examples:
        raise InvalidInputError(f"examples: expected {layout.examples} rows, as the layout says, found {len(examples)}")
    for column in ("id", "relation"):
        odd = [v for v in examples[column] if not isinstance(v, str)]
        if odd:
            raise InvalidInputError(f"examples: expected text in column {column}, found {odd[0]!r}")
    twice = examples["id"][examples["id"].duplicated()]
    if len(twice):
        raise InvalidInputError(f"examples: expected unique ids, found {twice.iloc[0]!r} more than once")
    kind = label_kind(provenance)
    known = range(len(layout.choices)) if kind == "choice" else range(-1, 0) if kind == "none" else range(2)
    odd = [v for v in examples["label"] if v not in known]
    if odd:
        expected = "0 or 1" if known == range(2) else "-1" if kind == "none" else f"0 to {len(known) - 1}"
        raise InvalidInputError(f"examples: expected label {expected}, found {odd[0]!r}")


def _check_known(layout: StoreLayout, values: Mapping[str, NDArray[Any]], vocabulary: NDArray[np.int32]) -> None:
    for spec in layout.arrays():
        if spec.when == "creation" and (found := np.shape(values.get(spec.name, np.array(None)))) != spec.shape:
            raise InvalidInputError(f"{spec.name}: expected shape {spec.shape} {spec.dims}, as the layout says, found {found}")
    lengths = np.asarray(values["n_tokens"])
    if lengths.min() < 1 or lengths.max() > layout.tokens:
        raise InvalidInputError(f"n_tokens: expected 1 to {layout.tokens} tokens, found {lengths.min()} to {lengths.max()}")
    if "has_patches" in values:
        most = int((np.asarray(values["grid"]).prod(1) * np.asarray(values["has_patches"])).max())
        if most > layout.patches:
            raise InvalidInputError(f"patches: expected the most image cells of an example with patches, {most}, found {layout.patches}")
    for rows, ids in _row_pieces(np.asarray(values["token_ids"])):
        inside = np.arange(layout.tokens) < lengths[rows, None]
        if (ids[inside] < 0).any() or (ids[~inside] != -1).any():
            raise InvalidInputError("token_ids: expected ids up to n_tokens and -1 beyond, found otherwise; pad on the right with -1")
        unknown = np.setdiff1d(ids[inside], vocabulary)
        if unknown.size:
            raise InvalidInputError(f"vocabulary: expected the text of every token id, found none for {unknown[:5].tolist()}")
    spans = np.asarray(values["spans"])
    absent = (spans == -1).all(-1)
    good = absent | ((spans[..., 0] >= 0) & (spans[..., 0] <= spans[..., 1]) & (spans[..., 1] <= lengths[:, None]))
    if not good.all():
        example, span = np.argwhere(~good)[0]
        raise InvalidInputError(
            f"spans: expected 0 <= start <= stop <= {lengths[example]} tokens, or -1 and -1, found {spans[example, span].tolist()} "
            f"for span {layout.spans[span]!r} of example {example}"
        )


def _by_use(vocabulary: NDArray[np.int32], token_ids: NDArray[Any]) -> NDArray[np.int32]:
    """Ids that prompts use come first, the most used at the start: a reader of one prompt needs the first words alone."""
    counts = np.zeros(len(vocabulary), np.int64)
    for _, ids in _row_pieces(token_ids):
        used, of_piece = np.unique(ids[ids >= 0], return_counts=True)
        counts[np.searchsorted(vocabulary, used)] += of_piece
    used = counts > 0
    first = vocabulary[used][np.argsort(-counts[used], kind="stable")]
    return np.concatenate([first, vocabulary[~used]]).astype(np.int32)


def _row_pieces(values: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Some rows of an array at a time, because the temporary arrays of a check are as large as what is checked."""
    step = max(1, AT_ONCE // max(1, values[:1].nbytes))
    for start in range(0, len(values), step):
        rows = slice(start, start + step)
        yield rows, values[rows]


_SILENT: dict[str, Any] = {"storage_transformers": [], "attributes": {}, "consolidated_metadata": None}
"""What a node's metadata need not say: without the key it means the same."""


def _compact(data: bytes) -> bytes:
    """Metadata without white space, which is half of what the first look at a remote store would fetch, and without empty fields."""
    root = json.loads(data)
    nodes = (root.get("consolidated_metadata") or {}).get("metadata", {}).values()
    for node in (root, *nodes):
        for name, silent in _SILENT.items():
            if name in node and node[name] == silent:
                del node[name]
    return json.dumps(root, separators=(",", ":"), ensure_ascii=False).encode()


def _as_bytes(files: Mapping[str, Any]) -> dict[str, bytes]:
    return {k: v.to_bytes() if hasattr(v, "to_bytes") else bytes(v) for k, v in files.items()}
