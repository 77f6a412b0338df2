"""Minimum description length: how cheaply labels can be sent to someone who has the activations (Voita & Titov 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.probe.cross_validation import STRENGTHS
from stratascope.probe.folds import number_groups
from stratascope.probe.plan import ProbeSettings, plan_position
from stratascope.probe.rows import Eigenbasis, Rows
from stratascope.probe.solver import BatchSolver
from stratascope.probe.tasks import Task
from stratascope.store import ActivationStore

Floats = NDArray[Any]
FRACTIONS = (0.0625, 0.125, 0.25, 0.5, 1.0)
"""Ends of the portions that are sent one after another, as shares of the groups."""


@dataclass(frozen=True)
class Codelength:
    """Bits to send the labels of one layer."""

    bits: float
    uniform_bits: float
    """With every class as likely as any other: log2(classes) a label."""
    examples: int

    @property
    def compression(self) -> float:
        """uniform_bits / bits: 1 where nothing can be read."""
        return self.uniform_bits / self.bits


def online_codelength(
    x: Floats,
    labels: NDArray[np.integer],
    groups: NDArray[Any],
    *,
    classes: int,
    strengths: Sequence[float] = STRENGTHS,
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    basis: Eigenbasis | None = None,
) -> Codelength:
    """Online code: each portion is sent with the probe trained on all portions before, the first one with uniform probabilities.

    The strength for a portion is the one that would have sent all earlier portions (from the second on) in the fewest bits; the
    first choice is the middle of the grid. Groups (images) are never divided, and go in random order. Voita & Titov 2020, section 2.2.

    Parameters
    ----------
    x
        (example, column).
    labels, groups
        (example,) class codes 0..classes-1, and names or numbers of groups.
    classes
        How many there are.
    strengths
        Inverse regularisation C to choose from.
    fractions
        Of the groups, ascending, where portions end; the last is 1.
    seed
        Of the order.
    basis
        Of the rows of `x`, where it is known: it only speeds up.

    Raises
    ------
    TooFewExamplesError
        The first portion has one class only.
    InvalidInputError
        The fractions do not ascend to 1.
    """
    if sorted(fractions) != list(fractions) or fractions[-1] != 1 or fractions[0] <= 0:
        raise InvalidInputError(f"expected ascending fractions that end with 1, found {tuple(fractions)}")
    number = number_groups(groups)
    rank = np.random.default_rng(seed).permutation(int(number.max()) + 1)[number]
    ends = np.ceil(np.asarray(fractions) * (number.max() + 1))
    portion = np.searchsorted(ends, rank, side="right")
    if len(np.unique(labels[portion == 0])) < 2:
        raise TooFewExamplesError(
            f"expected two classes in the first portion of {int((portion == 0).sum())} examples, found one; give a larger first fraction"
        )
    rows = Rows(x, portion)
    stages = len(fractions) - 1
    training = np.tri(stages, stages + 1, dtype=bool)
    solver = BatchSolver(
        rows, labels[None], training, classes=classes, which=np.zeros(stages, np.intp), basis=basis or rows.eigenbasis(), tolerance=1e-5
    )
    path = sorted(strengths)
    bits = np.zeros((len(path), stages))
    for place, strength in enumerate(path):
        solver.solve(strength)
        for stage in range(stages):
            loss, known = solver.held_out(np.array([stage]), stage + 1)
            # a class never seen before is sent with uniform probability
            bits[place, stage] = np.where(known, loss / np.log(2), np.log2(classes)).sum()
    chosen = [len(path) // 2] + [int(np.argmin(bits[:, :stage].sum(axis=1))) for stage in range(1, stages)]
    first = float((portion == 0).sum() * np.log2(classes))
    total = first + float(sum(bits[place, stage] for stage, place in enumerate(chosen)))
    return Codelength(total, float(len(labels) * np.log2(classes)), len(labels))


def codelength_by_layer(
    store: ActivationStore | str | Path,
    task: str | Task = "truth",
    position: str | None = "final",
    *,
    layers: Sequence[int] | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    **settings: Any,
) -> pd.DataFrame:
    """Online codelength of a task by layer.

    Parameters
    ----------
    store
        An open store, or its path or address.
    task, position
        As of `plan_study`.
    layers
        All by default.
    examples
        Numbers or mask, all by default.
    settings
        Fields of `ProbeSettings`.

    Returns
    -------
    pandas.DataFrame
        layer, task, position, bits, uniform_bits, compression, examples.

    Raises
    ------
    InvalidInputError
        The task has values instead of classes.
    """
    opened = store if isinstance(store, ActivationStore) else ActivationStore.open(store)
    chosen = ProbeSettings(**settings)
    batch = plan_position(opened, (task,), position, chosen, examples=examples)[0]
    if batch.targets:
        raise InvalidInputError(f"expected a task of classes, found {batch.tasks[0]!r}, which has values")
    used = np.flatnonzero(batch.used)
    groups = opened.examples[chosen.groups].to_numpy(dtype=str)[used]
    spec = opened.layout.array(chosen.array)
    rows = []
    for layer in sorted(opened.layout.layers_of(spec.layer_dim or "") if layers is None else layers):
        x = opened.read(chosen.array, layer=layer, position=position, examples=used).reshape(len(used), -1)
        found = online_codelength(
            x,
            batch.labels[0, used],
            groups,
            classes=len(batch.classes),
            strengths=chosen.strengths or STRENGTHS,
            seed=chosen.seed,
        )
        rows.append(
            {
                "layer": layer,
                "task": batch.tasks[0],
                "position": position or "",
                "bits": found.bits,
                "uniform_bits": found.uniform_bits,
                "compression": found.compression,
                "examples": found.examples,
            }
        )
    return pd.DataFrame(rows)
