"""File systems that lose what was written, are full, or know no locks."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from stores import birth, block_arrays, make_store, small_layout

from stratascope.cli import main
from stratascope.errors import StoreError
from stratascope.store import BlockWriter, copy_store, create_store
from stratascope.store.io import writer_locks
from stratascope.store.io.writer_locks import CLAIMS, block_claim

LAYOUT = small_layout(5, record={"residual"})
KNOWN = birth(LAYOUT)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("whole") / "a.zarr", LAYOUT)


def losing(rename, spoil):
    """A renaming after which `spoil` does something to what was renamed."""

    def renamed(old, new):
        rename(old, new)
        spoil(Path(new))

    return renamed


def lose_some(path: Path) -> None:
    for file in sorted(p for p in path.rglob("*") if p.is_file())[::7]:
        file.unlink()


def change_one(path: Path) -> None:
    file = next(p for p in sorted(path.rglob("*")) if p.is_file() and p.stat().st_size > 20)
    file.write_bytes(b"\0" * file.stat().st_size)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change_end_of_entry(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("b.zarr", lose_some, r"expected \d+ files as they were written, found \d\d missing and 0 changed"),
        ("b.zarr", change_one, r"found 0 missing and 1 changed, such as"),
        ("b.zip", cut, r"found \d+ missing"),
        ("b.zip", change_end_of_entry, r"found \d+ missing and [01] changed"),
    ],
)
def test_a_mount_that_loses_renames_is_found_out(tmp_path, source, monkeypatch, name, spoil, said):
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", losing(os.rename, spoil))
        with pytest.raises(StoreError, match=said):
            copy_store(source, tmp_path / name)
        result = CliRunner().invoke(main, ["copy", str(source), str(tmp_path / name)])
        assert result.exit_code == 2
        assert "this file system loses files" in result.stderr
    assert not list(tmp_path.iterdir())
    copy_store(source, tmp_path / name)


def test_a_store_is_not_created_where_files_are_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "rename", losing(os.rename, lose_some))
    with pytest.raises(StoreError, match="this file system loses files"):
        create_store(tmp_path / "a.zarr", LAYOUT, **KNOWN)
    assert not list(tmp_path.iterdir())


def test_a_block_whose_file_is_lost_is_not_marked(tmp_path, monkeypatch):
    path = make_store(tmp_path / "a.zarr", LAYOUT, blocks=[])
    lost = path / LAYOUT.array("residual").key(0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", losing(os.replace, lambda new: new.unlink() if new == lost else None))
        with BlockWriter(path) as writer, pytest.raises(StoreError, match="the file system lost what was written"):
            writer.write(0, block_arrays(LAYOUT, KNOWN, 0))
    with BlockWriter(path) as writer:
        assert writer.pending() == [0, 1]
        writer.write(0, block_arrays(LAYOUT, KNOWN, 0))


def test_a_renaming_that_breaks_off_leaves_nothing_in_the_way(tmp_path, source, monkeypatch):
    """As on a mounted bucket, where a folder is renamed file by file."""

    def broken(old, new):
        shutil.copytree(Path(old) / "residual", Path(new) / "residual")
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", broken)
        with pytest.raises(StoreError, match="Input/output error"):
            copy_store(source, tmp_path / "b.zarr")
        with pytest.raises(StoreError, match="Input/output error"):
            create_store(tmp_path / "c.zarr", LAYOUT, **KNOWN)
    assert not list(tmp_path.iterdir())
    copy_store(source, tmp_path / "b.zarr")


def test_what_another_process_put_there_meanwhile_stays(tmp_path, source, monkeypatch):
    rename = os.rename

    def late(old, new):
        Path(new).mkdir()
        (Path(new) / "theirs").touch()
        rename(old, new)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(StoreError, match="not empty"):
        copy_store(source, tmp_path / "b.zarr")
    assert [p.name for p in tmp_path.rglob("*")] == ["b.zarr", "theirs"]


@pytest.mark.parametrize(("name", "room"), [("b.zip", 40), ("b.zip", 3000), ("b.zip", 20000), ("b.zarr", 40), ("b.zarr", 500)])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, source, name, room):
    """A limit on the size of files stands for the disk: writes fail in the middle, and so does closing the file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    held = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(StoreError, match=r"expected to write the copy, found: .*too large"):
            copy_store(source, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, held)
    assert not list(tmp_path.iterdir())


def test_what_a_killed_copy_left_is_removed_by_the_next(tmp_path, source):
    left, other = tmp_path / f"b.zip.{'0' * 32}.partial", tmp_path / "b.zip.mine.partial"
    left.touch()
    other.touch()
    copy_store(source, tmp_path / "b.zip")
    assert not left.exists()
    assert other.exists()


def test_two_copies_to_one_folder_are_told_apart(tmp_path, source):
    from stratascope.store.maintenance import copy as copying

    seen = []

    def second(*_):
        if not seen:
            seen.append(True)
            with pytest.raises(StoreError, match=r"expected no other process that copies to .*found process"):
                copying.copy_store(source, tmp_path / "b.zarr")

    copy_store(source, tmp_path / "b.zarr", progress=second)
    assert seen


@pytest.fixture
def no_locks(monkeypatch):
    """As on NFS without lockd."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(writer_locks.fcntl, "flock", refuse)


DIE = """
import errno, os, sys
from pathlib import Path
from stratascope.store.io import writer_locks
def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")
writer_locks.fcntl.flock = refuse
claim = writer_locks.block_claim(Path(sys.argv[1]), 0)
claim.__enter__()
os._exit(9)
"""


def test_without_locks_the_claim_of_a_dead_process_is_taken_over_at_once(tmp_path, no_locks):
    path = make_store(tmp_path / "a.zarr", LAYOUT, blocks=[])
    assert subprocess.run([sys.executable, "-c", DIE, str(path)]).returncode == 9
    assert (path / CLAIMS / "0.holder").exists()
    with BlockWriter(path) as writer:
        writer.write(0, block_arrays(LAYOUT, KNOWN, 0))
    assert not (path / CLAIMS / "0.holder").exists()


def test_without_locks_the_claim_of_another_machine_says_what_to_remove(tmp_path, no_locks, monkeypatch):
    path = make_store(tmp_path / "a.zarr", LAYOUT, blocks=[])
    with monkeypatch.context() as patch:
        patch.setattr(writer_locks, "_processes", lambda: "another machine")
        other = block_claim(path, 0)
        other.__enter__()
    with BlockWriter(path) as writer, pytest.raises(StoreError) as refused:
        writer.write(0, block_arrays(LAYOUT, KNOWN, 0))
    held = (path / CLAIMS) / "0.holder"
    assert "this file system knows no locks: if that process is dead, remove" in str(refused.value)
    assert str(held) in str(refused.value)
    held.unlink()
    with BlockWriter(path) as writer:
        writer.write(0, block_arrays(LAYOUT, KNOWN, 0))


def test_without_locks_a_live_process_keeps_its_claim(tmp_path, no_locks):
    path = make_store(tmp_path / "a.zarr", LAYOUT, blocks=[])
    with block_claim(path, 0), BlockWriter(path) as writer, pytest.raises(StoreError, match=r"being written by process"):
        writer.write(0, block_arrays(LAYOUT, KNOWN, 0))


def test_without_locks_stores_are_copied(tmp_path, source, no_locks):
    for name in ("b.zarr", "b.zip"):
        copy_store(source, tmp_path / name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.zarr", "b.zip"]
