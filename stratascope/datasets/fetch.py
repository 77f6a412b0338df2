"""Download published VSR: rows from the Hub, images and boxes from COCO."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image
from tqdm.auto import tqdm

from stratascope.datasets.annotations import ANNOTATIONS, boxes_of, fetch_annotations
from stratascope.datasets.download import Budget, BudgetSpentError, Patience, UnreachableError, UnwritableError, download
from stratascope.datasets.examples import load_examples
from stratascope.errors import DownloadError, InvalidInputError, MissingExtraError

Split = Literal["random", "zeroshot"]
PARTS = ("train", "dev", "test")
RECORD = "fetched.json"
FAILURES = "failed.json"

UNREACHABLE_IN_A_ROW = 12
"""Consecutive unreachable images after which the download stops."""

_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class FetchChoice:
    """Settings of a VSR download."""

    split: Split = "random"
    """Split by VSR's authors."""
    parts: tuple[str, ...] = PARTS
    """Of train, dev and test."""
    boxes: bool = False
    """Whether to download COCO's annotations (241 MB) and save those of these images as instances.json."""
    images: bool = True
    limit: int | None = None
    """Download only the images of the first `limit` rows of each part."""
    connections: int = 4
    """Concurrent downloads."""
    max_bytes: int = 4_000_000_000
    """Most bytes of images in this run."""
    max_image: int = 20_000_000
    """Most bytes of one image."""
    revision: str | None = None
    """Branch, tag or commit of the Hub's repository."""
    endpoint: str | None = None
    """Address of the Hub or a mirror; None: huggingface_hub's default, which HF_ENDPOINT sets."""
    annotations: str = ANNOTATIONS
    """The address of COCO's annotations."""
    patience: Patience = field(default_factory=Patience)
    """Retries and pauses."""

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise InvalidInputError(f"split: expected one of {', '.join(get_args(Split))}, found {self.split!r}")
        for part in self.parts or ("none",):
            if part not in PARTS:
                raise InvalidInputError(f"parts: expected names among {', '.join(PARTS)}, found {part!r}")
        for name in ("limit", "connections", "max_bytes", "max_image"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InvalidInputError(f"{name}: expected at least 1, found {value}")
        if self.connections > 32:
            raise InvalidInputError(f"connections: expected at most 32 to one server, found {self.connections}")

    @property
    def repository(self) -> str:
        """The Hub's repository of the split."""
        return f"cambridgeltl/vsr_{self.split}"


@dataclass(frozen=True)
class FetchReport:
    """Result of a VSR download."""

    folder: Path
    rows: dict[str, int]
    """Part -> number of rows."""
    images: int
    """Number of requested images."""
    present: int
    """Requested images that were in the folder before."""
    fetched: int
    bytes: int
    """Bytes of the images downloaded now."""
    failed: dict[str, str]
    """Image -> why it could not be fetched; also listed in failed.json."""
    boxed_images: int | None
    """Images with boxes in instances.json; None where boxes were not asked for."""

    def summary(self) -> str:
        """Lines of text: rows, images, boxes, and the plan command for them."""
        rows = ", ".join(f"{part} {count:,}" for part, count in self.rows.items())
        lines = [f"{self.folder}: rows {rows}"]
        if self.images:
            there = f"{self.present:,} were there, {self.fetched:,} fetched now ({self.bytes / 1e6:,.1f} MB)"
            failed = f", {len(self.failed):,} could not be fetched: run the same command again" if self.failed else ""
            lines.append(f"images     {self.images:,} wanted, {there}{failed}")
        boxes = ""
        if self.boxed_images is not None:
            lines.append(f"boxes      of {self.boxed_images:,} images in {self.folder / 'instances.json'}")
            boxes = f" --boxes {self.folder / 'instances.json'}"
        files = " ".join(f"--examples {self.folder / f'{part}.jsonl'}" for part in self.rows)
        images = f"--images {self.folder / 'images'}"
        return "\n".join([*lines, f"next: stratascope plan --model Qwen/Qwen2.5-VL-7B-Instruct {files} {images}{boxes}"])


def fetch_vsr(folder: Path | str, choice: FetchChoice = FetchChoice(), *, progress: bool = False) -> FetchReport:
    """Download VSR's rows, images and boxes into `folder`; a second call resumes.

    The folder then holds `train.jsonl`, `dev.jsonl`, `test.jsonl` as published, `images/`, `instances.json` if boxes were asked for,
    `fetched.json` (which commit of the Hub's repository, hashes) and, where images failed, `failed.json`.

    Parameters
    ----------
    folder
        Output folder; created if it does not exist.
    choice
        What to fetch, from where, and within which limits.
    progress
        Show a bar, where there is a terminal.

    Raises
    ------
    MissingExtraError
        If huggingface_hub is not installed.
    InvalidInputError
        If the folder holds another split or revision.
    DownloadError
        If rows or annotations cannot be fetched. Images that cannot are listed in the report instead.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _fetch_rows(folder, choice)
    rows, links = {}, dict[str, str]()
    for part in choice.parts:
        examples = load_examples(folder / f"{part}.jsonl")
        rows[part] = len(examples)
        for example in examples[: choice.limit]:
            links.setdefault(example.image, str(example.extra.get("image_link", "")))
    boxed = _fetch_boxes(folder, choice, links, progress) if choice.boxes else None
    if not choice.images:
        return FetchReport(folder, rows, 0, 0, 0, 0, {}, boxed)
    missing = {name: link for name, link in links.items() if not (folder / "images" / name).is_file()}
    moved, failed = _fetch_images(folder / "images", missing, choice, progress)
    _write_json(folder / FAILURES, failed) if failed else (folder / FAILURES).unlink(missing_ok=True)
    return FetchReport(folder, rows, len(links), len(links) - len(missing), len(missing) - len(failed), moved, failed, boxed)


def _fetch_rows(folder: Path, choice: FetchChoice) -> None:
    """The JSONL files, all of one commit, which is written down."""
    record: dict[str, Any] = {"repository": choice.repository, "revision": None, "files": {}}
    if (folder / RECORD).exists():
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            held, revision, files = record["repository"], record["revision"], dict(record["files"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"{folder / RECORD}: expected what an earlier fetch wrote, found {error}; choose another folder"
            ) from error
        if held != choice.repository or choice.revision not in (None, revision):
            raise InvalidInputError(
                f"expected {folder} to hold {choice.repository} at {choice.revision or revision}, found {held} at {revision}; choose "
                "another folder"
            )
        record["files"] = files
    for part in choice.parts:
        path = folder / f"{part}.jsonl"
        if path.name in record["files"] and path.is_file():
            continue
        if path.exists() and path.name not in record["files"]:
            raise InvalidInputError(f"expected no {path} from elsewhere, found one; choose another folder, or remove it")
        source = from_hub(choice.repository, path.name, record["revision"] or choice.revision, choice.endpoint)
        data = source.read_bytes()
        partial = path.with_name(path.name + ".part")
        partial.write_bytes(data)
        load_examples(partial)
        partial.replace(path)
        record["revision"] = source.parent.name  # the Hub's cache names its snapshots by commit
        record["files"][path.name] = hashlib.sha256(data).hexdigest()
        _write_json(folder / RECORD, record)


def from_hub(repository: str, name: str, revision: str | None, endpoint: str | None) -> Path:
    """File of a dataset of the Hub, in the Hub's cache.

    Raises
    ------
    MissingExtraError
        If huggingface_hub is not installed.
    DownloadError
        If the file cannot be fetched.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise MissingExtraError(
            f"fetching needs packages that are not installed (no module {error.name!r}): "
            "run pip install 'stratascope[extract]', or in a checkout pip install '.[extract]'"
        ) from error
    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision, endpoint=endpoint))
    except Exception as error:  # the Hub's own errors, those of whichever HTTP library it uses, and plain OSErrors
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise DownloadError(
            f"expected {name} of the Hub's dataset {repository}, could not fetch it: {said}; is this machine online?"
        ) from error


