"""Boxes within the part of an image that a model's image cells cover. No torch."""

from __future__ import annotations

from stratascope.datasets.boxes import Box


def in_view(box: Box, view: Box) -> Box | None:
    """The part of `box` that lies in `view`, measured from the view's upper left corner; None where there is none."""
    x0, y0 = max(box[0], view[0]), max(box[1], view[1])
    x1, y1 = min(box[2], view[2]), min(box[3], view[3])
    return (x0 - view[0], y0 - view[1], x1 - view[0], y1 - view[1]) if x0 < x1 and y0 < y1 else None


def flipped(box: Box, width: float) -> Box:
    """The box in an image of that width after it was flipped left-right."""
    return width - box[2], box[1], width - box[0], box[3]


def view_size(view: Box) -> tuple[float, float]:
    """Width and height."""
    return view[2] - view[0], view[3] - view[1]


def is_whole(view: Box, width: int, height: int) -> bool:
    """Whether the view is the image itself."""
    return view == (0, 0, width, height)


def scaled(box: Box, old: tuple[float, float], new: tuple[float, float]) -> Box:
    """The box in an image of width and height `old` after that was resized to `new`."""
    x, y = new[0] / old[0], new[1] / old[1]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y
