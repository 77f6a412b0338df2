"""Examples from files: VSR's JSONL rows or a CSV table, with image, caption, label and relation; What's Up's lists."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stratascope.datasets.boxes import BoxIndex
from stratascope.datasets.captions import split_caption
from stratascope.datasets.csv_rows import csv_lines
from stratascope.datasets.example import Example
from stratascope.datasets.image_files import image_path
from stratascope.datasets.questions import add_questions, are_questions, load_captions, plain_text
from stratascope.errors import InvalidInputError

__all__ = ["Example", "describe", "files_digest", "load_examples"]

_NEEDED = {"image": str, "caption": str, "relation": str}
_NEEDS = "a row needs image, caption, relation and label"


def load_examples(
    files: Path | str | Sequence[Path | str], boxes: BoxIndex | None = None, choices: Sequence[str] | None = None
) -> list[Example]:
    """Examples of one or more files, in order.

    Rows hold `image`, `caption`, `relation`, `label` (0/1 or true/false) and may hold `id` and `split`; the published VSR
    files and those of `write_scenes` are of this form. Other scalar fields are kept as they are. A file that ends in .csv is a table
    with these columns. A JSON list is read as one of What's Up's data sets, and a file of questions after it gives the wording
    (`stratascope.datasets.questions`).

    Parameters
    ----------
    boxes
        Matched with subjects and objects by name.
    choices
        Of a prompt that asks for one of several answers: rows of What's Up's data sets then become one example each, labelled by
        the number of the right choice. Without, they become one a caption, true or false.

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
        own = _of_file(path, boxes, choices, examples)
        if own and own[0][1].question is not None:  # the same examples as before, now with questions
            del examples[-len(own) :]
            seen = {example.id: seen[example.id] for example in examples}
        for where, example in own:
            if example.id in seen:
                raise InvalidInputError(
                    f"{where}: expected a new id, found {example.id!r} again (first in {seen[example.id]}); "
                    "give the rows ids of their own, or rename a file whose name occurs twice"
                )
            seen[example.id] = where
            examples.append(example)
    if not examples:
        raise InvalidInputError(f"expected at least one row, found none in {', '.join(map(str, paths))}")
    if len({bool(example.choices) for example in examples}) > 1:
        raise InvalidInputError("expected labels of one kind, found true or false captions beside questions with choices; load them apart")
    return examples


def files_digest(files: Iterable[Path | str]) -> dict[str, str]:
    """File name -> SHA-256 of its bytes, for provenance; of files of one name, the second is called `name (2)`."""
    found: dict[str, str] = {}
    for path in map(Path, files):
        again = sum(name == path.name or name.startswith(f"{path.name} (") for name in found)
        found[f"{path.name} ({again + 1})" if again else path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def describe(examples: Sequence[Example]) -> str:
    """How many examples, images and relations, how the labels are divided, and what became of the boxes."""
    images = len({e.image for e in examples})
    relations = len({e.relation for e in examples})
    labels = f"{sum(e.label for e in examples) / len(examples):.1%} true"
    if examples[0].choices:
        right = Counter(e.choices[e.label] for e in examples)
        labels = "right answers " + ", ".join(f"{choice} {right[choice]:,}" for choice in examples[0].choices)
    lines = [f"{len(examples):,} examples on {images:,} images, {relations} relations; {labels}"]
    if examples[0].subject_instances is not None:
        boxed = sum(e.subject_box is not None and e.object_box is not None for e in examples)
        lines.append(f"boxes known of both things in {boxed:,} examples")
        for name in ("subject", "object"):
            counts = [getattr(e, f"{name}_instances") for e in examples]
            one, none = counts.count(1), counts.count(0)
            lines.append(f"  {name}: one such thing in the image {one:,}, several {len(counts) - one - none:,}, none {none:,}")
    return "\n".join(lines)


def _of_file(path: Path, boxes: BoxIndex | None, choices: Sequence[str] | None, before: Sequence[Example]) -> list[tuple[str, Example]]:
    """The examples of one file, whichever of the known forms it has, and where each stands; `before` are those of the files before it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path}: expected a readable UTF-8 file of JSON lines, found: {error}") from error
    if path.suffix.lower() == ".csv":
        return [
            (f"{path}, line {n}", _example(line, f"{path}, line {n}", f"{path.stem}-{k:06d}", path.stem, boxes))
            for k, (n, line) in enumerate(csv_lines(path, text), 1)
        ]
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if text.lstrip().startswith("["):
        found = load_captions(path, text, choices, boxes)
    elif lines and are_questions(_row(lines[0][1], f"{path}, line {lines[0][0]}")):
        last = before[-1].split if before else None
        found = add_questions(path, lines, [example for example in before if example.split == last], choices)
    else:
        places = [f"{path}, line {n}" for n, _ in lines]
        return [
            (where, _example(line, where, f"{path.stem}-{n:06d}", path.stem, boxes)) for where, (n, line) in zip(places, lines, strict=True)
        ]
    return [(f"{path}, row {k}", example) for k, example in enumerate(found)]


def _row(line: str, where: str) -> Any:
    try:
        return plain_text(json.loads(line), line)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{where}: expected one JSON object a line, found: {error}") from error


def _shown(row: dict[str, Any], key: str) -> str:
    return json.dumps(row[key], ensure_ascii=False)[:160] if key in row else "none"


def _example(line: str, where: str, default_id: str, default_split: str, boxes: BoxIndex | None) -> Example:
    row = _row(line, where)
    if not isinstance(row, dict):
        raise InvalidInputError(f"{where}: expected a JSON object, found {type(row).__name__}")
    for key, kind in _NEEDED.items():
        if not isinstance(row.get(key), kind) or not row[key].strip():
            raise InvalidInputError(f"{where}: expected text in field {key!r}, found {_shown(row, key)}; {_NEEDS}")
    label = row.get("label")
    if isinstance(label, str) or label not in (0, 1):
        raise InvalidInputError(f"{where}: expected label 0 or 1, found {_shown(row, 'label')}; {_NEEDS}")
    try:
        image_path(Path(), row["image"])
        parts = split_caption(row["caption"], row["relation"])
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from error
    used = {*_NEEDED, "id", "label", "split"}
    example = Example(
        id=str(row.get("id") or default_id),
        image=row["image"],
        caption=row["caption"],
        relation=row["relation"],
        label=int(label),
        split=str(row.get("split") or default_split),
        parts=parts,
        extra={k: v for k, v in row.items() if k not in used and isinstance(v, str | int | float | bool)},
    )
    return boxes.add_to(example) if boxes else example
