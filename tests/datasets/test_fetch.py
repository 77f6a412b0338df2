"""Fetching from servers that misbehave: every file ends whole under its name, or is named with the reason."""

from __future__ import annotations

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from misbehaving import Site, cut, damaged, dripping, page, serving, silent, status, wrong_length, wrong_place
from PIL import Image

from stratascope.cli import main
from stratascope.datasets import BoxIndex, load_examples
from stratascope.datasets.annotations import MEMBERS
from stratascope.datasets.download import Budget, BudgetSpentError, Patience, StoppedError, UnreachableError, download
from stratascope.datasets.fetch import UNREACHABLE_IN_A_ROW, FetchChoice, fetch_vsr, image_problem
from stratascope.errors import DownloadError, InvalidInputError

EAGER = Patience(retries=3, pause=0.001, timeout=0.4)
BLOB = np.random.default_rng(0).integers(0, 256, 1_000_000, dtype=np.uint8).tobytes()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site({"/blob": BLOB})) as served:
        yield served


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "faults",
    [
        [],
        [status(500), status(503, Retry_After="0"), status(429)],
        [cut(0.5), cut(0.0), cut(0.9)],
        [wrong_length],
        [cut(0.3), wrong_place, cut(0.3)],
        [silent],
    ],
    ids=["well", "errors", "cut", "length", "place", "silent"],
)
def test_a_file_arrives_whole_whatever_fails_on_the_way(site: Site, tmp_path: Path, faults: list) -> None:
    site.faults["/blob"] = list(faults)
    download(f"{site.address}/blob", tmp_path / "blob", patience=EAGER)
    assert (tmp_path / "blob").read_bytes() == BLOB
    assert names(tmp_path) == {"blob"}


def test_a_cut_file_goes_on_where_it_was_cut(site: Site, tmp_path: Path) -> None:
    site.faults["/blob"] = [cut(0.5), cut(0.5)]
    came: list[int] = []
    download(f"{site.address}/blob", tmp_path / "blob", patience=EAGER, tell=came.append)
    assert site.from_byte == [0, 500_000, 750_000]
    assert sum(came) == len(BLOB)


@pytest.mark.parametrize("what", ["ranges", "tags"])
def test_without_range_or_tag_it_begins_again(site: Site, tmp_path: Path, what: str) -> None:
    site.faults["/blob"] = [cut(0.5)] if what == "ranges" else []
    setattr(site, what, False)
    if what == "tags":
        (tmp_path / "blob.part").write_bytes(b"of nobody knows which file")
    download(f"{site.address}/blob", tmp_path / "blob", patience=EAGER)
    assert site.from_byte[-1] == 0
    assert (tmp_path / "blob").read_bytes() == BLOB


def test_a_file_that_changed_meanwhile_is_not_mixed(site: Site, tmp_path: Path) -> None:
    site.always["/blob"] = cut(0.4)
    with pytest.raises(UnreachableError, match="the connection ended after"):
        download(f"{site.address}/blob", tmp_path / "blob", patience=Patience(retries=0, pause=0.001))
    assert names(tmp_path) == {"blob.part", "blob.part.etag"}
    site.always, site.files["/blob"] = {}, BLOB[::-1]
    download(f"{site.address}/blob", tmp_path / "blob", patience=EAGER)
    assert (tmp_path / "blob").read_bytes() == BLOB[::-1]


def test_a_part_longer_than_the_file_is_thrown_away(site: Site, tmp_path: Path) -> None:
    site.always["/blob"] = cut(0.4)
    with pytest.raises(UnreachableError):
        download(f"{site.address}/blob", tmp_path / "blob", patience=Patience(retries=0))
    site.always = {}
    (tmp_path / "blob.part").write_bytes(BLOB + b"more")
    download(f"{site.address}/blob", tmp_path / "blob", patience=EAGER)
    assert (tmp_path / "blob").read_bytes() == BLOB


def test_cuts_that_bring_the_file_further_do_not_use_up_the_patience(site: Site, tmp_path: Path) -> None:
    site.files["/large"] = BLOB * 4
    site.faults["/large"] = [cut(0.2)] * 6
    download(f"{site.address}/large", tmp_path / "large", patience=Patience(retries=1, pause=0.001))
    assert (tmp_path / "large").read_bytes() == BLOB * 4


