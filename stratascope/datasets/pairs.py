"""Minimal pairs: examples whose caption has subject and object exchanged, or whose image is mirrored, with their labels."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps

from stratascope.datasets.box_alignment import align_image
from stratascope.datasets.boxes import Box, BoxIndex
from stratascope.datasets.captions import split_caption, written_caption
from stratascope.datasets.example import Example
from stratascope.datasets.examples import load_examples
from stratascope.datasets.image_files import image_path, read_image_file
from stratascope.datasets.progress import progress_bar
from stratascope.datasets.relations import relation_of
from stratascope.errors import InvalidInputError

VARIANTS = ("swapped", "mirrored", "inverse")
"""swapped: subject and object exchanged; mirrored: the image mirrored; inverse: both exchanged and the relation replaced by its inverse."""
COLUMNS = ("pair", "variant")
MOST_REASONS = 8
ROWS, IMAGES, BOXES = "pairs.jsonl", "images", "instances.json"
"""Files in the output folder."""

_SIDE = re.compile(r"\b(left|right)(?!\s+(?:of|side of)\b)", re.IGNORECASE)
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")
VERBS = ("contains", "has as a part", "consists of")
"""Relations that are verbs, before which there is no `is`."""
_VOWELS = "aeiou"


@dataclass(frozen=True)
class Variant:
    """One variant of an example, or the reason why there is none."""

    example: Example | None
    reason: str = ""


@dataclass(frozen=True)
class PairReport:
    """What `minimal_pairs` wrote."""

    folder: Path
    examples: int
    """Examples that were read."""
    pairs: int
    """Examples with at least one variant."""
    variants: Mapping[str, int]
    """Examples by variant."""
    excluded: Mapping[str, Mapping[str, int]]
    """Variant -> reason -> examples without that variant."""
    viewer: int = 0
    """Variants whose label presumes the viewer's frame of reference."""
    without_boxes: tuple[str, ...] = field(default=())
    """Images whose boxes do not fit the photo, with the reason."""

    def summary(self) -> str:
        """Lines of text: counts of pairs and variants, and what was left out and why."""
        made = ", ".join(f"{name} {count:,}" for name, count in self.variants.items())
        lines = [f"{self.pairs:,} of {self.examples:,} examples have a variant: {made}; rows in {self.folder / ROWS}"]
        for name, reasons in self.excluded.items():
            common = sorted(reasons.items(), key=lambda known: -known[1])
            lines += [f"  no {name} variant of {count:,}: {reason}" for reason, count in common[:MOST_REASONS]]
            if rest := sum(count for _, count in common[MOST_REASONS:]):
                lines.append(f"  no {name} variant of {rest:,}, for other reasons")
        if self.viewer:
            lines.append(f"{self.viewer:,} labels presume the viewer's frame of reference (left of, in front of)")
        lines += [f"boxes of {text}" for text in self.without_boxes[:5]]
        if len(self.without_boxes) > 5:
            lines.append(f"and of {len(self.without_boxes) - 5:,} more images")
        return "\n".join(lines)


def minimal_pairs(
    files: Path | str | Sequence[Path | str],
    images: Path | str,
    out: Path | str,
    *,
    boxes: Path | str | None = None,
    variants: Sequence[str] = ("swapped", "mirrored"),
    progress: bool = False,
) -> PairReport:
    """Write minimal pairs of examples as a data set that `extract` reads.

    `out` then holds `pairs.jsonl`, `images/` with the originals and their mirror images, and with `boxes` also `instances.json`. Every
    row has the columns `pair` (id of the original) and `variant` (original, swapped, mirrored, inverse). A variant is only made if its
    label follows from that of the original: a false caption of an asymmetric relation, such as "left of", may be false or true with subject
    and object exchanged.

    Parameters
    ----------
    files
        Files of true and false captions, as of `load_examples`.
    images
        Folder of their images.
    out
        Output folder; created if it does not exist.
    boxes
        COCO's instances format; boxes of mirrored images are mirrored.
    variants
        Of `VARIANTS`.
    progress
        Show a progress bar where stderr is a terminal.

    Raises
    ------
    InvalidInputError
        For an unknown variant, captions with several answer choices, examples that are variants already, an image that cannot be read, or
        if no example has a variant.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from stratascope.datasets import write_scenes
    >>> with TemporaryDirectory() as folder:
    ...     rows = write_scenes(Path(folder) / "scenes", 8, seed=0)
    ...     report = minimal_pairs(rows, rows.parent / "images", Path(folder) / "pairs")
    >>> report.examples, dict(report.variants)
    (8, {'swapped': 4, 'mirrored': 8})
    """
    unknown = sorted(set(variants) - set(VARIANTS))
    if unknown or not variants:
        raise InvalidInputError(f"expected `variants` of {', '.join(VARIANTS)}, found {', '.join(unknown) or 'none'}")
    source, folder = Path(images), Path(out)
    if folder.resolve() == source.resolve() or (folder / IMAGES).resolve() == source.resolve():
        raise InvalidInputError(
            f"expected `out` to be another folder than that of the images, found {folder}; the originals would be overwritten"
        )
    index = None if boxes is None else BoxIndex.from_coco(boxes)
    found = load_examples(files, progress=progress)
    if index is not None:
        index = index.of_images(example.image for example in found)
    _refuse_other_examples(found)
    kept: list[dict[str, Any]] = []
    counts, excluded, viewer = Counter[str](), {name: Counter[str]() for name in variants}, 0
    shown: dict[str, set[bool]] = {}
    for example in found:
        made = {name: variant_of(example, name) for name in variants}
        for name, variant in made.items():
            if variant.example is None:
                excluded[name][variant.reason] += 1
        there = {name: variant.example for name, variant in made.items() if variant.example is not None}
        if not there:
            continue
        relation = relation_of(example.relation)
        viewer += sum(_presumes_viewer(name, example) for name in there) if relation else 0
        counts.update(there.keys())
        for name, one in {"original": example, **there}.items():
            kept.append(_row(one, example.id, name))
            shown.setdefault(example.image, set()).add(name == "mirrored")
    if not kept:
        reasons = "; ".join(dict.fromkeys(reason for by_name in excluded.values() for reason in by_name))
        raise InvalidInputError(f"expected examples with a variant, found none of {len(found):,}: {reasons}")
    sizes = _write_images(source, folder / IMAGES, shown, progress)
    without = () if index is None else _write_boxes(index, folder / BOXES, sizes)
    (folder / ROWS).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), encoding="utf-8")
    pairs = len({row["pair"] for row in kept})
    left_out = {name: dict(by_reason) for name, by_reason in excluded.items() if by_reason}
    return PairReport(folder, len(found), pairs, {name: counts[name] for name in variants}, left_out, viewer, without)


