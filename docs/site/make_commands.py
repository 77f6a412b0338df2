"""Writes docs/commands.md: every command with the example of its --help and what it printed on the demo.

    python docs/site/make_commands.py [DEMO [NAME...]]

DEMO is a folder that `stratascope demo --out DEMO` filled; without it a new one is made. With NAMEs only those commands, and those that are
new or have another example, are run again. tests/test_docs_pages.py runs the examples again.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner

from stratascope.cli import all_commands, main

PAGE = Path(__file__).resolve().parents[1] / "commands.md"
NOT_RUN = {
    "fetch": "It needs the network.",
    "convert": "It needs published files.",
    "import": "It needs arrays of another program.",
    "push": "It needs an account on the Hub.",
    "pull": "It needs a repository on the Hub.",
    "view": "It serves the page until it is interrupted.",
}
"""Commands whose output cannot stand here, and why."""
SLOW = ("demo", "extract")
"""Run when the page is made, but not again by the tests."""
MOST_LINES = 34

HEAD = """# Commands

Every command with the example from its `--help`, and what it printed on the demo (`stratascope demo --out demo`). Errors are one line on
stderr; exit codes are 0 for done, 1 where a check found something wrong, 2 for bad input, 130 for an interruption. This page is made by
`docs/site/make_commands.py`.
"""


def example_of(name: str) -> str:
    """The example in a command's help, on one line."""
    text = CliRunner().invoke(main, [name, "--help"], terminal_width=400).output.partition("Example")[2]
    found = re.search(rf"stratascope {name}\b.*", text)
    assert found is not None, name
    return found.group().strip()


def run_example(command: str) -> tuple[int, str]:
    """Exit code and output of a command, in the working folder."""
    import shlex

    result = CliRunner().invoke(main, shlex.split(command)[1:], terminal_width=120)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output.rstrip()


@contextmanager
def folder_with(demo: Path) -> Iterator[Path]:
    """A working folder that holds a copy of the demo as `demo`."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(demo, Path(name) / "demo")
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


def shortened(output: str) -> str:
    """The first lines of an output, with how many more there were."""
    lines = output.splitlines()
    return "\n".join(lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], f"... {len(lines) - MOST_LINES} more lines"])


def page(demo: Path, names: Sequence[str] = ()) -> str:
    """The text of the page; with names, what the page holds of other commands is kept."""
    parts = [HEAD]
    kept = stored() if names else {}
    with folder_with(demo):
        for command in all_commands().values():
            name = str(command.name)
            example = example_of(name)
            about = inspect.cleandoc((command.help or "").split("\b")[0])
            parts.append(f"## {name}\n\n{about.strip()}\n\n```bash\n{example}\n```\n")
            if name in NOT_RUN:
                parts.append(f"{NOT_RUN[name]}\n")
                continue
            before, output = kept.get(name, ("", ""))
            if before != example or name in names:
                if name == "demo":  # not one that is finished before
                    shutil.rmtree("demo")
                code, fresh = run_example(example)
                assert code in (0, 1), fresh
                output = shortened(fresh)
            parts.append(f"```text\n{output}\n```\n")
    return "\n".join(parts)


def stored() -> dict[str, tuple[str, str]]:
    """Name -> example and output, as the page holds them; no output for those that are not run."""
    found = {}
    for part in PAGE.read_text("utf-8").split("\n## ")[1:]:
        blocks = re.findall(r"```(\w+)\n(.*?)\n```", part, re.S)
        found[part.split("\n", 1)[0]] = (blocks[0][1], blocks[1][1] if len(blocks) > 1 else "")
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        PAGE.write_text(page(Path(sys.argv[1]), sys.argv[2:]), encoding="utf-8")
    else:
        with tempfile.TemporaryDirectory() as made:
            run_example(f"stratascope demo --out {made}/demo")
            PAGE.write_text(page(Path(made) / "demo"), encoding="utf-8")
