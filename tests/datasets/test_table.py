"""CSV and JSON lines with the same rows give the same values and the same examples."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratascope.datasets import load_examples
from stratascope.datasets.table import csv_table, json_lines_table, read_text
from stratascope.errors import InvalidInputError

ROWS = [
    {"image": "a, b.png", "caption": 'The "red" ball is left of the box.', "relation": "left of", "label": 1, "mood": "glad"},
    {"image": "c.png", "caption": "The kätzchen is under the\nbed.", "relation": "under", "label": 0, "mood": "sad"},
]


@pytest.mark.parametrize("labels", [("1", "0"), ("TRUE", "false"), ("1.0", "0.0")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_table_is_read_as_json_lines_are(tmp_path: Path, labels: tuple[str, str], encoding: str) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    with open(tmp_path / "t.csv", "w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows({**row, "label": label} for row, label in zip(ROWS, labels, strict=True))
    assert load_examples(tmp_path / "t.csv") == load_examples(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,caption,label\na.png,x,1", "found image, caption, label; name them in the first line"),
        ("", "found none; name them"),
        ("image,caption,relation,label,label\n", "once, found 'label' again among image, caption, relation, label, label"),
        ("image,caption,relation,label\na.png,The a is on b, or c,on,1", "line 2: expected 4 cells, found more"),
        ("image,caption,relation,label\na.png,The a is on b,on,maybe", 'line 2: expected label 0 or 1, found "maybe"'),
        ("image,caption,relation,label\na.png,The a is on b,on,2", 'line 2: expected label 0 or 1, found "2"; a row needs image'),
        (
            "image,caption,relation,label\na.png,The a is on b,on,1\na.png,The a is on c,on,",
            "line 3: expected a label in every row or in none, found none in 1 of 2 rows",
        ),
        ("image,caption,relation,label\n,The a is on b,on,1", "line 2: expected text in field 'image', found none"),
        ('image,caption,relation,label\na.png,"The a is on b,on,1', "expected a table in CSV, found: unexpected end of data"),
        ("image,caption,relation,label\n", "expected at least one row"),
    ],
)
def test_a_table_that_is_none_is_refused_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InvalidInputError) as refused:
        load_examples(tmp_path / "t.csv")
    assert message in str(refused.value)


def test_a_list_of_rows_is_told_from_a_data_set_of_questions(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(ROWS))
    with pytest.raises(InvalidInputError, match="expected examples one JSON object a line, found a list of them"):
        load_examples(tmp_path / "t.json")


HERE = Path("t")
HEAD = "image,caption,relation,label"
CELL = "a.png,The a is on b,on,1"
FEW = settings(max_examples=60, derandomize=True, deadline=None)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).map(str.strip).filter(bool)
COLUMN_KINDS: dict[str, st.SearchStrategy[Any]] = {
    "whole": st.integers(-(2**70), 2**70),
    "number": st.floats(allow_nan=False, allow_infinity=False).filter(lambda v: v != 0),
    "truth": st.booleans(),
    "text": TEXT | st.sampled_from(["None", "NA", "null", "NaN", "01", "1", "001", "true", "TRUE", "1e999"]),
}


def in_csv(columns: list[str], rows: list[dict[str, Any]]) -> str:
    """The rows as the csv module writes them, numbers and truth values as JSON spells them."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    for row in rows:
        writer.writerow([value if isinstance(value := row.get(c), str) else "" if value is None else json.dumps(value) for c in columns])
    return file.getvalue()


@FEW
@given(data=st.data())
def test_csv_and_json_lines_of_the_same_rows_are_read_alike(data: st.DataObject) -> None:
    kinds = {f"{kind} column": kind for kind in COLUMN_KINDS}
    row = st.fixed_dictionaries({"id": TEXT}, optional={name: COLUMN_KINDS[kind] for name, kind in kinds.items()})
    rows = data.draw(st.lists(row, min_size=1, max_size=6))
    columns = ["id", *kinds]
    from_csv = csv_table(HERE, in_csv(columns, rows), as_text=("id", "text column"))
    from_json = json_lines_table(HERE, "".join(json.dumps(row) + "\n" for row in rows))
    assert from_csv.columns == tuple(columns)
    assert [row.fields for row in from_csv.rows] == [row.fields for row in from_json.rows] == rows
    for one, other in zip(from_csv.rows, from_json.rows, strict=True):
        assert {name: type(value) for name, value in one.fields.items()} == {name: type(value) for name, value in other.fields.items()}


