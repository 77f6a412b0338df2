"""Marks that only their colours tell apart differ for colour-blind readers too."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import pytest

from stratascope.figures.layer_profiles import PART_COLOURS
from stratascope.figures.style import COLOURS
from stratascope.report.viewer.page_files import page_file

SIGHT = {
    "normal": np.eye(3),
    # Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
    "without the middle cones": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "without the long cones": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}
APART = 15.0
"""In CIE 1976 units, in which 2.3 can just be seen side by side."""


def seen(colour: str, matrix: Sequence[Sequence[float]]) -> np.ndarray:
    """A colour such as #0072B2 as it is seen, in CIE L*a*b*."""
    share = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratio = to_xyz @ np.clip(np.array(matrix) @ linear, 0, 1) / [0.9505, 1, 1.089]
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def palettes() -> dict[str, list[str]]:
    themes = re.findall(r"--c0:.*?--c6:\s*#\w+", page_file("viewer.css").decode(), re.S)
    shown = {f"viewer {k}": re.findall(r"--c\d:\s*(#\w{6})", theme) for k, theme in enumerate(themes)}
    style = files("stratascope.report").joinpath("shell", "page.css").read_text("utf-8")
    for k, theme in enumerate(re.findall(r"--c1:.*?--c7:\s*#\w+", style)):
        of_page = dict(zip(COLOURS, re.findall(r"--c\d:\s*(#\w{6})", theme), strict=True))
        shown[f"parts in a report {k}"] = [of_page.get(colour, colour) for colour in PART_COLOURS.values()]
    return {"parts in figures": list(PART_COLOURS.values()), "lines in figures": list(COLOURS), **shown}


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_differ(sight: str) -> None:
    found = palettes()
    assert len(found) == 2 + 3 + 3, "figures; the viewer and a report: light, dark, and dark by choice or in print"
    for name, colours in found.items():
        assert len(colours) == 7
        for one, other in itertools.combinations(colours, 2):
            distance = np.linalg.norm(seen(one, SIGHT[sight]) - seen(other, SIGHT[sight]))
            assert distance > APART, f"{name}: {one} and {other}"
