"""Folds and labels of a task, from saved probe results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError

Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class FoldLabels:
    """Examples of a task with their folds and labels, as saved probe results hold them."""

    task: str
    examples: NDArray[np.int64]
    """(n,) example numbers, ascending."""
    folds: NDArray[np.int64]
    """(n,)"""
    groups: NDArray[np.str_]
    """(n,) image of each example."""
    labels: Floats
    """(n,) class codes, or (n, target) numbers."""
    classes: tuple[str, ...]
    """Names of the classes; empty for numbers."""

    @property
    def numeric(self) -> bool:
        """Whether labels are numbers."""
        return not self.classes

    @classmethod
    def of_curves(cls, task: str, curves: Sequence[tuple[str, pd.DataFrame, Mapping[str, Any]]]) -> FoldLabels:
        """From the tables of examples of saved layer curves of one task.

        Parameters
        ----------
        task
            Their task.
        curves
            (file name, table of examples, attributes) of each curve.

        Raises
        ------
        InvalidInputError
            If two curves put an example into different folds or classes.
        """
        head = curves[0][2]
        targets, classes = list(head["targets"]), tuple(head["classes"])
        columns = ["example", "group", "fold", *(targets or ["label"])]
        for name, _, other in curves:
            if (list(other["targets"]), tuple(other["classes"])) != (targets, classes):
                raise InvalidInputError(f"expected curves of the same classes, found {name} with others than {curves[0][0]}; probe again")
        rows = pd.concat([table[columns] for _, table, _ in curves]).drop_duplicates().sort_values("example")
        twice = rows["example"].duplicated()
        if twice.any():
            raise InvalidInputError(
                f"expected saved curves of {task} with the same folds, found example {int(rows['example'][twice].iloc[0])} in two folds or "
                "classes; name the file of one curve as RESULTS, or probe all positions again with one seed"
            )
        labels = rows[targets].to_numpy(float) if targets else rows["label"].to_numpy(np.int64)
        return cls(
            task,
            rows["example"].to_numpy(np.int64),
            rows["fold"].to_numpy(np.int64),
            rows["group"].to_numpy(np.str_),
            labels,
            classes,
        )