def variant_of(example: Example, name: str) -> Variant:
    """The variant of an example, with its label; or the reason why its label does not follow.

    Parameters
    ----------
    name
        One of `VARIANTS`.
    """
    if example.label is None:
        return Variant(None, "the caption has no label")
    relation = relation_of(example.relation)
    if relation is None:
        return Variant(None, f"the relation {example.relation!r} is not in the table of relations")
    if name == "mirrored":
        if _SIDE.search(example.caption):
            return Variant(None, "the caption names left or right besides its relation")
        if relation.lateral and not example.label:
            return Variant(None, "a false caption about left or right can be true or false in the mirrored image")
        label = 0 if relation.lateral else example.label
        return Variant(replace(example, id=f"{example.id}-mirrored", image=mirrored_name(example.image), label=label))
    if example.parts.object is None:
        return Variant(None, "the caption is about one object")
    marked = example.parts.subject, example.parts.relation, example.parts.object
    if None in marked or list(marked) != sorted(marked):  # type: ignore[type-var]
        return Variant(None, "the caption is not of the form SUBJECT RELATION OBJECT")
    if name == "inverse":
        if relation.swap == "symmetric":
            return Variant(None, "the inverse of a symmetric relation is the relation itself: see the swapped variant")
        if not relation.inverse:
            return Variant(None, "no relation of the table is the inverse")
        return _with_caption(example, name, relation.inverse, example.label)
    if relation.swap == "undetermined":
        return Variant(None, "the relation is neither symmetric nor asymmetric, such as facing")
    if relation.swap == "asymmetric" and not example.label:
        return Variant(None, "a false caption of an asymmetric relation can be true or false with subject and object exchanged")
    return _with_caption(example, name, example.relation, example.label if relation.swap == "symmetric" else 0)


def mirrored_name(image: str) -> str:
    """File name of the mirrored image.

    >>> mirrored_name("train/7.jpg")
    'train/7.jpg.mirrored.png'
    """
    return f"{image}.mirrored.png"


def _with_caption(example: Example, name: str, relation: str, label: int) -> Variant:
    """The example with subject and object exchanged around a relation."""
    caption, parts = example.caption, example.parts
    subject, object_ = example.subject, example.object
    assert parts.subject
    assert parts.relation
    assert parts.object
    before = caption[parts.subject[1] : parts.relation[0]]
    if subject.lower() == object_.lower():
        return Variant(None, "subject and object have the same name")
    if re.search(r"\b(not|n't|never|no)\b", before, re.IGNORECASE):
        return Variant(None, "the caption is negated")
    if re.search(r"\b(are|were|have)\b", before, re.IGNORECASE):
        return Variant(None, "the verb is plural, the exchanged subject may not be")
    head, tail = caption[: parts.subject[0]], caption[parts.object[1] :]
    if relation in VERBS and example.relation.lower() not in VERBS:
        before = re.sub(r"\s+(is|was)\s+$", " ", before)
    elif example.relation.lower() in VERBS and relation not in VERBS:
        before = f"{before.rstrip()} is "
    middle = f"{before}{_cased(relation, caption[slice(*parts.relation)])}{caption[parts.relation[1] : parts.object[0]]}"
    if not head.strip():  # the sentence begins with the noun itself
        object_, subject = object_[:1].upper() + object_[1:], subject if subject[1:2].isupper() else subject[:1].lower() + subject[1:]
    swapped = f"{_article(head, object_)}{object_}{_article(middle, subject)}{subject}{tail}"
    try:
        found = split_caption(swapped, relation)
    except InvalidInputError:
        return Variant(None, "the exchanged caption cannot be split into subject, relation and object")
    made = replace(example, id=f"{example.id}-{name}", caption=swapped, relation=relation, label=label, parts=found, extra=example.extra)
    if made.subject != object_ or made.object != subject:
        return Variant(None, "the exchanged caption cannot be split into subject, relation and object")
    return Variant(made)


