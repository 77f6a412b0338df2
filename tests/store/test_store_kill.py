"""kill -9 at random moments: no marked block is wrong, and resuming gives the bytes of a run that nothing interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stores import make_store, small_layout

from stratascope.store import ActivationStore, BlockWriter, create_store, verify

ROUNDS = int(os.environ.get("STRATASCOPE_KILL_ROUNDS", "6"))
LAYOUT = small_layout(120, block=8, hidden=64, tokens=24)

WRITER = """
import sys
sys.path.insert(0, sys.argv[4])
from stores import birth, block_arrays
from stratascope.store import BlockWriter
from stratascope.errors import StoreError
path, rank, of = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with BlockWriter(path) as writer:
    known = birth(writer.layout)
    print("ready", flush=True)
    for block in writer.pending(rank, of):
        try:
            writer.write(block, block_arrays(writer.layout, known, block))
        except StoreError as error:
            if "found it" not in str(error):
                raise
"""


def _start(path: Path, rank: int, of: int) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-c", WRITER, str(path), str(rank), str(of), str(Path(__file__).parent)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9")
def test_killed_writers_leave_nothing_wrong_and_resume_is_exact(tmp_path):
    """Two writers, of their own ranks or of the same, killed at random moments; then a third goes on."""
    from stores import birth, block_arrays

    reference = make_store(tmp_path / "reference.zarr", LAYOUT)
    chance = random.Random(0)
    known, interrupted = birth(LAYOUT), 0
    for round_number in range(ROUNDS):
        path = tmp_path / f"{round_number}.zarr"
        create_store(path, LAYOUT, **known)
        of = 1 + round_number % 2  # of 1: both want the same blocks
        writers = [_start(path, rank % of, of) for rank in range(2)]
        for writer in writers:
            # however slow the machine: some blocks later, and at any moment of writing the next
            _await_blocks(path, chance.randrange(5), writer)
            time.sleep(chance.uniform(0, 0.02))
            writer.kill()
            writer.wait()
            assert writer.stdout is not None
            writer.stdout.close()
        found = verify(path)
        assert found.ok, found.problems
        interrupted += 0 < found.written < found.blocks
        done = {b: _bytes(path, b) for b in range(LAYOUT.blocks) if ActivationStore.open(path).written[b]}
        with BlockWriter(path) as writer:
            assert not list(path.rglob("*.partial"))
            assert writer.pending() == [b for b in range(LAYOUT.blocks) if b not in done]
            for block in writer.pending():
                writer.write(block, block_arrays(LAYOUT, known, block))
        assert verify(path).ok
        for block, data in done.items():
            assert _bytes(path, block) == data
        files = sorted(p.relative_to(reference) for p in reference.rglob("*") if p.is_file() and "claims" not in p.parts)
        assert files == sorted(p.relative_to(path) for p in path.rglob("*") if p.is_file() and "claims" not in p.parts)
        for file in files:
            assert (path / file).read_bytes() == (reference / file).read_bytes(), file
    assert interrupted >= ROUNDS // 3, "kills came too early or too late to mean anything"


def _await_blocks(path: Path, more: int, writer: subprocess.Popen[bytes]) -> None:
    markers = path / "written" / "c"
    goal = more + (len(list(markers.iterdir())) if markers.exists() else 0)
    while writer.poll() is None and (len(list(markers.iterdir())) if markers.exists() else 0) < goal:
        time.sleep(0.001)


def _bytes(path: Path, block: int) -> list[bytes]:
    return [(path / s.key(block)).read_bytes() for s in LAYOUT.arrays() if s.by_block]
