"""A message names options on the command line, and parameters in Python."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import stratascope
from stratascope import errors
from stratascope.cli import main
from stratascope.errors import InvalidInputError, StratascopeError, UnwrittenBlockError
from stratascope.store import ActivationStore

PACKAGE = Path(stratascope.__file__).parent
PYTHON_WORDS = re.compile(r"in Python|store\.available|\bTrue\b|\bFalse\b(?!,)|\bNone\b|\w=\(|examples=")
"""What a message of a command has no use for."""


def kinds() -> list[type[StratascopeError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, StratascopeError)]


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.__name__)
def test_python_is_told_its_own_words_and_a_worker_process_hands_them_on(kind: type[StratascopeError]) -> None:
    for error in (
        kind("choose others (--only)", in_python="only=()"),
        pickle.loads(pickle.dumps(kind("choose others (--only)", in_python="only=()"))),
    ):
        assert str(error) == "choose others (only=())"
        assert error.message == "choose others (--only)"
    assert str(kind("plain")) == kind("plain").message == "plain"


def messages() -> Iterator[tuple[str, str]]:
    """Where each error is raised, and the plain text of its message."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                texts = [part.value for part in ast.walk(node.exc.args[0]) if isinstance(part, ast.Constant)]
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", " ".join(text for text in texts if isinstance(text, str))


def test_no_message_of_a_command_speaks_python() -> None:
    found = dict(messages())
    assert len(found) > 400
    # refusals of calls that no command makes may name arguments
    only_python = {
        "probe/curve/layer_curve.py",
        "probe/curve/pairing.py",
        "probe/validation/estimators.py",
        "analysis/head_ranking.py",
        "store/io/example_filter.py",
        "store/format/layout.py",
    }
    spoken = {where: text for where, text in found.items() if PYTHON_WORDS.search(text) and where.partition(":")[0] not in only_python}
    assert not spoken


def test_no_message_shows_a_list_as_python_writes_it() -> None:
    lists = re.compile(r"\{list\(|\.tolist\(\)\}|\{sorted\(")
    here = {
        *(f"probe/{name}.py" for name in ("tasks/controls", "study/study_plan", "validation/official_splits", "tasks/task")),
        "store/io/example_filter.py",
    }
    for name in here:
        assert not lists.search((PACKAGE / name).read_text("utf-8")), name


def test_a_command_and_a_call_are_refused_in_their_own_words(store_path: Path) -> None:
    from stratascope.probe import ProbeSettings, layer_curve

    with pytest.raises(InvalidInputError, match=r"found -1; give others \(`strengths`\), such as 1e-3, 1e-2 and 1e-1$"):
        ProbeSettings(strengths=(-1.0,))
    done = CliRunner().invoke(main, ["probe", str(store_path), "--strengths", "-1"])
    assert done.exit_code == 2
    assert done.stderr == "stratascope: expected strengths above 0, found -1; give others (--strengths), such as 1e-3, 1e-2 and 1e-1\n"
    store = ActivationStore.open(store_path)
    store.__dict__["written"] = store.written & False
    with pytest.raises(UnwrittenBlockError, match=r"\(pass examples=store\.available\('residual'\)\)$") as refused:
        layer_curve(store)
    assert refused.value.message.endswith("let the extraction finish (the same command goes on)")


@pytest.mark.parametrize("value", ["inf", "-inf", "Infinity"])
def test_an_infinite_value_is_called_so(store_path: Path, tmp_path: Path, value: str) -> None:
    ids = ActivationStore.open(store_path).examples["id"]
    rows = [f"{name},{value if k == 3 else k % 2}" for k, name in enumerate(ids)]
    (tmp_path / "v.csv").write_text("\n".join(["id,value", *rows]))
    done = CliRunner().invoke(main, ["probe", str(store_path), "--tasks", "mine", "--values", f"mine={tmp_path / 'v.csv'}"])
    assert done.exit_code == 2
    assert "task 'mine': expected classes, found an infinite value" in done.stderr
    assert f"at example {3}; give it another" in done.stderr


def test_a_grouping_is_refused_by_its_name(store_path: Path) -> None:
    done = CliRunner().invoke(main, ["probe", str(store_path), "--tasks", "truth", "--groups", "label"])
    assert done.exit_code == 2
    assert "examples of one label stay together; group by another column (--groups)" in done.stderr
    assert "image" not in done.stderr
