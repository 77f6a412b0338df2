"""Every option of every command with values that make no sense: a refusal in one line, and no fault of the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from stratascope.cli import FAULT, main

ODD = ("", "-1", "0", "nan", "9" * 20, "0-99999999999", "5-2", "x")
"""Values for any option. A number may make sense for one and not for another; then the command does what it says."""

LONG = {"demo", "fetch", "extract"}
"""Commands that draw, fetch or compute for long where a value makes sense; their values are those of the others."""


def options_of(command: click.Command) -> Iterator[click.Option]:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.is_flag and parameter.name != "debug":
            yield parameter


def cases() -> Iterator[Any]:
    for name, command in main.commands.items():
        for option in options_of(command) if name not in LONG else ():
            yield pytest.param(name, option.opts[-1] if option.opts[-1].startswith("--") else option.opts[0], id=f"{name}{option.opts[0]}")


@pytest.fixture(scope="module")
def words(store_path: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each command needs to be refused for the odd value alone, and to have little to do where it is none."""
    small = tmp_path_factory.mktemp("odd") / "small.zarr"
    arguments = ["--examples", "0-3", "--layers", "0", "--arrays", "answer_logits"]
    assert CliRunner().invoke(main, ["copy", str(store_path), str(small), *arguments]).exit_code == 0
    rows = ["--model", "demo", "--examples", str(scenes / "scenes.jsonl"), "--images", str(scenes / "images"), "--limit", "2"]
    store = [str(small)]
    return {
        "plan": rows,
        "copy": [*store, "/dev/null/x"],
        "diff": store * 2,
        "figure": ["curves", *store],
        **{name: store for name in main.commands if name not in {*LONG, "plan", "copy", "diff", "figure"}},
        "view": [*store, "--no-browser", "--export", "/dev/null/x"],
    }


@pytest.mark.parametrize(("name", "option"), list(cases()))
def test_odd_values_are_refused_or_mean_something(
    name: str, option: str, words: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ODD:
        result = CliRunner().invoke(main, [name, *words[name], option, value])
        said = (name, option, value, result.output[-600:], result.exception)
        assert result.exit_code in (0, 1, 2), said
        assert result.exception is None or isinstance(result.exception, SystemExit), said
        assert FAULT not in result.stderr, said
        if result.exit_code == 2:
            assert len(result.stderr.strip().splitlines()) == 1, said
