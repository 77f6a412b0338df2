"""What commands share: opening a store, where results go, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stratascope.store import ActivationStore


def open_store(path: str) -> ActivationStore:
    """A store by path, zip or URL."""
    from stratascope.store import ActivationStore

    return ActivationStore.open(path)


def results_folder(store: str) -> Path:
    """STORE-results beside the store; in the working folder for a URL."""
    from stratascope.results.locations import results_folders

    return results_folders(store)[0]


@contextmanager
def bar(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, where there is a terminal, that is told (done, all)."""
    from tqdm.auto import tqdm

    with tqdm(desc=name, unit=unit, disable=not sys.stderr.isatty(), leave=False) as shown:

        def tell(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield tell
