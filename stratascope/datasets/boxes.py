"""Gold boxes in COCO's instances format, matched with the nouns of a caption."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from stratascope.datasets.image_names import ImageNames, path_parts
from stratascope.datasets.json_rows import json_rows
from stratascope.errors import InvalidInputError

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels: of the image as it was annotated, or of the photo once aligned with it (`box_alignment`)."""


_FLAGS = {"0": False, "1": True, "false": False, "true": True}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")

T = TypeVar("T")

_FIELDS = ("id", "image_id", "category_id", "bbox", "iscrowd")
"""Fields of an annotation that are kept."""


class BoxIndex:
    """Boxes by image file name and category name.

    Parameters
    ----------
    boxes
        File name -> category name -> boxes; a file name for every image that the annotations list, also without boxes.
    sizes
        File name -> (width, height) in pixels of the image as it was annotated.
    source
        Where they come from, for messages.
    """

    def __init__(
        self,
        boxes: Mapping[str, Mapping[str, list[Box]]],
        sizes: Mapping[str, tuple[float, float]] | None = None,
        source: str = "boxes",
    ) -> None:
        self._boxes = boxes
        self._sizes = sizes or {}
        self._names = ImageNames(boxes, source)
        self._file_of: Mapping[str, str] | None = None

    @classmethod
    def from_coco(cls, path: Path | str) -> BoxIndex:
        """Read COCO's `instances*.json`: images, annotations with `bbox` as [x, y, width, height], categories.

        Outlines are let go row by row: all of train2017 takes less than 1 GB of memory.

        Boxes that reach beyond their image by up to a pixel are cut to it.

        Raises
        ------
        InvalidInputError
            If the file is not of that form, an id or a file name occurs twice, or a box lies outside its image (the annotation is named).
        """
        images: dict[str, tuple[str, float, float]] = {}
        names: dict[str, str] = {}
        annotations: list[dict[str, Any]] = []
        try:
            with Path(path).open(encoding="utf-8-sig") as file:
                for key, row in json_rows(file):
                    if key == "images":
                        _whole(row, len(images))
                        size = _side(row, "width"), _side(row, "height")
                        _add_once(images, "image", row, (str(row["file_name"]), *size))
                    elif key == "categories":
                        _add_once(names, "category", row, str(row["name"]).strip())
                    elif key == "annotations":  # without its outline, which is most of the file
                        annotations.append({name: row[name] for name in _FIELDS if name in row})
            if not images or not names:
                raise ValueError("no images, or no categories")
        except (OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise InvalidInputError(
                f"{path}: expected COCO's instances format (images, annotations, categories), found: {_reason(error)}"
            ) from error
        _check_file_names({number: name for number, (name, _, _) in images.items()}, path)
        boxes: dict[str, dict[str, list[Box]]] = {name: defaultdict(list) for name, _, _ in images.values()}
        for row in _without_repeats(annotations, path):
            name, category, box = _annotation(row, images, names, path)
            if box is not None:
                boxes[name][category].append(box)
        sizes = {name: (width, height) for name, width, height in images.values()}
        return cls({name: dict(by_category) for name, by_category in boxes.items()}, sizes, str(path))

    def of_images(self, images: Iterable[str]) -> BoxIndex:
        """Match each image with one file name (`image_names.ImageNames`).

        Raises
        ------
        InvalidInputError
            If a file name could mean two images, an image two file names, or there is none of any image.
        """
        found = copy(self)
        found._file_of = self._names.find_all(images)
        return found

    def lists(self, image: str) -> bool:
        """Whether the annotations list `image`, with boxes or without."""
        return self._file(image) is not None

    def _file(self, image: str) -> str | None:
        return self._names.find(image) if self._file_of is None else self._file_of.get(image)

    def by_category(self, image: str) -> Mapping[str, list[Box]]:
        """Category name -> boxes of all its instances in `image`."""
        file = self._file(image)
        return {} if file is None else self._boxes[file]

    def instances(self, image: str, noun: str) -> list[Box]:
        """The boxes of all instances of `noun` in `image`."""
        return self.by_category(image).get(noun.strip().lower(), [])

    def others(self, image: str, nouns: Collection[str]) -> list[Box]:
        """Boxes of all objects in `image` except those named by `nouns`."""
        named = {noun.strip().lower() for noun in nouns}
        return [box for name, boxes in self.by_category(image).items() if name not in named for box in boxes]

    def annotated_size(self, image: str) -> tuple[float, float] | None:
        """(width, height) in pixels of the annotated image; None if unknown."""
        file = self._file(image)
        return None if file is None else self._sizes.get(file)

    def match(self, image: str, noun: str) -> Box | None:
        """Box of the only instance of `noun` in `image`; None if there is none or more than one."""
        found = self.instances(image, noun)
        return found[0] if len(found) == 1 else None


def _reason(error: Exception) -> str:
    return str(error) if type(error) is ValueError else f"{type(error).__name__} {error}"


def _whole(row: Any, number: int) -> None:
    """ValueError naming what an image's row lacks."""
    lacking = [name for name in ("id", "file_name", "width", "height") if not isinstance(row, dict) or name not in row]
    if lacking:
        raise ValueError(f"images[{number}] lacks {' and '.join(lacking)}{' (pixels)' if set(lacking) & {'width', 'height'} else ''}")


def _side(row: Mapping[str, Any], name: str) -> float:
    try:
        value = _read_number(row[name])
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"image {row['file_name']} with {name} {row[name]}")
    return value


