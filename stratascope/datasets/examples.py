"""Load examples from VSR's JSON lines, CSV tables or What's Up lists."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from stratascope.datasets.boxes import BoxIndex
from stratascope.datasets.captions import marked_caption, split_caption
from stratascope.datasets.example import LETTERS, Example
from stratascope.datasets.image_files import NUMBERED, has_images, image_names, numbered_fields
from stratascope.datasets.progress import progress_bar
from stratascope.datasets.question_rows import FIELDS, are_question_rows, question_example
from stratascope.datasets.questions import add_questions, are_questions, load_captions
from stratascope.datasets.table import Row, csv_table, is_csv, json_lines_table, read_text, text_field
from stratascope.errors import InvalidInputError

__all__ = ["Example", "describe", "files_digest", "load_examples"]

_NEEDED = ("image", "caption", "relation")
_USED = {*_NEEDED, "id", "label", "split"}
_SCALARS = (str, int, float, bool)
_LABELS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
"""Spellings of labels in spreadsheets."""
_NEEDS = "a row needs image, caption and relation, and a label for the task truth"


def load_examples(
    files: Path | str | Sequence[Path | str],
    boxes: BoxIndex | None = None,
    choices: Sequence[str] | None = None,
    *,
    progress: bool = False,
) -> list[Example]:
    """Load the examples of one or more files, in order.

    Rows hold `image`, `caption` and `relation`; those with several images hold a list of names in `image`, or one name in each of
    `image_1`, `image_2`, and so on, the same number in every row. All of them or none hold a `label` (0/1 or true/false); they may hold
    `id` and `split`. The published VSR files and those of `write_scenes` have this form. Other scalar fields are kept unchanged. A file
    that ends in .csv is a table with these columns (see `stratascope.datasets.table`). JSON lines with `image`, `question` and `answer`
    hold questions (see `stratascope.datasets.question_rows`). A JSON list is read as one of What's Up's data sets, and a file of
    questions after it sets their wording (see `stratascope.datasets.questions`).

    Parameters
    ----------
    boxes
        Gold boxes, matched with images by file name and with subjects and objects by name.
    choices
        Answer choices of a multiple-choice prompt: each row of What's Up's data sets then becomes one example, labelled by
        the index of the right choice; for questions with options, their letters. By default each caption becomes one example, true or
        false, and questions are those answered by yes or no.
    progress
        Whether to show a progress bar.

    Raises
    ------
    InvalidInputError
        Naming file, line and reason: an unreadable file, a row that is not a JSON object, a missing or wrong field, a caption
        without its relation, an id that occurs twice, labels in some rows alone; or boxes of none of the images.
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(f) for f in files]
    if not paths:
        raise InvalidInputError("expected at least one file of examples, found none; give a JSON lines or CSV file")
    examples: list[Example] = []
    seen: dict[str, str] = {}
    for path in paths:
        own = _of_file(path, choices, examples, progress)
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
    if len({example.is_question for example in examples}) > 1:
        raise InvalidInputError("expected captions or questions, found both; load them apart")
    if len({bool(example.choices) for example in examples}) > 1:
        raise InvalidInputError("expected labels of one kind, found true or false captions beside questions with choices; load them apart")
    counts = sorted({len(example.images) for example in examples})
    if len(counts) > 1:
        odd = next(example for example in examples if len(example.images) != len(examples[0].images))
        raise InvalidInputError(
            f"{seen[odd.id]}: expected as many images as in the first row, {len(examples[0].images)}, found {len(odd.images)}; load "
            "examples with different numbers of images apart"
        )
    if boxes is not None and counts[0] > 1:
        raise InvalidInputError(
            f"expected one image an example for `boxes`, found {counts[0]}: a box does not name its image; leave `boxes` out"
        )
    unlabelled = [example for example in examples if example.label is None]
    if 0 < len(unlabelled) < len(examples):
        raise InvalidInputError(
            f"{seen[unlabelled[0].id]}: expected a label in every row or in none, found none in {len(unlabelled):,} of {len(examples):,} "
            "rows; label all, or leave the label out of all"
        )
    if boxes is None:
        return examples
    boxes = boxes.of_images(example.image for example in examples)
    return [_with_boxes(example, boxes) for example in examples]


def _with_boxes(example: Example, boxes: BoxIndex) -> Example:
    """The example with boxes and instance counts of its subject and object.

    An example whose image is not listed is returned as it is.
    """
    if not boxes.lists(example.image):
        return example
    subject = boxes.instances(example.image, example.subject)
    found = boxes.instances(example.image, example.object)
    return replace(
        example,
        subject_box=subject[0] if len(subject) == 1 else None,
        object_box=found[0] if len(found) == 1 else None,
        subject_instances=len(subject),
        object_instances=len(found),
    )


