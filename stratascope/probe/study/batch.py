"""`Batch`: labellings of the same examples with the same folds, solved together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.probe.curve.value_metrics import value_metrics
from stratascope.probe.tasks.task import Task
from stratascope.probe.validation.folds import Folds


@dataclass(frozen=True, eq=False)
class Batch:
    """Labellings of the same examples with the same folds, solved together."""

    tasks: tuple[str, ...]
    classes: tuple[str, ...]
    folds: Folds
    """Over all examples of the store."""
    labels: NDArray[Any]
    """(labelling, example) class codes, -1 for excluded examples; (labelling, example, target) of a task of values. One labelling for
    each task, then further draws of the controls."""
    targets: tuple[str, ...] = ()
    further: tuple[int, ...] = ()
    """(further labelling,) the number of its task in `tasks`."""

    def draws_of(self, task: int) -> list[int]:
        """Labellings of a task, by its number in `tasks`: several for a control."""
        return [task, *(len(self.tasks) + k for k, owner in enumerate(self.further) if owner == task)]

    @property
    def used(self) -> NDArray[np.bool_]:
        """(example,)"""
        return self.folds.of >= 0

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics of its curves."""
        if self.targets:
            return value_metrics(self.targets)
        return ("accuracy", "balanced_accuracy", *(("auroc",) if len(self.classes) == 2 else ()), "log_loss")


def batch_of(names: Sequence[str], task: Task, folds: Folds, drawn: Sequence[NDArray[Any]]) -> Batch:
    """The batch of a task and its controls from the (draw, example, ...) labels of each."""
    labels = np.concatenate([np.stack([of_task[0] for of_task in drawn]), *(of_task[1:] for of_task in drawn)])
    further = tuple(number for number, of_task in enumerate(drawn) for _ in range(len(of_task) - 1))
    return Batch(tuple(names), task.classes, folds, labels, task.targets, further)