def test_what_cannot_pass_is_asked_for_once(site: Site, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="HTTP 404"):
        download(f"{site.address}/nothing", tmp_path / "nothing", patience=EAGER)
    assert site.asked["/nothing"] == 1
    with pytest.raises(DownloadError, match=r"at most 1,000 bytes, found 1,000,000"):
        download(f"{site.address}/blob", tmp_path / "blob", largest=1000, patience=EAGER)
    assert names(tmp_path) == set()


def test_a_server_that_always_fails_is_given_up_after_its_retries(site: Site, tmp_path: Path) -> None:
    site.always["/blob"] = status(500)
    with pytest.raises(UnreachableError, match=r"HTTP 500 .*asked 4 times"):
        download(f"{site.address}/blob", tmp_path / "blob", patience=EAGER)
    assert site.asked["/blob"] == 4
    with pytest.raises(UnreachableError):
        download("http://127.0.0.1:9/blob", tmp_path / "blob", patience=Patience(retries=1, pause=0.001))


def test_a_dripping_server_is_given_up(site: Site, tmp_path: Path) -> None:
    site.always["/blob"] = dripping
    with pytest.raises(UnreachableError, match="bytes came in"):
        download(f"{site.address}/blob", tmp_path / "blob", patience=Patience(retries=0, timeout=0.3))


def test_a_stopped_download_keeps_what_has_come(site: Site, tmp_path: Path) -> None:
    stop = threading.Event()
    with pytest.raises(StoppedError):
        download(f"{site.address}/blob", tmp_path / "blob", stop=stop, tell=lambda count: stop.set())
    assert 0 < (tmp_path / "blob.part").stat().st_size < len(BLOB)


def test_the_budget_is_shared(site: Site, tmp_path: Path) -> None:
    budget = Budget(1_500_000)
    download(f"{site.address}/blob", tmp_path / "a", budget=budget)
    with pytest.raises(BudgetSpentError, match="limit of 1,500,000 bytes"):
        download(f"{site.address}/blob", tmp_path / "b", budget=budget)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "", "http://", "http://[", "http://a b/", "http://x:99999999/", "//x"])
def test_only_web_addresses_are_fetched(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="http or https"):
        download(url, tmp_path / "x")


def test_an_unwritable_place_is_not_taken_for_a_network_failure(site: Site, tmp_path: Path) -> None:
    (tmp_path / "blob.part").mkdir()
    with pytest.raises(DownloadError, match="cannot be written"):
        download(f"{site.address}/blob", tmp_path / "blob", patience=EAGER)
    assert site.asked["/blob"] == 1


def test_retries_wait_longer_and_longer_but_not_for_ever() -> None:
    patience = Patience(pause=1.0)
    assert [patience.before(k, None) for k in (1, 2, 3, 9)] == [1, 2, 4, 60]
    assert patience.before(1, 7.0) == 7.0
    assert patience.before(1, 1e9) == 60.0


