"""Positions of generated tokens, and which of them an example has."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ANSWER_POSITION = re.compile(r"answer_(\d+)")
"""Name of the position of one generated token, counted from 0, such as `answer_0`."""


def generated_number(position: str) -> int | None:
    """Which generated token a position is, counted from 0; None for a position of the prompt.

    Examples
    --------
    >>> generated_number("answer_2"), generated_number("final")
    (2, None)
    """
    found = ANSWER_POSITION.fullmatch(position)
    return None if found is None else int(found[1])


def with_generated(positions: Sequence[str], present: NDArray[np.bool_], count: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(example, position) which positions exist, once the number of generated tokens is known.

    Parameters
    ----------
    positions
        Names.
    present
        (example, position) which may exist, as `position_present` says.
    count
        (example,) generated tokens before the end of the turn.
    """
    found = present.copy()
    for column, name in enumerate(positions):
        if (number := generated_number(name)) is not None:
            found[:, column] &= number < count
    return found
