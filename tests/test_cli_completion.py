"""Mistyped commands get suggestions, options have the same spellings everywhere, and the shell completes names of stores and results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from stratascope.cli import SHORT_HELP, all_commands, main
from stratascope.errors import InvalidInputError


def completions(*line: str) -> list[str]:
    *words, incomplete = line
    return [item.value for item in ShellComplete(main, {}, "stratascope", "_STRATASCOPE_COMPLETE").get_completions(words, incomplete)]


def failure(*arguments: str) -> str:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 2
    (line,) = done.stderr.splitlines()
    return line


def test_a_mistyped_command_or_option_gets_a_suggestion() -> None:
    assert failure("rollot", "x") == "stratascope: No such command 'rollot'. Did you mean 'rollout'? See main --help"
    assert failure("zzz") == "stratascope: No such command 'zzz'; see main --help"
    line = failure("share", "x", "--weighng", "norm")
    assert "--weighing" in line
    assert line.endswith("? See main share --help")


@pytest.mark.parametrize("name", list(SHORT_HELP))
def test_options_have_the_same_spellings_everywhere(name: str) -> None:
    spellings = [set(param.opts) for param in all_commands()[name].params if isinstance(param, click.Option)]
    for pair in ({"--task", "--tasks"}, {"--position", "--positions"}, {"-o", "--out"}):
        assert all(pair <= opts for opts in spellings if opts & pair)


def test_a_probe_takes_a_task_in_the_singular(store_path: Path, tmp_path: Path) -> None:
    words = ["probe", str(store_path), "--task", "truth", "--position", "final", "--layers", "0", "-o", str(tmp_path)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "probe-truth-final.zarr.zip").exists()
    (tmp_path / "probe-broken.zarr.zip").write_bytes(b"no zip")
    assert completions("figure", "curves", str(tmp_path), "--task", "") == ["truth"]
    assert completions("figure", "curves", str(tmp_path), "--position", "f") == ["final"]


def test_names_are_completed_from_the_store_on_the_line(store_path: Path) -> None:
    store = str(store_path)
    assert completions("fl") == ["flow"]
    assert completions("probe", store, "--tasks", "tr") == ["truth"]
    assert "relation" in completions("probe", store, "--task", "rel")
    assert "truth,relation" in completions("probe", store, "--tasks", "truth,rel")
    assert completions("probe", store, "--tasks", "truth,tr") == []
    assert completions("probe", store, "--positions", "subject") == ["subject", "subject_box"]
    assert "attention_rows" in completions("copy", store, "small.zarr", "--arrays", "att")
    assert "residual,value_norms" in completions("extract", "--record", "residual,value")
    assert completions("extract", "--positions", "final,t") == ["final,tokens"]
    assert completions("patches", store, "--tasks", "on_s") == ["on_subject"]
    assert completions("figure", "curv") == ["curves"]
    assert "--weighing" in completions("share", store, "--we")


@pytest.mark.parametrize("word", ["nothing.zarr", "https://example.invalid/x.zarr", "", "\0", "/dev/null"])
def test_a_completion_never_fails(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    (tmp_path / "zarr.json").write_text("{")
    for option in ("--tasks", "--positions", "--array"):
        for store in (word, "broken.zip", "."):
            assert completions("probe", store, option, "t") == []
    assert completions("figure", "curves", word, "--task", "t") == []


@pytest.mark.slow
def test_a_completion_loads_no_torch(store_path: Path) -> None:
    code = (
        "import sys; from click.shell_completion import ShellComplete; from stratascope.cli import main\n"
        "complete = ShellComplete(main, {}, 'stratascope', 'X')\n"
        "print([i.value for i in complete.get_completions(['probe', sys.argv[1], '--tasks'], 'tru')])\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(store_path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "['truth']\n", "")
    code = (
        "import sys; from click.shell_completion import ShellComplete; from stratascope.cli import main\n"
        "assert ShellComplete(main, {}, 'stratascope', 'X').get_completions([], 'ro')[0].value == 'rollout'\n"
        "assert 'stratascope.analysis' not in sys.modules and 'pandas' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_documents_shell_completion() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    for shell in ("bash_source", "zsh_source", "fish_source"):
        assert f"_STRATASCOPE_COMPLETE={shell} stratascope" in text


@pytest.mark.parametrize("command", ["share", "rollout", "flow", "overlap", "pointing"])
def test_what_takes_long_shows_a_bar_unless_quiet(command: str, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def recorded(*_: object, **options: object) -> None:
        asked.append(options)
        raise InvalidInputError("expected nothing, found work")

    monkeypatch.setattr("stratascope.analysis.parallel.run_all", recorded)
    for more in ((), ("--quiet",), ("--json",)):
        assert failure(command, str(store_path), "--out", str(tmp_path), *more) == "stratascope: expected nothing, found work"
    assert [(options["progress"], options["label"]) for options in asked] == [(True, command), (False, command), (False, command)]
