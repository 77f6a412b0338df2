"""Stores from strangers: links, absurd sizes, bombs and nesting are refused by name, and memory that runs out is no damage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from click.testing import CliRunner, Result
from numcodecs import Zstd
from stores import birth, block_arrays, make_store, small_layout

from stratascope.cli import FAULT, main
from stratascope.errors import StoreError
from stratascope.results.registry import load_result
from stratascope.store import ActivationStore, BlockWriter, StoreLayout, copy_store, create_store, diff_stores, repair, verify
from stratascope.store.format.limits import MOST_DEPTH, MOST_METADATA, zstd_size
from stratascope.store.format.provenance import digest
from stratascope.store.format.shards import decode_chunk, encode_chunk
from stratascope.store.io.links import FOLLOW_VARIABLE

LAYOUT = small_layout()
KNOWN = birth(LAYOUT)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("hostile") / "whole.zarr")


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


def refused(*words: str) -> str:
    """The one line of a command that ends with exit code 2."""
    found: Result = CliRunner().invoke(main, list(words))
    assert found.exit_code == 2, (found.output, found.exception)
    (line,) = found.stderr.strip().splitlines()
    assert FAULT not in line
    return line


def contents(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@contextmanager
def little_memory(most: float) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def with_checksum(data: bytes) -> bytes:
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


# symbolic links


def test_a_claim_that_is_a_link_lets_nothing_be_overwritten(path, tmp_path):
    victim = tmp_path / "victim.txt"
    victim.write_text("mine")
    claims = path / "written" / "claims"
    claims.mkdir(exist_ok=True)
    (claims / "1").symlink_to(victim)
    spoiled = path / LAYOUT.array("residual").key(1)
    spoiled.write_bytes(spoiled.read_bytes()[:-3])
    assert "expected files and folders of the store's own, found a symbolic link: written/claims/1" in refused(
        "verify", "--repair", str(path)
    )
    with pytest.raises(StoreError, match="symbolic link: written/claims/1"):
        repair(path, verify(path))
    (path / "written" / "c" / "1").unlink()
    with BlockWriter(path) as writer, pytest.raises(StoreError, match="symbolic link: written/claims/1"):
        writer.write(1, block_arrays(LAYOUT, KNOWN, 1))
    assert victim.read_text() == "mine"


def go_on(path: Path) -> None:
    with BlockWriter(path) as writer:
        for block in writer.pending():
            writer.write(block, block_arrays(LAYOUT, KNOWN, block))


@pytest.mark.parametrize("link", ["written/claims", "written/claims/writers", "written/c", "written", "residual/c/0/0", "zarr.json"])
def test_a_writer_follows_no_link(path, tmp_path, link, monkeypatch):
    monkeypatch.setenv(FOLLOW_VARIABLE, "1")  # of readers alone
    (path / "written" / "claims").mkdir(exist_ok=True)
    (path / "written" / "claims" / "writers").touch()
    outside = tmp_path / "outside"
    shutil.move(path / link, outside)
    (path / link).symlink_to(outside)
    before = contents(outside) if outside.is_dir() else outside.read_bytes()
    if (path / "written" / "c" / "1").exists() and link not in ("written", "written/c"):
        (path / "written" / "c" / "1").unlink()
    if link == "zarr.json":
        with pytest.raises(StoreError, match=r"symbolic link: zarr\.json"):
            repair(path)
    else:
        with pytest.raises(StoreError, match=f"symbolic link: {link}"):
            go_on(path)
        with pytest.raises(StoreError, match=f"symbolic link: {link}"):
            repair(path)
    assert (contents(outside) if outside.is_dir() else outside.read_bytes()) == before


def test_a_folder_of_a_block_that_is_a_link_lets_nothing_be_deleted(path, tmp_path):
    file = path / LAYOUT.array("residual").key(1)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / file.name).write_text("mine")
    shutil.rmtree(file.parent)
    file.parent.symlink_to(outside)
    key = file.parent.relative_to(path).as_posix()
    for command in (["verify"], ["verify", "--repair"]):
        assert f"symbolic link: {key}" in refused(*command, str(path))
    found = verify_of_another(path, tmp_path)
    with pytest.raises(StoreError, match="symbolic link"):
        repair(path, found)
    assert (outside / file.name).read_text() == "mine"
    assert (path / "written" / "c" / "1").exists()


def verify_of_another(path: Path, tmp_path: Path) -> Any:
    """What a check finds that was made before the link was."""
    plain = make_store(tmp_path / "plain.zarr")
    (plain / LAYOUT.array("residual").key(1)).write_bytes(b"")
    return verify(plain)


@pytest.mark.slow
@pytest.mark.parametrize("link", ["zarr.json", "residual/c/0/0/1/0", "residual/c", "n_tokens/c/0", "written/c/1", "examples/caption/c"])
def test_reading_refuses_links_unless_asked_for(path, whole, tmp_path, link, monkeypatch):
    outside = tmp_path / "outside"
    shutil.move(path / link, outside)
    (path / link).symlink_to(outside)
    assert f"symbolic link: {link}" in refused("verify", str(path))
    with pytest.raises(StoreError, match=rf"symbolic link: {link}.*{FOLLOW_VARIABLE}=1"):
        copy_store(path, tmp_path / "copy.zarr")
    monkeypatch.setenv(FOLLOW_VARIABLE, "1")
    assert verify(path).ok
    assert diff_stores(path, whole).same


def test_the_store_itself_may_be_reached_through_a_link(path, tmp_path):
    (tmp_path / "link.zarr").symlink_to(path)
    assert verify(tmp_path / "link.zarr").ok
    assert repair(tmp_path / "link.zarr") == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_is_not_waited_for(path, tmp_path):
    for key in ("residual/c/0/0/1/0", "n_tokens/c/0", "zarr.json"):
        (path / key).rename(tmp_path / "kept")
        os.mkfifo(path / key)
        assert f"a named pipe or a device: {key}" in refused("verify", str(path))
        os.unlink(path / key)
        (tmp_path / "kept").rename(path / key)
    os.mkfifo(tmp_path / "pipe.zarr.zip")
    assert "file of another kind" in refused("info", str(tmp_path / "pipe.zarr.zip"))
    with pytest.raises(StoreError, match="a named pipe"):
        load_result(tmp_path / "pipe.zarr.zip")


# sizes


def forged(path: Path, **fields: Any) -> None:
    """Change a store's layout, with the digest and the arrays' metadata that it then has."""
    file = path / "zarr.json"
    root = json.loads(file.read_text())
    attributes = root["attributes"]
    attributes["layout"].update(fields)
    attributes["digest"] = digest({k: v for k, v in attributes.items() if k != "digest"})
    try:
        specs = StoreLayout.from_json(attributes["layout"]).arrays()
    except ValueError:
        specs = ()
    for spec in specs:
        held = root["consolidated_metadata"]["metadata"][spec.name]
        held["shape"] = list(spec.shape)
        held["chunk_grid"]["configuration"]["chunk_shape"] = list(spec.shard or spec.chunk)
        if spec.shard is not None:
            held["codecs"][0]["configuration"]["chunk_shape"] = list(spec.chunk)
    file.write_text(json.dumps(root))


@pytest.mark.slow
@pytest.mark.parametrize("size", [10**7, 10**12, 2**62])
@pytest.mark.parametrize("field", ["examples", "layers", "hidden", "heads", "tokens", "block"])
def test_an_absurd_layout_is_refused_before_anything_is_allocated(path, tmp_path, field, size):
    """With the digest that it then has, as a stranger would write it."""
    forged(path, **{field: size}, **({"block": 64} if field == "examples" else {}))
    with little_memory(200e6):
        for command in (["info"], ["verify"], ["answers", "--out", str(tmp_path / "out")]):
            found = CliRunner().invoke(main, [command[0], str(path), *command[1:]])
            assert found.exit_code in (1, 2), found.output
            assert FAULT not in found.output
            if size > 10**7:
                assert found.exit_code == 2
                assert f"{field}: expected at most" in found.stderr


BOMBS = {
    "announces 8 GB": b"\x28\xb5\x2f\xfd\xe0" + (8 << 30).to_bytes(8, "little") + bytes(40),
    "does not say how much": b"\x28\xb5\x2f\xfd\x00\x58" + bytes(40),
    "is 128 MB of zeros": Zstd(3).encode(bytes(1 << 27)),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("array", ["examples/caption", "vocabulary/text", "example", "n_tokens"])
def test_a_chunk_that_unpacks_to_gigabytes_is_refused_unread(path, array, bomb):
    (file,) = [f for f in (path / array / "c").rglob("*") if f.is_file()]
    file.write_bytes(with_checksum(BOMBS[bomb]))
    store = ActivationStore.open(path)
    with little_memory(20e6), pytest.raises(StoreError, match=f"{array}/c/0.*expected a file that unpacks to at most 67,108,864 bytes"):
        _ = store.vocabulary if array.startswith("vocabulary") else store.n_tokens if array == "n_tokens" else store.examples


def test_another_codec_is_refused(path):
    root = json.loads((path / "zarr.json").read_text())
    for held in (root["consolidated_metadata"]["metadata"]["examples/caption"], root["consolidated_metadata"]["metadata"]["n_tokens"]):
        held["codecs"][1] = {"name": "gzip", "configuration": {"level": 1}}
    (path / "zarr.json").write_text(json.dumps(root))
    for look in (lambda s: s.n_tokens, lambda s: s.examples):
        with pytest.raises(StoreError, match="expected an array packed by zstd, found codec gzip in"):
            look(ActivationStore.open(path))


@pytest.mark.parametrize("array", ["residual", "answer_logits"])
@pytest.mark.parametrize("times", [0.5, 2, 1000])
def test_a_chunk_of_another_size_is_never_read_as_numbers(array, times):
    """Its checksum is right: half of it would leave whatever memory held before in its place."""
    spec = LAYOUT.array(array)
    shape = (int(np.prod(spec.chunk) * times),)
    data = encode_chunk(spec, np.ones(shape, spec.dtype))
    out = np.zeros(spec.chunk, spec.dtype)
    for into in (None, out):
        with little_memory(1e6), pytest.raises(StoreError, match=r"expected .* bytes in the chunk, found"):
            decode_chunk(spec, data, "the chunk", into=into)
    assert not out.any()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65535, 65536 + 255, 65536 + 256, 1 << 20])
def test_the_size_in_a_zstd_header_is_what_it_unpacks_to(size):
    assert zstd_size(Zstd(3).encode(bytes(size)) if size else b"\x28\xb5\x2f\xfd\x20\x00\x01\x00\x00") == size


def test_metadata_of_gigabytes_are_refused_unread(path, tmp_path):
    with open(path / "zarr.json", "r+b") as file:
        file.truncate(4 << 30)  # a hole: no disk is used
    with little_memory(20e6):
        assert f"zarr.json: expected metadata of at most {MOST_METADATA >> 20} MB, found 4,294,967,296 bytes" in refused("info", str(path))
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zarr.json", b" " * (MOST_METADATA + 1))
    with little_memory(20e6):
        assert "a.zip: zarr.json: expected metadata of at most" in refused("info", str(tmp_path / "a.zip"))


@pytest.mark.parametrize("depth", [MOST_DEPTH + 10, 900, 200_000])
def test_metadata_nested_deeply_are_refused_by_name(path, depth):
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["provenance"]["note"] = "DEEP"
    (path / "zarr.json").write_text(json.dumps(root).replace('"DEEP"', "[" * depth + "]" * depth))
    for command in ("info", "verify"):
        line = refused(command, str(path))
        assert "nested" in line
        assert str(path) in line


# memory


@pytest.mark.slow
def test_memory_that_runs_out_is_no_damage(tmp_path):
    """Whatever the limit, `verify --repair` ends well or says that memory ran out, and changes nothing."""
    resource = pytest.importorskip("resource")
    assert resource
    layout = small_layout(8, layers=1, hidden=1 << 20, positions=("final",), record={"residual"}, thumbnail=None)
    known = birth(layout)
    path = tmp_path / "big.zarr"
    create_store(path, layout, **known)
    with BlockWriter(path) as writer:
        for block in range(2):
            writer.write(block, block_arrays(layout, known, block))
    before = contents(path)
    script = f"""
