"""Read arrays from .npy, .npz, .safetensors and .pt files, without running code from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, MissingExtraError

ENDINGS = (".npy", ".npz", ".safetensors", ".pt", ".pth")
"""Endings of files that can be read."""
_NUMBER = re.compile(r"\d+")


def read_tensors(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array of a file, or its arrays by name; floats of 16 bits as float32.

    Raises
    ------
    InvalidInputError
        The file cannot be read, or holds something else than arrays of numbers.
    MissingExtraError
        The package for the file's format is not installed.
    """
    try:
        if path.suffix == ".npy":
            return _plain(np.load(path, mmap_mode="r", allow_pickle=False), path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                return {name: _plain(held[name], path) for name in held.files}
        if path.suffix == ".safetensors":
            return _safetensors(path)
        return torch_tensors(path, str(path))
    except (InvalidInputError, MissingExtraError):
        raise
    except Exception as error:  # each format's library has errors of its own
        raise InvalidInputError(f"{path}: expected arrays in {path.suffix}, found: {str(error).splitlines()[0]}") from error


def torch_tensors(source: Any, name: str) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The tensor, or the tensors by name, that `torch.save` wrote to a path or an open file; nothing else is unpickled.

    Raises
    ------
    InvalidInputError
        If it holds something else.
    MissingExtraError
        If torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError(f"{name}: expected torch to read it, found none; run pip install 'stratascope[extract]'") from error
    held = torch.load(source, map_location="cpu", weights_only=True)
    if isinstance(held, list | tuple):  # transformers' hidden_states: one tensor a layer
        held = {f"layer {k}": tensor for k, tensor in enumerate(held)}
    if isinstance(held, Mapping):
        return {str(key): _of_torch(value, name) for key, value in held.items()}
    return _of_torch(held, name)


def layer_number(name: str) -> int | None:
    """The layer that a name states: its last whole number, None where it has none.

    >>> layer_number("language_model.layers.12"), layer_number("layer-03"), layer_number("final")
    (12, 3, None)
    """
    found = _NUMBER.findall(name)
    return int(found[-1]) if found else None


def layers_of(names: list[str], where: str) -> dict[int, str]:
    """Layer -> name, for names that each state one layer, in ascending order.

    Raises
    ------
    InvalidInputError
        A name states no layer, or two state the same.
    """
    found: dict[int, str] = {}
    for name in names:
        number = layer_number(name)
        if number is None or number in found:
            what = "none" if number is None else f"layer {number} in {found[number]!r} too"
            raise InvalidInputError(f"{where}: expected names that each state a layer, such as layer_12, found {name!r} with {what}")
        found[number] = name
    return dict(sorted(found.items()))


def _safetensors(path: Path) -> dict[str, NDArray[Any]]:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise MissingExtraError(f"{path}: expected safetensors to read it, found none; run pip install 'stratascope[import]'") from error
    try:
        import torch  # noqa: F401 - NumPy has no bfloat16
    except ImportError:
        with safe_open(path, framework="numpy") as held:
            return {name: _plain(held.get_tensor(name), path) for name in held.keys()}  # noqa: SIM118 - no mapping
    with safe_open(path, framework="pt") as held:
        return {name: _of_torch(held.get_tensor(name), str(path)) for name in held.keys()}  # noqa: SIM118 - no mapping


def _of_torch(value: Any, name: str) -> NDArray[Any]:
    if not hasattr(value, "detach"):
        raise InvalidInputError(f"{name}: expected tensors, found {type(value).__name__}; save the tensors alone")
    tensor = value.detach()
    return _plain((tensor.float() if tensor.is_floating_point() else tensor).numpy(), name)


def _plain(array: NDArray[Any], name: object) -> NDArray[Any]:
    if array.dtype.kind not in "fiu":
        raise InvalidInputError(f"{name}: expected numbers, found an array of {array.dtype}")
    return array
