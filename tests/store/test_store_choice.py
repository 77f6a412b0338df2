"""Examples chosen by a column's values, also where some examples have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from stores import birth, small_layout
from zarr.storage import MemoryStore

from stratascope.errors import InvalidInputError
from stratascope.extract.plan.store_contents import field_column
from stratascope.store import ActivationStore, chosen_examples, column_texts, create_store
from stratascope.store.format.tables import get_table, put_table

COLUMNS: dict[str, list[Any]] = {
    "level": [1, 2, None, 10, 1],
    "whole": [1, 2, 3, 4, 2**53 + 1],
    "big": [2**53 + 1, 2**53, None, 1, 1],
    "huge": [2**63, 2**64, 2**63, 1, 1],
    "part": [0.5, 1.0, None, 2, 0.5],
    "crowded": [True, False, None, True, True],
    "full": [True, False, True, False, True],
    "code": ["01", "1", "001", "None", None],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    path = tmp_path_factory.mktemp("choice") / "s.zarr"
    layout = small_layout(5)
    known = birth(layout)
    known["examples"] = pd.concat(
        [known["examples"], pd.DataFrame({name: field_column(values) for name, values in COLUMNS.items()})], axis=1
    )
    create_store(path, layout, **known)
    return ActivationStore.open(path)


@pytest.mark.parametrize(
    ("only", "expected"),
    [
        (["level=1"], [0, 4]),
        (["level=1.0"], [0, 4]),
        (["level=1", "level=10"], [0, 3, 4]),
        (["whole=9007199254740993"], [4]),
        (["big=9007199254740993"], [0]),
        (["big=9007199254740992"], [1]),
        (["big=9007199254740992", "level=2"], [1]),
        (["huge=9223372036854775808"], [0, 2]),
        (["part=0.5"], [0, 4]),
        (["part=0.50"], [0, 4]),
        (["part=1"], [1]),
        (["crowded=true"], [0, 3, 4]),
        (["crowded=True"], [0, 3, 4]),
        (["crowded=FALSE"], [1]),
        (["full=true"], [0, 2, 4]),
        (["full=True"], [0, 2, 4]),
        (["code=1"], [1]),
        (["code=01"], [0]),
        (["code=None"], [3]),
        (["label=1"], [1, 3]),
    ],
)
def test_a_value_chooses_the_examples_that_have_it(store: ActivationStore, only: list[str], expected: list[int]) -> None:
    assert np.flatnonzero(chosen_examples(store, only)).tolist() == expected


@pytest.mark.parametrize(
    ("only", "message"),
    [
        ("level=3", r"a value of level, found '3'; it has 1, 2, 10, and none in 1 of 5 examples"),
        ("level=one", "found 'one'; it has 1, 2, 10"),
        ("level=nan", "found 'nan'; it has 1, 2, 10"),
        ("whole=9007199254740993.5", "found '9007199254740993.5'"),
        ("whole=9007199254740992", "found '9007199254740992'"),
        ("crowded=yes", "found 'yes'; it has false, true, and none in 1 of 5 examples"),
        ("full=1", "found '1'; it has False, True"),
        ("split=a", "found 'a'; it has no value, and none in 5 of 5 examples"),
    ],
)
def test_a_value_that_no_example_has_is_refused(store: ActivationStore, only: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        chosen_examples(store, [only])


def test_texts_of_a_column_are_missing_where_its_values_are(store: ActivationStore) -> None:
    for name in ("level", "big", "part", "crowded", "code"):
        assert column_texts(store, name).isna().tolist() == [value is None for value in COLUMNS[name]]
    assert column_texts(store, "level").dropna().tolist() == ["1", "2", "10", "1"]


def test_a_table_never_changes_a_whole_number(tmp_path: Path) -> None:
    for values in (pd.Series([2**53 + 1, None], dtype="Int64"), pd.Series([2**63 + 1], dtype="uint64")):
        with pytest.raises(InvalidInputError, match="expected whole numbers up to"):
            put_table(zarr.create_group(MemoryStore()), "t", pd.DataFrame({"n": values}), "row")
    group = zarr.create_group(MemoryStore())
    kept = pd.DataFrame({"n": pd.Series([2**53, None], dtype="Int64"), "m": pd.Series([2**63 - 1, -(2**63)])})
    put_table(group, "t", kept, "row")
    read = get_table(group["t"])  # type: ignore[arg-type]
    assert read["m"].tolist() == [2**63 - 1, -(2**63)]
    assert int(read["n"][0]) == 2**53
    assert bool(read["n"].isna()[1])