import gc, resource
from stratascope.cli import main
path = {str(path)!r}
main(["verify", path], standalone_mode=False)
def address_space():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmSize")).split()[1]) << 10
codes = []
for more in (1, 12, 28, 44, 60, 2000):
    gc.collect()
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + (more << 20), resource.RLIM_INFINITY))
    codes.append(main(["verify", "--repair", path], standalone_mode=False) or 0)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(codes)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert found.returncode == 0, found.stderr
    codes = json.loads(found.stdout.splitlines()[-1])
    assert set(codes) == {0, 2}, (codes, found.stderr)
    lines = found.stderr.strip().splitlines()
    assert len(lines) == codes.count(2)
    assert all(line.startswith("stratascope: not enough memory") or "free memory and run again" in line for line in lines), lines
    assert contents(path) == before


@pytest.mark.parametrize("where", ["decode_file", "as_numpy", "known_digest"])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread"), OSError(12, "Cannot allocate memory")])
def test_an_error_of_memory_anywhere_in_a_check_repairs_nothing(path, monkeypatch, where, error):
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(sys.modules["stratascope.store.maintenance.verify"], where, fails)
    before = contents(path)
    assert "emory" in refused("verify", "--repair", str(path)) or "thread" in str(error)
    assert contents(path) == before