def _fetch_images(folder: Path, links: Mapping[str, str], choice: FetchChoice, progress: bool) -> tuple[int, dict[str, str]]:
    """Download all links concurrently; return the bytes received and the failures, in the order of the links."""
    folder.mkdir(exist_ok=True)
    stop, budget = threading.Event(), Budget(choice.max_bytes)
    failed: dict[str, str] = {}
    unreachable = 0

    def fetch(name: str) -> None:
        if stop.is_set():
            raise DownloadError("not tried, because those before it failed")
        download(
            links[name],
            folder / name,
            check=image_problem,
            largest=choice.max_image,
            budget=budget,
            patience=choice.patience,
            stop=stop,
        )

    with (
        ThreadPoolExecutor(choice.connections, "fetch") as pool,
        tqdm(total=len(links), desc="images", unit="image", disable=not progress) as bar,
    ):
        futures: dict[Future[None], str] = {pool.submit(fetch, name): name for name in links}
        pending = set(futures)
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    error = future.exception()
                    if isinstance(error, DownloadError | InvalidInputError) and not isinstance(error, UnwritableError):
                        failed[futures[future]] = str(error)
                    elif error is not None:
                        raise error
                    unreachable = unreachable + 1 if isinstance(error, UnreachableError) else unreachable if stop.is_set() else 0
                    if isinstance(error, BudgetSpentError) or unreachable >= UNREACHABLE_IN_A_ROW:
                        stop.set()
                    bar.update()
                    bar.set_postfix({"MB": f"{budget.used / 1e6:.1f}", "failed": len(failed)}, refresh=False)
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return budget.used, {name: failed[name] for name in links if name in failed}


def image_problem(path: Path) -> str | None:
    """Reason why a file is no intact image; None if it is one."""
    try:
        with Image.open(path) as image:
            image.load()
    except _IMAGE_ERRORS as error:
        with path.open("rb") as file:
            begin = file.read(64).lstrip().lower()
        if begin.startswith((b"<!doctype", b"<html", b"<?xml")):
            return "expected an image, found a web page"
        return f"expected an image, found what cannot be decoded ({type(error).__name__})"
    return None


def _fetch_boxes(folder: Path, choice: FetchChoice, images: Mapping[str, str], progress: bool) -> int:
    """instances.json of these images; how many of them have boxes."""
    found = boxes_of(fetch_annotations(folder, choice.annotations, choice.patience, progress=progress), images)
    _write_json(folder / "instances.json", found)
    boxed = {row["image_id"] for row in found["annotations"]}
    return sum(row["id"] in boxed for row in found["images"])


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(value, indent=None if "annotations" in value else 1) + "\n", encoding="utf-8")
    partial.replace(path)
