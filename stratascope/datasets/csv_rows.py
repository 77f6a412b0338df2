"""Rows of a table in a CSV file, as lines of JSON: what a spreadsheet writes is read like any other file of examples."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from stratascope.errors import InvalidInputError

_TRUTH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
"""How a spreadsheet writes a label."""


def csv_lines(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Line number in the file and one JSON object for each row; the label as a number, all else as text, empty cells left out.

    Raises
    ------
    InvalidInputError
        For a file that is no table, lacks a needed column or has one twice, or a row of more cells than there are columns.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        lacking = [name for name in ("image", "caption", "relation", "label") if name not in names]
        if lacking or len(set(names)) < len(names):
            raise InvalidInputError(
                f"{path}: expected a table with each of the columns image, caption, relation and label once, found "
                f"{', '.join(names) or 'none'}; name them in the first line, parted by commas"
            )
        reader.fieldnames = names
        for row in reader:
            if None in row:
                raise InvalidInputError(
                    f"{path}, line {reader.line_num}: expected {len(names)} cells, found more; put texts with commas into double quotes"
                )
            cells = {name: value for name, value in row.items() if value}
            label = cells.get("label", "").strip().lower()
            yield reader.line_num, json.dumps({**cells, **({"label": _TRUTH[label]} if label in _TRUTH else {})})
    except csv.Error as error:
        raise InvalidInputError(f"{path}, line {reader.line_num}: expected a table in CSV, found: {error}") from error
