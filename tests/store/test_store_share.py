"""Sharing: folder, zip, address; whole or in part; what differs between two stores."""

from __future__ import annotations

import errno
import shutil
import socket
import zipfile
from pathlib import Path

import numpy as np
import pytest
from serving import serving
from stores import birth, block_arrays, make_store, small_layout

from stratascope.errors import InvalidInputError, NotRecordedError, StoreError, UnwrittenBlockError
from stratascope.store import ActivationStore, BlockWriter, copy_store, create_store, diff_stores, verify

LAYOUT = small_layout()

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("share") / "the störe №1.zarr")


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and "claims" not in p.parts}


def test_a_whole_copy_is_its_source_byte_for_byte(tmp_path, source):
    table = copy_store(source, tmp_path / "b.zarr")
    assert _files(tmp_path / "b.zarr") == _files(source)
    assert table.set_index("array")["bytes"]["residual"] == sum((source / LAYOUT.array("residual").key(b)).stat().st_size for b in range(3))
    copy_store(source, tmp_path / "c.zip")
    copy_store(source, tmp_path / "d.zip")
    assert (tmp_path / "c.zip").read_bytes() == (tmp_path / "d.zip").read_bytes()
    copy_store(tmp_path / "c.zip", tmp_path / "e.zarr")
    assert _files(tmp_path / "e.zarr") == _files(source)
    assert ActivationStore.open(tmp_path / "e.zarr").fingerprint() == ActivationStore.open(source).fingerprint()
    assert ActivationStore.open(tmp_path / "e.zarr").taken is None


def test_a_zip_is_stored_and_read(tmp_path, source):
    copy_store(source, tmp_path / "ü c.zip")
    with zipfile.ZipFile(tmp_path / "ü c.zip") as archive:
        assert {e.compress_type for e in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.testzip() is None
    a, b = ActivationStore.open(source), ActivationStore.open(tmp_path / "ü c.zip")
    good = a.available("residual")
    np.testing.assert_array_equal(a.read("residual", examples=good), b.read("residual", examples=good))
    lazy = b.lazy("attention_rows", layer=1, examples=np.flatnonzero(b.available("attention_rows")))
    np.testing.assert_array_equal(
        lazy.compute(scheduler="threads"), a.read("attention_rows", layer=1, examples=a.available("attention_rows"))
    )
    assert b.size_on_disk() == sum(map(len, _files(source).values()))
    assert verify(tmp_path / "ü c.zip").ok
    assert b.tokens(3) == a.tokens(3)


def test_a_zip_that_somebody_else_made_is_read(tmp_path, source):
    shutil.make_archive(str(tmp_path / "made"), "zip", source)  # compressed, with entries for folders
    assert verify(tmp_path / "made.zip").ok
    assert diff_stores(tmp_path / "made.zip", source).same


def test_a_part_is_a_store_that_says_what_was_taken(tmp_path, source):
    whole = ActivationStore.open(source)
    chosen = [9, 3, 0, 7, 6]
    copy_store(
        source, tmp_path / "a.zip", arrays=["residual", "attention_maps"], layers=[3, 1], positions=["image", "final"], examples=chosen
    )
    part = ActivationStore.open(tmp_path / "a.zip")
    assert verify(tmp_path / "a.zip").ok
    assert part.provenance == whole.provenance
    assert part.taken is not None
    assert part.taken["from"] == whole.fingerprint()
    assert part.taken["numbers"] == chosen
    assert part.taken["layers"] == [1, 3]
    assert part.layout.positions == ("final", "image")
    assert part.examples["id"].tolist() == whole.examples["id"].iloc[chosen].tolist()
    for layer in (1, 3):
        for position in ("final", "image"):
            np.testing.assert_array_equal(
                part.read("residual", layer=layer, position=position),
                whole.read("residual", layer=layer, position=position, examples=chosen),
            )
    np.testing.assert_array_equal(part.maps(4, layers=1), whole.maps(6, layers=1))
    assert part.tokens(1) == whole.tokens(3)
    with pytest.raises(NotRecordedError, match=r"found 0; it holds 1, 3"):
        part.read("residual", layer=0)
    with pytest.raises(NotRecordedError, match="it holds 1"):
        part.maps(4, layers=2)
    with pytest.raises(NotRecordedError):
        part.thumbnail(0)
    again = copy_store(tmp_path / "a.zip", tmp_path / "b.zarr", layers=[3])
    assert set(again["array"]) == {"residual", "answer_logits", "status"}
    taken = ActivationStore.open(tmp_path / "b.zarr").taken
    assert taken is not None
    assert taken["before"] == part.taken


def test_means_travel_without_their_rows(tmp_path, source):
    copy_store(source, tmp_path / "a.zarr", arrays=["attention_mean", "thumbnail"])
    part, whole = ActivationStore.open(tmp_path / "a.zarr"), ActivationStore.open(source)
    good = part.available("attention_mean")
    np.testing.assert_array_equal(part.read("attention_mean", examples=good), whole.read("attention_mean", examples=good))
    np.testing.assert_array_equal(part.thumbnail(3), whole.thumbnail(3))
    assert verify(tmp_path / "a.zarr").ok


def test_an_incomplete_store_stays_incomplete_and_resumes(tmp_path):
    source = make_store(tmp_path / "a.zarr", blocks=[1])
    copy_store(source, tmp_path / "b.zarr")
    with pytest.raises(UnwrittenBlockError):
        copy_store(source, tmp_path / "c.zarr", examples=[3, 4])
    copy_store(source, tmp_path / "c.zarr", examples=[4, 6])
    assert ActivationStore.open(tmp_path / "c.zarr").complete
    with BlockWriter(tmp_path / "b.zarr") as writer:
        assert writer.pending() == [0, 2]
        for block in writer.pending():
            writer.write(block, block_arrays(LAYOUT, birth(LAYOUT), block))
    assert diff_stores(tmp_path / "b.zarr", make_store(tmp_path / "d.zarr")).same


def test_copies_are_refused_with_what_there_is(tmp_path, source):
    with pytest.raises(NotRecordedError, match="it holds residual"):
        copy_store(source, tmp_path / "a.zarr", arrays=["residuals"])
    with pytest.raises(NotRecordedError, match=r"0\.\.3"):
        copy_store(source, tmp_path / "a.zarr", layers=[9])
    with pytest.raises(NotRecordedError, match="final, image"):
        copy_store(source, tmp_path / "a.zarr", positions=["nowhere"])
    with pytest.raises(InvalidInputError, match="at least one example"):
        copy_store(source, tmp_path / "a.zarr", examples=[])
    with pytest.raises(InvalidInputError, match="once"):
        copy_store(source, tmp_path / "a.zarr", examples=[1, 1])
    with pytest.raises(StoreError, match="existing one"):
        copy_store(source, source)
    with pytest.raises(InvalidInputError, match="found the address"):
        copy_store(source, "https://example.org/a.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.zarr", "a.zip"])