def _cased(relation: str, like: str) -> str:
    return like if relation.lower() == like.lower() else relation


def _article(text: str, noun: str) -> str:
    """Text whose last word, where it is `a` or `an`, goes with the noun that follows."""
    found = re.search(r"\b(an?)(\s+)$", text, re.IGNORECASE)
    if not found:
        return text
    an = "n" if noun[:1].lower() in _VOWELS else ""
    return f"{text[: found.start() + 1]}{an}{found.group(2)}"


def _presumes_viewer(variant: str, example: Example) -> bool:
    relation = relation_of(example.relation)
    assert relation is not None
    return relation.viewer and (variant != "mirrored" or relation.lateral)


def _refuse_other_examples(examples: Iterable[Example]) -> None:
    for example in examples:
        if example.is_question:
            raise InvalidInputError(f"example {example.id}: expected a true or false caption, found the question {example.caption!r}")
        if example.further_images:
            raise InvalidInputError(f"example {example.id}: expected one image, found {len(example.images)}; make pairs of single images")
        if example.choices:
            raise InvalidInputError(
                f"example {example.id}: expected a true or false caption, found one of the choices {', '.join(example.choices)}"
            )
        if used := [name for name in COLUMNS if name in example.extra]:
            raise InvalidInputError(
                f"example {example.id}: expected original examples, found the column {used[0]!r} already; give the file that the pairs "
                "were made from"
            )


def _row(example: Example, pair: str, variant: str) -> dict[str, Any]:
    own = {name: getattr(example, name) for name in ("id", "image", "caption", "relation", "label", "split")}
    own["caption"] = written_caption(example.caption, example.relation, example.parts)
    return {**own, "pair": pair, "variant": variant, **example.extra}


def _write_images(source: Path, folder: Path, shown: Mapping[str, set[bool]], progress: bool) -> dict[str, tuple[int, int, int, bool]]:
    """Copy originals and write mirror images; image -> width and height upright, EXIF orientation, whether it has a mirror image."""
    sizes = {}
    for name, mirrored in progress_bar(shown.items(), "images", len(shown), unit="image", show=progress):
        path = image_path(source, name)
        try:
            data = read_image_file(path)
            opened = Image.open(BytesIO(data))
            upright = ImageOps.exif_transpose(opened)
        except (OSError, InvalidInputError, Image.DecompressionBombError) as error:
            raise InvalidInputError(f"{path}: expected a readable image, found: {error}; remove its rows or correct the file") from error
        target = image_path(folder, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        if True in mirrored:
            _mirror(upright).save(image_path(folder, mirrored_name(name)), "PNG")
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        sizes[name] = (*upright.size, orientation if orientation in range(1, 9) else 1, True in mirrored)
    return sizes


def _mirror(image: Image.Image) -> Image.Image:
    return ImageOps.mirror(image if image.mode in _PNG_MODES else image.convert("RGB"))


def _write_boxes(index: BoxIndex, path: Path, sizes: Mapping[str, tuple[int, int, int, bool]]) -> tuple[str, ...]:
    """Boxes of all images and their mirror images in COCO's format; names and reasons of images whose boxes do not fit."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    refused: list[str] = []

    def add(name: str, size: tuple[float, float], boxes: Mapping[str, Sequence[Box]]) -> None:
        images.append({"id": len(images), "file_name": name, "width": size[0], "height": size[1]})
        for noun, known in boxes.items():
            number = categories.setdefault(noun, len(categories))
            for x0, y0, x1, y1 in known:
                row = {"image_id": len(images) - 1, "category_id": number, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
                annotations.append({"id": len(annotations), **row, "area": (x1 - x0) * (y1 - y0)})

    for name, (width, height, orientation, mirrored) in sizes.items():
        annotated = index.annotated_size(name)
        if not index.lists(name) or annotated is None:
            continue
        boxes = index.by_category(name)
        add(name, annotated, boxes)
        alignment = align_image(index, name, (width, height), orientation)
        if mirrored and alignment is not None and alignment.reason:
            refused.append(f"{name} are left out of its mirror image: {alignment.reason}")
        elif mirrored:
            moved = {noun: [box if alignment is None else alignment.apply(box) for box in known] for noun, known in boxes.items()}
            flipped = {noun: [(width - box[2], box[1], width - box[0], box[3]) for box in known if box] for noun, known in moved.items()}
            add(mirrored_name(name), (width, height), flipped)
    rows = [{"id": number, "name": noun} for noun, number in categories.items()]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": rows}))
    return tuple(refused)
