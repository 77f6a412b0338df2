"""Damage: whatever happens to a file of a marked block is seen by `verify` and by `read`, and `repair` makes it good."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from stores import birth, block_arrays, make_store, small_layout

from stratascope.errors import StoreError
from stratascope.store import ActivationStore, BlockWriter, diff_stores, repair, verify

LAYOUT = small_layout()
KNOWN = birth(LAYOUT)
FLIPS_A_FILE = int(os.environ.get("STRATASCOPE_FLIPS", "5"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("damage") / "whole.zarr")


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "a.zarr")
    return tmp_path / "a.zarr"


def block_files(path: Path) -> list[Path]:
    return sorted(path / s.key(b) for s in LAYOUT.arrays() if s.by_block for b in range(LAYOUT.blocks))


def read_everything(path: Path) -> None:
    store = ActivationStore.open(path)
    for spec in LAYOUT.arrays():
        if spec.by_block:
            store.read(spec.name, examples=np.flatnonzero(store.available(spec.name)))
    for example in np.flatnonzero(store.available("attention_maps")):
        store.maps(int(example))


def assert_seen(path: Path, file: Path) -> None:
    """Both ways of looking at the store see that a file of a block is wrong."""
    found = verify(path)
    block = int(file.name) if file.parent.name == "c" else int(file.relative_to(path).parts[2 + _axis(path, file)])
    assert found.bad_blocks == [block], found.problems
    assert not found.ok
    with pytest.raises(StoreError):
        read_everything(path)


def _axis(path: Path, file: Path) -> int:
    return LAYOUT.array(file.relative_to(path).parts[0]).example_axis


def test_a_whole_store_is_fine(whole):
    read_everything(whole)
    found = verify(whole)
    assert found.ok
    assert found.written == found.blocks == 3
    assert set(found.table["array"]) >= {"store", "residual", "attention_mean", "written"}
    assert found.table.set_index("array")["files"]["residual"] == 3


@pytest.mark.slow
def test_every_flip_is_seen(path):
    """Every byte of the files is as likely to be flipped; a sample of them, one at a time."""
    rng = np.random.default_rng(0)
    flips = 0
    for file in [*block_files(path), *sorted((path / "written" / "c").iterdir())]:
        data = file.read_bytes()
        places = sorted({0, len(data) - 1, *rng.integers(0, len(data), FLIPS_A_FILE).tolist()})
        for at in places:
            spoiled = bytearray(data)
            spoiled[at] ^= 1 << int(rng.integers(8))
            file.write_bytes(spoiled)
            spec = LAYOUT.array(file.relative_to(path).parts[0])
            problems = verify(path)
            assert not problems.ok, (file, at)
            store_fails = False
            try:
                store = ActivationStore.open(path)
                if spec.by_block:
                    store.read(spec.name, examples=np.flatnonzero(store.available(spec.name)))
                    # examples that are not recorded are never read: their chunks may be the spoiled ones
                    store_fails = not _covers(store, spec.name)
                else:
                    _ = store.written
            except StoreError:
                store_fails = True
            assert store_fails, (file, at)
            flips += 1
        file.write_bytes(data)
    assert flips >= 5 * len(block_files(path))
    assert verify(path).ok


def _covers(store: ActivationStore, name: str) -> bool:
    """Whether reading all that is available reads every chunk of the array."""
    spec = LAYOUT.array(name)
    chunks = np.arange(LAYOUT.examples) // spec.chunk[spec.example_axis]
    return set(chunks) == set(chunks[store.available(name)])


@pytest.mark.slow
@pytest.mark.parametrize("change", ["truncated", "cut by one", "empty", "missing", "longer", "of another block"])
def test_files_that_are_not_whole_are_seen(path, change):
    for file in block_files(path)[::2]:
        data = file.read_bytes()
        if change == "missing":
            file.unlink()
        elif change == "of another block":
            others = [f for f in block_files(path) if f != file and f.relative_to(path).parts[0] == file.relative_to(path).parts[0]]
            if others[0].read_bytes() == data or "status" in str(file):
                continue
            # whole, but another's: what it says does not fit lengths, maps or means
            if file.relative_to(path).parts[0] not in ("attention_rows", "attention_mean", "attention_maps"):
                continue
            file.write_bytes(others[0].read_bytes())
            assert not verify(path).ok, file
            file.write_bytes(data)
            continue
        else:
            new = {"truncated": data[: len(data) // 2], "cut by one": data[:-1], "empty": b"", "longer": data + b"\0"}[change]
            file.write_bytes(new)
        assert_seen(path, file)
        file.write_bytes(data)
    assert verify(path).ok


@pytest.mark.slow
def test_damage_of_what_creation_wrote_is_seen(path):
    rng = np.random.default_rng(1)
    created = [
        f for f in sorted(path.rglob("*"))
        if f.is_file() and f not in block_files(path) and f.relative_to(path).parts[:2] not in {("written", "c"), ("written", "claims")}
    ]  # fmt: skip
    assert len(created) > 60
    for file in created:
        data = file.read_bytes()
        spoiled = bytearray(data)
        spoiled[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        file.write_bytes(spoiled)
        try:
            found = verify(path)
            assert found.beyond_repair, file
            assert not found.ok
        except StoreError:
            pass  # metadata so damaged that the store cannot be opened
        file.write_bytes(data)
        if "/c/" in str(file):
            file.unlink()
            assert verify(path).beyond_repair, file
            file.write_bytes(data)
    assert verify(path).ok


def test_reading_never_takes_a_missing_file_for_fill(path):
    victims = {
        "n_tokens": lambda s: s.n_tokens, "token_ids": lambda s: s.tokens(0), "spans": lambda s: s.spans, "has_map": lambda s: s.maps(0),
        "example": lambda s: s.index_of("scene-00001"), "label": lambda s: s.examples, "examples/caption": lambda s: s.examples,
        "vocabulary/text": lambda s: s.tokens(0), "position_present": lambda s: s.available("residual"),
    }  # fmt: skip
    for name, look in victims.items():
        (file,) = [f for f in (path / name / "c").rglob("*") if f.is_file()]
        data = file.read_bytes()
        for spoiled in (None, b"", data[:-1], bytes([data[0] ^ 1]) + data[1:]):
            file.unlink()
            if spoiled is not None:
                file.write_bytes(spoiled)
            with pytest.raises(StoreError, match=name.split("/")[0]):
                look(ActivationStore.open(path))
            file.write_bytes(data)
        look(ActivationStore.open(path))


def test_repair_unmarks_and_extraction_refills(path, whole):
    victim, other = path / LAYOUT.array("residual").key(1), path / LAYOUT.array("status").key(2)
    victim.write_bytes(victim.read_bytes()[:-7])
    other.unlink()
    assert repair(path) == [1, 2]
    store = ActivationStore.open(path)
    assert store.written.tolist() == [True, False, False]
    assert verify(path).ok
    assert repair(path) == []
    with BlockWriter(path) as writer:
        assert writer.pending() == [1, 2]
        for block in writer.pending():
            writer.write(block, block_arrays(LAYOUT, KNOWN, block))
    assert diff_stores(path, whole).same
    for file in block_files(path):
        assert file.read_bytes() == (whole / file.relative_to(path)).read_bytes()


def test_a_damaged_marker_is_repaired(path):
    (path / "written" / "c" / "1").write_bytes(b"\1oops")
    with pytest.raises(StoreError, match="written/c/1"):
        _ = ActivationStore.open(path).written
    assert verify(path).bad_blocks == [1]
    assert repair(path) == [1]
    assert verify(path).ok


def test_what_extraction_does_not_write_cannot_be_repaired(path, whole):
    (path / "n_tokens" / "c" / "0").unlink()
    (path / LAYOUT.array("residual").key(1)).unlink()
    with pytest.raises(StoreError, match="n_tokens"):
        repair(path)
    assert not (path / "written" / "c" / "1").exists()
    with pytest.raises(StoreError, match="expected a folder"):
        repair(whole.with_suffix(".zip"))


def test_the_message_names_the_blocks(path):
    for block in (0, 2):
        (path / LAYOUT.array("residual").key(block)).write_bytes(b"")
    store = ActivationStore.open(path)
    with pytest.raises(StoreError, match=r"residual, found damage in blocks 0, 2: .*empty.*verify --repair"):
        store.read("residual", layer=0, position="final", examples=store.available("residual", "final"))
    assert store.read("residual", layer=0, position="final", examples=[4]).shape == (1, 8)


def test_values_that_are_whole_but_wrong_are_seen(path):
    """A file with good checksums that the writer would not have written: a mean that is not the mean of its rows."""
    from stratascope.store.format.shards import encode_file

    spec = LAYOUT.array("attention_mean")
    store = ActivationStore.open(path)
    mean = store.read("attention_mean", examples=[0, 1, 2, 3]) * 1.01
    (path / spec.key(0)).write_bytes(b"".join(encode_file(spec, mean)))
    found = verify(path)
    assert found.bad_blocks == [0]
    assert "means of rows" in found.problems["problem"][0]


def test_images_are_compared_with_their_hashes(tmp_path, path):
    import hashlib

    from stratascope.store import create_store

    folder = tmp_path / "images"
    folder.mkdir()
    names = sorted(set(KNOWN["examples"]["image"]))
    for name in names:
        (folder / name).write_bytes(name.encode())
    assert "hashes" in verify(path, images=folder).problems["problem"][0]
    hashes = {n: hashlib.sha256(n.encode()).hexdigest() for n in names}
    joint = hashlib.sha256("".join(f"{n}\0{h}\n" for n, h in hashes.items()).encode()).hexdigest()
    create_store(tmp_path / "j.zarr", LAYOUT, **{**KNOWN, "provenance": {"data": {"images": joint}}})
    frame = KNOWN["examples"].assign(image_sha256=KNOWN["examples"]["image"].map(hashes))
    create_store(tmp_path / "k.zarr", LAYOUT, **{**KNOWN, "examples": frame})
    assert verify(tmp_path / "j.zarr", images=folder).ok
    assert verify(tmp_path / "k.zarr", images=folder).ok
    (folder / names[2]).write_bytes(b"other")
    assert "joint hash" in verify(tmp_path / "j.zarr", images=folder).problems["problem"][0]
    assert verify(tmp_path / "k.zarr", images=folder).problems["file"].tolist() == [names[2]]
    (folder / names[2]).unlink()
    assert verify(tmp_path / "k.zarr", images=folder).problems["file"].tolist() == [names[2]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "vlm-activations/0"}, "expected a store of Stratascope"),
        ({"format": None}, "expected a store of Stratascope"),
        ({"format_version": 2}, "newer Stratascope.*pip install -U"),
        ({"format_version": 0}, "never published"),
        ({"format_version": "1"}, "never published"),
        ({"provenance": {"model": "other"}}, "fit their digest"),
        ({"layout": {"examples": 9}}, "fit their digest"),
    ],
)
def test_old_newer_and_foreign_stores_are_refused(path, change, words):
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"].update(change)
    (path / "zarr.json").write_text(json.dumps(root))
    for opened in (ActivationStore.open, BlockWriter, verify):
        with pytest.raises(StoreError, match=words):
            opened(path)


def test_a_store_whose_arrays_do_not_fit_its_layout_is_refused(path):
    root = json.loads((path / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["residual"]["shape"][0] = 5
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match="expected residual with shape"):
        ActivationStore.open(path)
    del root["consolidated_metadata"]["metadata"]["residual"]
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match="expected array residual, found none"):
        ActivationStore.open(path)


def test_other_things_are_no_stores(tmp_path):
    import zarr

    with pytest.raises(StoreError, match="found nothing"):
        ActivationStore.open(tmp_path / "none.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError, match=r"no zarr\.json"):
        ActivationStore.open(tmp_path / "empty")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(StoreError, match="file of another kind"):
        ActivationStore.open(tmp_path / "text.zip")
    zarr.create_group(tmp_path / "v2.zarr", zarr_format=2)
    with pytest.raises(StoreError, match=r"no zarr\.json"):
        ActivationStore.open(tmp_path / "v2.zarr")
    zarr.create_group(tmp_path / "plain.zarr")
    with pytest.raises(StoreError, match="consolidated"):
        ActivationStore.open(tmp_path / "plain.zarr")
    zarr.create_array(tmp_path / "array.zarr", shape=(3,), dtype="i4")
    with pytest.raises(StoreError):
        ActivationStore.open(tmp_path / "array.zarr")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "zarr.json").write_text('{"zarr_format": 3, "node_type"')
    with pytest.raises(StoreError):
        ActivationStore.open(tmp_path / "broken")
