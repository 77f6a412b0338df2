"""What commands print of texts that others wrote: no control character reaches the terminal."""

from __future__ import annotations

import ast
import sys
import traceback
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import stratascope
from stratascope import cli
from stratascope.cli import FAULT, main
from stratascope.commands.terminal import echo, visible
from stratascope.store import create_store

ATTACK = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\r\x9b1A\u202egnp.exe\x08\x7f"


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store whose provenance, ids, captions and name hold escape sequences."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "store"))
    from stores import birth, small_layout

    layout = small_layout(4)
    known = birth(layout)
    known["examples"]["id"] = [f"{ATTACK}{i}" for i in range(4)]
    known["examples"]["caption"] = f"{ATTACK}caption"
    known["provenance"] = {
        "model": {"name": f"m{ATTACK}", "family": ATTACK},
        "condition": ATTACK,
        f"key{ATTACK}": {"a": [ATTACK]},
        "command": ATTACK,
    }
    path = tmp_path / f"s{ATTACK}.zarr"
    create_store(path, layout, **known)
    return path


def plain(text: str) -> bool:
    return all(c == "\n" or c == "\t" or (c >= " " and not "\x7f" <= c <= "\x9f" and c != "\u202e") for c in text)


@pytest.mark.slow
def test_no_command_prints_control_characters(hostile: Path, tmp_path: Path) -> None:
    path = str(hostile)
    for words in (
        ["info", path], ["verify", path], ["diff", path, path], ["answers", path], ["rollout", path, "--examples", "x"], ["report", path],
        ["copy", path, str(tmp_path / f"copy{ATTACK}.zip")], ["info", f"{path}.none"], ["figure", ATTACK, path], [f"x{ATTACK}"],
        ["info", path, f"--{ATTACK}"],
    ):  # fmt: skip
        found = CliRunner().invoke(main, words)
        assert found.exit_code in (0, 1, 2), found.exception
        assert found.output
        assert plain(found.output), (words, found.output)
        assert FAULT not in found.output
    assert "\\x1b]0;owned\\x07" in CliRunner().invoke(main, ["info", path]).output


@pytest.mark.slow
@given(st.text())
def test_what_is_printed_holds_no_control_character_and_keeps_the_rest(text: str) -> None:
    shown = visible(text)
    assert plain(shown)
    shown.encode()
    assert visible(shown) == shown
    kept = "".join(c for c in text if c.isprintable())
    assert "".join(c for c in shown if c in kept).count("\\") >= kept.count("\\")
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize("text", ["Ünïcødé 🐈‍⬛ №1 日本語", "tab\tand\nline", "שלום", ""])
def test_letters_of_all_languages_are_printed_as_they_are(text: str) -> None:
    assert visible(text) == text


def test_warnings_and_tracebacks_are_escaped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def warns(*_: object, **__: object) -> str:
        return warnings.formatwarning(f"careful {ATTACK}", UserWarning, "file.py", 1, "")

    monkeypatch.setattr("stratascope.store.describe", warns)
    monkeypatch.setattr("stratascope.commands.stores.open_store", lambda _: None)
    assert "careful \\x1b]" in CliRunner().invoke(main, ["info", "x"]).output
    assert warnings.formatwarning("a\x1b", UserWarning, "file.py", 1, "").startswith("file.py:1: UserWarning: a\x1b")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr("stratascope.commands.stores.open_store", lambda _: 1 / 0)
    CliRunner().invoke(main, ["--debug", "info", "x"])
    sys.excepthook(ValueError, ValueError(ATTACK), None)
    said = capsys.readouterr().err
    assert "ValueError: \\x1b]0;owned" in said
    assert plain(said)
    assert traceback is cli.traceback


@pytest.mark.slow
def test_echo_is_the_only_way_to_the_terminal() -> None:
    package = Path(stratascope.__file__).parent
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write"):
                assert path.name == "terminal.py", f"{path}:{node.lineno}"  # type: ignore[attr-defined]
    assert callable(echo)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError("Unable to allocate 8.00 GiB"), "not enough memory: Unable to allocate 8.00 GiB; close other programs"),
        (MemoryError(), "not enough memory: MemoryError; close"),
        (RuntimeError("can't start new thread"), "not enough memory: can't start new thread"),
        (ImportError("libx.so: failed to map segment from shared object: Cannot allocate memory"), "not enough memory: libx"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
    ],
)
def test_errors_of_memory_and_nesting_are_one_line(error: Exception, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: str) -> None:
        raise error

    monkeypatch.setattr("stratascope.commands.stores.open_store", fails)
    found = CliRunner().invoke(main, ["info", "x"])
    assert found.exit_code == 2
    (line,) = found.stderr.strip().splitlines()
    assert words in line
    assert FAULT not in line