def test_a_copy_that_fails_leaves_nothing(tmp_path, source, monkeypatch, name):
    from stratascope.store.maintenance import copy as copying

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(copying, "encode_file", full)
    with pytest.raises(StoreError, match="No space left"):
        copy_store(source, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_damage_does_not_travel(tmp_path, source):
    shutil.copytree(source, tmp_path / "a.zarr")
    file = tmp_path / "a.zarr" / LAYOUT.array("thumbnail").key(1)
    data = bytearray(file.read_bytes())
    data[20] ^= 1
    file.write_bytes(data)
    with pytest.raises(StoreError, match="thumbnail, found damage in block 1"):
        copy_store(tmp_path / "a.zarr", tmp_path / "b.zip")
    assert not (tmp_path / "b.zip").exists()


def test_http_reads_what_the_folder_holds(tmp_path, source):
    pytest.importorskip("obstore")
    with serving(source.parent) as server:
        address = f"{server.address}/{source.name}"
        store = ActivationStore.open(address)
        assert store.complete
        good = store.available("residual")
        np.testing.assert_array_equal(store.read("residual", examples=good), ActivationStore.open(source).read("residual", examples=good))
        assert verify(address).ok
        copy_store(address, tmp_path / "fetched.zarr")
        assert _files(tmp_path / "fetched.zarr") == _files(source)
        assert store.size_on_disk() is None
        assert "residual" in repr(store)
        with pytest.raises(StoreError, match=r"no zarr\.json"):
            ActivationStore.open(f"{server.address}/other.zarr")


def test_http_fetches_a_layer_and_hardly_more(tmp_path):
    pytest.importorskip("obstore")
    layout = small_layout(256, block=64, layers=12, hidden=896, positions=("final", "image"), record={"residual"}, thumbnail=None)
    path = make_store(tmp_path / "a.zarr", layout)
    with serving(tmp_path) as server:
        store = ActivationStore.open(f"{server.address}/a.zarr")
        good = store.available("residual")
        server.bytes_sent, before = 0, len(server.requests)
        store.read("residual", layer=7, position="image", examples=good)
        from stratascope.store.format.shards import decode_index, index_size

        spec = layout.array("residual")
        needed = 0
        for block in range(layout.blocks):
            data = (path / spec.key(block)).read_bytes()
            needed += int(decode_index(spec, data[-index_size(spec) :])[7, 1, :, 0, 1].sum())
        assert needed <= server.bytes_sent <= 1.05 * needed
        assert len(server.requests) - before == 2 * layout.blocks  # an index and one stretch a file
        server.bytes_sent = 0
        store.read("residual", layer=8, position="image", examples=good)
        assert server.bytes_sent <= 1.001 * needed * 1.1  # indices are kept


def test_a_server_without_range_is_refused(source):
    pytest.importorskip("obstore")
    with serving(source.parent, ranges=False) as server:
        store = ActivationStore.open(f"{server.address}/{source.name}")
        with pytest.raises(StoreError, match=r"Range.*http\.server"):
            store.read("residual", layer=1, position="final", examples=[0])


def test_an_address_without_a_server_is_told_in_one_plain_sentence():
    pytest.importorskip("obstore")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"http://127.0.0.1:{free.getsockname()[1]}/a.zarr"
        with pytest.raises(StoreError) as refused:
            ActivationStore.open(address)
    assert str(refused.value) == (
        f"expected to read zarr.json, found: no server answers ({address}/zarr.json); check the address and the network, then run again"
    )


def test_a_missing_file_behind_an_address_is_seen(tmp_path, source):
    pytest.importorskip("obstore")
    shutil.copytree(source, tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / LAYOUT.array("residual").key(1)).unlink()
    with serving(tmp_path) as server:
        store = ActivationStore.open(f"{server.address}/a.zarr")
        with pytest.raises(StoreError, match="damage in block 1"):
            store.read("residual", layer=1, position="final", examples=[0, 4])
        assert verify(f"{server.address}/a.zarr").bad_blocks == [1]


def test_a_zip_behind_an_address_is_told_apart_from_nothing(tmp_path, source):
    pytest.importorskip("obstore")
    (tmp_path / "a.zarr.zip").write_bytes(b"PK")
    with serving(tmp_path) as server:
        with pytest.raises(StoreError, match="found a zip; download it"):
            ActivationStore.open(f"{server.address}/a.zarr.zip")
        with pytest.raises(StoreError, match=r"no zarr\.json there; check the path"):
            ActivationStore.open(f"{server.address}/b.zarr")


def test_a_zarr_store_is_opened(source):
    from zarr.storage import LocalStore

    assert ActivationStore.open(LocalStore(source, read_only=True)).complete


def test_stores_that_are_the_same_do_not_differ(tmp_path, source):
    frame = birth(LAYOUT)
    again = tmp_path / "b.zarr"
    create_store(again, LAYOUT, **{**frame, "provenance": {**frame["provenance"], "created": "2027-01-01"}})
    with BlockWriter(again) as writer:
        for block in writer.pending():
            writer.write(block, block_arrays(LAYOUT, frame, block))
    found = diff_stores(source, again)
    assert found.same
    assert found.provenance["field"].tolist() == ["created"]
    assert found.provenance["volatile"].tolist() == [True]


def test_what_differs_is_said(tmp_path, source):
    layout = small_layout(positions=("image", "final"), computed_dtype="float32", block=5)
    frame = birth(layout)
    frame["provenance"] = {**frame["provenance"], "revision": "xyz"}
    frame["examples"] = frame["examples"].assign(relation="over").rename(columns={"subject_x0": "new"})
    create_store(tmp_path / "b.zarr", layout, **frame)
    with BlockWriter(tmp_path / "b.zarr") as writer:
        for block in writer.pending():
            writer.write(block, block_arrays(layout, frame, block))
    found = diff_stores(source, tmp_path / "b.zarr")
    assert not found.same
    assert not found.same_numbers
    assert found.provenance[["field", "a", "b"]].values.tolist() == [["revision", "abc", "xyz"]]
    assert {"positions", "computed_dtype", "block"} <= set(found.layout["field"])
    assert {"column relation", "column subject_x0", "column new"} <= set(found.examples["field"])
    numbers = found.numbers.set_index("array")
    assert numbers["different"]["residual"] > 0
    assert numbers["largest"]["residual"] > 0
    assert "layer" in numbers["at"]["residual"]
    assert numbers["different"]["n_tokens"] == 0


def test_the_largest_difference_is_found(tmp_path, source):
    known = birth(LAYOUT)
    create_store(tmp_path / "b.zarr", LAYOUT, **known)
    with BlockWriter(tmp_path / "b.zarr") as writer:
        for block in writer.pending():
            arrays = block_arrays(LAYOUT, known, block)
            if block == 1:
                arrays["residual"][2, 1, 3, 4] += 0.5
                arrays["residual"][0, 0, 0, 0] += 0.25
            writer.write(block, arrays)
    row = diff_stores(source, tmp_path / "b.zarr").numbers.set_index("array").loc["residual"]
    assert row["different"] == 2
    assert row["largest"] == 0.5
    assert row["at"] == "layer 2, position image, example scene-00007, hidden 4"
