"""Rows read one by one are those that json.loads finds in the whole text."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratascope.datasets.json_rows import json_rows

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def all_rows(value: dict) -> list:
    return [(name, row) for name, inner in value.items() for row in (inner if isinstance(inner, list) else [inner])]


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), st.integers(1, 30), st.sampled_from([None, 1]))
def test_rows_are_those_of_json_loads_whatever_the_size_of_the_pieces(value: dict, chunk: int, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    assert list(json_rows(io.StringIO(f" {text}\n"), chunk)) == all_rows(value)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), st.data())
def test_a_cut_text_is_refused(value: dict, data: st.DataObject) -> None:
    text = json.dumps(value)
    with pytest.raises(ValueError, match=r"[Ee]xpect|Extra|Unterminated|Invalid"):
        list(json_rows(io.StringIO(text[: data.draw(st.integers(0, len(text) - 1))]), 7))


@pytest.mark.parametrize("text", ["[1]", "{1: 2}", '{"a" 1}', '{"a": [1 2]}', "{} x", "", "nonsense", '{"a": [1,]}', '{"a": 1,}'])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"[Ee]xpect|Extra|Unterminated|Invalid"):
        list(json_rows(io.StringIO(text)))
