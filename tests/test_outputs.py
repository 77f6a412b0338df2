"""What is written to an address is written in a bucket; any other address is refused by every command before it does anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

from stratascope.cli import all_commands, main
from stratascope.commands.options import OutputPath
from stratascope.errors import InvalidInputError
from stratascope.results.file import ResultFile
from stratascope.results.registry import save_result

COMMANDS = all_commands().values()
INPUTS = {"source", "probe", "files", "boxes", "images", "examples", "results", "data"}
"""Options and arguments with paths that are read."""


def outputs() -> Iterator[tuple[click.Command, click.Parameter]]:
    for command in COMMANDS:
        yield from ((command, p) for p in command.params if isinstance(p.type, OutputPath))


def test_paths_of_the_command_line_are_inputs_or_outputs() -> None:
    paths = [(c.name, p) for c in COMMANDS for p in c.params if isinstance(p.type, click.Path) and not isinstance(p.type, OutputPath)]
    assert {p.name for _, p in paths} <= INPUTS
    writing = {"out", "output", "export", "target"}
    assert {p.name for c in COMMANDS for p in c.params} & writing == {p.name for _, p in outputs()}
    assert all(isinstance(p.type, OutputPath) for c in COMMANDS for p in c.params if p.name in writing)


@pytest.mark.parametrize(
    "address", ["s3:/bucket/out", "hf://datasets/me/out.zarr", "gs://me:zq@bucket/out?sig=zq", "https://host/out.zarr"]
)
@pytest.mark.parametrize(("command", "parameter"), list(outputs()), ids=lambda p: p.name)
def test_an_address_to_write_to_is_refused_before_anything_runs(
    command: click.Command, parameter: click.Parameter, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "callback", lambda **_: pytest.fail("the command ran"))
    arguments = [str(command.name)]
    for other in command.params:
        if isinstance(other, click.Argument):
            arguments += [address if other is parameter else "nowhere"] * (other.nargs != -1)
        elif other.required and other is not parameter:
            arguments += [other.opts[0], "nowhere"]
    if command.name == "fetch":
        arguments[1] = "vsr"
    if isinstance(parameter, click.Option):
        arguments += [parameter.opts[-1], address]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "expected a path on this machine" in result.stderr or "expected an address without a password or a query" in result.stderr
    assert "found" in result.stderr
    assert "zq" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_python_refuses_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match="found an address"):
        save_result(Path("s3://bucket/a.zarr.zip"), ResultFile("test", arrays={"a": (("x",), np.zeros(2))}))
    assert not list(tmp_path.iterdir())
