"""Progress bars: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")
_QUIET = 10.0
"""Seconds between two lines where there is no terminal."""


def progress_bar(items: Iterable[Item], name: str, total: int | None = None, *, unit: str, show: bool) -> Iterable[Item]:
    """Iterate over items with a progress bar on stderr.

    Parameters
    ----------
    items
        Of any number.
    name
        What is done.
    total
        How many items there are; their length by default.
    unit
        What an item is.
    show
        False for no bar.
    """
    from tqdm.auto import tqdm

    elsewhere: dict[str, Any] = {} if sys.stderr.isatty() else {"delay": _QUIET, "mininterval": _QUIET, "ascii": True}
    shown: Iterable[Item] = tqdm(items, name, total, disable=not show, unit=f" {unit}", leave=False, **elsewhere)
    return shown