def files_digest(files: Iterable[Path | str]) -> dict[str, str]:
    """File name -> SHA-256 of its bytes, for provenance; of files of one name, the second is called `name (2)`."""
    found: dict[str, str] = {}
    for path in map(Path, files):
        again = sum(name == path.name or name.startswith(f"{path.name} (") for name in found)
        found[f"{path.name} ({again + 1})" if again else path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def describe(examples: Sequence[Example]) -> str:
    """Lines of text: counts of examples, images, relations, labels and boxes."""
    images = len({name for e in examples for name in e.images})
    relations = len({e.relation for e in examples})
    known = [e.label for e in examples if e.label is not None]
    labels = f"{sum(known) / len(known):.1%} true" if known else "no labels"
    if examples[0].choices:
        right = Counter(e.choices[label] for e, label in zip(examples, known, strict=True))
        offered = dict.fromkeys(choice for e in examples for choice in e.choices)
        labels = "right answers " + ", ".join(f"{choice} {right[choice]:,}" for choice in offered)
    lines = [f"{len(examples):,} examples on {images:,} images, {relations} relations; {labels}"]
    if any(e.subject_instances is not None for e in examples):
        listed = {e.image for e in examples if e.subject_instances is not None}
        if len(listed) < images:
            lines.append(f"the file of boxes lists {len(listed):,} of {images:,} images")
        boxed = sum(e.subject_box is not None and e.object_box is not None for e in examples)
        lines.append(f"boxes known of both things in {boxed:,} examples")
        for name in ("subject", "object"):
            counts = [count for e in examples if (count := getattr(e, f"{name}_instances")) is not None]
            one, none = counts.count(1), counts.count(0)
            lines.append(f"  {name}: one such thing in the image {one:,}, several {len(counts) - one - none:,}, none {none:,}")
    return "\n".join(lines)


def _of_file(path: Path, choices: Sequence[str] | None, before: Sequence[Example], progress: bool) -> list[tuple[str, Example]]:
    """Examples of one file in any known format, each with its location; `before` holds those of earlier files."""
    text, stem = read_text(path), path.stem
    if is_csv(path):
        table = csv_table(path, text, as_text=("id", "split", "label", *_NEEDED, *NUMBERED))
        if table.rows and are_question_rows(table.rows[0]):
            table = csv_table(path, text, as_text=(*FIELDS, *LETTERS, *NUMBERED))
            return [(row.where, question_example(row, f"{stem}-{k:06d}", stem, choices)) for k, row in enumerate(table.rows, 1)]
        if not ({"caption", "relation"} <= set(table.columns) and has_images(dict.fromkeys(table.columns))):
            raise InvalidInputError(
                f"{path}: expected a table with each of the columns image (or image_1, image_2, ...), caption and relation once, found "
                f"{', '.join(table.columns) or 'none'}; name them in the first line, separated by commas"
            )
        return [(row.where, _example(_labelled(row), f"{stem}-{k:06d}", stem)) for k, row in enumerate(table.rows, 1)]
    if text.lstrip().startswith("["):
        found = load_captions(path, text, choices)
        return [(f"{path}, row {k}", example) for k, example in enumerate(found)]
    rows = json_lines_table(path, text).rows
    if rows and are_questions(rows[0]):
        last = before[-1].split if before else None
        found = add_questions(path, rows, [example for example in before if example.split == last], choices)
        return [(f"{path}, row {k}", example) for k, example in enumerate(found)]
    shown = progress_bar(rows, "examples", unit="row", show=progress)
    if rows and are_question_rows(rows[0]):
        return [(row.where, question_example(row, f"{stem}-{row.line:06d}", stem, choices)) for row in shown]
    return [(row.where, _example(row, f"{stem}-{row.line:06d}", stem)) for row in shown]


def _labelled(row: Row) -> Row:
    """A row of CSV with its label as a number."""
    label = row.fields.get("label", "")  # missing where the cell is empty
    return replace(row, fields={**row.fields, "label": _LABELS[label.lower()]}) if label.lower() in _LABELS else row


def _shown(row: Row, key: str) -> str:
    return json.dumps(row.fields[key], ensure_ascii=False)[:160] if key in row.fields else "none"


def _example(row: Row, default_id: str, default_split: str) -> Example:
    where, fields = row.where, row.fields
    for key in _NEEDED[not isinstance(fields.get("image"), str) and has_images(fields) :]:
        if not isinstance(fields.get(key), str):
            raise InvalidInputError(f"{where}: expected text in field {key!r}, found {_shown(row, key)}; {_NEEDS}")
    label = fields.get("label")
    if label is not None and (isinstance(label, str) or label not in (0, 1)):
        raise InvalidInputError(f"{where}: expected label 0 or 1, found {_shown(row, 'label')}; {_NEEDS}")
    try:
        image, *further = image_names(fields)
        caption, relation = fields["caption"], fields["relation"]
        if "[/" in caption:
            caption, parts = marked_caption(caption, relation)
        else:
            parts = split_caption(caption, relation)
    except InvalidInputError as error:
        raise InvalidInputError(f"{where}: {error}") from error
    name, split = text_field(row, "id"), text_field(row, "split")
    return Example(
        id=default_id if name is None else name,
        image=image,
        caption=caption,
        relation=relation,
        label=None if label is None else int(label),
        split=default_split if split is None else split,
        parts=parts,
        further_images=tuple(further),
        extra={k: v for k, v in fields.items() if k not in _USED | numbered_fields(fields) and isinstance(v, _SCALARS)},
    )
