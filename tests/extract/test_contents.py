"""What a store holds of its examples before the model runs."""

from __future__ import annotations

import json
from pathlib import Path

from stratascope.datasets import write_scenes
from stratascope.extract import ExtractionSettings, plan_extraction
from stratascope.extract.plan.store_contents import example_table


def test_other_fields_of_the_rows_become_columns(tmp_path: Path) -> None:
    path = write_scenes(tmp_path, 4, seed=0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    before = example_table(plan_extraction(ExtractionSettings(model="demo", examples=[path], images=tmp_path / "images")))
    for k, row in enumerate(rows):
        row |= {"room": "garden" if k % 2 else "kitchen", "floor": k, "seen": k < 2, "subject": "another", "mixed": k if k else "none"}
    rows[0] |= {"only here": True, "list": [1, 2]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = example_table(plan_extraction(ExtractionSettings(model="demo", examples=[path], images=tmp_path / "images")))
    assert list(table.columns) == [*before.columns, "room", "floor", "seen", "mixed", "only here"], "lists are left out"
    assert table[list(before.columns)].equals(before), "a column of the store's own is not replaced"
    assert table["room"].tolist() == ["kitchen", "garden"] * 2
    assert table["floor"].tolist() == [0, 1, 2, 3]
    assert table["seen"].tolist() == [True, True, False, False]
    assert table["mixed"].tolist() == ["none", "1", "2", "3"]
    assert table["only here"].tolist() == ["true", None, None, None]
