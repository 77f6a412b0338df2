"""Values by example id from a table: a task of the user's own."""

from __future__ import annotations

from pathlib import Path

from stratascope.datasets.table import csv_table, is_csv, json_lines_table, read_text, text_field
from stratascope.errors import InvalidInputError


def read_values(path: str | Path) -> dict[str, object]:
    """Example id -> value, from columns `id` and `value`, or from `id` and the only other column; None for a missing value.

    The file is CSV, or JSON lines if its first character is `{`; `stratascope.datasets.table` says how both are read.

    Raises
    ------
    InvalidInputError
        There is no such file, no such column, a row without an id, an id twice, or a value that is a list or an object.
    """
    path = Path(path)
    text = read_text(path)
    json_lines = not is_csv(path) and text.lstrip().startswith("{")
    table = json_lines_table(path, text) if json_lines else csv_table(path, text, as_text=("id",))
    others = [name for name in table.columns if name != "id"]
    column = "value" if "value" in others else others[0] if len(others) == 1 else None
    if "id" not in table.columns or column is None:
        raise InvalidInputError(f"{path}: expected columns id and value, found {', '.join(table.columns) or 'none'}; name them so")
    found: dict[str, object] = {}
    first: dict[str, str] = {}
    for row in table.rows:
        number = text_field(row, "id")
        if number is None:
            raise InvalidInputError(f"{row.where}: expected an id, found none; give the row the id of an example, or remove it")
        if number in found:
            raise InvalidInputError(
                f"{row.where}: expected each id once, found {number!r} again (first in {first[number]}); keep one row an example"
            )
        value = row.fields.get(column)
        if isinstance(value, list | dict):
            raise InvalidInputError(f"{row.where}: expected text, a number or a truth value in {column!r}, found {str(value)[:80]}")
        found[number], first[number] = value, row.where
    return found
