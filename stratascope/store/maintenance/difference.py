"""Compare two stores: provenance, layout, examples, numbers."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.store.format.provenance import differences
from stratascope.store.io.overview import LENS, LONGEST_VALUE, shortened
from stratascope.store.io.reader import ActivationStore
from stratascope.store.io.readout import read_readout
from stratascope.store.io.recorded_examples import masked_examples
from stratascope.store.io.selection import Selection
from stratascope.store.io.shard_reader import byte_source

if TYPE_CHECKING:
    from zarr.abc.store import Store

_CREATED = ("token_ids", "n_tokens", "grid", "position_present", "has_map", "has_patches")


@dataclass(frozen=True)
class StoreDifference:
    """Differences between two stores; numbers are compared only where both stores have them."""

    names: tuple[str, str]
    provenance: pd.DataFrame
    """field, a, b, volatile: every field that differs, including volatile ones (created, command, host)."""
    layout: pd.DataFrame
    """field, a, b."""
    examples: pd.DataFrame
    """field, a, b: numbers of examples, of examples in only one store, and differing columns of common examples."""
    numbers: pd.DataFrame
    """array, examples (compared), values (compared), different, largest (absolute difference), at (where that is)."""

    @property
    def same_numbers(self) -> bool:
        """Whether all numbers in both stores are equal."""
        return not self.numbers["different"].any()

    @property
    def same(self) -> bool:
        """Whether nothing differs except date, host and command."""
        volatile = self.provenance["volatile"].all()
        return bool(volatile and self.layout.empty and self.examples.empty and self.same_numbers)

    def record(self) -> dict[str, Any]:
        """The summary as plain JSON."""
        tables = {name: getattr(self, name).to_dict("records") for name in ("provenance", "layout", "examples", "numbers")}
        return {"a": self.names[0], "b": self.names[1], "same": self.same, "same_numbers": self.same_numbers, **tables}

    def summary(self, *, full: bool = False) -> str:
        """Lines of text: one for each field and array, the verdict.

        Parameters
        ----------
        full
            Whether long values are shown in full.
        """
        lines = [f"a: {self.names[0]}", f"b: {self.names[1]}"]
        for title, table in (("provenance", self.provenance), ("layout", self.layout), ("examples", self.examples)):
            for field, x, y in zip(table["field"], table["a"], table["b"], strict=True):
                lines += _side_by_side(f"{title:<11} {field}:", x, y, full=full)
        for row in self.numbers.to_dict("records"):
            what = f"{row['values']:,} values equal"
            if row["different"]:
                what = f"{row['different']:,} of {row['values']:,} values differ, by at most {row['largest']:.3g} at {row['at']}"
            lines.append(f"numbers     {row['array']}: {what}")
        return "\n".join([*lines, "the same" if self.same else "the numbers are the same" if self.same_numbers else "different"])


def diff_stores(
    a: str | Path | Store | ActivationStore,
    b: str | Path | Store | ActivationStore,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> StoreDifference:
    """Compare two stores: examples by their ids, layers by number, positions by name; a block of examples at a time.

    Parameters
    ----------
    a, b
        Folder, zip, URL, Zarr store or open store.
    progress
        Called with (arrays done, arrays).

    Raises
    ------
    StoreError
        A store cannot be opened or is damaged.
    """
    left, right = (s if isinstance(s, ActivationStore) else ActivationStore.open(s) for s in (a, b))
    all_of = differences(left.provenance, right.provenance, ignore=())
    lasting = differences(left.provenance, right.provenance)
    provenance = pd.DataFrame(
        [(f, _shown(x), _shown(y), f not in lasting) for f, (x, y) in all_of.items()], columns=["field", "a", "b", "volatile"]
    )
    layout = _fields(differences(left.layout.to_json(), right.layout.to_json(), ignore=()))
    numbers = {example: i for i, example in enumerate(right.examples["id"])}
    common = [(i, numbers[name]) for i, name in enumerate(left.examples["id"]) if name in numbers]
    pairs = np.array(common, dtype=np.int64).reshape(-1, 2)
    examples = _examples(left, right, pairs)
    held = {s.name for s in right.layout.arrays()}
    names = [s.name for s in left.layout.arrays() if s.name in held and (s.by_block or s.name in _CREATED)]
    rows = []
    for done, name in enumerate(names):
        rows.append(_compare(left, right, name, pairs))
        if progress is not None:
            progress(done + 1, len(names))
    rows += _compare_readouts(left, right)
    columns = ["array", "examples", "values", "different", "largest", "at"]
    return StoreDifference((left.name, right.name), provenance, layout, examples, pd.DataFrame(rows, columns=columns))


def _examples(left: ActivationStore, right: ActivationStore, pairs: NDArray[np.int64]) -> pd.DataFrame:
    found: dict[str, tuple[Any, Any]] = {}
    counts = (left.layout.examples, right.layout.examples)
    if not counts[0] == counts[1] == len(pairs):
        found["examples"] = counts
        found["only here"] = (counts[0] - len(pairs), counts[1] - len(pairs))
    elif (pairs[:, 0] != pairs[:, 1]).any():
        found["order"] = ("its own", "another")
    a, b = left.examples.iloc[pairs[:, 0]].reset_index(drop=True), right.examples.iloc[pairs[:, 1]].reset_index(drop=True)
    for column in [*a.columns, *(c for c in b.columns if c not in a)]:
        if column not in a or column not in b:
            found[f"column {column}"] = ("held" if column in a else "(absent)", "held" if column in b else "(absent)")
            continue
        same = (a[column] == b[column]) | (a[column].isna() & b[column].isna())
        if not same.all():
            first = int(np.flatnonzero(~same)[0])
            where = f"{int((~same).sum())} differ, such as {a['id'][first]}"
            found[f"column {column}"] = (f"{where}: {a[column][first]}", str(b[column][first]))
    return _fields(found)


def _compare(left: ActivationStore, right: ActivationStore, name: str, pairs: NDArray[np.int64]) -> tuple[Any, ...]:
    """One row of the table of numbers."""
    a = left.layout.array(name)
    if a.by_block:
        there = left.written[pairs[:, 0] // left.layout.block] & right.written[pairs[:, 1] // right.layout.block]
        pairs = pairs[there]
    if a.mask:  # fill elsewhere
        pairs = pairs[masked_examples(left, a)[pairs[:, 0]] & masked_examples(right, a)[pairs[:, 1]]]
    axes = _common_axes(left, right, name)
    values = different = 0
    largest, at = 0.0, ""
    for start in range(0, len(pairs), left.layout.block):
        part = pairs[start : start + left.layout.block]
        x, y = _values(left, name, axes, 0, part[:, 0]), _values(right, name, axes, 1, part[:, 1])
        unequal = (x != y) & ~((x != x) & (y != y))  # NaN in both is the same: nothing is recorded
        values += x.size
        different += int(unequal.sum())
        if unequal.any():
            gap = np.where(unequal, np.abs(x.astype(np.float64) - y.astype(np.float64)), 0.0)
            gap = np.where(np.isnan(gap), np.inf, gap)
            if gap.max() > largest:
                largest = float(gap.max())
                place = list(np.unravel_index(int(gap.argmax()), gap.shape))
                ids = left.examples["id"].to_numpy()[part[:, 0]]
                held = [int(k) if dim == "example" else int(axis[0][k]) for dim, axis, k in zip(a.dims, axes, place, strict=True)]
                at = left.layout.place_text(name, held, ids)
    return name, len(pairs), values, different, largest, at


def _compare_readouts(left: ActivationStore, right: ActivationStore) -> list[tuple[Any, ...]]:
    """The row of the final norm and the unembedding rows of common words; none where a store lacks them."""
    a, b = (read_readout(byte_source(store.files_of), store.name) for store in (left, right))
    if a is None or b is None:
        return []
    words = [list(zip(r.words["kind"], r.words["name"], strict=True)) for r in (a, b)]
    common = [(i, words[1].index(word)) for i, word in enumerate(words[0]) if word in words[1]]
    mine, theirs = np.array(common, np.int64).reshape(-1, 2).T
    pairs = {
        "norm": (np.array([a.epsilon, a.cap or 0.0, a.norm == "rms"]), np.array([b.epsilon, b.cap or 0.0, b.norm == "rms"])),
        "gain": (a.gain, b.gain),
        "shift": (a.shift, b.shift),
        "rows": (a.rows[mine], b.rows[theirs]),
        "bias": (a.bias[mine], b.bias[theirs]),
    }
    unlike = [name for name, (x, y) in pairs.items() if x.shape != y.shape]
    gaps = {name: np.abs(x.astype(np.float64) - y) for name, (x, y) in pairs.items() if name not in unlike}
    largest = max(gaps, key=lambda name: float(gaps[name].max(initial=0)))
    different = sum(int((gap > 0).sum()) for gap in gaps.values()) + sum(pairs[name][0].size for name in unlike)
    values = sum(x.size for x, _ in pairs.values())
    most = np.inf if unlike else float(gaps[largest].max(initial=0))
    return [(LENS, 0, values, different, most, (unlike or [largest])[0] if different else "")]


def _common_axes(left: ActivationStore, right: ActivationStore, name: str) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For every axis, indices in both stores of what both hold."""
    a, b = left.layout.array(name), right.layout.array(name)
    axes = []
    for dim, n, m in zip(a.dims, a.shape, b.shape, strict=True):
        if dim == a.layer_dim or dim == a.position_dim:
            of = ("layers_of", "positions_of")[dim == a.position_dim]
            one, two = getattr(left.layout, of)(dim), getattr(right.layout, of)(dim)
        elif left.layout.names_of(dim) is not None:
            one, two = left.layout.names_of(dim), right.layout.names_of(dim)
        else:
            one, two = range(n), range(m)
        both = [k for k in one if k in two]
        axes.append((np.array([one.index(k) for k in both], np.int64), np.array([two.index(k) for k in both], np.int64)))
    return axes


