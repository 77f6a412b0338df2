"""Boxes of some images from COCO's published annotations, streamed from a zip of large JSON files."""

from __future__ import annotations

import zipfile
from collections.abc import Container
from io import TextIOWrapper
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from stratascope.datasets.download import Patience, download
from stratascope.datasets.json_rows import json_rows
from stratascope.errors import InvalidInputError

ANNOTATIONS = "http://images.cocodataset.org/annotations/annotations_trainval2017.zip"
MEMBERS = ("annotations/instances_train2017.json", "annotations/instances_val2017.json")
_ROW_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


def fetch_annotations(folder: Path, address: str, patience: Patience, *, progress: bool) -> Path:
    """Download COCO's published annotations into `folder`, once.

    Raises
    ------
    DownloadError
        If they cannot be fetched.
    """
    archive = folder / (Path(urlsplit(address).path).name or "annotations.zip")
    if not archive.is_file():
        with tqdm(desc="annotations", unit="B", unit_scale=True, disable=not progress) as bar:
            download(address, archive, check=_zip_problem, patience=patience, tell=bar.update)
    return archive


def boxes_of(archive: Path, images: Container[str]) -> dict[str, list[dict[str, Any]]]:
    """Annotations of `images` (file names), in the form of instances.json.

    Raises
    ------
    InvalidInputError
        If the archive does not hold them.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            kept = [_member_rows(opened, member, images) for member in MEMBERS]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, zipfile.BadZipFile) as error:
        raise InvalidInputError(f"{archive}: expected COCO's annotations, found {error}; remove the file and fetch again") from error
    found = {key: [row for member in kept for row in member[key]] for key in ("images", "annotations")}
    return {**found, "categories": kept[0]["categories"]}


def _member_rows(opened: zipfile.ZipFile, member: str, images: Container[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows about `images` in one of COCO's files, without outlines."""
    rows: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    wanted: set[int] = set()
    with opened.open(member) as raw:
        for key, row in json_rows(TextIOWrapper(raw, "utf-8-sig")):
            if key == "images" and row["file_name"] in images:
                wanted.add(row["id"])
                rows[key].append({name: row[name] for name in ("id", "file_name", "width", "height")})
            elif key == "annotations" and row["image_id"] in wanted:
                rows[key].append({name: row[name] for name in _ROW_FIELDS})
            elif key == "categories":
                rows[key].append({"id": row["id"], "name": row["name"]})
    return rows


def _zip_problem(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as opened:
            absent = [member for member in MEMBERS if member not in opened.namelist()]
            return f"expected {absent[0]} in the archive, found none" if absent else None
    except (OSError, zipfile.BadZipFile) as error:
        return f"expected a zip archive, found what cannot be opened ({error})"
