"""Official train and test splits of a data set, and the leakage between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.probe.validation.folds import Folds, grouped_folds, number_groups
from stratascope.store.io.example_identity import IMAGE, group_labels


@dataclass(frozen=True)
class Leakage:
    """Groups that test and training examples of a split share."""

    train: int
    test: int
    shared: int
    """Test examples whose image (or other group) also occurs in training."""
    groups: str
    renamed: int = 0
    """Of the shared ones, those whose image occurs in training under other file names only."""

    @property
    def share(self) -> float:
        """Of the test examples."""
        return self.shared / max(self.test, 1)

    def __str__(self) -> str:
        seen = f"{self.shared:,} of {self.test:,} test examples ({self.share:.0%})"
        renamed = f" ({self.renamed:,} of them under another file name)" if self.renamed else ""
        return f"{seen} share their {self.groups} with one of {self.train:,} training examples{renamed}"


def split_leakage(
    examples: pd.DataFrame,
    *,
    train: Sequence[str] = ("train",),
    test: Sequence[str] = ("test",),
    column: str = "split",
    groups: str = "image",
) -> Leakage:
    """How many test examples share a group with a training example.

    Parameters
    ----------
    examples
        Table with the columns below.
    train, test
        Values of `column` that make the two parts.
    column
        Column of the split.
    groups
        Column of the group; `image` compares images by content where the table has `image_sha256`, else by name.

    Examples
    --------
    >>> examples = pd.DataFrame({"image": ["a", "b", "b", "c"], "split": ["train", "train", "test", "test"]})
    >>> print(split_leakage(examples))
    1 of 2 test examples (50%) share their image with one of 2 training examples
    """
    learned, tested = _masks(examples, train, test, column)
    leaked = _leaked(group_labels(examples, groups), learned) & tested
    by_name = _leaked(examples[groups].to_numpy(dtype=str), learned)
    renamed = int((leaked & ~by_name).sum()) if groups == IMAGE else 0
    return Leakage(int(learned.sum()), int(tested.sum()), int(leaked.sum()), groups, renamed)


def official_split(
    examples: pd.DataFrame,
    classes: NDArray[np.integer] | None = None,
    *,
    train: Sequence[str] = ("train",),
    test: Sequence[str] = ("test",),
    column: str = "split",
    groups: str = "image",
    folds: int = 5,
    seed: int = 0,
    keep_leaked: bool = True,
    class_names: tuple[str, ...] | None = None,
) -> Folds:
    """Folds of a given split: training examples in grouped folds that select the strength, test examples in the last fold.

    Parameters
    ----------
    examples, train, test, column, groups
        As of `split_leakage`.
    classes
        (example,) class codes, -1 for excluded examples.
    folds, seed
        Of the training examples, as of `grouped_folds`.
    keep_leaked
        False excludes test examples whose group occurs in training.
    class_names
        Names of the classes in error messages.

    Raises
    ------
    TooFewExamplesError
        No test examples are left, or too few to train on, or all of those of one class.
    """
    learned, tested = _masks(examples, train, test, column)
    codes = np.zeros(len(examples), dtype=np.intp) if classes is None else np.asarray(classes, dtype=np.intp)
    names = group_labels(examples, groups)
    try:
        inner = grouped_folds(names, np.where(learned, codes, -1), folds=folds, seed=seed, class_names=class_names, by=groups)
    except TooFewExamplesError as error:
        raise TooFewExamplesError(f"training examples, {column} {', '.join(train)}: {error}") from error
    tested = tested & (codes >= 0)
    if not keep_leaked:
        tested = tested & ~_leaked(names, learned)
    if not tested.any():
        raise TooFewExamplesError(
            f"expected test examples in {column} {', '.join(test)}, found none that take part; choose another split (`split`)",
            in_python="keep_leaked=True",
        )
    return Folds(of=np.where(tested, folds, inner.of), groups=number_groups(names), seed=seed, test=folds)


def _leaked(names: NDArray[np.str_], learned: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(example,) whether the group of an example occurs among the training examples."""
    return np.isin(names, np.unique(names[learned]))


def _masks(examples: pd.DataFrame, train: Sequence[str], test: Sequence[str], column: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if column not in examples.columns:
        raise InvalidInputError(
            f"expected a column {column!r} that names the split of each example, found {', '.join(map(str, examples.columns))}"
        )
    for name in (*train, *test):
        if not (examples[column] == name).any():
            found = sorted(examples[column].dropna().astype(str).unique())
            raise InvalidInputError(
                f"expected examples with {column} {name!r}, found only {', '.join(found) or 'none'}; give the names of two that there are"
            )
    return examples[column].isin(list(train)).to_numpy(), examples[column].isin(list(test)).to_numpy()
