"""Every option of every command with values that make no sense: a refusal in one line, and no fault of the package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from edits import result_of

from stratascope.cli import all_commands, main

ODD = ("", "-1", "0", "nan", "9" * 20, "0-99999999999", "5-2", "x")
"""Values for any option. A number may make sense for one and not for another; then the command does what it says."""

LONG = {"demo", "fetch", "extract"}
"""Commands that draw, fetch or compute for long where a value makes sense; their values are those of the others."""


def options_of(command: click.Command) -> Iterator[click.Option]:
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.is_flag and parameter.name != "debug":
            yield parameter


def cases() -> Iterator[Any]:
    for name, command in all_commands().items():
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
        **{name: store for name in all_commands() if name not in {*LONG, "plan", "copy", "diff", "figure"}},
        "view": [*store, "--no-browser", "--export", "/dev/null/x"],
    }


@pytest.mark.slow
@pytest.mark.parametrize(("name", "option"), list(cases()))
def test_odd_values_are_refused_or_mean_something(
    name: str, option: str, words: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ODD:
        result_of(name, *words[name], option, value)


HOSTILE = (
    "",
    "absent",
    "a" * 300,
    "empty",
    "folder",
    "text",
    "brace.json",
    "loop",
    "text/inside",
    "ünï🐈",
    "~nobody/x",
    "\udcff",
    "s3://",
    "*",
)
"""For any path: nothing, nothing there, too long, empty, of the other kind, no JSON, a link to itself, within a file, not UTF-8."""


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with things in the place of others, and nothing in it that is any good."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name, content in (("empty", ""), ("text", "x"), ("brace.json", "{")):
        (tmp_path / name).write_text(content)
    (tmp_path / "loop").symlink_to("loop")


def path_cases() -> Iterator[Any]:
    for name, command in all_commands().items():
        for option in options_of(command):
            if isinstance(option.type, click.Path):
                yield pytest.param(name, option.opts[-1], id=f"{name}{option.opts[-1]}")


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is drawn or fetched; what is asked for is looked at all the same."""

    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("stratascope.demo.run_demo", lambda *_, **__: "done")
    monkeypatch.setattr("stratascope.datasets.fetch.fetch_vsr", no_network)


@pytest.mark.slow
@pytest.mark.usefixtures("hostile", "idle")
@pytest.mark.parametrize(("name", "option"), list(path_cases()))
def test_hostile_paths_are_refused_in_one_line(name: str, option: str, words: dict[str, list[str]]) -> None:
    own = {
        "demo": [],
        "fetch": ["vsr", "--out", "f"],
        "extract": [*words["plan"], "--out", "made.zarr"],
        "explain": [*words["explain"], "0"],
    }
    for value in HOSTILE:
        result_of(name, *own.get(name, words.get(name, [])), option, value)


@pytest.mark.usefixtures("hostile", "idle")
@pytest.mark.parametrize("name", [name for name in all_commands() if name not in ("demo", "fetch", "extract", "plan")])
def test_hostile_stores_are_refused_in_one_line(name: str, words: dict[str, list[str]]) -> None:
    at = 1 if name == "figure" else 0
    for value in HOSTILE:
        given = ["--", *words[name]] if name == "explain" else list(words[name])
        given[at + (name == "explain")] = value
        result_of(name, *given)


@pytest.mark.slow
@pytest.mark.usefixtures("hostile", "idle")
@pytest.mark.parametrize("name", sorted(LONG))
def test_odd_values_of_what_takes_long_are_refused_or_mean_something(
    name: str, words: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unable(*_: Any, **__: Any) -> None:
        raise OSError("not now")

    monkeypatch.setattr("stratascope.extract.plan_extraction", unable)  # its settings are made before
    monkeypatch.setattr("stratascope.extract.run_extraction", unable)
    own = {"demo": [], "fetch": ["vsr", "--out", "f"], "extract": [*words["plan"], "--out", "made.zarr"]}[name]
    for option in options_of(all_commands()[name]):
        for value in (*ODD, "\udcff", "🐈", "1e400", "a" * 5000):
            result_of(name, *own, option.opts[-1], value)
