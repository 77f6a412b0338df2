"""Two processes fill one store, each is killed again and again: the store equals that of one process that nobody disturbed.

    STRATASCOPE_KILL_ROUNDS=5 python -m pytest tests/extract/test_shards_killed.py

starts and kills both five times; without it, twice.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stratascope.extract import plan_extraction
from stratascope.store import verify

pytest.importorskip("torch")

from stratascope.extract import run_extraction

ROUNDS = int(os.environ.get("STRATASCOPE_KILL_ROUNDS", "2"))
PROCESS = """
import sys
from pathlib import Path
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction
scenes, out, rank = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
settings = ExtractionSettings(
    model="demo", examples=(scenes / "scenes.jsonl",), images=scenes / "images", boxes=scenes / "instances.json", device="cpu", block=4
)
run_extraction(plan_extraction(settings), out, rank=rank, of=2)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9")
def test_two_processes_killed_again_and_again_equal_one_undisturbed(scenes: Path, settings, tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole.zarr", tmp_path / "shared.zarr"
    run_extraction(plan_extraction(dataclasses.replace(settings, block=4)), whole)
    chance, interrupted = random.Random(0), 0
    for _ in range(ROUNDS):
        running = [_start(scenes, shared, rank) for rank in (0, 1)]
        for process in chance.sample(running, 2):
            _await_block(shared, running)
            time.sleep(chance.uniform(0, 0.03))
            process.kill()
            process.wait()
        interrupted += _written(shared) < 24
    assert interrupted, "kills came too late to mean anything"
    for process in [_start(scenes, shared, rank) for rank in (0, 1)]:
        assert process.wait() == 0
    assert verify(shared).ok
    files = _files(whole)
    assert files == _files(shared)
    for file in files:
        assert (shared / file).read_bytes() == (whole / file).read_bytes(), file


def _start(scenes: Path, out: Path, rank: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROCESS, str(scenes), str(out), str(rank)], stdout=subprocess.DEVNULL)


def _files(store: Path) -> list[Path]:
    """Those that hold numbers: the root's own metadata has the date, claims say who is at work."""
    found = (p for p in store.rglob("*") if p.is_file() and p.parent != store and "claims" not in p.parts)
    return sorted(p.relative_to(store) for p in found)


def _written(store: Path) -> int:
    markers = store / "written" / "c"
    return len(list(markers.iterdir())) if markers.exists() else 0


def _await_block(store: Path, running: list[subprocess.Popen[bytes]]) -> None:
    """Until one more block is there, or nobody is left to write one."""
    goal = _written(store) + 1
    while _written(store) < goal and any(process.poll() is None for process in running):
        time.sleep(0.002)
