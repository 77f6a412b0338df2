"""What a command says when it is done, and how the files that it leaves are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stratascope.results.locations import ENDING
from stratascope.store import choice_text
from stratascope.store.io.recorded_examples import written_examples

if TYPE_CHECKING:
    from stratascope.store import ActivationStore


def told(folder: Path, lines: Iterable[str], figures: Iterable[Path] = ()) -> str:
    """What was found, line by line, then where the figures and the results are."""
    return "\n".join([*lines, *(f"figure {path}" for path in figures), f"results in {folder}"])


def part_lines(store: ActivationStore, only: Sequence[str], count: int) -> list[str]:
    """A line that says which part of the store's examples a result is of; none for all of them.

    Parameters
    ----------
    store
        Whose results they are.
    only
        The choice of examples, as of `chosen_examples`.
    count
        Examples that the result is of.
    """
    total = store.layout.examples
    unwritten = total - int(written_examples(store).sum())
    if not only and count == total:
        return []
    why = f" ({unwritten:,} are not written yet; finish the extraction)" if unwritten else ""
    return [f"{f'only {choice_text(only)}:' if only else 'from'} {count:,} of {total:,} examples{why}"]


def titled(title: str, only: Sequence[str]) -> str:
    """A figure's title with the choice of examples that it is of."""
    return f"{title} ({choice_text(only)})" if only else title


def file_name(*parts: str | None) -> str:
    """Parts joined by dashes; all but letters, digits, dots and underscores, which some file systems or shells refuse, are dashes, too."""
    return "-".join(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts if part)


def result_path(folder: Path, *parts: str | None) -> Path:
    """Where a result lies whose file is called by `parts`, as of `file_name`."""
    return folder / f"{file_name(*parts)}{ENDING}"
