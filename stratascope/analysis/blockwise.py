"""Work over a store, cut into tasks over blocks of examples."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import call
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.scheduling import run_all
from stratascope.store import ActivationStore

Answer = TypeVar("Answer")


def over_blocks(
    function: Callable[..., Answer],
    store: ActivationStore,
    examples: NDArray[np.int64],
    *,
    at_most: int | None = None,
    scheduler: str | None = None,
    **options: Any,
) -> list[Answer]:
    """function(store, numbers, **options) for the examples of each block, in the order of `examples`.

    A task carries the store's address and example numbers, never values: a worker process opens the store itself.

    Parameters
    ----------
    at_most
        Examples in one task; a block by default.
    scheduler
        Where the tasks run: as of `stratascope.scheduling.run_all`.

    Raises
    ------
    InvalidInputError
        If there are no examples, or the scheduler is unknown or does not answer.
    """
    if not len(examples):
        raise InvalidInputError("expected at least one example, found none")
    size = store.layout.block
    pieces = []
    for block in np.split(examples, np.flatnonzero(np.diff(examples // size)) + 1):
        step = at_most or len(block)
        pieces += [block[start : start + step] for start in range(0, len(block), step)]
    return run_all(call, [partial(function, store, piece, **options) for piece in pieces], scheduler=scheduler)


def example_numbers(store: ActivationStore, array: str, examples: Any = None) -> NDArray[np.int64]:
    """Example numbers of a mask or sequence; all that `array` holds where None.

    Raises
    ------
    InvalidInputError
        If a number is outside the store, or a mask has another length.
    """
    if examples is None:
        return np.flatnonzero(store.available(array)).astype(np.int64)
    found = np.atleast_1d(np.asarray(examples))
    if found.dtype == bool and len(found) == store.layout.examples:
        return np.flatnonzero(found).astype(np.int64)
    if not len(found):
        return np.zeros(0, np.int64)
    if found.ndim != 1 or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= store.layout.examples:
        raise InvalidInputError(f"expected example numbers from 0 to {store.layout.examples - 1}, or a mask of that many, found {examples}")
    return found.astype(np.int64)
