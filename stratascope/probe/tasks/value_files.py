"""Values by example id from a CSV file: a task of the user's own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from stratascope.errors import InvalidInputError


def read_values(path: str | Path) -> dict[str, object]:
    """Example id -> value, from columns `id` and `value`, or from `id` and the only other column.

    Raises
    ------
    InvalidInputError
        There is no such file, no such column, or an id twice.
    """
    try:
        table = pd.read_csv(path, dtype={"id": str})
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path}: expected a CSV file with columns id and value, found: {error}") from error
    others = [name for name in table.columns if name != "id"]
    column = "value" if "value" in others else others[0] if len(others) == 1 else None
    if "id" not in table.columns or column is None:
        raise InvalidInputError(f"{path}: expected columns id and value, found {', '.join(map(str, table.columns)) or 'none'}")
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise InvalidInputError(f"{path}: expected each id once, found {twice.iloc[0]!r} again; keep one row an example")
    return dict(zip(table["id"], table[column], strict=True))
