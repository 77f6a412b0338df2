"""Folds that keep every example of a group (an image) together, balanced by class where that is possible."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, TooFewExamplesError

MINIMUM_PER_FOLD = 10
"""Below this many examples a fold, an interval over test examples means nothing."""
FEWEST_FOLDS = 3
"""With which a strength can be chosen inside the training folds."""


@dataclass(frozen=True, eq=False)
class Folds:
    """Which fold each example is tested in."""

    of: NDArray[np.intp]
    """(example,) fold number, -1 for an example that takes no part."""
    groups: NDArray[np.intp]
    """(example,) group number, the same in one fold only."""
    seed: int
    test: int | None = None
    """The fold that alone is tested, where a split is given and not chosen; the others are its training set."""

    @property
    def count(self) -> int:
        """How many folds there are."""
        return int(self.of.max()) + 1

    @property
    def tested(self) -> NDArray[np.bool_]:
        """(example,) whether an example gets an out-of-fold answer."""
        return self.of >= 0 if self.test is None else self.of == self.test

    def pairs(self) -> list[tuple[int, int]]:
        """Every pair of folds."""
        return list(combinations(range(self.count), 2))


def number_groups(names: NDArray[np.generic] | list[str]) -> NDArray[np.intp]:
    """(example,) group number by sorted name."""
    return np.unique(np.asarray(names), return_inverse=True)[1].astype(np.intp)


def grouped_folds(
    groups: NDArray[np.generic] | list[str],
    classes: NDArray[np.integer] | None = None,
    *,
    folds: int = 5,
    seed: int = 0,
    class_names: tuple[str, ...] | None = None,
    by: str = "image",
) -> Folds:
    """Stratified grouped folds: equal sizes and class frequencies, within the limits of the groups.

    Groups are assigned largest first, in random order among equals, each to the fold in which the sum over classes of squared
    counts, divided by the class's total, grows least.

    Parameters
    ----------
    groups
        (example,) names or numbers; examples with the same one are never separated.
    classes
        (example,) class codes, -1 for excluded examples; None to balance sizes alone.
    folds
        How many.
    seed
        Of the order among groups of one size.
    class_names
        Names of the classes in error messages.
    by
        Name of the column of groups in error messages.

    Raises
    ------
    TooFewExamplesError
        Fewer than 10 examples a fold, fewer groups than folds, or a class that occurs in fewer groups than there are folds.
    InvalidInputError
        Fewer than 2 folds, or not one class an example.

    Examples
    --------
    >>> import numpy as np
    >>> images = np.arange(120) // 2
    >>> folds = grouped_folds(images, folds=4)
    >>> np.bincount(folds.of).tolist()
    [30, 30, 30, 30]
    """
    number = number_groups(groups)
    codes = np.zeros(len(number), dtype=np.intp) if classes is None else np.asarray(classes, dtype=np.intp)
    if folds < 2:
        raise InvalidInputError(f"expected at least 2 folds, found {folds}; give more (`folds` 5)")
    if len(codes) != len(number):
        raise InvalidInputError(f"expected one class for each of {len(number)} examples, found {len(codes)}")
    used = codes >= 0
    names = class_names or tuple(str(c) for c in range(int(codes.max(initial=0)) + 1))
    _refuse_too_few(number[used], codes[used], folds, names, by)

    table = np.zeros((number.max() + 1, int(codes.max()) + 1))
    np.add.at(table, (number[used], codes[used]), 1)
    totals = np.maximum(table.sum(0), 1)
    sizes = table.sum(1)
    rng = np.random.default_rng(seed)
    order = rng.permutation(np.flatnonzero(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    counts = np.zeros((folds, table.shape[1]))
    filled = np.zeros(folds)
    place = np.full(len(table), -1, dtype=np.intp)
    weight = table / totals
    for group in order:
        # the growth of sum(count^2 / total) when the group joins a fold, without the part that is the same for all folds;
        # the size term settles ties between folds that are equal by class
        growth = counts @ weight[group] + 1e-3 * filled * sizes[group] / len(number)
        fold = int(np.argmin(growth))
        place[group] = fold
        counts[fold] += table[group]
        filled[fold] += sizes[group]
    return Folds(of=np.where(used, place[number], -1), groups=number, seed=seed)


def _or_fewer(folds: int) -> str:
    return f", or give fewer folds (`folds` {folds})" if folds >= FEWEST_FOLDS else ""


def _refuse_too_few(number: NDArray[np.intp], codes: NDArray[np.intp], folds: int, names: tuple[str, ...], by: str) -> None:
    if len(codes) < MINIMUM_PER_FOLD * folds:
        raise TooFewExamplesError(
            f"expected at least {MINIMUM_PER_FOLD * folds} examples for {folds} folds ({MINIMUM_PER_FOLD} a fold), found {len(codes)}; "
            f"extract more examples{_or_fewer(len(codes) // MINIMUM_PER_FOLD)}"
        )
    more = "extract more images" if by == "image" else "group by another column (`groups`)"
    if len(np.unique(number)) < folds:
        raise TooFewExamplesError(
            f"expected at least {folds} groups for {folds} folds, found {len(np.unique(number))}: examples of one {by} stay together; "
            f"{more}{_or_fewer(len(np.unique(number)))}"
        )
    present = np.unique(codes)
    if len(present) < 2 and len(names) > 1:
        raise TooFewExamplesError(f"expected at least two classes, found only {names[present[0]]!r}; choose another task or other examples")
    seen = np.unique(np.stack([number, codes], axis=1), axis=0)
    per_class = np.bincount(seen[:, 1], minlength=len(names))
    rare = [c for c in present if per_class[c] < folds]
    if rare:
        listed = ", ".join(f"{names[c]} in {per_class[c]}" for c in rare[:8])
        most = int(max(np.count_nonzero(codes == c) for c in rare))
        raise TooFewExamplesError(
            f"expected every class in at least {folds} groups (one a fold; examples of one {by} stay together), found {listed}"
            f"{' and others' if len(rare) > 8 else ''}; leave them out by `minimum` {most + 1}, {more}, or give fewer folds (`folds`)"
        )
