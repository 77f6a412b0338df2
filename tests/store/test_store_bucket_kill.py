"""kill -9 of two writers to an S3 server: no marked block is wrong, and resuming gives the bytes of a run that nothing interrupted."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from buckets import environment, files, objects, s3_server, without_cloud
from stores import birth, block_arrays, make_store, small_layout
from test_store_kill import WRITER

from stratascope.store import ActivationStore, BlockWriter, create_store, verify
from stratascope.store.io.bucket import Bucket

ROUNDS = int(os.environ.get("STRATASCOPE_BUCKET_KILL_ROUNDS", "2"))
LAYOUT = small_layout(64, block=4, hidden=64, tokens=24, record={"residual"}, thumbnail=None)


def _start(url: str, rank: int, of: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, url, str(rank), str(of), str(Path(__file__).parent)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9")
def test_killed_writers_to_a_bucket_leave_nothing_wrong_and_resume_is_exact(tmp_path, monkeypatch):
    """Two writers, of their own ranks or of the same, killed at random moments; then a third goes on at once."""
    reference = files(make_store(tmp_path / "reference.zarr", LAYOUT))
    chance = random.Random(0)
    known, interrupted = birth(LAYOUT), 0
    without_cloud(monkeypatch)
    with s3_server() as address:
        for name, value in environment(address).items():
            monkeypatch.setenv(name, value)
        for round_number in range(ROUNDS):
            url = f"s3://bucket/{round_number}.zarr"
            create_store(url, LAYOUT, **known)
            of = 1 + round_number % 2  # of 1: both want the same blocks
            writers = [_start(url, rank % of, of) for rank in range(2)]
            for writer in writers:
                _await_blocks(url, chance.randrange(4), writer)
                time.sleep(chance.uniform(0, 0.05))
                writer.kill()
                writer.wait()
                assert writer.stdout is not None
                writer.stdout.close()
            found = verify(url)
            assert found.ok, found.problems
            interrupted += found.written < found.blocks
            done = [b for b in range(LAYOUT.blocks) if ActivationStore.open(url).written[b]]
            before = objects(url)
            with BlockWriter(url) as writer:
                assert writer.pending() == [b for b in range(LAYOUT.blocks) if b not in done]
                for block in writer.pending():
                    writer.write(block, block_arrays(LAYOUT, known, block))
            after = objects(url)
            assert {key: data for key, data in after.items() if "claims" not in key} == reference
            marked = [spec.key(block) for block in done for spec in LAYOUT.arrays() if spec.by_block]
            assert all(after[key] == before[key] for key in marked)
    assert interrupted


def _await_blocks(url: str, count: int, writer: subprocess.Popen[bytes]) -> None:
    bucket = Bucket(url)
    while writer.poll() is None and len(bucket.keys("written/c")) < count:
        time.sleep(0.005)
