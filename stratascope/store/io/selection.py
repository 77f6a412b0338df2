"""Selection of layers, positions and examples as indices along an array's axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store.format.arrays import ArraySpec
from stratascope.store.format.layout import StoreLayout

Layers = int | Sequence[int] | None
Positions = str | Sequence[str] | None
Examples = int | Sequence[int] | NDArray[Any] | None


@dataclass(frozen=True)
class Selection:
    """Indices along every axis of an array, and the axes to drop."""

    spec: ArraySpec
    indices: tuple[NDArray[np.int64], ...]
    dropped: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with every axis kept."""
        return tuple(len(i) for i in self.indices)

    @property
    def dims(self) -> tuple[str, ...]:
        """Dimensions that are not dropped."""
        return tuple(d for i, d in enumerate(self.spec.dims) if i not in self.dropped)

    def along(self, dim: str) -> NDArray[np.int64]:
        """Indices along one dimension."""
        return self.indices[self.spec.dims.index(dim)]


def one_of(name: str, one: Any, several: Any) -> Any:
    """The value of a parameter that has two names, such as `layer` and `layers`; InvalidInputError where both are given."""
    if one is not None and several is not None:
        raise InvalidInputError(f"expected {name} or {name}s, found both: {one!r} and {several!r}; give one of them")
    return several if one is None else one


def select(layout: StoreLayout, array: str, layer: Layers, position: Positions, examples: Examples) -> Selection:
    """Resolve layers, positions and examples to indices.

    Raises
    ------
    NotRecordedError
        For an array, layer or position that the store does not hold; it lists what there is.
    InvalidInputError
        For a layer or position of an array that has none, or examples that are no numbers within range.
    """
    spec = layout.array(array)
    indices = [np.arange(n) for n in spec.shape]
    dropped: list[int] = []
    wanted: list[tuple[str, str | None, Any]] = [("layer", spec.layer_dim, layer), ("position", spec.position_dim, position)]
    for what, dim, asked in wanted:
        if asked is None:
            continue
        if dim is None:
            raise InvalidInputError(
                f"{array}: expected no {what}, because it is an array by {', '.join(spec.dims)} alone, found {asked!r}; leave it out"
            )
        held: Sequence[Any] = layout.layers_of(dim) if what == "layer" else layout.positions_of(dim)
        axis = spec.dims.index(dim)
        if isinstance(asked, str | int | np.integer):
            dropped.append(axis)
            asked = [asked]
        indices[axis] = np.array([_place(array, what, held, a) for a in asked], dtype=np.int64)
    if "example" in spec.dims:
        axis = spec.example_axis
        if isinstance(examples, int | np.integer) and not isinstance(examples, bool):
            dropped.append(axis)
            examples = [int(examples)]
        indices[axis] = example_numbers(layout.examples, examples)
    elif examples is not None:
        raise InvalidInputError(f"{array}: expected no examples, because it is an array by {', '.join(spec.dims)} alone; leave them out")
    return Selection(spec, tuple(indices), tuple(dropped))


def example_numbers(count: int, examples: Examples) -> NDArray[np.int64]:
    """Convert numbers, a mask or None (all) to example numbers.

    Raises
    ------
    InvalidInputError
        For a mask of another length, or anything but whole numbers.
    NotRecordedError
        For a number outside the store.
    """
    if examples is None:
        return np.arange(count)
    found = np.atleast_1d(np.asarray(examples))
    if found.dtype == bool:
        if found.shape != (count,):
            raise InvalidInputError(f"examples: expected a mask of {count} truth values, found shape {found.shape}")
        return np.flatnonzero(found)
    if found.size == 0:
        return np.zeros(0, dtype=np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise InvalidInputError(f"examples: expected example numbers or a mask, found {found.dtype} of shape {found.shape}; see index_of")
    odd = found[(found < 0) | (found >= count)]
    if odd.size:
        raise NotRecordedError(f"examples: expected numbers within 0..{count - 1}, found {odd[:5].tolist()}")
    return found.astype(np.int64)


def _place(array: str, what: str, held: Sequence[Any], asked: Any) -> int:
    if not isinstance(asked, bool) and asked in held:
        return list(held).index(asked)
    raise NotRecordedError(f"{array}: expected a {what} that the store holds, found {asked!r}; it holds {listing(held)}")


def listing(values: Sequence[Any]) -> str:
    """Names or numbers for a message; consecutive numbers as a..b."""
    if not values or isinstance(values[0], str):
        return ", ".join(map(str, values)) or "none"
    parts = stretches(values, "..")
    return ", ".join(parts) if len(parts) <= 12 else f"{', '.join(parts[:12])}, ... ({len(values)} in all)"


def stretches(numbers: Sequence[int], dash: str) -> list[str]:
    """Ascending numbers as texts; consecutive ones as first, `dash`, last."""
    parts = np.split(np.asarray(numbers), np.flatnonzero(np.diff(numbers) != 1) + 1)
    return [str(part[0]) if len(part) == 1 else f"{part[0]}{dash}{part[-1]}" for part in parts]
