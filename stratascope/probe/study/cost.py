"""Cost of a study before it runs: number of layer tasks and peak memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stratascope.probe.solver.quasi_newton import memory_for
from stratascope.probe.solver.standardised_rows import CHUNK
from stratascope.probe.study.batch import Batch
from stratascope.probe.study.study_plan import ProbeSettings
from stratascope.probe.validation.cross_validation import RIDGE_STRENGTHS, STRENGTHS
from stratascope.probe.validation.fold_design import design_for
from stratascope.store.io.overview import bytes_text

AT_ONCE = 1024
"""Weight vectors of one batch that are solved together; many draws of controls with many classes are solved one part after another."""


@dataclass(frozen=True)
class StudyCost:
    """Number of layer tasks and peak memory of a study."""

    tasks: int
    """One per layer and position."""
    bytes_each: int
    """Peak memory of the largest task, without the process itself."""
    at_once: int
    """Workers on this machine; 0 for a cluster."""

    @property
    def bytes_at_once(self) -> int:
        """Peak memory of all workers of this machine."""
        return self.bytes_each * min(max(self.at_once, 1), max(self.tasks, 1))

    def __str__(self) -> str:
        what = f"{self.tasks} layer tasks of up to {bytes_text(self.bytes_each)}"
        if not self.at_once:
            return f"{what} for each thread of a worker"
        return f"{what}, {min(self.at_once, max(self.tasks, 1))} at once: {bytes_text(self.bytes_at_once)}"


def task_bytes(examples: int, columns: int, problems: int, outputs: int = 1) -> int:
    """Peak memory of a layer task.

    The rows are held twice (as read, and standardised); beside them come, one after another, float64 pieces while they are
    standardised, the Gram matrix with its eigenvectors and LAPACK's work, and weights, L-BFGS history and logits of all problems.

    Parameters
    ----------
    problems
        Weight vectors solved together: labellings x models x outputs.
    outputs
        Of a model: 1 for two classes.
    """
    smaller = min(examples, columns)
    standardising = 24 * min(examples, CHUNK) * columns
    basis = 16 * smaller**2 + (4 * smaller * columns if examples < columns else 0)
    solving = 4 * smaller * columns + 4 * problems * ((2 * memory_for(outputs) + 14) * columns + 6 * examples)
    return 8 * examples * columns + max(standardising, basis, solving)


def ridge_bytes(examples: int, columns: int, problems: int, training: NDArray[np.bool_]) -> int:
    """Peak memory of a layer task that solves ridge regressions, as `task_bytes` for logistic ones.

    For training sets of more rows than columns a Gram matrix a block is kept in float32, and one in float64 is factored; for the
    others their kernel matrix is kept.

    Parameters
    ----------
    training
        (model, block) the blocks that each model is trained on.
    """
    blocks = training.shape[1]
    rows = training.sum(axis=1) * -(-examples // blocks)
    short = rows < columns
    kept = 8 * int((rows[short] ** 2).sum())
    at_a_time = 8 * int((rows[short] ** 2 + 2 * rows[short] * columns).max(initial=0))
    if not short.all():
        kept += 4 * blocks * columns**2
        at_a_time = max(at_a_time, 16 * columns**2 + 8 * -(-examples // blocks) * columns)
    standardising = 24 * min(examples, CHUNK) * columns
    return 8 * examples * columns + max(standardising, kept + at_a_time + 16 * problems * columns)


def labellings_at_once(batch: Batch, settings: ProbeSettings) -> int:
    """Labellings of a batch that are solved together: all of values; of classes as many as `AT_ONCE` weight vectors allow."""
    if batch.targets:
        return len(batch.labels)
    each = len(_training(batch, settings)) * batch_outputs(batch)
    return min(len(batch.labels), max(len(batch.tasks), AT_ONCE // each))


def batch_problems(batch: Batch, settings: ProbeSettings) -> int:
    """Weight vectors of a batch that are solved together."""
    return labellings_at_once(batch, settings) * len(_training(batch, settings)) * batch_outputs(batch)


def batch_outputs(batch: Batch) -> int:
    """Weight vectors per model."""
    return len(batch.targets) or (1 if len(batch.classes) == 2 else len(batch.classes))


def largest_task(batches: list[Batch], columns: int, settings: ProbeSettings) -> int:
    """Peak memory of a task: its batches are solved one after another."""
    return max(_batch_bytes(batch, columns, settings) for batch in batches)


def _batch_bytes(batch: Batch, columns: int, settings: ProbeSettings) -> int:
    examples, problems = int(batch.used.sum()), batch_problems(batch, settings)
    if batch.targets:
        return ridge_bytes(examples, columns, problems, _training(batch, settings))
    return task_bytes(examples, columns, problems, batch_outputs(batch))


def _training(batch: Batch, settings: ProbeSettings) -> NDArray[np.bool_]:
    """(model, block) of the inner and outer folds, and of all examples."""
    grid = settings.strengths or (RIDGE_STRENGTHS if batch.targets else STRENGTHS)
    selected = settings.method == "logistic" or (settings.method == "means" and bool(batch.targets))
    return design_for(batch.folds, len(grid) if selected else 1).training
