"""Unpack published benchmarks whose files hold their images: rows as JSON lines, and images as files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from stratascope.datasets.benchmarks import Benchmark, benchmark_of
from stratascope.datasets.progress import progress_bar
from stratascope.datasets.table import read_text
from stratascope.errors import InvalidInputError, MissingExtraError

ROWS, IMAGES = "rows.jsonl", "images"
"""Names in the output folder."""

_BATCH = 32
"""Rows of a Parquet file that are in memory at a time."""
_REFERENCE = 64
"""Text in the image column of a TSV file up to this length is the index of the row with the image, as in VLMEvalKit."""
_UNSAFE = re.compile(r"[^\w.-]+")
_SHARD = re.compile(r"-\d+-of-\d+$")
_SUFFIX = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}
_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ConversionReport:
    """Result of a conversion."""

    folder: Path
    benchmark: str
    prompt: str
    """Name of the prompt with which the benchmark is scored."""
    rows: int
    images: int
    """Different images; several questions may share one."""
    groups: dict[str, int]
    """Group (column `relation`) -> number of questions."""
    left_out: int
    """Questions whose answer is a number, without options."""
    image_folder: str
    """Folder of the images."""

    def summary(self) -> str:
        """Lines of text: questions, images, and the plan command for them."""
        groups = ", ".join(f"{name} {count:,}" for name, count in self.groups.items())
        out = f"; {self.left_out:,} without options left out, whose answer is a number" if self.left_out else ""
        return (
            f"{self.folder}: {self.rows:,} questions on {self.images:,} images; {groups}{out}\n"
            f"next: stratascope plan --model Qwen/Qwen2.5-VL-7B-Instruct --examples {self.folder / ROWS} --images {self.image_folder} "
            f"--prompt {self.prompt}"
        )


def convert_benchmark(
    benchmark: str, files: Path | str | Sequence[Path | str], folder: Path | str, *, progress: bool = False
) -> ConversionReport:
    """Write the questions of published files as rows that `load_examples` reads, and their images as files.

    `folder` then holds `rows.jsonl` and, if the files hold images, `images/`; images are written byte for byte, equal ones once.

    Parameters
    ----------
    benchmark
        Name of one of `BENCHMARKS`.
    files
        Its files as published: Parquet, TSV, or for SPHERE JSON.
    folder
        Output folder; created if it does not exist.
    progress
        Whether to show a progress bar.

    Raises
    ------
    InvalidInputError
        Naming file, row and reason: no such benchmark; a file that cannot be read or does not have the published columns; a row of another
        form; an id that occurs twice; or a folder that already holds rows or images.
    MissingExtraError
        If a file is Parquet and pyarrow is not installed.
    """
    chosen, out = benchmark_of(benchmark), Path(folder)
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(f) for f in files]
    if not paths:
        raise InvalidInputError(f"expected at least one file of {chosen.title}, found none")
    for name in (ROWS, IMAGES):
        if (out / name).exists():
            raise InvalidInputError(f"expected no {out / name} yet, found one; choose another folder, or remove it")
    out.mkdir(parents=True, exist_ok=True)
    images, groups, left_out = _Images(out / IMAGES), Counter[str](), 0
    partial = out / f"{ROWS}.part"
    try:
        with partial.open("w", encoding="utf-8") as file:
            for row in _questions(chosen, paths, images, progress):
                if row is None:
                    left_out += 1
                    continue
                groups[row["relation"]] += 1
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        if not groups:
            what = f"{left_out:,} without options alone" if left_out else "none"
            raise InvalidInputError(f"expected at least one question, found {what} in {', '.join(map(str, paths))}")
        partial.replace(out / ROWS)
    except BaseException:
        partial.unlink(missing_ok=True)
        shutil.rmtree(out / IMAGES, ignore_errors=True)
        raise
    where = str(out / IMAGES) if chosen.image else chosen.folder
    return ConversionReport(out, chosen.name, chosen.prompt, groups.total(), images.count, dict(groups), left_out, where)


def _questions(chosen: Benchmark, paths: Sequence[Path], images: _Images, progress: bool) -> Iterator[dict[str, Any] | None]:
    """The rows of all files as questions, None for those without options; their images are written."""
    seen, number = dict[str, str](), 0
    rows = ((path, *found) for path in paths for found in _rows(path, chosen))
    for path, where, fields in progress_bar(rows, chosen.name, unit="row", show=progress):
        try:
            found = chosen.read(fields)
            if found is None:
                yield None
                continue
            question = {name: value for name, value in found.items() if value is not None}
            if not chosen.image:
                question = {"relation": path.stem, **question, "id": f"{path.stem}-{question['id']}"}
            if question["id"] in seen:
                raise ValueError(f"expected a new id, found {question['id']!r} again (first in {seen[question['id']]})")
            seen[question["id"]] = where
            name = str(question.get("image_source") or question["id"])
            image = images.write(path, fields, chosen.image, name) if chosen.image else images.named(question["image"])
            further = [column for column in chosen.further_images if fields.get(column) is not None]
            number = number or len(further) + 1
            if len(further) + 1 != number:
                raise ValueError(f"expected as many images as in the first row, {number}, found {len(further) + 1}; convert them apart")
            images_of = [image, *(images.write(path, fields, column, name) for column in further)]
        except ValueError as error:
            raise InvalidInputError(f"{where}: {error}; give the files of {chosen.title} as they are published") from error
        yield {**question, "image": images_of if further else image, "split": _SHARD.sub("", path.stem)}


class _Images:
    """Images written so far, by content."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_content: dict[bytes, str] = {}
        self._by_index: dict[tuple[Path, str], str] = {}
        self._names: set[str] = set()
        self._published: set[str] = set()

    @property
    def count(self) -> int:
        """Number of different images."""
        return len(self._by_content) + len(self._published)

    def named(self, name: str) -> str:
        """Count an image that is published elsewhere; its name."""
        self._published.add(name)
        return name

    def write(self, path: Path, fields: Mapping[str, Any], column: str, name: str) -> str:
        """Write the image in a column of a row; its file name. ValueError if it is no image."""
        value = fields.get(column)
        if isinstance(value, str) and len(value) <= _REFERENCE and (path, value.strip()) in self._by_index:
            return self._by_index[path, value.strip()]
        data = _image_bytes(value, column)
        content = hashlib.sha256(data).digest()
        if content not in self._by_content:
            self._by_content[content] = self._written(data, _UNSAFE.sub("_", name))
        found = self._by_content[content]
        if "index" in fields:
            self._by_index[path, str(fields["index"]).strip()] = found
        return found

    def _written(self, data: bytes, stem: str) -> str:
        try:
            with Image.open(io.BytesIO(data)) as image:
                form = str(image.format)
        except _IMAGE_ERRORS as error:
            raise ValueError(f"expected an image, found what cannot be decoded ({type(error).__name__})") from error
        suffix = _SUFFIX.get(form, form.lower())
        name = next(name for name in chain([f"{stem}.{suffix}"], (f"{stem}-{k}.{suffix}" for k in count(2))) if name not in self._names)
        self._names.add(name)
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / name).write_bytes(data)
        return name