def _values(store: ActivationStore, name: str, axes: list[tuple[Any, Any]], side: int, numbers: NDArray[np.int64]) -> NDArray[Any]:
    spec = store.layout.array(name)
    indices = [axis[side] for axis in axes]
    indices[spec.example_axis] = numbers
    return store.fetch(Selection(spec, tuple(indices), ()))


def _fields(found: dict[str, tuple[Any, Any]]) -> pd.DataFrame:
    return pd.DataFrame([(f, _shown(x), _shown(y)) for f, (x, y) in found.items()], columns=["field", "a", "b"])


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _side_by_side(name: str, a: str, b: str, *, full: bool = False) -> list[str]:
    """Two values on a line; where they are long, below each other, and of lists only what one has and the other has not."""
    if len(name) + len(a) + len(b) <= LONGEST_VALUE:
        return [f"{name} {a} | {b}"]
    try:
        left, right = ast.literal_eval(a), ast.literal_eval(b)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # no list, but text
        left, right = a, b
    if not full and isinstance(left, list | tuple) and isinstance(right, list | tuple):
        a, b = (_only_in(these, those) for these, those in ((left, right), (right, left)))
    a, b = (a, b) if full else (shortened(a), shortened(b))
    return [name, f"{'':<12}a: {a}", f"{'':<12}b: {b}"]


def _only_in(these: Sequence[Any], those: Sequence[Any]) -> str:
    """A list in words: how many it has, and those that the other lacks."""
    own = [str(value) for value in these if value not in those]
    if not these:
        return "none"
    return f"{len(these)} values" + (f", of them only here {', '.join(own)}" if own else ", all of them there too")