def _annotation(
    row: Any, images: Mapping[str, tuple[str, float, float]], names: Mapping[str, str], path: Path | str
) -> tuple[str, str, Box | None]:
    try:
        name, width, height = images[_read_id(row["image_id"])]
        category = names[_read_id(row["category_id"])].lower()
        x, y, w, h = _read_numbers(row["bbox"])
        crowd = _read_flag(row.get("iscrowd"))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InvalidInputError(
            f"{path}: expected the image_id of an image, the category_id of a category, bbox [x, y, width, height] and iscrowd 0 or 1, "
            f"found {str(row)[:160]} ({_reason(error)})"
        ) from error
    if crowd or w <= 0 or h <= 0:  # COCO itself holds a few boxes without area
        return name, category, None
    inside = x >= -1 and y >= -1 and x + w <= width + 1 and y + h <= height + 1
    if not inside or not all(math.isfinite(v) for v in (x, y, w, h)):
        raise InvalidInputError(
            f"{path}: expected a box within {name} ({width:g} x {height:g}), found bbox {row['bbox']} in annotation {row.get('id')}"
        )
    return name, category, (max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height))


def _read_id(value: Any) -> str:
    """An id as text: 7 and "7" are the same id, "07" is another; ValueError for anything else."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
        raise ValueError(f"an id is a whole number or a text, not {str(value)[:80]!r}")
    return str(value)


def _read_number(value: Any) -> float:
    """A finite number, also where it is written as text; ValueError for anything else."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    if not plain and not (isinstance(value, str) and _NUMBER.fullmatch(value.strip())):
        raise ValueError(f"expected a number, found {str(value)[:80]!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite number, found {str(value)[:80]!r}")
    return number


def _read_numbers(value: Any) -> tuple[float, ...]:
    """The finite numbers of a list; ValueError for anything else."""
    if not isinstance(value, list):
        raise ValueError(f"expected a list of numbers, found {str(value)[:80]!r}")
    return tuple(map(_read_number, value))


def _read_flag(value: Any) -> bool:
    """A flag, which some programs write as text; absent means false. ValueError for anything else."""
    if value is None:
        return False
    text = str(value).strip().lower()
    if text not in _FLAGS:
        raise ValueError(f"expected 0 or 1, found {str(value)[:80]!r}")
    return _FLAGS[text]


def _add_once(found: dict[str, T], what: str, row: Mapping[str, Any], value: T) -> None:
    """Store a row's value by id; ValueError if another row of that id has another value."""
    number = _read_id(row["id"])
    if found.setdefault(number, value) != value:
        raise ValueError(f"{what} id {number} twice, for {found[number]} and {value}; give each {what} an id of its own")


def _check_file_names(file_of: Mapping[str, str], path: Path | str) -> None:
    """InvalidInputError where two image ids have one file name, because their boxes would be those of one photo."""
    owner: dict[tuple[str, ...], str] = {}
    for number, name in file_of.items():
        if (other := owner.setdefault(path_parts(name), number)) != number:
            raise InvalidInputError(
                f"{path}: expected a file name for each image, found {name} for the images {other} and {number}; write file_name with its "
                "folder, or give the photo one id"
            )


def _without_repeats(annotations: Iterable[Any], path: Path | str) -> list[Any]:
    """Annotations without exact repetitions.

    Raises
    ------
    InvalidInputError
        If two different ones have the same id.
    """
    first: dict[Any, Any] = {}
    kept = []
    for row in annotations:
        number = row.get("id") if isinstance(row, dict) else None
        known = number is not None and not isinstance(number, list | dict)
        if known and (other := first.setdefault(number, row)) is not row:
            if other != row:
                raise InvalidInputError(
                    f"{path}: expected an id of its own for each annotation, found id {number} for {str(other)[:100]} and {str(row)[:100]}"
                )
            continue
        kept.append(row)
    return kept


def cells_in_box(box: Box, image_size: tuple[float, float], grid: tuple[int, int]) -> np.ndarray:
    """Raster indices of the image cells whose centre is in `box`, or the nearest cell.

    Parameters
    ----------
    box
        (x0, y0, x1, y1) in pixels.
    image_size
        (width, height) of what the cells cover: the image file, or the part of it that the model sees.
    grid
        (rows, columns) of cells.

    Examples
    --------
    >>> cells_in_box((0, 0, 28, 56), (56, 56), (2, 2)).tolist()
    [0, 2]
    """
    rows, columns = grid
    y = (np.arange(rows) + 0.5) * image_size[1] / rows
    x = (np.arange(columns) + 0.5) * image_size[0] / columns
    inside = ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))[None]
    if not inside.any():
        row = int(np.abs(y - (box[1] + box[3]) / 2).argmin())
        column = int(np.abs(x - (box[0] + box[2]) / 2).argmin())
        return np.array([row * columns + column])
    return np.flatnonzero(inside)


def grid_cells(rows: int, columns: int, parts: int = 4) -> dict[str, np.ndarray]:
    """Raster indices of cells in each part of a `parts` x `parts` division of the image: `grid_0_0` is the upper left.

    A cell belongs to the part in which its centre lies; where an image has fewer cells than parts, the nearest cell stands in.
    """
    part_of_row = ((np.arange(rows) + 0.5) * parts / rows).astype(int)
    part_of_column = ((np.arange(columns) + 0.5) * parts / columns).astype(int)
    found = {}
    for r in range(parts):
        in_row = np.flatnonzero(part_of_row == r) if (part_of_row == r).any() else np.array([min(rows - 1, r * rows // parts)])
        for c in range(parts):
            in_column = (
                np.flatnonzero(part_of_column == c) if (part_of_column == c).any() else np.array([min(columns - 1, c * columns // parts)])
            )
            found[f"grid_{r}_{c}"] = (in_row[:, None] * columns + in_column).ravel()
    return found
