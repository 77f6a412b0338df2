"""What a study will solve: for each position the examples, folds and labels of every task, before any activation is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError, UnwrittenBlockError
from stratascope.probe.controls import TYPES, control_labels, shuffled_labels
from stratascope.probe.cross_validation import STRENGTHS
from stratascope.probe.folds import Folds, grouped_folds
from stratascope.probe.tasks import MINIMUM_COUNT, Task, find_task
from stratascope.store import ActivationStore


@dataclass(frozen=True)
class ProbeSettings:
    """How probes are fitted and scored."""

    array: str = "residual"
    """Any recorded array whose last axis is what a probe reads."""
    folds: int = 5
    seed: int = 0
    """Of folds, controls and bootstrap."""
    strengths: tuple[float, ...] = STRENGTHS
    """Inverse regularisation; several are chosen among inside the training folds."""
    groups: str = "image"
    """Column of the examples whose equal values are never divided between folds."""
    minimum: int = MINIMUM_COUNT
    """Classes of fewer examples are left out."""
    types: tuple[str, ...] = TYPES
    """Columns that make the type in a control task."""
    tolerance: float = 1e-6
    """Of the solver, relative to the objective."""
    draws: int = 2000
    """Of the bootstrap."""
    level: float = 0.95
    directions: bool = True
    """Whether the weights of a probe of all examples are kept."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "strengths", tuple(sorted(float(c) for c in self.strengths)))
        object.__setattr__(self, "types", tuple(self.types))
        if not self.strengths or min(self.strengths) <= 0:
            raise InvalidInputError(f"expected strengths above 0, found {self.strengths}; give for example (1e-3, 1e-2, 1e-1)")
        if not 0 < self.level < 1:
            raise InvalidInputError(f"expected a level between 0 and 1, found {self.level}; give 0.95")
        if self.draws < 100:
            raise InvalidInputError(f"expected at least 100 draws, found {self.draws}; 2000 give stable intervals")
        if not 0 < self.tolerance <= 1e-3:
            raise InvalidInputError(f"expected a tolerance up to 1e-3, found {self.tolerance}; 1e-6 is exact enough for any figure")


@dataclass(frozen=True, eq=False)
class Batch:
    """Labellings of the same examples with the same folds: solved together."""

    tasks: tuple[str, ...]
    classes: tuple[str, ...]
    folds: Folds
    """Over all examples of the store."""
    labels: NDArray[np.intp]
    """(labelling, example) class codes, -1 for examples that take no part."""

    @property
    def used(self) -> NDArray[np.bool_]:
        """(example,)"""
        return self.folds.of >= 0


def plan_position(
    store: ActivationStore,
    tasks: Sequence[str | Task],
    position: str | None,
    settings: ProbeSettings,
    *,
    examples: Sequence[int] | NDArray[Any] | None = None,
    values: Mapping[str, object] | None = None,
) -> list[Batch]:
    """Folds and labels of every task at a position."""
    wanted = wanted_examples(store, examples)
    usable = wanted & store.available(settings.array, position)
    if not usable.any():
        raise NotRecordedError(
            f"expected examples with {settings.array} at position {position!r}, found none recorded; "
            f"this store has positions {', '.join(store.layout.positions)}"
        )
    if settings.groups not in store.examples.columns:
        raise InvalidInputError(
            f"expected a column of the examples to group by, found {settings.groups!r}; columns are {list(store.examples)}"
        )
    groups = store.examples[settings.groups].to_numpy(dtype=str)
    batches: dict[str, tuple[Task, Folds, list[str], list[NDArray[np.intp]]]] = {}
    for spec in tasks:
        found, control = find_task(store, spec, usable, values)
        if found.name not in batches:
            kept = found.among(usable, settings.minimum)
            folds = grouped_folds(groups, kept.codes, folds=settings.folds, seed=settings.seed, class_names=kept.classes)
            batches[found.name] = (kept, folds, [], [])
        task, folds, names, labels = batches[found.name]
        names.append(f"{found.name}:{control}" if control else found.name)
        if control == "shuffled":
            labels.append(shuffled_labels(task.codes, folds, seed=settings.seed))
        elif control == "control":
            labels.append(control_labels(task.codes, store.examples, folds, types=settings.types, seed=settings.seed))
        else:
            labels.append(task.codes)
    return [Batch(tuple(names), task.classes, folds, np.stack(labels)) for task, folds, names, labels in batches.values()]


def wanted_examples(store: ActivationStore, examples: Sequence[int] | NDArray[Any] | None) -> NDArray[np.bool_]:
    """(example,) mask of the examples asked for; every one has to be written."""
    count = store.layout.examples
    wanted = np.zeros(count, dtype=bool)
    wanted[slice(None) if examples is None else np.asarray(examples)] = True
    blocks = np.arange(count) // store.layout.block
    unwritten = np.unique(blocks[wanted & ~store.written[blocks]])
    if len(unwritten):
        raise UnwrittenBlockError(
            f"expected all examples written, found {len(unwritten)} of {len(store.written)} blocks unwritten (the first is {unwritten[0]}); "
            "let the extraction finish, or probe what there is with examples=store.available('residual')"
        )
    return wanted
