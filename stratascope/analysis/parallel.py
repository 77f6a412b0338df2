"""Tasks over blocks of examples, on any scheduler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import call
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.scheduling import run_all
from stratascope.store import ActivationStore, choice_text, chosen_examples
from stratascope.store.io.selection import example_numbers

Answer = TypeVar("Answer")


def over_blocks(
    function: Callable[..., Answer],
    store: ActivationStore,
    examples: NDArray[np.int64],
    *,
    at_most: int | None = None,
    scheduler: str | None = None,
    progress: bool = False,
    label: str = "tasks",
    **options: Any,
) -> list[Answer]:
    """Call function(store, numbers, **options) for the examples of each block, in the order of `examples`.

    A task holds the store's address and example numbers, no values: a worker process opens the store.

    Parameters
    ----------
    at_most
        Examples in one task; a block by default.
    scheduler
        As of `stratascope.scheduling.run_all`.
    progress
        Show a progress bar where stderr is a terminal.
    label
        Label of the bar.

    Raises
    ------
    InvalidInputError
        If there are no examples, or the scheduler is unknown or does not respond.
    """
    if not len(examples):
        raise InvalidInputError("expected at least one example, found none")
    size = store.layout.block
    pieces = []
    for block in np.split(examples, np.flatnonzero(np.diff(examples // size)) + 1):
        step = at_most or len(block)
        pieces += [block[start : start + step] for start in range(0, len(block), step)]
    return run_all(
        call, [partial(function, store, piece, **options) for piece in pieces], scheduler=scheduler, progress=progress, label=label
    )


def held_examples(store: ActivationStore, array: str, examples: Any = None, only: Sequence[str] = ()) -> NDArray[np.int64]:
    """Example numbers of a mask or sequence; where None, all examples that `array` holds.

    Parameters
    ----------
    store, array
        An array of the store.
    examples
        Numbers or a mask.
    only
        COLUMN=VALUE: keep only these of them, see `store.chosen_examples`.

    Raises
    ------
    InvalidInputError
        If `only` keeps none.
    """
    numbers = np.flatnonzero(store.available(array)) if examples is None else example_numbers(store.layout.examples, examples)
    if not only:
        return numbers.astype(np.int64)
    kept = numbers[chosen_examples(store, only)[numbers]]
    if not len(kept):
        raise InvalidInputError(f"expected examples of {choice_text(only)} that {array} holds, found none of {len(numbers)}; choose others")
    return kept.astype(np.int64)
