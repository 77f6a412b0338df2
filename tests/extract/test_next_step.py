"""What `extract` says at its end: what is missing, or a command that can be run as it stands."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from stratascope.cli import main
from stratascope.commands.next_step import next_step
from stratascope.store import ActivationStore


@pytest.mark.slow
def test_a_part_says_what_is_missing_and_the_whole_what_to_run(plan, tmp_path):
    pytest.importorskip("torch")
    from stratascope.extract import run_extraction

    out = tmp_path / "my scenes.zarr"
    run_extraction(plan, out, rank=0, of=2)
    assert next_step(ActivationStore.open(out), out).startswith("not complete: 1 of 2 blocks")
    run_extraction(plan, out, rank=1, of=2)
    said = next_step(ActivationStore.open(out), out)
    assert said == f"next: stratascope probe '{out}' --tasks truth --positions final"
    result = CliRunner().invoke(main, [*shlex.split(said)[2:], "--out", str(tmp_path / "results")])
    assert result.exit_code == 0, result.output
    assert "truth at final" in result.output


def test_it_fits_what_was_recorded(store):
    blank = _of(store, condition="blank")
    assert next_step(blank, "b.zarr").endswith("stratascope probe STORE --baseline b.zarr")
    where = _of(store, prompt={"text": "Where is the {subject} in relation to the {object}?"})
    assert next_step(where, Path("a.zarr")) == "next: stratascope probe a.zarr --tasks relation --only label=1 --positions final"
    assert "--tasks choice " in next_step(_of(store, data={"labels": "choice"}), "a.zarr")
    rows = _of(store)
    rows.layout = replace(store.layout, record=frozenset({"attention_rows"}))
    assert next_step(rows, "a.zarr") == "next: stratascope info a.zarr"


def test_true_captions_alone_are_looked_at(store):
    one = _of(store)
    one.examples = store.examples.assign(label=1)
    assert next_step(one, "a.zarr") == "next: stratascope view a.zarr"


def _of(store: ActivationStore, **provenance: Any) -> Any:
    return SimpleNamespace(layout=store.layout, examples=store.examples, complete=True, provenance={**store.provenance, **provenance})
