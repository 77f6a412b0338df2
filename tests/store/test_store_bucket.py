"""Stores written to a bucket: the same bytes, the same guarantees as on a disk."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from buckets import claim_of, environment, files, objects, s3_server, without_cloud
from click.testing import CliRunner
from stores import birth, block_arrays, make_store, small_layout

from stratascope.cli import main
from stratascope.errors import InvalidInputError, StoreError
from stratascope.store import ActivationStore, BlockWriter, copy_store, create_store, repair, verify
from stratascope.store.io import bucket as bucket_module
from stratascope.store.io import bucket_claims
from stratascope.store.io.bucket import Bucket
from stratascope.store.io.readout import add_readout, has_readout, remove_readout
from stratascope.store.io.remote_errors import UnreachableError
from stratascope.store.io.store_files import BEGUN, check_writable

LAYOUT = small_layout()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server():
    with s3_server() as address:
        yield address


@pytest.fixture
def place(server, monkeypatch, request):
    """An address of its own in the bucket, with credentials set."""
    without_cloud(monkeypatch)
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{request.node.name[:60]}/a run.zarr"


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("local") / "a.zarr", LAYOUT)


def test_a_store_in_a_bucket_has_the_bytes_of_one_on_a_disk(place, local):
    make_store(place, LAYOUT)
    assert objects(place) == files(local)
    found = verify(place)
    assert found.ok
    assert found.complete
    opened, twin = ActivationStore.open(place), ActivationStore.open(local)
    np.testing.assert_array_equal(opened.read("residual", examples=[0, 8]), twin.read("residual", examples=[0, 8]))
    assert opened.fingerprint() == twin.fingerprint()


def test_large_files_are_sent_in_parts_whole(place, tmp_path, monkeypatch):
    """An object of 21 MB in parts of 5 MB: what S3 takes as the smallest part."""
    monkeypatch.setattr(bucket_module, "PART_BYTES", 5 << 20)
    data = np.random.default_rng(0).bytes(21_000_000)
    pieces = [data[i : i + 777_777] for i in range(0, len(data), 777_777)]
    assert Bucket(place).put("residual/c/0", lambda: pieces) == len(data)
    assert Bucket(place).get("residual/c/0") == data
    assert Bucket(place).keys() == {"residual/c/0": len(data)}


def test_creation_is_whole_or_not_at_all(place, monkeypatch):
    """A writer that fails before the end leaves no store; the next one begins anew."""
    put = Bucket.put

    def full(self, key, parts):
        if key.startswith("vocabulary/text"):
            raise OSError("no more memory")
        return put(self, key, parts)

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "put", full)
        with pytest.raises(OSError, match="no more memory"):
            create_store(place, LAYOUT, **birth(LAYOUT))
    assert not objects(place)
    create_store(place, LAYOUT, **birth(LAYOUT))
    with pytest.raises(StoreError, match="found an existing store"):
        create_store(place, LAYOUT, **birth(LAYOUT))


def test_what_a_killed_creation_left_is_swept(place, local):
    bucket = Bucket(place)
    bucket.put(BEGUN, lambda: [b"creation"])
    bucket.put("grid/c/9/9", lambda: [b"of another plan"])
    bucket.put("stray/zarr.json", lambda: [b"{}"])
    with pytest.raises(StoreError, match=r"expected a store, found no zarr\.json"):
        ActivationStore.open(place)
    copy_store(local, place)
    assert objects(place) == files(local)


def test_an_address_that_holds_other_objects_is_refused(place, local):
    Bucket(place).put("photos/1.jpg", lambda: [b"mine"])
    for call in (lambda: create_store(place, LAYOUT, **birth(LAYOUT)), lambda: copy_store(local, place), lambda: check_writable(place)):
        with pytest.raises(StoreError, match=r"expected a new address, found 1 other objects there, such as photos/1.jpg"):
            call()
    assert objects(place) == {"photos/1.jpg": b"mine"}


def test_a_claimed_block_is_refused_and_one_of_a_dead_process_taken_over(place, monkeypatch):
    known = birth(LAYOUT)
    create_store(place, LAYOUT, **known)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    from stratascope.store.io.writer_locks import own_record

    here = own_record()["processes"]
    bucket = Bucket(place)
    with BlockWriter(place) as writer:
        bucket.put("written/claims/0", lambda: [claim_of(os.getppid(), "here", here)])
        with pytest.raises(StoreError, match=rf"expected block 0 to be free, found it being written by process {os.getppid()} on here"):
            writer.write(0, block_arrays(LAYOUT, known, 0))
        bucket.put("written/claims/0", lambda: [claim_of(gone.pid, "here", here)])
        writer.write(0, block_arrays(LAYOUT, known, 0))
        with pytest.raises(StoreError, match="found it marked"):
            writer.write(0, block_arrays(LAYOUT, known, 0))
        # of another machine: alive if it is renewed, dead if it is not
        monkeypatch.setattr(bucket_claims, "LOOK_EVERY", 0.02)
        monkeypatch.setattr(bucket_claims, "ABANDONED_AFTER", 30.0)
        bucket.put("written/claims/1", lambda: [claim_of(1)])
        renewal = threading.Timer(
            0.3, lambda: bucket.put("written/claims/1", lambda: [claim_of(1).replace(b'"renewed": 0', b'"renewed": 1')])
        )
        renewal.start()
        with pytest.raises(StoreError, match="process 1 on elsewhere"):
            writer.write(1, block_arrays(LAYOUT, known, 1))
        renewal.join()
        monkeypatch.setattr(bucket_claims, "ABANDONED_AFTER", 0.2)
        writer.write(1, block_arrays(LAYOUT, known, 1))
        assert writer.pending() == [2]
    assert not [key for key in objects(place) if "claims" in key]


def test_a_holder_that_stood_still_too_long_marks_nothing(place, monkeypatch):
    """Its claim was taken over while it wrote: it notices at its next renewal, before the marker."""
    monkeypatch.setattr(bucket_claims, "RENEWED_EVERY", 0.05)
    known = birth(LAYOUT)
    create_store(place, LAYOUT, **known)
    bucket, put = Bucket(place), Bucket.put

    def slow(self, key, parts):
        if key.startswith("residual"):
            put(bucket, "written/claims/0", lambda: [claim_of(1)])
            time.sleep(0.5)
        return put(self, key, parts)

    monkeypatch.setattr(Bucket, "put", slow)
    with BlockWriter(place) as writer, pytest.raises(StoreError, match="another process took it over"):
        writer.write(0, block_arrays(LAYOUT, known, 0))
    assert not [key for key in objects(place) if key.startswith("written/c/")]
    assert bucket.get("written/claims/0") == claim_of(1)  # of the other, and left to it


def test_two_creators_make_one_store(place):
    """All processes of a run start at once: one creates the store, the others find it."""
    said = []

    def make():
        try:
            create_store(place, LAYOUT, **birth(LAYOUT))
            said.append("made")
        except StoreError as error:
            said.append("held" if "being written" in str(error) or "existing" in str(error) else str(error))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == ["held", "held", "held", "made"]
    assert verify(place).ok


@pytest.mark.parametrize("way", ["to", "from", "between", "part"])
def test_copies_in_all_directions(place, local, tmp_path, way):
    if way == "to":
        copy_store(local, place)
        assert objects(place) == files(local)
        return
    make_store(place, LAYOUT)
    if way == "from":
        copy_store(place, tmp_path / "b.zarr")
        assert files(tmp_path / "b.zarr") == files(local)
    elif way == "between":
        copy_store(place, f"{place}/../b.zarr".replace("/a run.zarr/..", ""))
        assert objects(place.replace("a run", "b")) == files(local)
    else:
        chosen = {"arrays": "residual", "layers": [0, 2], "examples": [7, 3]}
        copy_store(place, place.replace("a run", "b"), **chosen)
        copy_store(local, tmp_path / "b.zarr", **chosen)
        assert objects(place.replace("a run", "b")) == files(tmp_path / "b.zarr")


def test_a_copy_sends_files_of_two_blocks_at_once_and_markers_after_theirs(place, local, monkeypatch):
    plain, met, ended = Bucket.put, threading.Barrier(2), []
    keys = {spec.key(block): block for block in range(LAYOUT.blocks) for spec in LAYOUT.arrays() if spec.by_block}
    meeting = {LAYOUT.array("residual").key(block) for block in (0, 1)}

    def put(self, key, parts):
        if key in meeting:
            met.wait(30)  # a copy of one block after the other would never come together here
        size = plain(self, key, parts)
        ended.append(key)
        return size

    monkeypatch.setattr(Bucket, "put", put)
    copy_store(local, place)
    assert objects(place) == files(local)
    order = {key: number for number, key in enumerate(ended)}
    for key, block in keys.items():
        assert order[key] < order[f"written/c/{block}"]


def test_an_interrupted_copy_goes_on_and_another_begins_anew(place, local, monkeypatch):
    put, sent = Bucket.put, []

    def cut(self, key, parts):
        if key == LAYOUT.array("residual").key(2):
            raise UnreachableError("expected to write, found: no server answers")
        sent.append(key)
        return put(self, key, parts)

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "put", cut)
        with pytest.raises(UnreachableError, match="2 of 3 blocks are copied: run the same command to continue"):
            copy_store(local, place)
    assert "zarr.json" not in objects(place)
    first = LAYOUT.array("residual").key(0)
    damaged = LAYOUT.array("attention_maps").key(1)
    Bucket(place).put(damaged, lambda: [b"cut"])
    sent.clear()
    monkeypatch.setattr(Bucket, "put", lambda self, key, parts: sent.append(key) or put(self, key, parts))
    copy_store(local, place)
    assert damaged in sent
    assert first not in sent
    assert objects(place) == files(local)


def test_a_copy_of_something_else_removes_what_was_left(place, local, tmp_path, monkeypatch):
    put = Bucket.put

    def cut(self, key, parts):
        if key == LAYOUT.array("residual").key(2):
            raise UnreachableError("expected to write, found: no server answers")
        return put(self, key, parts)

    with monkeypatch.context() as patched:
        patched.setattr(Bucket, "put", cut)
        with pytest.raises(UnreachableError):
            copy_store(local, place)
    copy_store(local, place, arrays="residual", layers=1)
    copy_store(local, tmp_path / "b.zarr", arrays="residual", layers=1)
    assert objects(place) == files(tmp_path / "b.zarr")


def test_repair_unmarks_a_bad_block_and_extraction_fills_it(place, local):
    make_store(place, LAYOUT)
    key = LAYOUT.array("residual").key(1)
    Bucket(place).put(key, lambda: [objects(place)[key][:-3] + b"abc"])
    assert verify(place).bad_blocks == [1]
    result = CliRunner().invoke(main, ["verify", place, "--repair"])
    assert result.exit_code == 1
    assert "unmarked blocks 1" in result.output
    assert repair(place) == []
    with BlockWriter(place) as writer:
        assert writer.pending() == [1]
        writer.write(1, block_arrays(LAYOUT, birth(LAYOUT), 1))
    assert objects(place) == files(local)


def test_the_final_norm_is_added_whole(place):
    import pandas as pd

    from stratascope.store import Readout, stored_readout

    make_store(place, LAYOUT)
    words = pd.DataFrame({"kind": ["choice"], "name": ["True"], "token": [3], "text": ["True"]})
    ones = np.ones(LAYOUT.hidden, np.float32)
    readout = Readout("rms", 1e-6, ones, 0 * ones, ones[None], np.zeros(1, np.float32), words)
    assert not has_readout(place)
    assert add_readout(place, readout)
    assert not add_readout(place, readout)
    np.testing.assert_array_equal(stored_readout(ActivationStore.open(place)).rows, readout.rows)
    assert verify(place).ok
    remove_readout(place)
    assert not has_readout(place)


def test_a_service_that_ignores_conditions_is_noticed(place, monkeypatch):
    import obstore

    assert Bucket(place).conditional("written/claims")
    put = obstore.put
    monkeypatch.setattr(obstore, "put", lambda *args, **named: put(*args, **{**named, "mode": "overwrite"}))
    assert not Bucket(place).conditional("written/claims")
    assert not objects(place)


def test_credentials_in_use_are_never_in_a_message(place, server, monkeypatch):
    monkeypatch.setenv("AWS_SESSION_TOKEN", "zq-token")
    for address in ("s3://nowhere/a.zarr", "s3://bucket"):
        with pytest.raises(StoreError) as refused:
            create_store(address, LAYOUT, **birth(LAYOUT))
        assert "zq" not in str(refused.value)
    assert "expected a bucket and a name in it" in str(refused.value)


@pytest.mark.parametrize("address", ["https://host/a.zarr", "hf://datasets/a/b/c.zarr", "ftp://host/a", "file:///a/b.zarr", "memory://a"])
def test_addresses_that_cannot_be_written_are_refused(address, local):
    for call in (lambda: create_store(address, LAYOUT, **birth(LAYOUT)), lambda: copy_store(local, address), lambda: Bucket(address)):
        with pytest.raises(InvalidInputError, match=r"expected a path on this machine or an address in a bucket \(s3, gs, az\), found the"):
            call()
    result = CliRunner().invoke(main, ["copy", str(local), address])
    assert result.exit_code == 2
    assert "s3, gs, az" in result.stderr
    assert not Path(address.partition("/")[0]).exists()


def test_a_zip_is_not_written_to_an_address(place, local):
    with pytest.raises(StoreError, match="copy to a zip on a disk"):
        copy_store(local, f"{place}.zip")
