"""Ways to keep residuals in a folder, each as its own users would write and read them."""

from __future__ import annotations

import contextlib
import pickle
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stratascope.store import ActivationStore, BlockWriter, StoreLayout, create_store

Blocks = list[tuple[int, np.ndarray]]
"""First example and (layer, example, hidden) float32 of each block, drawn before anything is timed."""


@dataclass(frozen=True)
class Size:
    """Shape of the residuals: layers counts the embedding too."""

    examples: int
    layers: int
    hidden: int
    block: int = 64


@dataclass(frozen=True)
class Format:
    """One way to keep residuals in a folder."""

    name: str
    write: Callable[[Path, Size, Blocks], None]
    opened: Callable[[Path], Any]
    """What the two below are given: a handle that stays open, where the format has one."""
    layer: Callable[[Any, Size, int], np.ndarray]
    """(example, hidden) float32 of one layer."""
    example: Callable[[Any, Size, int], np.ndarray]
    """(layer, hidden) float32 of one example."""
    note: str = ""
    slow: bool = False


def residuals(size: Size, seed: int = 0) -> Blocks:
    """Blocks of residuals; one block's noise is drawn once and rescaled, so that drawing costs little."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=size.hidden) * 0.8)
    scale[rng.choice(size.hidden, 5, replace=False)] *= 60
    noise = rng.standard_t(6, (size.layers, size.block, size.hidden)).astype(np.float32)
    centre = (rng.normal(size=size.hidden) * 0.7).astype(np.float32)

    drawn = []
    for start in range(0, size.examples, size.block):
        n = min(size.block, size.examples - start)
        gain = np.exp(0.1 * np.arange(size.layers) + 0.01 * (start % 97))[:, None, None]
        values = ((np.roll(noise, start, axis=1)[:, :n] + centre) * scale * gain).astype(np.float32)
        drawn.append((start, (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)))
    return drawn


def write_store(folder: Path, size: Size, blocks: Blocks) -> None:
    n = size.examples
    layout = StoreLayout(
        examples=n, layers=size.layers - 1, hidden=size.hidden, heads=1, tokens=1, positions=("final",), spans=("final",),
        choices=("True", "False"), record=frozenset({"residual"}), block=size.block, thumbnail=None, computed_dtype="bfloat16",
    )  # fmt: skip
    examples = pd.DataFrame({"id": [str(i) for i in range(n)], "relation": "under", "label": 0})
    create_store(
        folder / "a.zarr", layout, examples=examples, spans=np.tile([0, 1], (n, 1, 1)), token_ids=np.zeros((n, 1), int),
        vocabulary={0: ""},
        n_tokens=np.ones(n, int), grid=np.ones((n, 2), int), position_present=np.ones((n, 1), bool),
        has_map=np.zeros(n, bool), provenance={},
    )  # fmt: skip
    with BlockWriter(folder / "a.zarr") as writer:
        for start, values in blocks:
            m = values.shape[1]
            arrays = {"residual": values[:, None], "answer_logits": np.zeros((m, 2), np.float32), "status": np.ones(m, np.uint8)}
            writer.write(start // size.block, arrays)


def open_store(folder: Path) -> ActivationStore:
    return ActivationStore.open(folder / "a.zarr")


def layer_of_store(store: ActivationStore, size: Size, layer: int) -> np.ndarray:
    return store.read("residual", layer=layer, position="final")


def example_of_store(store: ActivationStore, size: Size, example: int) -> np.ndarray:
    return store.read("residual", position="final", examples=example)


def open_zarr(folder: Path) -> Any:
    import zarr

    return zarr.open_group(folder / "a.zarr", mode="r")["residual"]


def layer_of_zarr(array: Any, size: Size, layer: int) -> np.ndarray:
    return np.asarray(array[layer, 0])


def example_of_zarr(array: Any, size: Size, example: int) -> np.ndarray:
    return np.asarray(array[:, 0, example])


def write_npy(folder: Path, size: Size, blocks: Blocks) -> None:
    files = [
        np.lib.format.open_memmap(folder / f"{k}.npy", mode="w+", dtype=np.float32, shape=(size.examples, size.hidden))
        for k in range(size.layers)
    ]
    for start, values in blocks:
        for file, rows in zip(files, values, strict=True):
            file[start : start + len(rows)] = rows
    for file in files:
        file.flush()


def layer_of_npy(folder: Path, size: Size, layer: int) -> np.ndarray:
    return np.load(folder / f"{layer}.npy")


def example_of_npy(folder: Path, size: Size, example: int) -> np.ndarray:
    return np.stack([np.load(folder / f"{k}.npy", mmap_mode="r")[example] for k in range(size.layers)])


def write_safetensors(folder: Path, size: Size, blocks: Blocks) -> None:
    from safetensors.numpy import save_file

    whole = np.empty((size.layers, size.examples, size.hidden), np.float32)  # the format cannot grow: everything waits in memory
    for start, values in blocks:
        whole[:, start : start + values.shape[1]] = values
    for k in range(size.layers):
        save_file({"residual": whole[k]}, folder / f"{k}.safetensors")


def layer_of_safetensors(folder: Path, size: Size, layer: int) -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(folder / f"{layer}.safetensors")["residual"]


def example_of_safetensors(folder: Path, size: Size, example: int) -> np.ndarray:
    from safetensors import safe_open

    rows = []
    for k in range(size.layers):
        with safe_open(folder / f"{k}.safetensors", "np") as file:
            rows.append(file.get_slice("residual")[example])
    return np.stack(rows)


def h5_format(name: str, note: str, compression: str | None, dtype: str) -> Format:
    def write(folder: Path, size: Size, blocks: Blocks) -> None:
        import h5py

        with h5py.File(folder / "a.h5", "w") as file:
            shape = (size.layers, size.examples, size.hidden)
            chunks = (1, min(32, size.examples), size.hidden)
            data = file.create_dataset(
                "residual", shape, dtype=dtype, chunks=chunks, compression=compression, shuffle=compression is not None
            )
            for start, values in blocks:
                stored = (values.view(np.uint32) >> 16).astype(np.uint16) if dtype == "u2" else values
                data[:, start : start + values.shape[1]] = stored

    def floats(values: np.ndarray) -> np.ndarray:
        return (values.astype(np.uint32) << 16).view(np.float32) if dtype == "u2" else values

    def opened(folder: Path) -> Any:
        import h5py

        return h5py.File(folder / "a.h5")["residual"]

    def layer(data: Any, size: Size, k: int) -> np.ndarray:
        return floats(data[k])

    def example(data: Any, size: Size, i: int) -> np.ndarray:
        return floats(data[:, i])

    return Format(name, write, opened, layer, example, note)


def write_torch(folder: Path, size: Size, blocks: Blocks) -> None:
    import torch

    for start, values in blocks:
        for i in range(values.shape[1]):
            torch.save(torch.from_numpy(values[:, i].copy()).bfloat16(), folder / f"{start + i}.pt")


def layer_of_torch(folder: Path, size: Size, layer: int) -> np.ndarray:
    import torch

    return np.stack([torch.load(folder / f"{i}.pt")[layer].float().numpy() for i in range(size.examples)])


def example_of_torch(folder: Path, size: Size, example: int) -> np.ndarray:
    import torch

    return torch.load(folder / f"{example}.pt").float().numpy()


def write_sqlite(folder: Path, size: Size, blocks: Blocks) -> None:
    import torch

    with contextlib.closing(sqlite3.connect(folder / "a.db")) as base:
        base.execute("CREATE TABLE tensors (id INTEGER PRIMARY KEY AUTOINCREMENT, example INTEGER, layer TEXT, tensor BLOB)")
        for start, values in blocks:
            for i in range(values.shape[1]):
                for k in range(size.layers):
                    blob = pickle.dumps(torch.from_numpy(values[k, i].copy()).bfloat16())
                    base.execute("INSERT INTO tensors (example, layer, tensor) VALUES (?, ?, ?)", (start + i, f"layer.{k}", blob))
                    base.commit()


def open_sqlite(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "a.db")


def layer_of_sqlite(base: sqlite3.Connection, size: Size, layer: int) -> np.ndarray:
    rows = base.execute("SELECT tensor FROM tensors WHERE layer = ? ORDER BY example", (f"layer.{layer}",))
    return np.stack([pickle.loads(blob).float().numpy() for (blob,) in rows])


def example_of_sqlite(base: sqlite3.Connection, size: Size, example: int) -> np.ndarray:
    rows = base.execute("SELECT tensor FROM tensors WHERE example = ? ORDER BY id", (example,))
    return np.stack([pickle.loads(blob).float().numpy() for (blob,) in rows])


def folder_itself(folder: Path) -> Path:
    return folder


FORMATS = [
    Format("Stratascope store", write_store, open_store, layer_of_store, example_of_store, "checksums, resumable, flushed to the disk"),
    Format("the same files, read by zarr-python", write_store, open_zarr, layer_of_zarr, example_of_zarr, "what any other reader does"),
    Format("np.save, one file a layer", write_npy, folder_itself, layer_of_npy, example_of_npy, "no checksums, size fixed beforehand"),
    Format(
        "safetensors, one file a layer", write_safetensors, folder_itself, layer_of_safetensors, example_of_safetensors,
        "everything held in memory first",
    ),
    h5_format("h5py, bfloat16 as uint16", "one writer only; no floats without a decoder", None, "u2"),
    h5_format("h5py, float32, gzip", "one writer only", "gzip", "f4"),
    Format("torch.save, one file an example", write_torch, folder_itself, layer_of_torch, example_of_torch, "bfloat16", slow=True),
    Format(
        "SQLite, a pickled tensor a row", write_sqlite, open_sqlite, layer_of_sqlite, example_of_sqlite, "bfloat16, a commit a row",
        slow=True,
    ),
]  # fmt: skip
