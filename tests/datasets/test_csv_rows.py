"""A table from a spreadsheet gives the very examples that the same rows in JSON lines give."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from stratascope.datasets import load_examples
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
        ("image,caption,relation,label,label\n", "once, found image, caption, relation, label, label"),
        ("image,caption,relation,label\na.png,The a is on b, or c,on,1", "line 2: expected 4 cells, found more"),
        ("image,caption,relation,label\na.png,The a is on b,on,maybe", 'line 2: expected label 0 or 1, found "maybe"'),
        ("image,caption,relation,label\na.png,The a is on b,on", "line 2: expected label 0 or 1, found none; a row needs image"),
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
