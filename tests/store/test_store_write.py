"""Creating and writing: refused clearly, atomic, resumable, never two writers on one block."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from buckets import files
from stores import birth, block_arrays, make_store, small_layout

from stratascope.errors import InvalidInputError, ProvenanceMismatchError, StoreError
from stratascope.store import ActivationStore, BlockWriter, create_store, verify
from stratascope.store.io import create as creation
from stratascope.store.io import durable as durable_files
from stratascope.store.io.writer_locks import CLAIMS, block_claim

LAYOUT = small_layout()
KNOWN = birth(LAYOUT)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_store(tmp_path / "a.zarr", blocks=[])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("examples", KNOWN["examples"].iloc[:3], "expected 10 rows"),
        ("examples", KNOWN["examples"].drop(columns="label"), "label"),
        ("examples", KNOWN["examples"].assign(id="same"), "'same' more than once"),
        ("examples", KNOWN["examples"].assign(id=range(10)), "text in column id"),
        ("examples", KNOWN["examples"].assign(label=2), "0 or 1"),
        ("examples", KNOWN["examples"].assign(odd=[{}] * 10), "'odd': expected numbers"),
        ("spans", KNOWN["spans"][:, :2], "spans: expected shape"),
        ("spans", KNOWN["spans"] + 20, "for span 'image' of example 0"),
        ("n_tokens", KNOWN["n_tokens"] * 0, "n_tokens: expected 1 to 12"),
        ("token_ids", np.zeros((10, 12), int), "-1 beyond"),
        ("vocabulary", {0: "a"}, "vocabulary"),
        ("has_map", np.ones(3, bool), "has_map"),
        ("provenance", {"x": np.nan}, "plain JSON"),
        ("provenance", {"x": object()}, "plain JSON"),
    ],
)
def test_a_store_that_contradicts_itself_is_not_created(tmp_path, name, value, words):
    with pytest.raises(InvalidInputError, match=words):
        create_store(tmp_path / "a.zarr", LAYOUT, **{**KNOWN, name: value})
    assert not list(tmp_path.iterdir())


def test_prompts_are_checked_and_counted_in_pieces(tmp_path, monkeypatch):
    create_store(tmp_path / "whole.zarr", LAYOUT, **KNOWN)
    monkeypatch.setattr(creation, "AT_ONCE", 3 * KNOWN["token_ids"][0].nbytes)
    create_store(tmp_path / "pieces.zarr", LAYOUT, **KNOWN)
    assert files(tmp_path / "pieces.zarr") == files(tmp_path / "whole.zarr")
    counts = Counter(KNOWN["token_ids"][KNOWN["token_ids"] >= 0].tolist())
    words = zarr.open_group(tmp_path / "pieces.zarr", mode="r")["vocabulary/id"][...].tolist()
    unused = sorted(set(KNOWN["vocabulary"]) - set(counts))
    assert words == [*sorted(counts, key=lambda word: (-counts[word], word)), *unused]
    unknown = KNOWN["token_ids"].copy()
    unknown[-1, 0] = 10**6
    with pytest.raises(InvalidInputError, match=r"found none for \[1000000\]"):
        create_store(tmp_path / "unknown.zarr", LAYOUT, **{**KNOWN, "token_ids": unknown})


def test_an_existing_path_is_refused(path):
    with pytest.raises(StoreError, match="existing one"):
        create_store(path, LAYOUT, **KNOWN)


def test_creation_on_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def fails(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 40:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable_files.os, "fsync", fails)
    with pytest.raises(StoreError, match="No space left"):
        create_store(tmp_path / "a.zarr", LAYOUT, **KNOWN)
    assert not list(tmp_path.iterdir())


def test_everything_is_flushed_before_the_marker_appears(path, monkeypatch):
    """Files and their folders: data, then the name of the data, then the marker."""
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(durable_files.os, "fsync", lambda d: (events.append("flush"), fsync(d))[1])
    monkeypatch.setattr(durable_files.os, "replace", lambda a, b: (events.append(Path(b)), replace(a, b))[1])
    BlockWriter(path).write(0, block_arrays(LAYOUT, KNOWN, 0))
    names = [e for e in events if isinstance(e, Path)]
    assert names[-1] == path / "written" / "c" / "0"
    assert len(names) == sum(s.by_block for s in LAYOUT.arrays()) + 1
    for name in names:
        i = events.index(name)
        assert events[i - 1] == events[i + 1] == "flush"


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["residual", "status", "written"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
def test_a_disk_that_refuses_leaves_a_store_that_resumes(path, monkeypatch, failing, error):
    replace = os.replace

    def refuses(a: Path, b: Path) -> None:
        if f"/{failing}/" in str(b):
            raise OSError(error, os.strerror(error))
        replace(a, b)

    with BlockWriter(path) as writer:
        writer.write(0, block_arrays(LAYOUT, KNOWN, 0))
        with monkeypatch.context() as patch:
            patch.setattr(durable_files.os, "replace", refuses)
            with pytest.raises(StoreError, match=rf"block 1.*{os.strerror(error)}.*stays unmarked.*run again"):
                writer.write(1, block_arrays(LAYOUT, KNOWN, 1))
        assert writer.pending() == [1, 2]
        assert not list(path.rglob("*.partial"))
    with BlockWriter(path) as writer:
        for block in writer.pending():
            writer.write(block, block_arrays(LAYOUT, KNOWN, block))
    assert verify(path).ok
    assert ActivationStore.open(path).complete


def test_a_folder_that_may_not_be_written_is_refused(path, monkeypatch):
    """Root may write everywhere: the refusal of the system is played."""

    def refuses(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("stratascope.store.io.writer_locks.os.open", refuses)
    with pytest.raises(StoreError, match="can be written"):
        BlockWriter(path)


def test_a_read_only_store_is_read(tmp_path):
    path = make_store(tmp_path / "a.zarr")
    before = sorted(p.name for p in path.rglob("*"))
    for p in [path, *path.rglob("*")]:
        p.chmod(0o555 if p.is_dir() else 0o444)
    try:
        assert ActivationStore.open(path).read("residual", layer=1, position="final", examples=[0]).shape == (1, 8)
        assert verify(path).ok
        assert sorted(p.name for p in path.rglob("*")) == before
    finally:
        for p in [path, *path.rglob("*")]:
            p.chmod(0o755)


def test_ranks_share_the_blocks(path):
    writer = BlockWriter(path)
    assert writer.pending() == [0, 1, 2]
    assert writer.pending(0, 2) == [0, 2]
    assert writer.pending(1, 2) == [1]
    writer.write(2, block_arrays(LAYOUT, KNOWN, 2))
    assert writer.pending(0, 2) == [0]
    assert writer.is_written(2)
    assert list(writer.block_examples(2)) == [8, 9]
    for bad in ((2, 2), (0, 0), (-1, 2)):
        with pytest.raises(InvalidInputError, match="rank"):
            writer.pending(*bad)
    with pytest.raises(InvalidInputError, match=r"0\.\.2"):
        writer.write(3, {})


def test_provenance_is_compared_but_for_when_and_how(path):
    writer = BlockWriter(path)
    writer.check_provenance({**KNOWN["provenance"], "created": "now", "host": "elsewhere"})
    with pytest.raises(ProvenanceMismatchError, match=r'revision: the store has "abc", now "abd".*data.new: the store has none'):
        writer.check_provenance({**KNOWN["provenance"], "revision": "abd", "data": {**KNOWN["provenance"]["data"], "new": 1}})
    with pytest.raises(ProvenanceMismatchError, match=r"revision: the store has .abc., now ffffffffffff\.\.\.;"):
        writer.check_provenance({**KNOWN["provenance"], "revision": 64 * "f"})


def _spoiled(name: str, at: tuple, value: float) -> dict[str, np.ndarray]:
    arrays = block_arrays(LAYOUT, KNOWN, 0)
    arrays[name] = arrays[name].copy()
    arrays[name][at] = value
    return arrays


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (_spoiled("residual", (2, 1, 3, 4), np.inf), "found inf at layer 2, position image, example 3, hidden 4.*status 4"),
        (_spoiled("residual", (0, 0, 0, 0), np.nan), "found nan at layer 0, position final, example 0"),
        (_spoiled("answer_logits", (1, 0), np.nan), "answer_logits.*example 1, choice 0"),
        (_spoiled("attention_rows", (1, 2, 1, 0), 0.9), "layer 1, example 2, head 1"),
        (_spoiled("attention_rows", (1, 2, 1, 0), np.nan), "layer 1, example 2, head 1, token 0"),
        (_spoiled("attention_rows", (1, 2, 1, -1), 0), "NaN beyond"),
        (_spoiled("attention_maps", (1, 0, 0, 0), 3), "zeros beyond 0 tokens of example 1"),
        (_spoiled("attention_maps", (0, 1, 2), 0), "example 0, found nothing at layer index 1, query 2"),
        (_spoiled("status", (0,), 0), "status: expected codes"),
        (_spoiled("status", (0,), 9), "status: expected codes"),
        ({}, "missing: answer_logits, attention_maps"),
        ({**block_arrays(LAYOUT, KNOWN, 0), "more": 1}, "not of this store: more"),
        ({**block_arrays(LAYOUT, KNOWN, 0), "residual": np.zeros((4, 4, 4, 9), np.float32)}, r"residual: expected shape \(4, 4, 4, 8\)"),
        ({**block_arrays(LAYOUT, KNOWN, 0), "residual": np.zeros((4, 4, 4, 8), int)}, "residual: expected floats"),
        ({**block_arrays(LAYOUT, KNOWN, 0), "thumbnail": np.zeros((4, 6, 5, 3), int)}, "thumbnail: expected uint8"),
    ],
)
def test_a_wrong_block_is_refused_and_nothing_written(path, arrays, words):
    writer = BlockWriter(path)
    before = sorted(path.rglob("*"))
    with pytest.raises(InvalidInputError, match=words):
        writer.write(0, arrays)
    assert [p for p in sorted(path.rglob("*")) if p not in before] == []


def test_float16_overflow_is_refused():
    arrays = block_arrays(LAYOUT, KNOWN, 0)
    arrays["residual"] = arrays["residual"].astype(np.float64)
    arrays["residual"][0, 0, 0, 0] = 1e39
    from stratascope.store.format.block_checks import BlockFacts, checked_block

    facts = BlockFacts(range(4), KNOWN["n_tokens"][:4], KNOWN["position_present"][:4], KNOWN["has_map"][:4])
    with pytest.raises(InvalidInputError, match=r"found 1e\+39, too large for float32, at layer 0"):
        checked_block(LAYOUT, facts, arrays)


def test_what_is_not_recorded_becomes_nan(tmp_path):
    path = make_store(tmp_path / "a.zarr", blocks=[])
    arrays = block_arrays(LAYOUT, KNOWN, 0)
    arrays["residual"][:, 2, 1] = 7.0  # example 1 has no subject
    arrays["status"][3] = 4
    arrays["residual"][:, :, 3] = np.inf
    arrays["attention_rows"][:, 3] = 9
    BlockWriter(path).write(0, arrays)
    stored = zarr.open_array(path / "residual", mode="r")[:, :, :4]
    assert np.isnan(stored[:, 2, 1]).all()
    assert np.isnan(stored[:, :, 3]).all()
    assert np.isnan(zarr.open_array(path / "attention_rows", mode="r")[:, 3]).all()
    assert np.isfinite(stored[:, :, [0, 2]]).all()


def test_a_marked_block_is_not_written_again(path):
    writer, other = BlockWriter(path), BlockWriter(path)
    writer.write(0, block_arrays(LAYOUT, KNOWN, 0))
    with pytest.raises(StoreError, match="found it marked"):
        other.write(0, block_arrays(LAYOUT, KNOWN, 0, seed=1))


def test_two_live_writers_of_a_block_are_told_apart(path):
    with block_claim(path, 1), pytest.raises(StoreError, match=rf"being written by process {os.getpid()}"):
        BlockWriter(path).write(1, block_arrays(LAYOUT, KNOWN, 1))
    BlockWriter(path).write(1, block_arrays(LAYOUT, KNOWN, 1))


def test_many_threads_on_one_block_and_only_one_wins(path):
    gate, outcomes = threading.Barrier(8), []

    def contender(seed: int) -> None:
        arrays = block_arrays(LAYOUT, KNOWN, 0, seed=seed)
        writer = BlockWriter(path)
        gate.wait()
        try:
            writer.write(0, arrays)
            outcomes.append(seed)
        except StoreError:
            pass

    threads = [threading.Thread(target=contender, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    expected = block_arrays(LAYOUT, KNOWN, 0, seed=outcomes[0])["residual"]
    stored = ActivationStore.open(path).read("residual", position="final", examples=range(4))
    np.testing.assert_array_equal(stored, expected[:, 0])


def _claim_and_die(path: Path) -> None:
    claim = block_claim(path, 0)
    claim.__enter__()
    os._exit(9)


@pytest.mark.slow
def test_a_claim_dies_with_its_process(path):
    process = multiprocessing.get_context("spawn").Process(target=_claim_and_die, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert (path / CLAIMS / "0").exists()
    BlockWriter(path).write(0, block_arrays(LAYOUT, KNOWN, 0))


def test_without_locks_a_claim_is_a_file_that_grows_old(path, monkeypatch):
    from stratascope.store.io import writer_locks

    monkeypatch.setattr(writer_locks, "fcntl", None)
    with block_claim(path, 0), pytest.raises(StoreError, match="being written by process"):
        BlockWriter(path).write(0, block_arrays(LAYOUT, KNOWN, 0))
    held = path / CLAIMS / "0.holder"
    assert not held.exists()
    held.touch()
    with pytest.raises(StoreError, match="being written"):
        BlockWriter(path).write(0, block_arrays(LAYOUT, KNOWN, 0))
    os.utime(held, (1, 1))
    BlockWriter(path).write(0, block_arrays(LAYOUT, KNOWN, 0))
    assert not held.exists()


def test_leftovers_are_swept_only_when_nobody_writes(path):
    litter = path / "residual" / "c" / "0.1234.partial"
    litter.parent.mkdir(exist_ok=True)
    first = BlockWriter(path)
    litter.touch()
    second = BlockWriter(path)
    assert litter.exists()
    first.close()
    second.close()
    with BlockWriter(path):
        assert not litter.exists()


def test_writing_needs_a_folder(tmp_path, path):
    with pytest.raises(StoreError, match="folder of a store"):
        BlockWriter(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"no zarr\.json"):
        BlockWriter(tmp_path / "empty")
    assert "3 of 3 blocks pending" in repr(BlockWriter(path))


def test_columns_of_any_name_and_missing_text_survive(tmp_path):
    frame = KNOWN["examples"].assign(**{"a/b c": 1.5, "ünï": True, "note": [None, *["x"] * 9]})
    create_store(tmp_path / "a.zarr", LAYOUT, **{**KNOWN, "examples": frame})
    found = ActivationStore.open(tmp_path / "a.zarr").examples.drop(columns="status")
    pd.testing.assert_frame_equal(found, frame.astype({"split": "str"}), check_dtype=False)
    assert list(found.columns) == list(frame.columns)