@FEW
@given(cells=st.lists(TEXT | st.sampled_from(["1", "1.0", "01", "1e0", "true", "True", "TRUE", "None", "NA", "9" * 400]), min_size=1))
def test_cells_that_differ_stay_apart_and_none_is_lost(cells: list[str]) -> None:
    read = [row.fields["value"] for row in csv_table(HERE, in_csv(["value"], [{"value": cell} for cell in cells])).rows]
    assert len(read) == len(cells)
    assert all((read[i] == read[j]) == (cells[i] == cells[j]) for i in range(len(cells)) for j in range(i))


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "2", "-3"], [1, 2, -3]),
        (["1", "2.5"], [1, 2.5]),
        (["01", "1", "001"], ["01", "1", "001"]),
        (["1", "1.0"], ["1", "1.0"]),
        (["1", "a"], ["1", "a"]),
        (["9007199254740993", "1"], [9007199254740993, 1]),
        (["1e999", "1"], ["1e999", "1"]),
        (["true", "false"], [True, False]),
        (["TRUE", "FALSE"], [True, False]),
        (["True", "true"], ["True", "true"]),
        (["left", "None", "NA", "null", "nan"], ["left", "None", "NA", "null", "nan"]),
        ([" left ", '"right "'], ["left", "right"]),
    ],
)
def test_what_a_column_of_cells_holds(cells: list[str], values: list[Any]) -> None:
    read = [row.fields["value"] for row in csv_table(HERE, "\n".join(["value", *cells])).rows]
    assert read == values
    assert list(map(type, read)) == list(map(type, values))


def test_trailing_commas_rows_of_commas_and_stray_blanks_mean_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f'{HEAD} ,\n{CELL},\n,,,,\n\n b.png , "The a is on b, not c", on , 0 ,\n,,,,,,\n')
    first, second = load_examples(tmp_path / "t.csv")
    assert (first.id, first.image, first.label) == ("t-000001", "a.png", 1)
    assert (second.id, second.image, second.caption, second.relation, second.label) == (
        "t-000002",
        "b.png",
        "The a is on b, not c",
        "on",
        0,
    )


def test_a_cell_of_a_column_without_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{HEAD},\n{CELL},\n{CELL},sad\n")
    with pytest.raises(InvalidInputError, match=r"line 3: expected cells of named columns only .* 'sad' in column 5, which has no name"):
        load_examples(tmp_path / "t.csv")


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (7, "7"), ("7", "7"), ("4-6", "4-6"), ("1_0", "1_0"), ("01", "01")])
def test_ids_and_splits_are_texts_also_where_they_are_zero(tmp_path: Path, value: int | str, text: str) -> None:
    row = {"image": "a.png", "caption": "The a is on b", "relation": "on", "label": 1}
    (tmp_path / "t.jsonl").write_text(json.dumps({**row, "id": value, "split": value}) + "\n" + json.dumps({**row, "id": ""}) + "\n")
    (tmp_path / "t.csv").write_text(f"{HEAD},id,split\n{CELL},{text},{text}\n{CELL},,\n")
    for name in ("t.jsonl", "t.csv"):
        first, second = load_examples(tmp_path / name)
        assert (first.id, first.split) == (text, text)
        assert (second.id, second.split) == ("t-000002", "t")


@pytest.mark.parametrize("field", ["id", "split"])
@pytest.mark.parametrize("value", [1.5, ["a"], {"a": 1}])
def test_an_id_that_is_no_text_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    row = {"image": "a.png", "caption": "The a is on b", "relation": "on", "label": 1, field: value}
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    with pytest.raises(InvalidInputError, match=f"line 1: expected text or a whole number in field '{field}'"):
        load_examples(tmp_path / "t.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1, "a": 2}', "field 'a' twice in one object"),
        ('{"a": 1, "a ": 2}', "expected each field once, found names that differ in blanks alone"),
        ('{"a": Infinity}', "line 1: expected a finite number in field 'a', found inf"),
        ('{"a": 1e999}', "line 1: expected a finite number in field 'a', found inf"),
    ],
)
def test_json_lines_with_two_meanings_are_refused(line: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        json_lines_table(HERE, line)


def test_line_ends_within_cells_and_byte_order_marks(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbfid,note\r\nx,"a\r\nb"\r\n')
    (row,) = csv_table(HERE, read_text(tmp_path / "t.csv")).rows
    assert row.fields == {"id": "x", "note": "a\r\nb"}
    (tmp_path / "t.csv").write_bytes("id\n\u00e9".encode("latin-1"))
    with pytest.raises(InvalidInputError, match="expected text in UTF-8"):
        read_text(tmp_path / "t.csv")
