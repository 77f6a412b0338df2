"""The commands that a report prints make the results of probes again."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from pandas.testing import assert_frame_equal
from planted import planted_store

from stratascope.cli import all_commands, main
from stratascope.commands.command_line import CommandLines
from stratascope.report.probe_reproduction import probe_options
from stratascope.report.reproduction import python_notes
from stratascope.report.result_set import gather
from stratascope.results.registry import load_result
from stratascope.store import ActivationStore

COMMAND_LINES = CommandLines(lambda name: all_commands()[name])
ODD = {
    "as it comes": [""],
    "two commands": [
        "--tasks truth --positions final --minimum 5",
        "--tasks relation --positions relation --only label=1 --baseline b.zarr",
    ],
    "all of it": [
        "--tasks truth --controls shuffled,control --types subject,relation,object --control-draws 3 --layers 0,2-4 --folds 4 "
        "--seed 3 --strengths 0.001,0.1 --metric auroc "
        "--margin 0.01 --by label --measures mdl,calibration --transfer --transfer-to relation --positions final,relation --baseline b.zarr"
    ],
    "heads by means": ["--tasks truth --array head_outputs --method means --controls shuffled --groups id"],
    "a pair, and other data": ["--tasks truth --positions final+relation --pair difference --test-on other=c.zarr --transfer"],
    "own split": ["--tasks truth --split train,test --positions final"],
}


@pytest.mark.slow
@pytest.mark.parametrize("asked", ODD.values(), ids=ODD)
def test_printed_commands_make_the_results_again(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, condition in (("a.zarr", "original"), ("b.zarr", "blank")):
        planted_store(Path(name), examples=240, hidden=8, condition=condition, heads=True, split=True)
    planted_store(Path("c.zarr"), examples=240, hidden=8, heads=True, seed=1, images_from=500)
    for words in asked:
        _run(["probe", "a.zarr", *shlex.split(words), "--out", "first"])
    store = ActivationStore.open("a.zarr")
    findings = gather(store, ["first"])
    assert python_notes(findings, COMMAND_LINES) == []
    for options in probe_options(store, findings):
        program, *words = shlex.split(COMMAND_LINES("probe", "a.zarr", options))
        assert program == "stratascope"
        _run([*words, "--out", "again"])
    first, again = ({path.name: load_result(path) for path in Path(folder).glob("*.zarr.zip")} for folder in ("first", "again"))
    assert set(again) == set(first)
    for name in first:
        assert again[name].attributes == first[name].attributes
        for table in first[name].tables:
            assert_frame_equal(again[name].tables[table], first[name].tables[table], rtol=1e-5, atol=1e-6)


def test_what_no_option_says_is_said(tmp_path, monkeypatch):
    from stratascope.probe import layer_curve

    monkeypatch.chdir(tmp_path)
    store = ActivationStore.open(planted_store(Path("a.zarr"), examples=160, hidden=8))
    layer_curve(store, "truth", "final", draws=200).save("probe-truth-final.zarr.zip")
    findings = gather(store, ["probe-truth-final.zarr.zip"])
    assert python_notes(findings, COMMAND_LINES) == ["probe-truth-final.zarr.zip with draws=200"]


def _run(words: list[str]) -> None:
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
