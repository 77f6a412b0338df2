"""Every command that the documentation prints is run, or has its reason here why it is not.

In README.md and docs/*.md a block that begins with ```sh or ```bash holds commands; those of bash need a GPU, a cluster or the network
where they stand, and are run with what stands in for it. All are run in their order, in a folder that holds `demo/`, `vsr/`
in the form that `stratascope fetch vsr` leaves, and small data sets of What's Up; large models are replaced by the built-in one. What is
not run is in NOT_RUN, with the reason; of Stratascope's own commands the options must exist all the same.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from stratascope.cli import all_commands, main
from tests.store.buckets import environment, s3_server
from tests.test_docs_pages import CHECKS, EXAMPLES, MADE

pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {
    "stratascope demo": "the folder of these tests holds what it makes",
    "stratascope fetch": "it needs the network; tests/datasets/test_fetch.py runs it on a server of its own",
    "stratascope info https://host.example/": "nobody serves this address; tests/store/test_store_remote.py serves one",
    "stratascope copy s3://bucket/": "nobody serves this address; tests/store/test_store_remote.py serves one",
    "stratascope push": "it needs an account on the Hub; tests/store/test_store_hub_copies.py has a server",
    "stratascope pull": "it needs a repository on the Hub; tests/store/test_store_hub_copies.py has a server",
    "hf ": "it needs an account on the Hub",
    "stratascope study --preset relation study": "too few examples here; test_preregistered_study.py runs it",
    "stratascope study plan.toml": "too few examples here; test_preregistered_study.py runs it",
    "stratascope intervene demo/minimal-pairs": "it finds the data by the extraction's command line, which is that of these tests; "
    "tests/extract/test_intervention.py runs it with --data",
    "stratascope view": "it does not end; test_view_prints_its_address_and_ends_with_130 runs it",
    "python3 -m venv": "it makes the environment that these tests already run in; so does .ci/package, an empty one",
    ". ": "it changes the shell that it is typed in",
    "pip install": "it needs the network; .ci/package installs the wheel into an empty environment",
    "pytest": "it would run these tests",
    "python -c": "it asks for the name of a GPU",
    "#": "a comment, or what a cluster's scheduler reads",
}
"""How lines begin that are not run -> why."""

STANDS_IN = {
    "torchrun": {"RANK": "{}", "LOCAL_RANK": "{}", "WORLD_SIZE": "2"},
    "srun": {"SLURM_PROCID": "{}", "SLURM_LOCALID": "{}", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"},
}
"""Launcher -> what it tells each of its processes; here they are two, one after the other."""

LARGE = {r"--model [\w.-]+/[\w.-]+": "--model demo", r"--revision COMMIT ": "", r"/shared/": "shared-"}
"""What a machine here has not -> what stands in."""

HOUR = "gpu.md"
"""The page whose bash blocks are run in their order, with what stands in; those of others are the examples of --help."""

BUCKET = "remote.md"
"""The page whose commands write to a bucket: an S3 server stands in."""

DOTS = "--model demo --examples vsr/test.jsonl --images vsr/images --boxes vsr/instances.json"
"""What `...` stands for: the options above it."""

PROGRAMS = {"data.md"}
"""Pages whose Python is run first: it makes what their commands read."""


COMPARED = {MADE.example_of(name) for name in EXAMPLES}
"""Examples that tests/test_docs_pages.py runs, to compare what they print with the documentation."""


def lines_of(page: Path, *languages: str) -> list[str]:
    """The commands of a page's blocks, without `.venv/bin/`, those of one line apart; of a comment that is a line the line."""
    found: list[str] = []
    for block in re.findall(rf"^ *```(?:{'|'.join(languages)})\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in (line.strip() for line in block.replace("\\\n", " ").splitlines()):
            words = [line] if line.startswith("#") else shlex.split(line, comments=True)
            while words:
                end = next((k for k, word in enumerate(words) if word in ("&&", "|", ">", ";", "&")), len(words))
                words[0:1] = [words[0].removeprefix(".venv/bin/")]
                found.append(words[0] if words[0].startswith("#") else shlex.join(words[:end]))
                words = words[end + 1 :]
    return found


def commands_of(page: Path) -> list[str]:
    """Stratascope's commands of a page's sh blocks."""
    return [line for line in lines_of(page, "sh") if line.startswith("stratascope ")]


def help_examples() -> list[str]:
    """The examples of every command's --help."""
    texts = [command.help or "" for command in all_commands().values()]
    return [line.strip() for text in texts for line in text.partition("Example")[2].splitlines() if line.strip().startswith("stratascope ")]


@pytest.fixture(scope="session")
def folder(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with demo/, vsr/ and What's Up's files, all made of generated scenes."""
    from stratascope.datasets import write_scenes
    from tests.datasets.published import CV_BENCH_2D, CV_BENCH_3D, SPHERE, parquet

    root = tmp_path_factory.mktemp("docs")
    shutil.copytree(demo, root / "demo")
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
    parquet(root / "test_2d.parquet", CV_BENCH_2D)
    parquet(root / "test_3d.parquet", CV_BENCH_3D)
    (root / "position_only.json").write_text(json.dumps(SPHERE))
    (root / "test2017").mkdir()
    for k in (63, 69):
        shutil.copy(images[0], root / "test2017" / f"{k:012d}.jpg")
    (root / "val2014").mkdir()
    asked_of = f"COCO_val2014_{1:012d}.jpg"
    shutil.copy(images[0], root / "val2014" / asked_of)
    question = {"question_id": 1, "image": asked_of, "text": "Is there a star in the image?", "label": "yes"}
    (root / "coco_pope_random.json").write_text(json.dumps(question) + "\n")
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
    (root / "activations").mkdir()
    for layer in range(2):
        np.save(root / "activations" / f"layer_{layer}.npy", np.random.default_rng(layer).normal(size=(8, 16)))
    (root / "activations.csv").write_text("id,label\n" + "".join(f"e{k},{k % 2}\n" for k in range(8)))
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
    if not_run(line):
        return
    if words[1] == "copy":
        Path(words[3]).unlink(missing_ok=True)
    result = CliRunner().invoke(main, words[1:])
    assert result.exit_code in ((0, 1) if words[1] in CHECKS else (0,)), f"{line}\n{result.output}\n{result.exception!r}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_work(page: Path, inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name == BUCKET:
        with s3_server() as address:
            for name, value in environment(address).items():
                monkeypatch.setenv(name, value)
            for line in commands_of(page):
                run(line)
        return
    for source in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE) if page.name in PROGRAMS else []:
        exec(compile(source, page.name, "exec"), {})
    for line in commands_of(page):
        run(line)


def test_the_python_of_the_readme_works(inside: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It prints the text that follows it, up to numbers that depend on the size of the demo."""
    text = (ROOT / "README.md").read_text()
    ((source, told),) = re.findall(r"^```python\n(.*?)^```\n+```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), names)
    printed, told = (re.sub(r"[+-]?[\d.,]+(-\d+)?", "#", some).split() for some in (capsys.readouterr().out, told))
    assert printed[:4] == told[:4] == "LayerCurve of truth at".split()
    assert len(set(told) - set(printed)) < 0.2 * len(set(told)), "run the example of the README on a demo of 512 scenes"
    examples, layers = names["store"].layout.examples, names["store"].layout.layers
    assert names["x"].shape == (examples, names["store"].layout.hidden)
    assert set(names["curve"].table["layer"]) == set(range(layers + 1))
    assert names["rolled"].shape == (layers + 1, int(names["store"].n_tokens[3]))
    assert abs(names["rolled"].sum(-1) - 1).max() < 1e-9


def not_run(line: str) -> bool:
    return any(line.startswith(begins) for begins in NOT_RUN)


@pytest.mark.parametrize("page", [page for page in PAGES if lines_of(page, "sh", "bash")], ids=lambda page: page.name)
def test_a_line_that_is_not_run_has_its_reason(page: Path) -> None:
    ran = {*commands_of(page), *help_examples()}
    for line in lines_of(page, "sh"):
        assert not_run(line) or line.startswith("stratascope "), f"{line}: run it, or say in NOT_RUN why not"
    for line in lines_of(page, "bash") if page.name != HOUR else ():
        assert not_run(line) or line in ran, f"{line}: run it, or say in NOT_RUN why not"


def test_no_reason_is_left_over() -> None:
    lines = [line for page in PAGES for line in lines_of(page, "sh", "bash")]
    assert [begins for begins in NOT_RUN if not any(line.startswith(begins) for line in lines)] == []


@pytest.mark.slow
def test_the_hour_on_a_rented_gpu(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Line by line, with the built-in model; launchers and the way home by what stands in for them."""
    lines = lines_of(ROOT / "docs" / HOUR, "bash")
    assert {line.split()[1] for line in lines if line.startswith("stratascope ")} >= {"fetch", "plan", "extract", "verify", "probe"}
    for line in lines:
        for large, small in LARGE.items():
            line = re.sub(large, small, line)
        words = line.replace(" ... ", f" {DOTS} ").split()
        if words[0] in STANDS_IN:
            command = shlex.join(words[words.index("stratascope") :])
            shutil.rmtree(words[words.index("--out") + 1], ignore_errors=True)
            for process in range(2):
                with monkeypatch.context() as told:
                    for name, value in STANDS_IN[words[0]].items():
                        told.setenv(name, value.format(process))
                    run(command)
        elif words[0] == "rsync":
            source, home = words[-2].partition(":")[2], inside / "home"
            shutil.copytree(source, home / source)
            monkeypatch.chdir(home)
        elif words[0] == "stratascope":
            run(" ".join(words))
        else:
            assert not_run(line), f"{line}: run it, or say in NOT_RUN why not"
    assert Path.cwd() == inside / "home"


def test_no_block_of_commands_is_in_another_language() -> None:
    """A console or shell block would escape these tests."""
    for page in PAGES:
        found = set(re.findall(r"^ *```(\w+)", page.read_text(), re.MULTILINE))
        assert found <= {"sh", "bash", "text", "python", "json", "html", "nginx", "toml", "yaml", "ts", "js"}, page.name


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in help_examples() if line not in COMPARED], ids=lambda line: line.split()[1])
def test_the_example_of_each_help_works(line: str, inside: Path) -> None:
    run(line)


def test_every_command_has_an_example_here() -> None:
    assert {line.split()[1] for line in help_examples()} == set(all_commands())


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_page_of_results_names_all_that_the_results_hold(folder: Path) -> None:
    """Tables, arrays, dimensions and attributes in the section of each kind; columns by their own name, or what they end in."""
    from stratascope.results.registry import load_result

    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    sections = {kind: set(re.findall(r"\w+", rest)) for kind, rest in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.S | re.M)}
    everywhere = set(re.findall(r"\w+", text))
    every_kind = set(re.findall(r"\w+", text.partition("\n## ")[0]))
    kinds = set()
    for path in sorted((folder / "demo").rglob("*.zarr.zip")):
        result = load_result(path)
        kinds.add(result.kind)
        words = sections[result.kind] | every_kind
        named = {*result.tables, *result.attributes, *result.arrays, *(dim for dims, _ in result.arrays.values() for dim in dims)}
        lacking = {name for name in named if name not in words and not name.startswith(("draws_", "controls_"))}
        columns = {str(column) for table in result.tables.values() for column in table.columns}
        lacking |= {name for name in columns if not {name, re.sub(r"_(low|high|rank)$", "", name)} & everywhere and "support_" not in name}
        assert not lacking, f"{path.name} ({result.kind})"
    assert len(kinds) >= 9


def test_the_text_of_an_example_states_its_label_and_the_likelier_answer(inside: Path) -> None:
    from stratascope.analysis.example_images import answer_text
    from stratascope.store import ActivationStore

    store = ActivationStore.open("demo/original.zarr")
    agree = [answer_text(store, k) in ("label true, model says true", "label false, model says false") for k in range(100)]
    assert sum(agree) > 90, "the built-in model is nearly always right"
