"""Examples from VSR files, published or generated: JSONL rows with image, caption, label and relation."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stratascope.datasets.boxes import Box, BoxIndex
from stratascope.datasets.captions import CaptionParts, split_caption
from stratascope.errors import InvalidInputError

_NEEDED = {"image": str, "caption": str, "relation": str}


@dataclass(frozen=True)
class Example:
    """One image, one caption, one relation, one true/false label."""

    id: str
    """Unique; the row's own `id`, or file stem and line number."""
    image: str
    """File name within the folder of images."""
    caption: str
    relation: str
    label: bool
    split: str
    """The row's own `split`, or the stem of its file."""
    parts: CaptionParts
    """Character intervals of subject, relation and object within the caption."""
    subject_box: Box | None = None
    object_box: Box | None = None
    """Gold box (x0, y0, x1, y1) in the image file's pixels, where it is known and unambiguous."""
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The row's other plain fields."""

    @property
    def subject(self) -> str:
        return self.caption[slice(*self.parts.subject)]

    @property
    def object(self) -> str:
        return self.caption[slice(*self.parts.object)]


def load_examples(files: Path | str | Sequence[Path | str], boxes: BoxIndex | None = None) -> list[Example]:
    """Examples of one or more JSONL files, in order.

    Rows hold `image`, `caption`, `relation`, `label` (0/1 or true/false) and may hold `id` and `split`; the published VSR
    files and those of `write_scenes` are of this form. Other scalar fields are kept as they are.

    Raises
    ------
    InvalidInputError
        Naming file, line and reason: an unreadable file, a row that is not a JSON object, a missing or wrong field, a caption
        without its relation, an id that occurs twice.
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(f) for f in files]
    if not paths:
        raise InvalidInputError("expected at least one file of examples, found none; pass --examples FILE.jsonl")
    examples: list[Example] = []
    seen: dict[str, str] = {}
    for path in paths:
        for number, line in _lines(path):
            where = f"{path}, line {number}"
            example = _example(line, where, f"{path.stem}-{number:06d}", path.stem, boxes)
            if example.id in seen:
                raise InvalidInputError(
                    f"{where}: expected a new id, found {example.id!r} again (first in {seen[example.id]}); "
                    "give the rows ids of their own, or rename a file whose name occurs twice"
                )
            seen[example.id] = where
            examples.append(example)
    if not examples:
        raise InvalidInputError(f"expected at least one row, found none in {', '.join(map(str, paths))}")
    return examples


def files_digest(files: Iterable[Path | str]) -> dict[str, str]:
    """File name -> SHA-256 of its bytes, for provenance."""
    return {Path(f).name: hashlib.sha256(Path(f).read_bytes()).hexdigest() for f in files}


def describe(examples: Sequence[Example]) -> str:
    """One line: how many examples, images and relations, the share of true labels, and how many boxes were found."""
    images = len({e.image for e in examples})
    relations = Counter(e.relation for e in examples)
    true = sum(e.label for e in examples) / len(examples)
    boxed = sum(e.subject_box is not None and e.object_box is not None for e in examples)
    return f"{len(examples):,} examples on {images:,} images, {len(relations)} relations, {true:.1%} true; both boxes known for {boxed:,}"


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path}: expected a readable UTF-8 file of JSON lines, found: {error}") from error
    return [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def _example(line: str, where: str, default_id: str, default_split: str, boxes: BoxIndex | None) -> Example:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidInputError(f"{where}: expected one JSON object a line, found: {error}") from error
    if not isinstance(row, dict):
        raise InvalidInputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    for key, kind in _NEEDED.items():
        if not isinstance(row.get(key), kind) or not row[key].strip():
            raise InvalidInputError(f"{where}: expected text in field {key!r}, found {row.get(key)!r}")
    label = row.get("label")
    if isinstance(label, str) or label not in (0, 1):
        raise InvalidInputError(f"{where}: expected label 0 or 1, found {label!r}")
    if Path(row["image"]).is_absolute() or ".." in Path(row["image"]).parts:
        raise InvalidInputError(f"{where}: expected an image's name within the folder of images, found {row['image']!r}")
    try:
        parts = split_caption(row["caption"], row["relation"])
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from error
    caption = row["caption"]
    subject_box = boxes.match(row["image"], caption[slice(*parts.subject)]) if boxes else None
    object_box = boxes.match(row["image"], caption[slice(*parts.object)]) if boxes else None
    used = {*_NEEDED, "id", "label", "split"}
    return Example(
        id=str(row.get("id") or default_id),
        image=row["image"],
        caption=caption,
        relation=row["relation"],
        label=bool(label),
        split=str(row.get("split") or default_split),
        parts=parts,
        subject_box=subject_box,
        object_box=object_box,
        extra={k: v for k, v in row.items() if k not in used and isinstance(v, str | int | float | bool)},
    )
