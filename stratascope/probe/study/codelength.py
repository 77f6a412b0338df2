"""Online codelength (MDL): bits to transmit the labels given the activations (Voita & Titov 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.probe.solver.logistic import BatchSolver
from stratascope.probe.solver.standardised_rows import Eigenbasis, Rows
from stratascope.probe.validation.cross_validation import STRENGTHS
from stratascope.probe.validation.folds import number_groups

Floats = NDArray[Any]
FRACTIONS = (0.0625, 0.125, 0.25, 0.5, 1.0)
"""Ends of the portions of the online code, as shares of the groups."""


@dataclass(frozen=True, eq=False)
class Codelength:
    """Online codelength of the labels of one layer."""

    each: Floats
    """(example,) bits per label."""
    classes: int

    @property
    def bits(self) -> float:
        """Codelength of all labels."""
        return float(self.each.sum())

    @property
    def uniform_bits(self) -> float:
        """Codelength of the uniform code: log2(classes) per label."""
        return float(len(self.each) * np.log2(self.classes))

    @property
    def examples(self) -> int:
        """Number of labels."""
        return len(self.each)

    @property
    def compression(self) -> float:
        """uniform_bits / bits; 1 without any information on the labels."""
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
    """Online codelength of labels given activations.

    Each portion is coded with the probe trained on all earlier portions, the first one uniformly. The strength for a portion minimises
    the codelength of the earlier portions (from the second on); the first strength is the middle of the grid. Portions do not divide
    groups (images), whose order is random. Voita & Titov 2020, section 2.2.

    Parameters
    ----------
    x
        (example, column).
    labels, groups
        (example,) class codes 0..classes-1, and names or numbers of groups.
    classes
        Number of classes.
    strengths
        Grid of inverse regularisation C.
    fractions
        Of the groups, ascending, where portions end; the last is 1.
    seed
        Of the order.
    basis
        Of the rows of `x` if known; it only speeds up the solver.

    Raises
    ------
    TooFewExamplesError
        The first portion has one class only.
    InvalidInputError
        The fractions do not ascend to 1.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.arange(200) % 2
    >>> x = np.random.default_rng(0).normal(labels[:, None] * 3.0, 1.0, (200, 4)).astype(np.float32)
    >>> code = online_codelength(x, labels, np.arange(200), classes=2)
    >>> code.compression > 2
    True
    """
    portion = portions(groups, fractions, seed)
    return send(Rows(x, portion), labels[None], portion, classes, strengths, basis)[0]


def portions(groups: NDArray[Any], fractions: Sequence[float], seed: int) -> NDArray[np.intp]:
    """(example,) number of the portion; InvalidInputError where the fractions do not ascend to 1."""
    if sorted(fractions) != list(fractions) or fractions[-1] != 1 or fractions[0] <= 0:
        raise InvalidInputError(f"expected ascending fractions that end with 1, found {tuple(fractions)}")
    number = number_groups(groups)
    rank = np.random.default_rng(seed).permutation(int(number.max()) + 1)[number]
    ends = np.ceil(np.asarray(fractions) * (number.max() + 1))
    return np.asarray(np.searchsorted(ends, rank, side="right"))


def send(
    rows: Rows,
    labels: NDArray[np.integer],
    portion: NDArray[np.intp],
    classes: int,
    strengths: Sequence[float],
    basis: Eigenbasis | None,
) -> list[Codelength]:
    """Online codelength of each labelling (labelling, example), solved together; the blocks of rows are the portions.

    Raises
    ------
    TooFewExamplesError
        A labelling is constant in the first portion.
    """
    first = portion == 0
    if any(len(np.unique(one[first])) < 2 for one in labels):
        raise TooFewExamplesError(
            f"expected two classes in the first portion of {int(first.sum())} examples, found one; record more examples, "
            "or give a larger first fraction"
        )
    stages, count = int(portion.max()), len(labels)
    solver = BatchSolver(
        rows,
        labels,
        np.tile(np.tri(stages, stages + 1, dtype=bool), (count, 1)),
        classes=classes,
        which=np.repeat(np.arange(count), stages),
        basis=basis or rows.eigenbasis(),
        tolerance=1e-5,
    )
    path = sorted(strengths)
    bits = np.full((len(path), *labels.shape), np.log2(classes))
    for place, strength in enumerate(path):
        solver.solve(strength)
        for stage in range(stages):
            loss, known = solver.held_out(np.arange(count) * stages + stage, stage + 1)
            # labels of a class without training examples are coded uniformly
            bits[place][:, rows.order[rows.part(stage + 1)]] = np.where(known, loss / np.log(2), np.log2(classes))
    found = []
    for each in bits.transpose(1, 0, 2):  # (strength, example)
        sums = np.array([each[:, portion == stage].sum(axis=1) for stage in range(1, stages + 1)])
        chosen = [len(path) // 2] + [int(np.argmin(sums[:stage].sum(axis=0))) for stage in range(1, stages)]
        found.append(Codelength(each[np.array([0, *chosen])[portion], np.arange(each.shape[1])], classes))
    return found
