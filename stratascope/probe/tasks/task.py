"""Probe tasks: the truth label, the relation, the model's answer, box centres, or any column of the examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError
from stratascope.probe.tasks.geometry import TARGETS, geometry_targets
from stratascope.probe.validation.folds import FEWEST_FOLDS, MINIMUM_PER_FOLD
from stratascope.store.io.example_filter import category_of

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

_BUILT_IN = ("truth", "choice", "category", "answer", "geometry")
CONTROLS = ("shuffled", "control")
MINIMUM_COUNT = 20


@dataclass(frozen=True, eq=False)
class Task:
    """A class, or values, for each example."""

    name: str
    codes: NDArray[np.intp]
    """(example,) number into `classes`, -1 for an example without one."""
    classes: tuple[str, ...]
    """Sorted; empty for a task of values."""
    values: NDArray[np.float64] | None = None
    """(example, target) regression targets, instead of classes."""
    targets: tuple[str, ...] = ()

    def among(self, examples: NDArray[np.bool_], minimum: int = 1, folds: int = 0) -> Task:
        """The task on a subset (example,) of the examples, without classes of fewer than `minimum` examples.

        `folds` is the number of cross-validation folds, for the error message.

        Raises
        ------
        TooFewExamplesError
            Fewer than two classes are left.
        """
        codes = np.where(examples, self.codes, -1)
        if self.values is not None:
            return replace(self, codes=codes)
        counts = np.bincount(codes[codes >= 0], minlength=len(self.classes))
        kept = np.flatnonzero(counts >= max(minimum, 1))
        if len(kept) < 2:
            raise TooFewExamplesError(f"task {self.name!r}: {_too_few(self.classes, counts, max(minimum, 1), folds)}")
        renumber = np.full(len(self.classes) + 1, -1, dtype=np.intp)
        renumber[kept] = np.arange(len(kept))
        return Task(self.name, renumber[codes], tuple(self.classes[k] for k in kept))


def _too_few(classes: tuple[str, ...], counts: NDArray[np.intp], minimum: int, folds: int) -> str:
    """Message for fewer than two classes with enough examples, with settings that would work."""
    order = [c for c in np.argsort(-counts, kind="stable") if counts[c]]
    found = ", ".join(f"{classes[c]} {counts[c]}" for c in order[:8]) + (", and others" if len(order) > 8 else "")
    together = f", {MINIMUM_PER_FOLD * folds} together ({MINIMUM_PER_FOLD} for each of {folds} folds)" if folds else ""
    wanted = f"expected at least two classes of {minimum} examples or more (`minimum`){together}, found {found or 'no example'}"
    if len(order) < 2:
        return f"{wanted}: a label that never differs; choose another task, or other examples"
    second = int(counts[order[1]])
    possible = min(second, int(counts[counts >= second].sum()) // MINIMUM_PER_FOLD)
    lower = f"give `minimum` {second}" if possible >= folds else f"give `minimum` {second} and `folds` {possible}"
    ways = [f"extract at least {minimum - second} more examples of {classes[order[1]]}", *([lower] if possible >= FEWEST_FOLDS else [])]
    return f"{wanted}; {', '.join(ways)}, or choose another task"


def task_from_values(name: str, values: pd.Series | NDArray[np.generic] | list[object], wanted: NDArray[np.bool_] | None = None) -> Task:
    """Make a task from one value per example: text, truth values or integers.

    Parameters
    ----------
    name
        Name of the task.
    values
        (example,) one value per example.
    wanted
        (example,) mask of the examples in use; only their values are checked.

    Raises
    ------
    InvalidInputError
        A value is missing or infinite, or values are fractions.

    Examples
    --------
    >>> task = task_from_values("side", ["left", "right", "left"])
    >>> task.classes, task.codes.tolist()
    (('left', 'right'), [0, 1, 0])
    """
    series = (values if isinstance(values, pd.Series) else pd.Series(values, dtype=object)).reset_index(drop=True)
    used = np.ones(len(series), bool) if wanted is None else wanted
    missing = np.flatnonzero(series.isna().to_numpy() & used)
    if len(missing):
        raise InvalidInputError(
            f"task {name!r}: expected a value for every example, found {len(missing)} of {int(used.sum())} missing "
            f"(the first is example {missing[0]}); fill them, or leave these examples out (`only`; of `values` their rows)"
        )
    kept = series[used]
    codes = np.full(len(series), -1, dtype=np.intp)
    codes[used], ordered = pd.factorize(_classes(name, kept), sort=True)
    return Task(name, codes, tuple(str(value) for value in ordered))


def _classes(name: str, values: pd.Series) -> pd.Series:
    """Non-missing values as classes of one kind: truth values, integers, or text."""
    kinds: dict[str, object] = {}
    for value in values.drop_duplicates() if values.dtype != object else values:
        kinds.setdefault(_kind(value), value)
    if len(kinds) > 1:
        found = " and ".join(f"{kind} such as {value!r}" for kind, value in kinds.items())
        raise InvalidInputError(f"task {name!r}: expected classes of one kind, found {found}; write all of them as text")
    if "text" in kinds:
        _refuse_infinite_words(name, values)
    if "numbers" not in kinds or pd.api.types.is_integer_dtype(values.dtype):
        return values
    whole = []
    for place, value in zip(values.index, values, strict=True):
        if isinstance(value, float | np.floating) and not np.isfinite(value):
            raise _infinite(name, float(value), place)
        if value % 1 != 0:
            raise InvalidInputError(f"task {name!r}: expected classes, found fractions such as {value:g}; bin them first")
        whole.append(int(value))
    return pd.Series(whole, index=values.index, dtype=object)


def _refuse_infinite_words(name: str, values: pd.Series) -> None:
    """A table's column of numbers with an infinite one is read as text: "inf" would be one more class."""
    numbers = pd.to_numeric(values, errors="coerce")
    infinite = np.flatnonzero(np.isinf(numbers.to_numpy(dtype=np.float64)))
    if len(infinite) and bool(numbers.notna().all()):
        raise _infinite(name, float(numbers.iloc[infinite[0]]), values.index[infinite[0]])