def test_pictures_are_told_from_pages_and_pieces(tmp_path: Path) -> None:
    for name, data in (("good", photo(0)), ("page", b"\n <HTML>log in"), ("piece", photo(0)[:-300]), ("noise", b"\0" * 50), ("empty", b"")):
        (tmp_path / name).write_bytes(data)
    assert image_problem(tmp_path / "good") is None
    assert "web page" in str(image_problem(tmp_path / "page"))
    assert all("cannot be decoded" in str(image_problem(tmp_path / name)) for name in ("piece", "noise", "empty"))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """The Hub, COCO's photos and annotations on one misbehaving machine: 30 rows of three parts on 20 photos."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    annotations: dict[str, dict] = {member: {"info": {}, "images": [], "annotations": [], "categories": []} for member in MEMBERS}
    for k in range(20):
        site.files[f"/photos/{k:012d}.jpg"] = photo(k)
        file = annotations[MEMBERS[k % 2]]
        file["images"].append({"id": k, "file_name": f"{k:012d}.jpg", "width": 60, "height": 40, "license": 1})
        for number, category in enumerate((1, 2, 2) if k % 5 == 0 else (1, 2)):
            file["annotations"].append(
                {"id": 10 * k + number, "image_id": k, "category_id": category, "bbox": [1, 2, 10, 10], "area": 100, "iscrowd": 0}
                | {"segmentation": [[1.5] * 40]}
            )
    for file in annotations.values():
        file["categories"] = [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 2, "name": "bed", "supercategory": "x"}]
    for part, first in (("train", 0), ("dev", 5), ("test", 10)):
        rows = [
            {"image": f"{k:012d}.jpg", "image_link": f"{site.address}/photos/{k:012d}.jpg"}
            | {"caption": "The cat is under the bed.", "label": k % 2, "relation": "under"}
            for k in range(first, first + 10)
        ]
        path = f"/datasets/cambridgeltl/vsr_random/resolve/main/{part}.jsonl"
        for where in (path, path.replace("main", COMMIT)):
            site.files[where] = "".join(json.dumps(row) + "\n" for row in rows).encode()
            site.headers[where] = {"X-Repo-Commit": COMMIT}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, file in annotations.items():
            archive.writestr(member, json.dumps(file))
    site.files["/annotations.zip"] = buffer.getvalue()
    return site


def choice(hub: Site, **more: object) -> FetchChoice:
    return FetchChoice(endpoint=hub.address, annotations=f"{hub.address}/annotations.zip", patience=EAGER, **more)  # type: ignore[arg-type]


def test_vsr_arrives_with_rows_photos_and_boxes(hub: Site, tmp_path: Path) -> None:
    out = tmp_path / "vsr"
    report = fetch_vsr(out, choice(hub, boxes=True))
    assert report.rows == {"train": 10, "dev": 10, "test": 10}
    assert (report.images, report.present, report.fetched, report.failed, report.boxed_images) == (20, 0, 20, {}, 20)
    assert {path.name: path.read_bytes() for path in (out / "images").iterdir()} == {
        name.removeprefix("/photos/"): data for name, data in hub.files.items() if name.startswith("/photos/")
    }
    assert json.loads((out / "fetched.json").read_text())["revision"] == COMMIT
    examples = load_examples(out / "test.jsonl", BoxIndex.from_coco(out / "instances.json"))
    assert [example.subject_box for example in examples] == [(1, 2, 11, 12)] * 10
    assert [example.object_box is None for example in examples] == [k % 5 == 0 for k in range(10, 20)]


def test_a_rerun_fetches_only_what_is_missing(hub: Site, tmp_path: Path) -> None:
    out = tmp_path / "vsr"
    hub.always = {f"/photos/{3:012d}.jpg": page, f"/photos/{4:012d}.jpg": status(500), f"/photos/{5:012d}.jpg": damaged}
    del hub.files[f"/photos/{6:012d}.jpg"]
    hub.faults = {f"/photos/{k:012d}.jpg": [cut(0.5), status(502)] for k in range(8, 14)}
    report = fetch_vsr(out, choice(hub))
    assert report.fetched == 16
    reasons = {int(name.removesuffix(".jpg")): reason for name, reason in report.failed.items()}
    assert "web page" in reasons[3]
    assert "HTTP 500" in reasons[4]
    assert "cannot be decoded" in reasons[5]
    assert "HTTP 404" in reasons[6]
    assert json.loads((out / "failed.json").read_text()) == report.failed
    before = dict(hub.asked)
    hub.always, hub.files[f"/photos/{6:012d}.jpg"] = {}, photo(6)
    again = fetch_vsr(out, choice(hub))
    assert (again.present, again.fetched, again.failed) == (16, 4, {})
    assert sum(hub.asked.values()) - sum(before.values()) == 4
    assert {path.suffix for path in (out / "images").iterdir()} == {".jpg"}
    assert not (out / "failed.json").exists()


def test_a_network_that_is_gone_is_noticed_early(hub: Site, tmp_path: Path) -> None:
    hub.always = {path: status(500) for path in hub.files if path.startswith("/photos/")}
    report = fetch_vsr(tmp_path / "vsr", choice(hub, connections=1))
    assert len(report.failed) == 20
    asked = sum(hub.asked[path] for path in hub.always)
    assert 4 * UNREACHABLE_IN_A_ROW <= asked <= 4 * (UNREACHABLE_IN_A_ROW + 3)
    assert "not tried" in list(report.failed.values())[-1]


def test_the_size_limit_holds_and_a_higher_one_goes_on(hub: Site, tmp_path: Path) -> None:
    size = len(hub.files[f"/photos/{0:012d}.jpg"])
    report = fetch_vsr(tmp_path / "vsr", choice(hub, max_bytes=int(5.5 * size), connections=2))
    assert 3 <= report.fetched <= 6
    assert any("limit of" in reason for reason in report.failed.values())
    assert fetch_vsr(tmp_path / "vsr", choice(hub)).failed == {}
    assert fetch_vsr(tmp_path / "small", choice(hub, max_image=100)).fetched == 0


def test_only_the_first_rows_and_parts_that_were_asked_for(hub: Site, tmp_path: Path) -> None:
    report = fetch_vsr(tmp_path / "vsr", choice(hub, parts=("test",), limit=3))
    assert (report.rows, report.images) == ({"test": 10}, 3)
    assert names(tmp_path / "vsr") == {"test.jsonl", "images", "fetched.json"}
    assert fetch_vsr(tmp_path / "vsr", choice(hub, images=False)).rows == {"train": 10, "dev": 10, "test": 10}


def test_a_folder_of_another_split_or_of_other_origin_is_refused(hub: Site, tmp_path: Path) -> None:
    fetch_vsr(tmp_path / "vsr", choice(hub, images=False))
    with pytest.raises(InvalidInputError, match="to hold cambridgeltl/vsr_zeroshot"):
        fetch_vsr(tmp_path / "vsr", choice(hub, split="zeroshot"))
    with pytest.raises(InvalidInputError, match="found cambridgeltl/vsr_random at 0123"):
        fetch_vsr(tmp_path / "vsr", choice(hub, revision="f" * 40))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.jsonl").write_text("my rows\n")
    with pytest.raises(InvalidInputError, match="from elsewhere"):
        fetch_vsr(tmp_path / "own", choice(hub))


def test_foreign_annotations_are_refused(hub: Site, tmp_path: Path) -> None:
    hub.files["/annotations.zip"] = b"PK\3\4 not a zip"
    with pytest.raises(DownloadError, match="expected a zip archive"):
        fetch_vsr(tmp_path / "vsr", choice(hub, boxes=True, images=False))


def test_the_command_prints_what_to_do_next_and_fails_in_one_line(hub: Site, tmp_path: Path) -> None:
    out = str(tmp_path / "vsr")
    where = ["--endpoint", hub.address, "--annotations", f"{hub.address}/annotations.zip", "--out", out]
    result = CliRunner().invoke(main, ["fetch", "vsr", "--parts", "dev", "--boxes", *where])
    assert result.exit_code == 0, result.output
    assert "10 wanted, 0 were there, 10 fetched now" in result.output
    assert f"--examples {out}/dev.jsonl --images {out}/images --boxes {out}/instances.json" in result.output
    del hub.files[f"/photos/{1:012d}.jpg"]
    result = CliRunner().invoke(main, ["fetch", "vsr", *where])
    assert result.exit_code == 1
    assert "1 could not be fetched: run the same command again" in result.stdout
    assert "HTTP 404" in result.stderr
    hub.files.clear()
    result = CliRunner().invoke(main, ["fetch", "vsr", "--split", "zeroshot", *where[:-1], str(tmp_path / "other")])
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "could not fetch it" in result.stderr


def test_a_benchmark_arrives_unpacked(hub: Site, tmp_path: Path) -> None:
    from published import BLINK, parquet

    pytest.importorskip("pyarrow")
    for k, task in enumerate(("Spatial_Relation", "Relative_Depth")):
        rows = [{**row, "idx": f"val_{task}_{number}", "sub_task": task} for number, row in enumerate(BLINK[: k + 2])]
        data = parquet(tmp_path / f"{task}.parquet", rows).read_bytes()
        path = f"/datasets/BLINK-Benchmark/BLINK/resolve/main/{task}/val-00000-of-00001.parquet"
        for where in (path, path.replace("main", COMMIT)):
            hub.files[where], hub.headers[where] = data, {"X-Repo-Commit": COMMIT}
    out = tmp_path / "blink"
    asked = ["fetch", "blink", "--endpoint", hub.address, "--out"]
    done = CliRunner().invoke(main, [*asked, str(out)])
    assert done.exit_code == 0, done.output
    assert "5 questions on 3 images; Spatial_Relation 2, Relative_Depth 3" in done.output
    record = json.loads((out / "fetched.json").read_text())
    assert (record["repository"], record["revision"], len(record["files"])) == ("BLINK-Benchmark/BLINK", COMMIT, 2)
    assert len(load_examples(out / "rows.jsonl", choices=tuple("ABCDEFGHIJ"))) == 5
    again = CliRunner().invoke(main, [*asked, str(out)])
    assert again.exit_code == 2
    assert "fetched.json from an earlier fetch" in again.stderr
    of_vsr = CliRunner().invoke(main, [*asked, str(tmp_path / "b"), "--limit", "2"])
    assert of_vsr.exit_code == 2
    assert "expected no --limit for blink" in of_vsr.stderr
