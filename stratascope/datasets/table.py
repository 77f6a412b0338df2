"""Read tables from CSV files and JSON lines with the same types in both."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stratascope.errors import InvalidInputError

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
"""A number in JSON syntax; 01 and +1 are text."""
_LINE_END = re.compile(r"\r\n|\r|\n")
_BOOLEANS = tuple({spell("true"): True, spell("false"): False} for spell in (str.lower, str.title, str.upper))
"""Spellings of truth values in JSON, Python and spreadsheets."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    where: str
    """File and line, for messages."""
    line: int
    """Line number in the file, from 1; the last line of a row that takes several."""
    fields: dict[str, Any]
    """Column -> value; missing values are left out."""


@dataclass(frozen=True)
class Table:
    """Columns and rows of a table."""

    columns: tuple[str, ...]
    rows: Sequence[Row]


def read_text(path: Path) -> str:
    """Read a UTF-8 file with its own line ends, without a byte-order mark.

    Raises
    ------
    InvalidInputError
        If the file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidInputError(f"{path}: expected a readable file, CSV or JSON lines, found: {error}; check the path") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}: expected text in UTF-8, CSV or JSON lines, found: {error}; save it as UTF-8") from error


def is_csv(path: Path) -> bool:
    """Whether a file name has a CSV ending."""
    return path.suffix.lower() == ".csv"


def csv_table(path: Path, text: str, as_text: Collection[str] = ()) -> Table:
    """Parse CSV text; the first row holds the column names.

    Blanks around a cell are cut off. An empty cell is a missing value, and a row of empty cells is skipped; nothing else is missing: `NA`
    and `None` are text. A column whose cells are all numbers as JSON spells them holds numbers, unless two spellings mean the same
    number (1 and 1.0), which stay apart as text. A column of true and false, in one spelling, holds truth values.

    Parameters
    ----------
    path
        Of the file, for messages.
    text
        What the file holds.
    as_text
        Columns whose cells are text, also where all of them look like numbers.

    Raises
    ------
    InvalidInputError
        If the text is not CSV, a column's name occurs twice, or a cell has no column or a column without a name.
    """
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        names = [name for name in header if name]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise InvalidInputError(
                f"{path}: expected each column once, found {twice!r} again among {', '.join(names)}; rename or remove one of them"
            )
        lines: list[int] = []
        cells: list[list[str]] = []
        for line in reader:
            row = [cell.strip() for cell in line]
            if not any(row):
                continue
            where = f"{path}, line {reader.line_num}"
            if extra := next((cell for cell in row[len(header) :] if cell), None):
                raise InvalidInputError(
                    f"{where}: expected {len(names)} cells, found more, such as {extra[:80]!r}; put texts with commas into double quotes"
                )
            for number, (name, cell) in enumerate(zip(header, row, strict=False), 1):
                if cell and not name:
                    raise InvalidInputError(
                        f"{where}: expected cells of named columns only ({', '.join(names) or 'there is none'}), found {cell[:80]!r} in "
                        f"column {number}, which has no name in the first line; name the column there, or remove it"
                    )
            lines.append(reader.line_num)
            cells.append(row)
    except csv.Error as error:
        raise InvalidInputError(
            f"{path}, line {reader.line_num}: expected a table in CSV, found: {error}; put texts with commas or quotes into double quotes"
        ) from error
    values: dict[str, list[Any]] = {}
    for k, name in enumerate(header):
        if name:
            column = [row[k] if k < len(row) else "" for row in cells]
            values[name] = column if name in as_text else _typed(column)
    rows = [
        Row(f"{path}, line {line}", line, {name: column[k] for name, column in values.items() if column[k] != ""})
        for k, line in enumerate(lines)
    ]
    return Table(tuple(names), rows)


def json_lines_table(path: Path, text: str) -> Table:
    """Parse JSON lines, one object per row.

    Blanks around a text are cut off. null, NaN and an empty text are missing values; nothing else is.

    Raises
    ------
    InvalidInputError
        If a line is not one JSON object, names a field twice, or holds an infinite number.
    """
    rows = list(_json_rows(path, text))
    columns: dict[str, Any] = {}
    for row in rows:
        columns.update(row.fields)
    return Table(tuple(columns), rows)


def text_field(row: Row, name: str) -> str | None:
    """A text field such as an id or a split; integers and truth values become their JSON text.

    None where the row has no such value: 0 and false are values.

    Raises
    ------
    InvalidInputError
        If the field is a fraction, a list or an object.
    """
    value = row.fields.get(name)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return json.dumps(value)
    raise InvalidInputError(
        f"{row.where}: expected text or a whole number in field {name!r}, found {json.dumps(value, ensure_ascii=False)[:160]}; put it into "
        "double quotes"
    )


def plain_text(value: Any, source: str) -> Any:
    r"""The JSON value of `source`; ValueError where it holds half of a surrogate pair (such as "\ud800" alone), which is no text."""
    if "\\u" in source:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _json_rows(path: Path, text: str) -> Iterator[Row]:
    decode, file = json.JSONDecoder(object_pairs_hook=_unique).decode, str(path)
    named: dict[tuple[str, ...], list[str]] = {}  # names of a row -> the same without blanks at their ends
    for number, line in enumerate(_LINE_END.split(text), 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = plain_text(decode(line), line)
        except (ValueError, RecursionError) as error:
            raise InvalidInputError(f"{where}: expected one JSON object a line, found: {error}") from error
        if not isinstance(row, dict):
            raise InvalidInputError(f"{where}: expected a JSON object, found {type(row).__name__}")
        names = named.get(tuple(row))
        if names is None:
            names = named[tuple(row)] = [name.strip() for name in row]
            if len(set(names)) < len(row):
                raise InvalidInputError(
                    f"{where}: expected each field once, found names that differ in blanks alone: {', '.join(map(repr, row))}"
                )
        fields: dict[str, Any] = {}
        for name, value in zip(names, row.values(), strict=True):
            if isinstance(value, str):
                if stripped := value.strip():
                    fields[name] = stripped
            elif isinstance(value, float) and not math.isfinite(value):
                if math.isinf(value):
                    raise InvalidInputError(
                        f"{where}: expected a finite number in field {name!r}, found {value}; leave it out, or use null"
                    )
            elif value is not None:
                fields[name] = value
        yield Row(where, number, fields)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(name for name in names if names.count(name) > 1)!r} twice in one object")
    return found


def _typed(cells: list[str]) -> list[Any]:
    """The cells of a column as numbers or truth values where all of them are such, else as they are; "" for a missing one."""
    there = {cell for cell in cells if cell}
    meant: dict[str, Any] = {}
    if all(map(_NUMBER.fullmatch, there)):
        try:
            meant = {cell: json.loads(cell) for cell in there}
        except ValueError:  # of too many digits
            return cells
        if len(set(meant.values())) < len(there) or any(isinstance(value, float) and math.isinf(value) for value in meant.values()):
            return cells
    else:
        meant = next((spelled for spelled in _BOOLEANS if there <= spelled.keys()), {})
    return [meant[cell] if cell else "" for cell in cells] if meant else cells