def _infinite(name: str, value: float, place: object) -> InvalidInputError:
    return InvalidInputError(
        f"task {name!r}: expected classes, found an infinite value ({value:g}) at example {place}; give it another, or leave it out"
    )


def _kind(value: object) -> str:
    if isinstance(value, bool | np.bool_):
        return "truth values"
    if isinstance(value, int | float | np.number):
        return "numbers"
    return "text" if isinstance(value, str) else type(value).__name__


def find_task(
    store: ActivationStore, task: str | Task, wanted: NDArray[np.bool_], values: Mapping[str, Mapping[str, object]] | None = None
) -> tuple[Task, str | None]:
    """The task of a name, and the control after its colon.

    `truth` is the label if it is the truth of the caption, `choice` if it is the correct one of several answers, `relation` the
    caption's relation, `category` its meta category, `answer` the most likely of the recorded choices, `geometry` the centres of the
    gold boxes (under the condition `mirror` in the flipped image); any other name is a column of the examples. `values` adds tasks by
    example id, such as from a CSV file; examples without a value are excluded.

    Raises
    ------
    NotRecordedError
        There is no such column; the message lists the columns.
    InvalidInputError
        There is no such control, or `values` uses the name of an existing task.
    """
    if isinstance(task, Task):
        return task, None
    name, _, control = task.partition(":")
    if control and control not in CONTROLS:
        raise InvalidInputError(f"task {task!r}: expected a control of {', '.join(CONTROLS)} after the colon, found {control!r}")
    table = store.examples
    if values is not None and name in values:
        if name in _BUILT_IN or name in table.columns:
            raise InvalidInputError(f"expected a new name for values by example id, found {name!r}, a task of every store; choose another")
        by_id = values[name]
        own = pd.Series([by_id.get(number) for number in table["id"]], dtype=object)  # of numbers a column of floats would change some
        there = own.notna().to_numpy()
        if not (there & wanted).any():
            given = [number for number, value in by_id.items() if not pd.isna(value)]  # type: ignore[call-overload]
            raise InvalidInputError(
                f"task {name!r}: expected values by example id such as {table['id'].iloc[0]!r}, found none of these examples' "
                f"among {len(given)} such as {given[0] if given else ''!r}; give the ids that the store has"
            )
        found = task_from_values(name, own, wanted & there)
    elif name in ("truth", "choice"):
        labels_are = store.provenance.get("data", {}).get("labels")
        if labels_are == "none":
            raise NotRecordedError(f"task {name!r}: expected a store with labels, found imported activations without; probe another column")
        questions = labels_are == "choice"
        if questions != (name == "choice"):
            kind, other = ("right choices", "choice") if questions else ("the captions' truth", "truth")
            raise NotRecordedError(f"task {name!r}: expected a store labelled so, found labels that are {kind}; probe the task {other!r}")
        answers = store.provenance.get("prompt", {}).get("answers") or store.layout.choices
        names = answers if questions else ("False", "True")
        by_label = {str(label): text for label, text in enumerate(names)}
        labels = task_from_values(name, table["label"], wanted)
        found = Task(name, labels.codes, tuple(by_label.get(c, c) for c in labels.classes))
    elif name == "category":
        found = task_from_values(name, table["relation"].map(category_of), wanted)
    elif name == "answer":
        found = _answers(store, wanted)
    elif name == "geometry":
        geometry = geometry_targets(table, mirrored=store.provenance.get("condition") == "mirror")
        known = np.asarray(np.isfinite(geometry).all(axis=1))
        found = Task(name, np.where(known, 0, -1), (), np.where(known[:, None], geometry, 0), TARGETS)
    elif name in table.columns:
        found = task_from_values(name, table[name], wanted)
    else:
        columns = ", ".join(c for c in table.columns if c not in ("id", "image", "caption"))
        raise NotRecordedError(
            f"expected a task truth, category, answer, geometry or a column such as relation, found {name!r}; columns are {columns}"
        )
    return found, control or None


def _answers(store: ActivationStore, wanted: NDArray[np.bool_]) -> Task:
    codes = np.full(len(wanted), -1, dtype=np.intp)
    index = np.flatnonzero(wanted)
    codes[index] = store.read("answer_logits", examples=index).argmax(axis=1)
    return Task("answer", codes, tuple(store.layout.choices))
