"""Values of the user's own by example id: every class as written, no example lost."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratascope.errors import InvalidInputError
from stratascope.probe.tasks.task import Task, find_task, task_from_values
from stratascope.probe.tasks.value_files import read_values

FEW = settings(max_examples=60, derandomize=True, deadline=None)


def task_of(values: dict[str, object], ids: list[str]) -> Task:
    store: Any = SimpleNamespace(examples=pd.DataFrame({"id": ids}), provenance={})
    return find_task(store, "mine", np.ones(len(ids), bool), {"mine": values})[0]


def from_file(folder: Path, text: str, name: str = "values.csv") -> Task:
    (folder / name).write_text(text)
    values = read_values(folder / name)
    return task_of(values, list(values))


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["left", "right", "None"], ("None", "left", "right")),
        (["NA", "null", "nan", "N/A"], ("N/A", "NA", "nan", "null")),
        (["01", "1", "001"], ("001", "01", "1")),
        (["10", "9", "2"], ("2", "9", "10")),
        (["1.0", "2.0", "3"], ("1", "2", "3")),
        (["True", "False", "True"], ("False", "True")),
        (
            ["9007199254740993", "9007199254740992", "36893488147419103232"],
            ("9007199254740992", "9007199254740993", "36893488147419103232"),
        ),
    ],
)
@pytest.mark.parametrize("form", ["csv", "trailing commas", "json lines"])
def test_every_value_is_a_class(tmp_path: Path, cells: list[str], classes: tuple[str, ...], form: str) -> None:
    if form == "json lines":
        lines = [json.dumps({"id": f"e{k}", "value": cell}) for k, cell in enumerate(cells)]
        task = from_file(tmp_path, "\n".join(lines), "values.jsonl")
        assert sorted(task.classes) == sorted(set(cells))
        return
    end = "," if form == "trailing commas" else ""
    task = from_file(tmp_path, "\n".join([f"id,value{end}", *(f" e{k} ,{cell} {end}" for k, cell in enumerate(cells)), f",{end}"]))
    assert task.classes == classes
    assert (task.codes >= 0).all()


@pytest.mark.parametrize("name", ["values.csv", "values.jsonl"])
def test_ids_are_texts_and_zero_is_one(tmp_path: Path, name: str) -> None:
    rows = [{"id": number, "value": "ab"[number % 2]} for number in (0, 1, 2)]
    text = "\n".join(map(json.dumps, rows)) if name.endswith("l") else "id,value\n" + "\n".join(f"{r['id']},{r['value']}" for r in rows)
    (tmp_path / name).write_text(text)
    assert read_values(tmp_path / name) == {"0": "a", "1": "b", "2": "a"}
    assert task_of(read_values(tmp_path / name), ["0", "1", "2"]).codes.tolist() == [0, 1, 0]


def test_whole_numbers_keep_their_value_where_examples_have_none() -> None:
    task = task_of({"a": 2**53 + 1, "b": 2**53, "c": None}, ["a", "b", "c", "d"])
    assert task.classes == (str(2**53), str(2**53 + 1))
    assert task.codes.tolist() == [1, 0, -1, -1]
    assert task_from_values("big", [2**70, 2**70 + 1]).classes == (str(2**70), str(2**70 + 1))
    assert task_from_values("large", pd.Series([1e300, 2e300])).classes == (str(int(1e300)), str(int(2e300)))


@FEW
@given(values=st.lists(st.integers(-(2**65), 2**65) | st.none(), min_size=1, max_size=8).filter(any))
def test_classes_of_whole_numbers_are_these_numbers_in_order(values: list[int | None]) -> None:
    task = task_of({f"e{k}": value for k, value in enumerate(values)}, [f"e{k}" for k in range(len(values))])
    there = sorted({value for value in values if value is not None})
    assert task.classes == tuple(map(str, there))
    assert [None if code < 0 else there[code] for code in task.codes] == values


def test_values_of_two_kinds_are_refused() -> None:
    for values, found in (
        ([1, "1"], "numbers such as 1 and text such as '1'"),
        ([True, 1], "truth values such as True and numbers such"),
    ):
        with pytest.raises(InvalidInputError, match=f"expected classes of one kind, found {found}"):
            task_from_values("mixed", values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,value\na,1\nb,2\na,3\n", r"line 4: expected each id once, found 'a' again \(first in .*line 2\)"),
        ("id,value\na,1\n,2\n", "line 3: expected an id, found none"),
        ("id,value,\na,1,\nb,2,x\n", "line 3: expected cells of named columns only .* found 'x' in column 3"),
        ("id,left,right\na,1,2\n", "expected columns id and value, found id, left, right"),
        ('{"id": "a", "value": [1]}', r"line 1: expected text, a number or a truth value in 'value', found \[1\]"),
    ],
)
def test_a_table_that_says_two_things_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        from_file(tmp_path, text, "values.jsonl" if text.startswith("{") else "values.csv")
