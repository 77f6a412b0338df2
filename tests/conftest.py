"""Shared pieces of the tests: generated scenes, the built-in model's plan and store."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as cores: threads of torch and BLAS beside them would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# a test run in the background ignores Ctrl-C, and so would the processes that tests interrupt
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they use; those in a browser, of the whole demo and with random inputs are slow. Files with slow tests first."""
    for item in items:
        used = getattr(item, "fixturenames", ())
        in_browser = "browser" in used
        at_random = "fuzz" in item.path.parts
        if in_browser:
            item.add_marker("browser")
        if at_random:
            item.add_marker("fuzz")
        if in_browser or at_random or "demo" in used:
            item.add_marker("slow")
    # a long file that begins last would keep one process busy while the others wait
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of 96 generated scenes: scenes.jsonl, images/, instances.json."""
    from stratascope.datasets import write_scenes

    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 96, seed=7)
    return folder


@pytest.fixture(scope="session")
def settings(scenes: Path):
    from stratascope.extract import ExtractionSettings

    return ExtractionSettings(
        model="demo",
        examples=(scenes / "scenes.jsonl",),
        images=scenes / "images",
        boxes=scenes / "instances.json",
        device="cpu",
    )


@pytest.fixture(scope="session")
def plan(settings):
    from stratascope.extract import plan_extraction

    return plan_extraction(settings)


@pytest.fixture(scope="session")
def store_path(plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the 96 scenes, extracted by the built-in model."""
    pytest.importorskip("torch")
    from stratascope.extract import run_extraction

    path = tmp_path_factory.mktemp("stores") / "scenes.zarr"
    run_extraction(plan, path)
    return path


@pytest.fixture(scope="session")
def store(store_path: Path):
    from stratascope.store import ActivationStore

    return ActivationStore.open(store_path)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `stratascope demo` makes of 512 scenes, once for all processes; to be left as it is."""
    pytest.importorskip("torch")
    from stratascope.demo import run_demo

    def make(out: Path) -> None:
        steps: list[str] = []
        text = run_demo(out, scenes=512, on_step=steps.append)
        assert len(steps) == 5
        assert str(out) in text

    return made_once("demo", make, tmp_path_factory)


def made_once(name: str, make: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `make` fills in the first test process that asks for it; others wait."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    done = folder.with_suffix(".done")
    with FileLock(folder.with_suffix(".lock")):
        if not done.exists():
            make(folder)
            done.touch()
    return folder
