"""Examples by id: an id is found exactly, whatever it looks like; a number means one only where no id does."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from stratascope.cli import main
from stratascope.commands.example_selection import asked_examples, example_number
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store import ActivationStore

FEW = settings(max_examples=80, derandomize=True, deadline=None)
ODD = st.sampled_from(["0", "1", "2", "14", "014", "1_0", "4-6", "0-1", "-1", "1.0", "a,b", '"a"', "#1", "None", "٣", "1e0"])
IDS = st.lists(ODD | st.text(min_size=1, max_size=5).map(str.strip).filter(bool), unique=True, min_size=1, max_size=9)


def store_of(*ids: str) -> Any:
    """What of a store says which example has which id."""

    def index_of(text: str) -> int:
        if text not in ids:
            raise NotRecordedError(f"expected the id of an example of this store, found {text!r}")
        return ids.index(text)

    return SimpleNamespace(ids=frozenset(ids), index_of=index_of, examples={"id": ids}, layout=SimpleNamespace(examples=len(ids)))


@FEW
@given(ids=IDS)
def test_any_id_is_found_exactly(ids: list[str]) -> None:
    store = store_of(*ids)
    for number, name in enumerate(ids):
        assert example_number(store, name) == number
        assert asked_examples(store, name) == [number]
        assert example_number(store, number) == number
    row = io.StringIO()
    csv.writer(row).writerow(ids)
    if len(ids) > 1 and row.getvalue().strip() not in ids:
        assert asked_examples(store, row.getvalue()) == list(range(len(ids)))


@FEW
@given(ids=IDS, number=st.integers(0, 12))
def test_numbers_are_meant_only_where_no_id_matches(ids: list[str], number: int) -> None:
    store = store_of(*ids)
    if str(number) in ids:
        assert asked_examples(store, str(number)) == [ids.index(str(number))]
    elif number < len(ids):
        assert asked_examples(store, str(number)) == [number]
    else:
        with pytest.raises(InvalidInputError, match=f"from 0 to {len(ids) - 1}, found {number}"):
            asked_examples(store, str(number))


@FEW
@given(ids=IDS, text=st.sampled_from(["014", "1_0", "٣", "+1", " ٣", "1e0", "0x1", "1.0", "--1", "1-2-3"]))
def test_nothing_else_is_a_number(ids: list[str], text: str) -> None:
    if text.strip() in ids:
        return
    with pytest.raises(NotRecordedError):
        asked_examples(store_of(*ids), text)


def test_a_range_is_of_numbers_unless_its_ends_are_ids_of_other_examples() -> None:
    assert asked_examples(store_of("a", "b", "c", "d"), "1-2, d") == [1, 2, 3]
    assert asked_examples(store_of("0", "1", "2"), "0-2") == [0, 1, 2]
    assert asked_examples(store_of("a", "4-6", "b", "c", "d", "e", "f"), "4-6") == [1]
    with pytest.raises(InvalidInputError, match="found 1-2, which may be both: 1 is the id of example number 0, and"):
        asked_examples(store_of("1", "2", "3"), "1-2")
    for text, found in (("2-1", "found 2-1"), ("0-9", "from 0 to 3, found 9"), ("9" * 30, "from 0 to 3"), (",", "expected ids or numbers")):
        with pytest.raises(InvalidInputError, match=found):
            asked_examples(store_of("a", "b", "c", "d"), text)


@pytest.fixture(scope="module")
def shifted(settings: Any, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of eight scenes with the ids 1 to 7 and 2-3."""
    pytest.importorskip("torch")
    import json
    from dataclasses import replace

    from stratascope.extract import plan_extraction, run_extraction

    folder = tmp_path_factory.mktemp("shifted")
    rows = [json.loads(line) for line in (scenes / "scenes.jsonl").read_text().splitlines()[:8]]
    names = [1, 2, 3, "4", "5", "6", "7", "2-3"]
    (folder / "rows.jsonl").write_text("".join(json.dumps({**row, "id": name}) + "\n" for row, name in zip(rows, names, strict=True)))
    run_extraction(plan_extraction(replace(settings, examples=(folder / "rows.jsonl",))), folder / "s.zarr")
    return folder / "s.zarr"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["explain", "STORE", "4", "-o", "OUT/e.html"], "example #3, id 4: "),
        (["explain", "STORE", "0", "-o", "OUT/e.html"], "example #0, id 1: "),
        (["rollout", "STORE", "--examples", "4,2-3", "--out", "OUT"], "examples (#number id): #3 4, #7 2-3"),
        (["flow", "STORE", "--examples", "2-3", "--window", "4-5", "--out", "OUT"], "examples (#number id): #7 2-3"),
        (["copy", "STORE", "OUT/c.zarr", "--examples", "4,2-3"], "examples (#number id): #3 4, #7 2-3"),
    ],
)
def test_commands_take_the_example_of_that_id_and_print_it(shifted: Path, tmp_path: Path, command: list[str], told: str) -> None:
    done = CliRunner().invoke(main, [part.replace("STORE", str(shifted)).replace("OUT", str(tmp_path)) for part in command])
    assert done.exit_code == 0, done.output
    assert told in done.stdout
    if command[0] == "copy":
        assert ActivationStore.open(tmp_path / "c.zarr").examples["id"].tolist() == ["4", "2-3"]
    if command[0] == "explain":
        caption = ActivationStore.open(shifted).examples["caption"][int(told[9])]
        assert f"{told}{caption}" in done.stdout


def test_a_range_that_may_be_ids_is_refused(shifted: Path, tmp_path: Path) -> None:
    refused = CliRunner().invoke(main, ["rollout", str(shifted), "--examples", "1-2", "--out", str(tmp_path)])
    assert refused.exit_code == 2
    assert "found 1-2, which may be both" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
