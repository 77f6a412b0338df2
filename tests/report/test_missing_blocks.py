"""A store whose extraction is not finished: every result says from how many of its examples it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from stratascope.cli import main
from stratascope.report.result_set import gather
from stratascope.report.store_report import report_page
from stratascope.results.registry import load_result
from stratascope.store import ActivationStore


@pytest.fixture(scope="module")
def unfinished(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 scenes, of which the second block, the last 32, is not written."""
    path = tmp_path_factory.mktemp("unfinished") / "u.zarr"
    shutil.copytree(store_path, path)
    (path / "written" / "c" / "1").unlink()
    return path


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "name", "counted"),
    [
        (("answers",), "answers", "from 64 of 96"),
        (("answers", "--only", "label=1"), "answers-label-1", "only label=1: "),
        (("share",), "share", "from 64 of 96"),
        (("overlap",), "overlap", "from 64 of 96"),
        (("pointing",), "pointing", "from "),
        (("rollout", "--examples", "0-3"), "rollout", "from 4 of 96"),
    ],
)
def test_a_result_of_an_unfinished_store_says_of_how_many_examples_it_is(unfinished, tmp_path, command, name, counted):
    said = run(command[0], unfinished, *command[1:], "--out", tmp_path)
    assert said.exit_code == 0, said.output
    line = next(line for line in said.stdout.splitlines() if "not written yet" in line)
    assert line.startswith(counted)
    assert line.endswith("of 96 examples (32 are not written yet; finish the extraction)")
    attributes = load_result(tmp_path / f"{name}.zarr.zip").attributes
    assert (attributes["store_examples"], attributes["written_examples"]) == (96, 64)


def test_a_report_of_an_unfinished_store_says_so(unfinished, tmp_path):
    assert run("answers", unfinished, "--out", tmp_path / "res").exit_code == 0
    store = ActivationStore.open(unfinished)
    assert "64 of 96 examples written" in report_page(store, gather(store, [tmp_path / "res"]), command_name="u.zarr").html()


def test_a_finished_store_needs_no_remark(store_path, tmp_path):
    said = run("answers", store_path, "--out", tmp_path)
    assert "from 96" not in said.stdout
    assert "not written" not in said.stdout
