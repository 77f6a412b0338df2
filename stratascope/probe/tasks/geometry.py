"""Where subject and object are in the picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store.format.prompt_parts import IMAGE_POSITION

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

Floats = NDArray[Any]
GEOMETRY = "box geometry"
"""Name of the baseline that reads box coordinates instead of activations."""
BOXES = {"subject_box": "subject", "object_box": "object"}
"""Position -> whose gold box selects its image tokens."""
TARGETS = ("subject_x", "subject_y", "object_x", "object_y", "offset_x", "offset_y")


def geometry_targets(examples: pd.DataFrame, *, mirrored: bool = False) -> Floats:
    """(example, 6) centres of the gold boxes and the offset from object to subject, NaN where a box is not known.

    x and y are fractions of the image's width and height, y downwards: an offset_y below 0 means that the subject is above.

    Parameters
    ----------
    examples
        The store's table, whose boxes are those of the image as it was.
    mirrored
        Whether the model was shown the image flipped left-right (condition `mirror`): the centres are then where it saw them.

    Raises
    ------
    NotRecordedError
        The store has no boxes.
    """
    corners = _corners(examples, mirrored=mirrored)
    subject, object_ = ((corners[who][:, :2] + corners[who][:, 2:]) / 2 for who in BOXES)
    return np.concatenate([subject, object_, subject - object_], axis=1)


def _corners(examples: pd.DataFrame, *, mirrored: bool) -> dict[str, Floats]:
    """Name of a box position -> (example, 4) x0, y0, x1, y1 as fractions of the image's width and height."""
    needed = [f"{who}_{side}" for who in ("subject", "object") for side in ("x0", "y0", "x1", "y1")]
    needed += ["image_width", "image_height"]
    absent = [name for name in needed if name not in examples.columns]
    if absent:
        raise NotRecordedError(
            f"box coordinates: expected columns {', '.join(needed)}, found no {', '.join(absent)}; extract with `boxes` (COCO instances)"
        )
    column = {name: pd.to_numeric(examples[name], errors="coerce").to_numpy(float) for name in needed}
    size = np.stack([column["image_width"], column["image_height"]] * 2, axis=1)
    corners = {}
    for position, who in BOXES.items():
        found = np.stack([column[f"{who}_{side}"] for side in ("x0", "y0", "x1", "y1")], axis=1) / size
        corners[position] = np.stack([1 - found[:, 2], found[:, 1], 1 - found[:, 0], found[:, 3]], axis=1) if mirrored else found
    return corners


def reads_image(position: str | None) -> bool:
    """Whether a position, or one of a pair (`subject_box+object_box`), consists of image tokens."""
    names = (position or "").split("+")
    return any(name == "image" or IMAGE_POSITION.fullmatch(name) or name.startswith("cell_") or name in BOXES for name in names)


def reads_boxes(position: str | None) -> bool:
    """Whether a position, or one of a pair, is selected by a gold box, so that it depends on where the box is."""
    return any(name in BOXES for name in (position or "").split("+"))


def geometry_features(store: ActivationStore, position: str) -> Floats:
    """(example, feature) coordinates of the gold boxes that select a position, NaN where a box is not known.

    Of one box x0, y0, x1, y1 as fractions of the image's width and height; of a pair of boxes those of both, then the subject's minus
    the object's. Under the condition `mirror` the coordinates are those in the flipped image.

    Parameters
    ----------
    store
        Its table has the boxes.
    position
        `subject_box`, `object_box`, or a pair with at least one of them, such as `subject_box+object_box`.

    Raises
    ------
    NotRecordedError
        The store has no boxes.
    InvalidInputError
        No gold box selects the position.

    Examples
    --------
    >>> geometry_features(boxed, "subject_box+object_box").shape
    (64, 12)
    """
    boxes = [name for name in position.split("+") if name in BOXES]
    if not boxes:
        raise InvalidInputError(f"expected a position of a box ({', '.join(BOXES)}) or a pair with one, found {position!r}; give another")
    corners = _corners(store.examples, mirrored=store.provenance.get("condition") == "mirror")
    parts = [corners[name] for name in boxes]
    return np.concatenate([*parts, corners["subject_box"] - corners["object_box"]] if len(parts) > 1 else parts, axis=1)