def test_a_file_that_may_not_be_read_is_no_damage(path, monkeypatch):
    from stratascope.store.io import shard_reader as blockfiles

    def fails(name: Any, *_: Any, **__: Any) -> Any:
        raise OSError(5, "Input/output error", str(name))

    before = contents(path)
    monkeypatch.setattr(blockfiles, "open", fails, raising=False)
    assert "nothing shows that it is damaged" in refused("verify", "--repair", str(path))
    monkeypatch.undo()
    assert contents(path) == before


# incomplete stores


@pytest.mark.parametrize("blocks", [[], [1]])
def test_a_store_that_is_not_complete_is_not_called_good(tmp_path, blocks):
    path = make_store(tmp_path / "a.zarr", blocks=blocks)
    found = CliRunner().invoke(main, ["verify", str(path)])
    assert found.exit_code == 1
    assert f"{len(blocks)} of 3 blocks written; incomplete: " in found.output
    assert "every written number" not in found.output
    assert ("there was no number to check" in found.output) == (not blocks)


# zips of a folder


@pytest.mark.slow
@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("folder", ["", "original.zarr/", "demo/original.zarr/"])
def test_a_zip_of_the_folder_is_read(whole, tmp_path, how, folder):
    """As `zip -r` makes it, with entries for folders."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", how) as archive:
        if folder:
            archive.writestr(folder, b"")
        for key, data in contents(whole).items():
            archive.writestr(f"{folder}{key}", data)
        archive.writestr("__MACOSX/original.zarr/._zarr.json", b"x")
    assert verify(tmp_path / "x.zip").ok
    assert diff_stores(tmp_path / "x.zip", whole).same
    opened = ActivationStore.open(tmp_path / "x.zip")
    assert opened.complete
    assert opened.size_on_disk() == ActivationStore.open(whole).size_on_disk() + (0 if folder else 1)
    result = CliRunner().invoke(main, ["info", str(tmp_path / "x.zip")])
    assert result.exit_code == 0


def test_a_zip_of_two_stores_is_refused_with_their_names(whole, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("demo/a.zarr", "demo/b.zarr"):
            archive.writestr(f"{name}/zarr.json", (whole / "zarr.json").read_bytes())
    assert "expected one store in the zip, found 2: demo/a.zarr, demo/b.zarr; unpack it" in refused("info", str(tmp_path / "x.zip"))


def test_a_zip_with_a_member_that_unpacks_to_gigabytes_is_refused_by_its_name(whole, tmp_path):
    key = LAYOUT.array("residual").key(1)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents(whole).items():
            archive.writestr(f"a.zarr/{name}", bytes(1 << 27) if name == key else data)
    with little_memory(60e6):
        found = CliRunner().invoke(main, ["verify", str(tmp_path / "x.zip")])
    assert found.exit_code == 1
    assert f"a.zarr/{key}: expected a file that unpacks to at most" in found.output