def _image_bytes(value: Any, column: str) -> bytes:
    """Bytes of an image as the Hub's datasets hold it, {"bytes": ..., "path": ...}, or in base64."""
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if isinstance(value, str):
        try:
            value = base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(f"expected an image in base64 in column {column!r}, found: {error}") from error
    if not isinstance(value, bytes) or not value:
        raise ValueError(f"expected the bytes of an image in column {column!r}, found {type(value).__name__}")
    return value


def _rows(path: Path, benchmark: Benchmark) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(location, fields) of each row of a file."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet_rows(path, benchmark)
    if kind == ".tsv":
        return _tsv_rows(path, benchmark)
    if kind == ".json":
        return _json_rows(path, benchmark)
    raise InvalidInputError(
        f"{path}: expected a file of {benchmark.title} that ends in .parquet, .tsv or .json, found {kind or 'no ending'}"
    )


def _parquet_rows(path: Path, benchmark: Benchmark) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: reading Parquet needs a package that is not installed (no module {error.name!r}): run pip install "
            "'stratascope[parquet]', or in a checkout pip install '.[parquet]'"
        ) from error
    number = 0
    try:
        with closing(ParquetFile(path)) as file:
            _check_columns(path, benchmark, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=_BATCH):
                for fields in batch.to_pylist():
                    yield f"{path}, row {number}", fields
                    number += 1
    except (OSError, ArrowException) as error:
        raise InvalidInputError(f"{path}: expected a readable Parquet file, found: {error}; check the path, or fetch it again") from error


def _tsv_rows(path: Path, benchmark: Benchmark) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows with the texts that are there; what pandas takes for a missing value is none, as in VLMEvalKit."""
    number = 0
    try:
        with pd.read_csv(path, sep="\t", dtype=str, chunksize=_BATCH) as pieces:
            for piece in pieces:
                _check_columns(path, benchmark, list(piece.columns))
                for fields in piece.to_dict("records"):
                    yield f"{path}, row {number}", {str(name): value for name, value in fields.items() if isinstance(value, str)}
                    number += 1
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise InvalidInputError(f"{path}: expected a readable table separated by tabs, found: {error}; check the path") from error


def _json_rows(path: Path, benchmark: Benchmark) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        rows = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path}: expected a JSON list of questions, found: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InvalidInputError(f"{path}: expected a JSON list of questions, found {type(rows).__name__}")
    for number, fields in enumerate(rows):
        _check_columns(path, benchmark, list(fields))
        yield f"{path}, row {number}", fields


def _check_columns(path: Path, benchmark: Benchmark, columns: Sequence[str]) -> None:
    missing = [name for name in benchmark.needs if name not in columns]
    if missing:
        raise InvalidInputError(
            f"{path}: expected the columns of {benchmark.title}, found none of name {', '.join(missing)}; there are "
            f"{', '.join(columns) or 'none'}"
        )
