"""Every command that the documentation prints is run, or at least read by the command line.

The convention: in README.md and docs/*.md a block that begins with ```sh holds commands, and one that begins with ```bash those that
are only read (they need a GPU, a cluster or the network, or are run by tests/test_docs_pages.py). The first are run in their order, in
a folder that holds `demo/` (a small one), `vsr/` in the form that `stratascope fetch vsr` leaves, and small data sets of What's Up; large
models are replaced by the built-in one. What needs the network or never ends is only read: its options must exist.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from stratascope.cli import main

pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ONLY_READ = {"demo", "fetch", "view"}
"""Commands that the folder was made by, that need the network, or that do not end."""

PROGRAMS = {"data.md"}
"""Pages whose Python is run first: it makes what their commands read."""

CHECKS = {"diff", "verify"}
"""Commands that may end with 1: what they were asked about is so."""


def commands_of(page: Path) -> list[str]:
    """The commands of a page's sh blocks, without `.venv/bin/`, those of one line apart."""
    found: list[str] = []
    for block in re.findall(r"^ *```sh\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = next((k for k, word in enumerate(words) if word in ("&&", "|", ">", ";", "&")), len(words))
                words[0:1] = [words[0].removeprefix(".venv/bin/")]
                if words[0] == "stratascope":
                    found.append(shlex.join(words[:end]))
                words = words[end + 1 :]
    return found


def only_read_commands(page: Path) -> list[str]:
    """Commands of a page's bash blocks, which need a GPU, a cluster or the network; `...` stands for the options above."""
    found: list[str] = []
    for block in re.findall(r"^ *```bash\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").replace(" ... ", " --model demo --examples e.jsonl --images i ").splitlines():
            code = line.partition(" #")[0]
            for part in re.split(r"&&|\||;", "" if code.startswith("#") else code):
                if (at := re.search(r"(^|\s)(stratascope \w.*)", part)) and "pip install" not in part:
                    found.append(at.group(2).strip())
    return found


def help_examples() -> list[str]:
    """The examples of every command's --help."""
    texts = [command.help or "" for command in main.commands.values()]
    return [line.strip() for text in texts for line in text.partition("Example")[2].splitlines() if line.strip().startswith("stratascope ")]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with demo/, vsr/ and What's Up's files, all made of generated scenes."""
    from stratascope.datasets import write_scenes

    root = tmp_path_factory.mktemp("docs")
    here = Path.cwd()
    os.chdir(root)
    try:
        result = CliRunner().invoke(main, ["demo", "--out", "demo", "--scenes", "160"])
        assert result.exit_code == 0, result.output
    finally:
        os.chdir(here)
    write_scenes(root / "vsr", 64, seed=1)
    for part in ("train", "dev", "test"):
        shutil.copy(root / "vsr" / "scenes.jsonl", root / "vsr" / f"{part}.jsonl")
    images = sorted((root / "vsr" / "images").iterdir())[:4]
    relations = ("on", "under", "to the left of", "to the right of")
    for k, image in enumerate(images):
        for where in (f"val2017/{k:012d}.jpg", f"controlled_images/{k}.jpeg"):
            (root / where).parent.mkdir(exist_ok=True)
            shutil.copy(image, root / where)
    rows = [[k, "A photo of a star above a moon", "A photo of a star below a moon"] for k in range(4)]
    (root / "coco_qa_two_obj.json").write_text(json.dumps(rows))
    options = [[relations[k], *(r for r in relations if r != relations[k])] for k in range(4)]
    captions = [
        {"image_path": f"data/controlled_images/{k}.jpeg", "caption_options": [f"A star {r} a moon" for r in options[k]]} for k in range(4)
    ]
    (root / "controlled_images_dataset.json").write_text(json.dumps(captions))
    asked = "<image>\nUSER: Where is the star in relation to the moon? Answer with left, right, on or under.\nASSISTANT:"
    answers = ("On", "Under", "Left", "Right")
    (root / "Controlled_Images_A_with_answer_four_options.jsonl").write_text(
        "".join(json.dumps({"id": k, "question": asked, "answer": [answer]}) + "\n" for k, answer in enumerate(answers))
    )
    return root


@pytest.fixture
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def read_only(words: list[str]) -> None:
    """Let the command line read a command without running it: unknown options and missing arguments raise."""
    command, rest = main, words[1:]
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(click.Context(command), rest)
        assert found is not None, name
        command = found
    if "--help" not in rest:
        command.make_context(command.name, list(rest))


def run(line: str) -> None:
    """Run a command of the documentation as it is printed, with the built-in model in place of a large one."""
    words = shlex.split(re.sub(r"--model [\w.-]+/[\w.-]+", "--model demo", line))
    read_only(words)
    if words[1] in ONLY_READ:
        return
    if words[1] == "copy":
        Path(words[3]).unlink(missing_ok=True)
    result = CliRunner().invoke(main, words[1:])
    assert result.exit_code in ((0, 1) if words[1] in CHECKS else (0,)), f"{line}\n{result.output}\n{result.exception!r}"


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_work(page: Path, inside: Path) -> None:
    for source in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE) if page.name in PROGRAMS else []:
        exec(compile(source, page.name, "exec"), {})
    for line in commands_of(page):
        run(line)


def test_the_notebook_of_the_readme_works(inside: Path) -> None:
    """Its Python, with the demo's store in place of VSR's and a layer that the built-in model has."""
    (source,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(source.replace("vsr.zarr", "demo/original.zarr").replace("layer=12", "layer=5"), "README.md", "exec"), names)
    examples, layers = names["store"].layout.examples, names["store"].layout.layers
    assert names["x"].shape == (examples, names["store"].layout.hidden)
    assert set(names["curve"].table["layer"]) == set(range(layers + 1))
    assert names["rolled"].shape == (layers + 1, int(names["store"].n_tokens[3]))
    assert abs(names["rolled"].sum(-1) - 1).max() < 1e-9


@pytest.mark.parametrize("page", [page for page in PAGES if only_read_commands(page)], ids=lambda page: page.name)
def test_commands_that_cannot_be_run_here_are_read_by_the_command_line(page: Path, folder: Path) -> None:
    for line in only_read_commands(page):
        read_only(shlex.split(line.replace("demo/results", str(folder / "demo" / "results"))))


def test_the_hour_on_a_rented_gpu_is_read() -> None:
    read = only_read_commands(ROOT / "docs" / "gpu.md")
    assert {line.split()[1] for line in read} >= {"fetch", "plan", "extract", "verify"}
    assert any("--time --price" in line for line in read)


def test_no_block_of_commands_is_in_another_language() -> None:
    """sh is run, bash only read; a console or shell block would be neither."""
    for page in PAGES:
        found = set(re.findall(r"^ *```(\w+)", page.read_text(), re.MULTILINE))
        assert found <= {"sh", "bash", "text", "python", "json", "html", "nginx", "toml", "yaml", "ts", "js"}, page.name


@pytest.mark.parametrize("line", help_examples(), ids=lambda line: line.split()[1])
def test_the_example_of_each_help_works(line: str, inside: Path) -> None:
    run(line)


def test_every_command_has_an_example_here() -> None:
    assert {line.split()[1] for line in help_examples()} == set(main.commands)


def test_view_prints_its_address_and_ends_with_130(inside: Path) -> None:
    words = [sys.executable, "-m", "stratascope", "view", "demo/original.zarr", "--no-browser"]
    # a shell's background job, as these tests may be, hands on that interrupts are ignored
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heeding) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("http://127.0.0.1:")
            process.send_signal(signal.SIGINT)
            assert process.wait(20) in (0, 130)
        finally:
            process.kill()


def test_the_page_of_results_names_all_that_the_results_hold(folder: Path) -> None:
    """Tables, arrays, dimensions and attributes in the section of each kind; columns by their own name, or what they end in."""
    from stratascope.store import load_result

    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    sections = {kind: set(re.findall(r"\w+", rest)) for kind, rest in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.S | re.M)}
    everywhere = set(re.findall(r"\w+", text))
    kinds = set()
    for path in sorted((folder / "demo").rglob("*.zarr.zip")):
        result = load_result(path)
        kinds.add(result.kind)
        words = sections[result.kind]
        named = {*result.tables, *result.attributes, *result.arrays, *(dim for dims, _ in result.arrays.values() for dim in dims)}
        lacking = {name for name in named if name not in words and not name.startswith("draws_")}
        columns = {str(column) for table in result.tables.values() for column in table.columns}
        lacking |= {name for name in columns if not {name, re.sub(r"_(low|high|rank)$", "", name)} & everywhere and "support_" not in name}
        assert not lacking, f"{path.name} ({result.kind})"
    assert len(kinds) >= 9


def test_what_is_said_of_an_example_is_its_label_and_the_likelier_answer(inside: Path) -> None:
    from stratascope.store import ActivationStore
    from stratascope.workflow.pictures import said

    store = ActivationStore.open("demo/original.zarr")
    agree = [said(store, k) in ("label true, model says true", "label false, model says false") for k in range(100)]
    assert sum(agree) > 90, "the built-in model is nearly always right"
